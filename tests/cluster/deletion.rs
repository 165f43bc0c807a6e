//! What goes with a deleted object, and what never does: backup data.

use std::{fs, path::Path, time::Duration};

use serde_json::json;

use crate::{
    installation::{Installation, NODES, Tenant},
    lab::{
        child::wait_for,
        machine::{Disk, Machine, Plan},
    },
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
const NODE: &str = NODES[0];

fn guest(tenant: &Tenant, data: u64) -> Machine {
    let machine = Plan::new().disk(Disk::qcow2("disk0", 2 * data * MIB)).start();
    machine.write("disk0", 0x42, 0, data * MIB);
    tenant.repository(NODE, "local");
    tenant.guest(NODE, "g", &machine.qmp());
    machine
}

/// A backup of the guest: the name of its point, which is there.
fn point(tenant: &Tenant) -> String {
    tenant.back_up("run", "g", "local");
    tenant.wait_for("backupruns.driftline.dev/run", "Complete", SOON);
    let point = tenant.point_of("run");
    tenant.wait_for(&format!("restorepoints.driftline.dev/{point}"), "Available", SOON);
    point
}

/// All files of a folder, with their sizes.
fn files(folder: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            match entry.metadata().unwrap() {
                data if data.is_dir() => folders.push(entry.path()),
                data => found.push((entry.path().display().to_string(), data.len())),
            }
        }
    }
    found.retain(|(name, _)| !name.contains("lease"));
    found.sort();
    found
}

#[test]
fn deleting_a_running_run_cancels_it_and_leaves_nothing_behind() {
    let installation = Installation::shared();
    let tenant = installation.tenant();
    let machine = guest(&tenant, 32);
    let folder = tenant.repository_folder(NODE, "local");
    let empty = files(&folder);
    let mut spec = tenant.backup_spec("g", "local");
    spec["transfer"] = json!({ "bandwidth": "1Mi" });
    tenant.create("BackupRun", "run", spec).ok();
    tenant.wait_for("backupruns.driftline.dev/run", "CheckpointCreated", SOON);
    tenant.kubectl(["delete", "backupruns.driftline.dev", "run", "--timeout=40s"]).ok();
    let jobs = machine.execute("query-jobs", json!({}));
    assert_eq!(jobs.as_array().map(Vec::len), Some(0), "jobs were left behind: {jobs}");
    wait_for("the repository is as it was", SOON, || (files(&folder) == empty).then_some(()));
    let bitmaps = machine.execute("query-block", json!({}));
    assert!(!bitmaps.to_string().contains("driftline."), "bitmaps were left behind: {bitmaps:#}");
}

#[test]
fn a_deleted_restore_point_comes_back_and_its_data_was_never_gone() {
    let installation = Installation::shared();
    let tenant = installation.tenant();
    let _machine = guest(&tenant, 1);
    let point = point(&tenant);
    let object = format!("restorepoints.driftline.dev/{point}");
    let stored = files(&tenant.repository_folder(NODE, "local"));
    let before = tenant.get("restorepoints.driftline.dev", &point)["metadata"]["uid"].clone();
    tenant.kubectl(["delete", &object, "--timeout=30s"]).ok();
    assert_eq!(files(&tenant.repository_folder(NODE, "local")), stored);
    tenant.wait_for(&object, "Available", SOON);
    assert_ne!(tenant.get("restorepoints.driftline.dev", &point)["metadata"]["uid"], before);
}

#[test]
fn points_follow_a_repository_whose_object_gets_another_name() {
    let installation = Installation::shared();
    let tenant = installation.tenant();
    let _machine = guest(&tenant, 1);
    let point = point(&tenant);
    let object = format!("restorepoints.driftline.dev/{point}");
    tenant.kubectl(["delete", "backuprepositories.driftline.dev", "local", "--timeout=30s"]).ok();
    let path = tenant.repository_folder(NODE, "local");
    tenant.create("BackupRepository", "other", json!({ "filesystem": { "path": path, "nodeName": NODE } })).ok();
    tenant.wait_for("backuprepositories.driftline.dev/other", "Ready", SOON);
    wait_for("the point names the new object", SOON, || {
        let answer = tenant.kubectl(["get", &object, "-o", "jsonpath={.spec.repositoryRef.name}"]);
        (answer.succeeded() && answer.ok() == "other").then_some(())
    });
    tenant.wait_for(&object, "Available", SOON);
    let files = tenant.restore("back", &point, NODE, &["disk0"], "Raw");
    tenant.wait_for("restoreruns.driftline.dev/back", "Complete", SOON);
    assert_eq!(fs::metadata(&files[0]).unwrap().len(), 2 * MIB);
    let events = tenant.kubectl(["events", "--for", "backuprepository.driftline.dev/other"]).ok();
    assert!(!events.contains("ForeignObject"), "{events}");
}

#[test]
fn a_deleted_namespace_takes_no_data_with_it_and_is_not_held_up() {
    let installation = Installation::shared();
    let tenant = installation.tenant();
    let _machine = guest(&tenant, 1);
    tenant.back_up("run", "g", "local");
    tenant.wait_for("backupruns.driftline.dev/run", "Complete", SOON);
    let folder = tenant.repository_folder(NODE, "local");
    let stored = files(&folder);
    assert!(stored.iter().any(|(name, _)| name.ends_with("manifest.json")), "{stored:?}");
    installation.plane.kubectl(["delete", "namespace", &tenant.namespace, "--timeout=60s"]).ok();
    assert_eq!(files(&folder), stored);
}
