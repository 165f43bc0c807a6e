//! A run is steered by its spec: its bandwidth changes while it copies, also by an agent that was started again since; it is
//! suspended before it starts, and refuses to be where it is not fleeced.
//!
//! The first test has an installation of its own: what it kills is what the others use.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    installation::{Installation, NODES, Tenant},
    lab::{
        child::wait_for,
        machine::{Disk, Format, Machine, Plan},
        reference::Reference,
    },
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(120);
const NODE: &str = NODES[0];

fn patch(tenant: &Tenant, run: &str, spec: &Value) {
    let spec = json!({ "spec": spec }).to_string();
    tenant.kubectl(["patch", &format!("backupruns.driftline.dev/{run}"), "--type=merge", "-p", &spec]).ok();
}

/// QEMU's own word.
fn wait_for_speed(machine: &Machine, speed: u64) {
    wait_for(&format!("the job's bandwidth is {speed}"), SOON, || {
        let jobs = machine.execute("query-block-jobs", json!({}));
        (jobs.as_array()?.first()?["speed"] == json!(speed)).then_some(())
    });
}

fn suspended(tenant: &Tenant, run: &str) -> Option<(String, String)> {
    let run = tenant.get("backupruns.driftline.dev", run);
    let conditions = run["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == "Suspended")?;
    Some((found["status"].as_str()?.to_owned(), found["reason"].as_str()?.to_owned()))
}

#[test]
fn the_bandwidth_of_a_run_follows_its_spec_whoever_is_started_again() {
    let (installation, _turn) = Installation::to_kill();
    let tenant = installation.tenant();
    let machine = Plan::new().disk(Disk::qcow2("disk0", 24 * MIB)).start();
    machine.write("disk0", 0x33, 0, 24 * MIB);
    tenant.repository(NODE, "local");
    tenant.guest(NODE, "g", &machine.qmp());
    let reference = Reference::take(&machine);
    let mut spec = tenant.backup_spec("g", "local");
    spec["transfer"] = json!({ "bandwidth": "256Ki" });
    tenant.create("BackupRun", "run", spec).ok();
    wait_for_speed(&machine, 256 << 10);
    patch(&tenant, "run", &json!({ "transfer": { "bandwidth": "512Ki" } }));
    wait_for_speed(&machine, 512 << 10);
    wait_for("the status shows it", SOON, || {
        let run = tenant.get("backupruns.driftline.dev", "run");
        (run["status"]["disks"][0]["speed"] == json!(512 << 10)).then_some(())
    });
    // Changed while nobody drives it, and while nobody watches.
    installation.kill_agent(NODE);
    patch(&tenant, "run", &json!({ "transfer": { "bandwidth": "300Ki" } }));
    installation.kill_controller();
    installation.start_agent(NODE);
    installation.start_controller();
    installation.wait_until_ready();
    wait_for_speed(&machine, 300 << 10);
    patch(&tenant, "run", &json!({ "suspend": true }));
    wait_for("it says why it goes on", SOON, || {
        (suspended(&tenant, "run")? == ("False".to_owned(), "SuspendNeedsFleecing".to_owned())).then_some(())
    });
    patch(&tenant, "run", &json!({ "suspend": false, "transfer": null }));
    tenant.wait_for("backupruns.driftline.dev/run", "Complete", SOON);
    let point = tenant.point_of("run");
    tenant.wait_for(&format!("restorepoints.driftline.dev/{point}"), "Available", SOON);
    let files = tenant.restore("back", &point, NODE, &["disk0"], "Raw");
    tenant.wait_for("restoreruns.driftline.dev/back", "Complete", SOON);
    reference.assert_equal("disk0", &files[0], Format::Raw);
}

#[test]
fn a_run_that_is_suspended_before_it_starts_lets_later_ones_pass() {
    let tenant = Installation::shared().tenant();
    let machine = Plan::new().disk(Disk::raw("disk0", MIB)).start();
    tenant.repository(NODE, "local");
    tenant.guest(NODE, "g", &machine.qmp());
    let mut spec = tenant.backup_spec("g", "local");
    spec["suspend"] = json!(true);
    tenant.create("BackupRun", "first", spec).ok();
    tenant.wait_for("backupruns.driftline.dev/first", "Suspended", SOON);
    tenant.create("BackupRun", "second", tenant.backup_spec("g", "local")).ok();
    tenant.wait_for("backupruns.driftline.dev/second", "Complete", SOON);
    let first = tenant.get("backupruns.driftline.dev", "first");
    assert_eq!((&first["status"]["phase"], &first["status"]["startTime"]), (&json!("Suspended"), &Value::Null));
    patch(&tenant, "first", &json!({ "suspend": false }));
    tenant.wait_for("backupruns.driftline.dev/first", "Complete", SOON);
    assert_eq!(suspended(&tenant, "first"), Some(("False".to_owned(), "Resumed".to_owned())));
}
