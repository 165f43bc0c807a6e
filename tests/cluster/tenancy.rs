//! Who may reach what: objects made by hand, and paths that lead out of what the host's own files allow, are refused with
//! the reason, and nothing is read or written.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use serde_json::json;

use crate::{
    installation::{Installation, NODES, Tenant},
    lab::{
        machine::{Disk, Machine, Plan},
        reference::Reference,
    },
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);
const NODE: &str = NODES[0];

/// A machine with one small disk.
fn machine() -> Machine {
    let machine = Plan::new().disk(Disk::qcow2("disk0", 8 * MIB)).start();
    machine.write("disk0", 0x42, 0, MIB);
    machine
}

/// A repository with one point of a machine that runs on. Returns its folder, the point's name and the machine.
fn with_a_point(tenant: &Tenant) -> (std::path::PathBuf, String, Machine) {
    let machine = machine();
    let folder = tenant.repository(NODE, "local");
    tenant.guest(NODE, "g", &machine.qmp());
    tenant.back_up("first", "g", "local");
    tenant.wait_for("backupruns.driftline.dev/first", "Complete", SOON);
    let point = tenant.point_of("first");
    tenant.wait_for(&format!("restorepoints.driftline.dev/{point}"), "Available", SOON);
    (folder, point, machine)
}

/// A restore of disk0 of the point to `path`, without waiting.
fn restore_to(tenant: &Tenant, run: &str, point: &str, path: &Path) {
    let target = json!({ "nodeName": NODE, "disks": [{ "name": "disk0", "path": path }] });
    let spec = json!({ "restorePointRef": { "name": point }, "mode": "Flatten", "target": target, "format": "Raw" });
    tenant.create("RestoreRun", run, spec).ok();
}

#[test]
fn a_guest_made_by_hand_is_not_discovered_and_nothing_else_happens_to_it() {
    let installation = Installation::shared();
    let tenant = installation.tenant();
    tenant.repository(NODE, "local");
    tenant.create("Guest", "forged", json!({})).ok();
    let ready = tenant.refusal("guests.driftline.dev/forged", "Ready", SOON);
    assert_eq!(ready["reason"], "NotDiscovered", "{ready}");

    tenant.back_up("first", "forged", "local");
    let why = tenant.end_of("backupruns.driftline.dev/first", SOON);
    assert!(["GuestNotReady", "NotDiscovered", "GuestNotFound"].contains(&why["reason"].as_str().unwrap()), "{why}");
}

#[test]
fn a_restore_point_made_by_hand_restores_nothing() {
    let installation = Installation::shared();
    let (owner, thief) = (installation.tenant(), installation.tenant());
    let (_folder, point, _machine) = with_a_point(&owner);
    // The other tenant copies the spec, and so names a point that is there: once in a repository of its own namespace
    // that is not there, once in the owner's.
    let mut spec = owner.get("restorepoints.driftline.dev", &point)["spec"].clone();
    for (name, namespace) in [("copied", None), ("foreign", Some(&owner.namespace))] {
        if let Some(namespace) = namespace {
            spec["repositoryRef"]["namespace"] = json!(namespace);
        }
        thief.create("RestorePoint", name, spec.clone()).ok();
        let object = format!("restorepoints.driftline.dev/{name}");
        thief.wait_until(&object, "looked at", SOON, || thief.condition(&object, "Available"));

        let stolen = thief.restore_folder(NODE).join(format!("{name}.raw"));
        restore_to(&thief, name, name, &stolen);
        let refused = thief.refusal(&format!("restoreruns.driftline.dev/{name}"), "Ready", SOON);
        let available = thief.condition(&object, "Available").unwrap();
        assert_ne!(available["status"], "True", "{available}");
        assert!(!stolen.exists(), "another tenant's data was restored: {refused}");
    }
}

#[test]
fn a_repository_outside_of_the_hosts_roots_is_refused_and_nothing_is_written() {
    let installation = Installation::shared();
    let tenant = installation.tenant();
    let outside = tempfile::tempdir().unwrap();
    let link = tenant.repository_folder(NODE, "real").join("link");
    symlink(outside.path(), &link).unwrap();
    for (name, path) in [("absolute", outside.path()), ("link", &link)] {
        let filesystem = json!({ "path": path, "nodeName": NODE });
        tenant.create("BackupRepository", name, json!({ "filesystem": filesystem })).ok();
        let ready = tenant.refusal(&format!("backuprepositories.driftline.dev/{name}"), "Ready", SOON);
        let message = ready["message"].as_str().unwrap();
        assert!(message.contains(path.to_str().unwrap()), "the message does not name the path: {ready}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "{name}: something was written outside");
    }
}

#[test]
fn a_restore_outside_of_the_namespaces_roots_is_refused_and_nothing_is_written() {
    let installation = Installation::shared();
    let (tenant, other) = (installation.tenant(), installation.tenant());
    let (_folder, point, _machine) = with_a_point(&tenant);
    let outside = tempfile::tempdir().unwrap();
    let link = tenant.restore_folder(NODE).join("link");
    symlink(outside.path(), &link).unwrap();
    let dangling = tenant.restore_folder(NODE).join("dangling.raw");
    symlink(outside.path().join("made.raw"), &dangling).unwrap();
    let targets = [
        ("absolute", outside.path().join("a.raw")),
        ("others", other.restore_folder(NODE).join("a.raw")),
        ("folder-link", link.join("a.raw")),
    ];
    for (run, path) in &targets {
        restore_to(&tenant, run, &point, path);
        tenant.end_of(&format!("restoreruns.driftline.dev/{run}"), SOON);
        assert!(!path.exists(), "{run}: {} was written", path.display());
    }
    restore_to(&tenant, "file-link", &point, &dangling);
    tenant.end_of("restoreruns.driftline.dev/file-link", SOON);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "something was written outside");
}

#[test]
fn an_absolute_path_in_a_stored_images_header_is_never_followed() {
    let installation = Installation::shared();
    let tenant = installation.tenant();
    let machine = machine();
    let reference = Reference::take(&machine);
    tenant.repository(NODE, "local");
    tenant.guest(NODE, "g", &machine.qmp());
    tenant.back_up("first", "g", "local");
    tenant.wait_for("backupruns.driftline.dev/first", "Complete", SOON);
    let point = tenant.point_of("first");

    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), vec![0xee; 8 << 20]).unwrap();
    let image = tenant.stored_image("local");
    let rebase = ["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b"];
    let mut rebase_command = std::process::Command::new("qemu-img");
    crate::lab::machine::run(rebase_command.args(rebase).arg(secret.path()).arg(&image));

    let file = tenant.restore_folder(NODE).join("back.raw");
    restore_to(&tenant, "back", &point, &file);
    tenant.ended("restoreruns.driftline.dev/back", SOON);
    // Refused, or restored without it: both are right. The secret's bytes in the image are not.
    if file.exists() {
        reference.assert_equal("disk0", &file, crate::lab::machine::Format::Raw);
    }
}

#[test]
fn a_repository_of_another_namespace_works_only_where_it_says_so() {
    let installation = Installation::shared();
    let (owner, user) = (installation.tenant(), installation.tenant());
    let machine = machine();
    let folder = owner.repository(NODE, "shared");
    user.guest(NODE, "g", &machine.qmp());
    let mut spec = user.backup_spec("g", "shared");
    spec["repositoryRef"]["namespace"] = json!(owner.namespace);
    user.create("BackupRun", "refused", spec.clone()).ok();
    let why = user.end_of("backupruns.driftline.dev/refused", SOON);
    assert_eq!(why["reason"], "NamespaceNotAllowed", "{why}");

    let allowed = json!({ "allowedNamespaces": [user.namespace] });
    let filesystem = json!({ "path": folder, "nodeName": NODE });
    owner.create("BackupRepository", "shared", json!({ "filesystem": filesystem, "usagePolicy": allowed })).ok();
    user.create("BackupRun", "allowed", spec).ok();
    user.wait_for("backupruns.driftline.dev/allowed", "Complete", SOON);
}
