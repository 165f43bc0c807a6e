//! What of a guest's file, and of an object with a long name, is seen with kubectl.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    installation::{Installation, NODES, Tenant},
    lab::machine::{Disk, Plan},
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
const NODE: &str = NODES[0];

#[test]
fn a_label_that_leaves_the_guests_file_leaves_the_guest() {
    let tenant = Installation::shared().tenant();
    let machine = Plan::new().disk(Disk::raw("disk0", MIB)).start();
    let label = || tenant.get("guests.driftline.dev", "g")["metadata"]["labels"]["tier"].clone();
    tenant.declare_guest(NODE, "g", &machine.qmp(), "[labels]\ntier = \"gold\"\n");
    tenant.wait_for("guests.driftline.dev/g", "Ready", SOON);
    assert_eq!(label(), "gold");
    tenant.kubectl(["label", "guests.driftline.dev/g", "mine=stays"]).ok();
    tenant.declare_guest(NODE, "g", &machine.qmp(), "");
    tenant.wait_until("guests.driftline.dev/g", "without its label", SOON, || label().is_null().then_some(()));
    assert_eq!(tenant.get("guests.driftline.dev", "g")["metadata"]["labels"]["mine"], "stays");
}

#[test]
fn an_object_with_the_longest_name_has_its_events() {
    let tenant = Installation::shared().tenant();
    // Wherever such a name is cut, a dash may stand there.
    let name = format!("run-{}x", "x-".repeat(124));
    tenant.back_up(&name, "nobody", "nowhere");
    let note = tenant.event(&name, "GuestNotFound", SOON);
    assert!(note.contains("nobody"), "{note}");
}

/// A Guest as the controller left it on a node that has no agent any more.
fn left_on(tenant: &Tenant, node: &str, name: &str, conditions: Value) {
    let labels = json!({ "app.kubernetes.io/managed-by": "driftline" });
    let object = json!({
        "apiVersion": "driftline.dev/v1alpha1", "kind": "Guest", "metadata": { "name": name, "labels": labels }, "spec": {},
    });
    tenant.installation.plane.apply(&tenant.namespace, &object.to_string()).ok();
    tenant.refusal(&format!("guests.driftline.dev/{name}"), "Ready", SOON);
    let mut status = json!({ "status": { "node": node } });
    if !conditions.is_null() {
        status["status"]["conditions"] = conditions;
    }
    let status = status.to_string();
    tenant.kubectl(["patch", "guests.driftline.dev", name, "--subresource=status", "--type=merge", "-p", &status]).ok();
}

#[test]
fn a_guest_of_a_node_without_an_object_says_so_and_goes_when_its_time_is_over() {
    let tenant = Installation::shared().tenant();
    let (here, gone) = (format!("{}-here", tenant.namespace), format!("{}-gone", tenant.namespace));
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": here } });
    tenant.installation.plane.apply(&tenant.namespace, &node.to_string()).ok();
    let says = |name: &str, reason: &str| {
        tenant.wait_until(&format!("guests.driftline.dev/{name}"), reason, SOON, || {
            let ready = tenant.condition(&format!("guests.driftline.dev/{name}"), "Ready")?;
            (ready["reason"] == reason).then_some(ready)
        })
    };
    left_on(&tenant, &here, "stays", Value::Null);
    assert_eq!(says("stays", "AgentUnavailable")["status"], "Unknown");
    left_on(&tenant, &gone, "goes", Value::Null);
    let message = says("goes", "NodeGone")["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.contains(&gone) && message.contains("This object is deleted at 20"), "{message}");
    assert_eq!(tenant.event("goes", "NodeGone", SOON), message);

    let long_ago = json!([{
        "type": "Ready", "status": "False", "reason": "NodeGone", "message": "m", "lastTransitionTime": "2020-01-01T00:00:00Z",
    }]);
    left_on(&tenant, &gone, "went", long_ago);
    tenant.wait_until("guests.driftline.dev/went", "deleted", SOON, || {
        let answer = tenant.kubectl(["get", "guests.driftline.dev", "went"]);
        answer.stderr().contains("NotFound").then_some(())
    });
    let note = tenant.event("went", "Forgotten", SOON);
    assert!(note.contains("restore points stay"), "{note}");
    tenant.kubectl(["get", "guests.driftline.dev", "goes", "stays"]).ok();
    tenant.installation.plane.kubectl(["delete", "node", &here]).ok();
}
