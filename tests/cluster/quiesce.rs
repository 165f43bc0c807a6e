//! A run's spec has its guest frozen for the instant, by the guest agent that the guest's file on the node names.

use std::time::Duration;

use serde_json::json;

use crate::{
    installation::{Installation, NODES},
    lab::machine::Plan,
};

const SOON: Duration = Duration::from_secs(120);
const NODE: &str = NODES[0];

#[test]
fn a_guest_is_frozen_where_its_spec_says_so_and_the_run_says_what_became_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let machine = Plan::with_files(&folder.path().join("files.raw"));
    let tenant = Installation::shared().tenant();
    tenant.repository(NODE, "local");
    tenant.guest(NODE, "g", &machine.qmp());
    let mut spec = tenant.backup_spec("g", "local");
    spec["quiesce"] = json!({ "mode": "Required" });
    spec["backoffLimit"] = json!(0);
    tenant.create("BackupRun", "unknown", spec.clone()).ok();
    let failed = tenant.end_of("backuprun.driftline.dev/unknown", SOON);
    assert_eq!(failed["reason"], "GuestAgentUnknown", "{failed}");
    let changed = json!({ "spec": { "quiesce": { "mode": "Never" } } }).to_string();
    let refused = tenant.kubectl(["patch", "backuprun.driftline.dev/unknown", "--type=merge", "--patch", &changed]);
    assert!(!refused.succeeded() && refused.to_string().contains("quiesce of a run cannot be changed"), "{refused}");

    tenant.declare_guest(NODE, "g", &machine.qmp(), &format!("guestAgent = {:?}\n", machine.guest_agent()));
    // qemu-ga may need a moment after the guest is up, and the agent one for the file.
    spec["backoffLimit"] = json!(5);
    tenant.create("BackupRun", "frozen", spec).ok();
    tenant.wait_for("backuprun.driftline.dev/frozen", "Complete", SOON);
    let condition = tenant.condition("backuprun.driftline.dev/frozen", "Quiesced").unwrap();
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("True"), &json!("Frozen")));
    let status = tenant.get("backuprun.driftline.dev", "frozen")["status"].clone();
    assert_eq!(status["quiesce"]["outcome"], "Frozen");
    assert!(status["quiesce"]["frozenFor"].as_str().unwrap().ends_with("ms"), "{status}");
    let point = tenant.point_of("frozen");
    tenant.wait_for(&format!("restorepoint.driftline.dev/{point}"), "Available", SOON);
    assert_eq!(tenant.get("restorepoint.driftline.dev", &point)["status"]["consistency"], "Application");
}
