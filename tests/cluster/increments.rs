//! Runs that follow one another: what each disk became and why stands in the run, in the point and in an Event, and each
//! point is restored to the disks of its own instant.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    installation::{Installation, NODES, Tenant},
    lab::{
        machine::{Disk, Format, Machine, Plan},
        reference::Reference,
    },
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
const NODE: &str = NODES[0];

/// A complete run of a quiet machine.
fn run(tenant: &Tenant, machine: &Machine, name: &str, kind: Option<&str>) -> (Value, Reference) {
    let reference = Reference::take(machine);
    let mut spec = tenant.backup_spec("g", "local");
    if let Some(kind) = kind {
        spec["type"] = kind.into();
    }
    tenant.create("BackupRun", name, spec).ok();
    tenant.wait_for(&format!("backupruns.driftline.dev/{name}"), "Complete", SOON);
    (tenant.get("backuprun.driftline.dev", name), reference)
}

/// Requested type, type and reason of a run, and both of its first two disks.
fn types(status: &Value) -> Vec<&str> {
    let disk = |at: usize, field: &str| status["disks"][at][field].as_str().unwrap_or_default();
    let own = ["type", "typeReason"].map(|field| status[field].as_str().unwrap_or_default());
    own.into_iter().chain([0, 1].into_iter().flat_map(|at| [disk(at, "type"), disk(at, "typeReason")])).collect()
}

#[test]
fn a_run_after_the_first_copies_what_has_changed_and_says_why_a_disk_was_copied_whole() {
    let mut machine = Plan::new().disk(Disk::qcow2("kept", 16 * MIB)).disk(Disk::raw("plain", 4 * MIB)).start();
    machine.write("kept", 1, 0, 8 * MIB);
    let tenant = Installation::shared().tenant();
    tenant.repository(NODE, "local");
    tenant.guest(NODE, "g", &machine.qmp());

    let first = run(&tenant, &machine, "first", None);
    let full = ["Full", "FirstBackup"];
    assert_eq!(types(&first.0["status"]), [full; 3].concat());
    machine.write("kept", 2, MIB, 65536);
    machine.write("plain", 3, MIB, 65536);
    let second = run(&tenant, &machine, "second", Some("Incremental"));
    let increment = ["Incremental", "CheckpointFound"];
    assert_eq!(types(&second.0["status"]), [increment; 3].concat());
    assert_eq!(second.0["status"]["requestedType"], "Incremental");
    assert!(second.0["status"]["disks"][0]["storedBytes"].as_u64().unwrap() < MIB, "{:#}", second.0["status"]);
    // A raw image keeps no bitmaps over a restart of QEMU.
    machine.quit();
    machine.start_again();
    tenant.wait_for("guests.driftline.dev/g", "Ready", SOON);
    machine.write("kept", 4, 2 * MIB, 65536);
    let third = run(&tenant, &machine, "third", None);
    let unkept = ["Full", "NotSupportedByFormat"];
    assert_eq!(types(&third.0["status"]), [["Incremental", unkept[1]], increment, unkept].concat());
    let note = tenant.event("third", "BackupComplete", SOON);
    let parts = [
        "Auto",
        "kept is Incremental (CheckpointFound)",
        "plain is Full (NotSupportedByFormat)",
        "The data goes Direct.",
    ];
    for part in parts {
        assert!(note.contains(part), "{note}");
    }
    for (name, (state, reference)) in [("first", &first), ("second", &second), ("third", &third)] {
        let point = tenant.point_of(name);
        tenant.wait_for(&format!("restorepoints.driftline.dev/{point}"), "ChainIntact", SOON);
        let shown = tenant.get("restorepoint.driftline.dev", &point);
        let chain = &shown["status"]["disks"][0]["chain"];
        assert_eq!(shown["status"]["type"], state["status"]["type"]);
        assert_eq!(shown["status"]["disks"][0]["typeReason"], state["status"]["disks"][0]["typeReason"]);
        let length = 1 + ["first", "second", "third"].iter().position(|other| *other == name).unwrap();
        assert_eq!(chain["length"], length, "{shown:#}");
        let restore = format!("{name}-back");
        let files = tenant.restore(&restore, &point, NODE, &["kept", "plain"], "Raw");
        tenant.wait_for(&format!("restoreruns.driftline.dev/{restore}"), "Complete", SOON);
        for (disk, file) in ["kept", "plain"].iter().zip(&files) {
            reference.assert_equal(disk, file, Format::Raw);
        }
    }
}

#[test]
fn an_increment_that_is_impossible_fails_with_the_reason_and_the_way_out() {
    let machine = Plan::new().disk(Disk::raw("disk0", MIB)).start();
    let tenant = Installation::shared().tenant();
    tenant.repository(NODE, "local");
    tenant.guest(NODE, "g", &machine.qmp());
    let mut spec = tenant.backup_spec("g", "local");
    spec["type"] = "Incremental".into();
    tenant.create("BackupRun", "impossible", spec.clone()).ok();
    let failed = tenant.end_of("backuprun.driftline.dev/impossible", SOON);
    assert_eq!(failed["reason"], "IncrementalImpossible", "{failed}");
    for part in ["disk0", "FirstBackup", "type Auto"] {
        assert!(failed["message"].as_str().unwrap().contains(part), "{failed}");
    }
    // Debian 12's QEMU is too old for it.
    spec["type"] = "Auto".into();
    spec["fleecing"] = json!({ "mode": "Always" });
    tenant.create("BackupRun", "unsafe", spec.clone()).ok();
    let failed = tenant.end_of("backuprun.driftline.dev/unsafe", SOON);
    assert_eq!(failed["reason"], "FleecingUnsafe", "{failed}");
    spec["type"] = "Differential".into();
    let refused = tenant.create("BackupRun", "unknown", spec.clone());
    assert!(!refused.succeeded() && refused.to_string().contains("Incremental"), "{refused}");
    let changed = json!({ "spec": { "type": "Full" } }).to_string();
    let refused = tenant.kubectl(["patch", "backuprun.driftline.dev/impossible", "--type=merge", "--patch", &changed]);
    assert!(!refused.succeeded() && refused.to_string().contains("type of a run cannot be changed"), "{refused}");
}
