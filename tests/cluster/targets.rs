//! What can be wrong with a repository, a guest or its monitor: each ends with a condition and an Event that say what it
//! is and what to do, and the guest goes on as if nothing had been.

use std::{fs, os::unix::net::UnixStream, process::Command, time::Duration};

use serde_json::{Value, json};

use crate::{
    installation::{Installation, NODES, Tenant},
    lab::machine::{Disk, Machine, Plan, run},
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(40);
const NODE: &str = NODES[0];

/// A machine whose disk holds `data` MiB.
fn machine(data: u64) -> Machine {
    let machine = Plan::new().disk(Disk::qcow2("disk0", 2 * data * MIB)).start();
    machine.write("disk0", 0x17, 0, data * MIB);
    machine
}

/// Applies a run that has to fail; checks that its condition and an Event give one of the reasons, and that the message is
/// of use. Returns the condition.
#[track_caller]
fn fails(tenant: &Tenant, run: &str, guest: &str, repository: &str, reasons: &[&str]) -> Value {
    tenant.back_up(run, guest, repository);
    let failed = tenant.end_of(&format!("backupruns.driftline.dev/{run}"), SOON);
    let reason = failed["reason"].as_str().unwrap();
    assert!(reasons.contains(&reason), "the reason is {reason}: {failed}\n{}", tenant.installation.logs());
    let note = tenant.event(run, reason, SOON);
    assert!(!note.is_empty() && failed["message"].as_str().is_some_and(|text| text.len() > 20), "{failed}");
    failed
}

/// The guest runs, has no job, and its disk takes writes.
fn unharmed(machine: &Machine) {
    machine.write("disk0", 0x18, 0, 65536);
    assert_eq!(machine.status(), "running");
    let jobs = machine.execute("query-jobs", json!({}));
    assert_eq!(jobs.as_array().map(Vec::len), Some(0), "jobs were left behind: {jobs}");
    let nodes = machine.execute("query-named-block-nodes", json!({ "flat": true }));
    let ours: Vec<_> = nodes
        .as_array()
        .into_iter()
        .flatten()
        .filter(|n| n["node-name"].as_str().unwrap().starts_with("dl-"))
        .collect();
    assert!(ours.is_empty(), "nodes were left behind: {ours:?}");
    let sets = machine.execute("query-fdsets", json!({}));
    assert_eq!(sets.as_array().map(Vec::len), Some(0), "descriptors were left behind: {sets}");
}

/// A file system of its own, of `size`, at the folder; gone with the mount namespace of the tests.
fn mount_tmpfs(folder: &std::path::Path, size: &str) {
    run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(folder));
}

#[test]
fn a_run_that_cannot_fit_is_refused_before_it_starts() {
    let installation = Installation::shared();
    let tenant = installation.tenant();
    let machine = machine(16);
    let folder = tenant.repository_folder(NODE, "small");
    mount_tmpfs(&folder, "8m");
    tenant.repository(NODE, "small");
    tenant.guest(NODE, "g", &machine.qmp());
    let failed = fails(&tenant, "full", "g", "small", &["RepositoryFull"]);
    assert!(failed["message"].as_str().unwrap().contains("MiB free"), "{failed}");
    unharmed(&machine);
    let backups = machine.execute("query-block-jobs", json!({}));
    assert_eq!(backups.as_array().map(Vec::len), Some(0), "{backups}");
}

#[test]
fn a_read_only_folder_is_shown_on_the_repository_and_on_the_run() {
    let installation = Installation::shared();
    let tenant = installation.tenant();
    let machine = machine(1);
    let folder = tenant.repository_folder(NODE, "frozen");
    mount_tmpfs(&folder, "64m");
    tenant.repository(NODE, "frozen");
    tenant.guest(NODE, "g", &machine.qmp());
    run(Command::new("mount").args(["-o", "remount,ro"]).arg(&folder));
    fails(&tenant, "run", "g", "frozen", &["RepositoryReadOnly"]);
    unharmed(&machine);
}

#[test]
fn a_folder_that_vanished_is_not_made_anew() {
    let installation = Installation::shared();
    let tenant = installation.tenant();
    let machine = machine(1);
    let folder = tenant.repository(NODE, "local");
    tenant.guest(NODE, "g", &machine.qmp());
    fs::rename(&folder, folder.with_extension("away")).unwrap();
    // What a mount point looks like when nothing is mounted there.
    fs::create_dir(&folder).unwrap();
    fails(&tenant, "run", "g", "local", &["RepositoryNotMounted", "RepositoryNotReady"]);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "something was written below the mount point");
    unharmed(&machine);
}

#[test]
fn a_folder_of_another_repository_is_refused() {
    let installation = Installation::shared();
    let tenant = installation.tenant();
    let machine = machine(1);
    let (one, other) = (tenant.repository(NODE, "one"), tenant.repository(NODE, "other"));
    tenant.guest(NODE, "g", &machine.qmp());
    fs::copy(other.join("driftline.json"), one.join("driftline.json")).unwrap();
    fails(&tenant, "run", "g", "one", &["RepositoryIdMismatch", "RepositoryNotReady"]);
    unharmed(&machine);
}

/// Applies a run that has to wait for its guest; checks that its condition and an Event say so, with the reason of the
/// guest's own problem in the message.
#[track_caller]
fn waits(tenant: &Tenant, run: &str, why: &[&str]) {
    tenant.back_up(run, "g", "local");
    let ready = tenant.refusal(&format!("backupruns.driftline.dev/{run}"), "Ready", SOON);
    let note = tenant.event(run, ready["reason"].as_str().unwrap(), SOON);
    for word in why {
        assert!(ready["message"].as_str().unwrap().contains(word), "{word:?} is not in {ready}");
        assert!(note.contains(word), "{word:?} is not in the Event {note:?}");
    }
}

#[test]
fn a_guest_that_is_gone_before_its_run_starts_is_waited_for() {
    let installation = Installation::shared();
    let tenant = installation.tenant();
    let mut machine = machine(1);
    tenant.repository(NODE, "local");
    tenant.guest(NODE, "g", &machine.qmp());
    machine.kill();
    waits(&tenant, "run", &["/qmp"]);
    machine.start_again();
    tenant.wait_for("backupruns.driftline.dev/run", "Complete", SOON);
}

#[test]
fn a_monitor_that_another_client_holds_is_said_on_the_guest_and_on_the_run() {
    let installation = Installation::shared();
    let tenant = installation.tenant();
    let machine = machine(1);
    tenant.repository(NODE, "local");
    // QEMU talks to one client of a monitor at a time; this one was first.
    let holder = UnixStream::connect(machine.qmp()).unwrap();
    tenant.declare_guest(NODE, "g", &machine.qmp(), "");
    tenant.wait_until("guests.driftline.dev/g", "shown as held by another client", SOON, || {
        let ready = tenant.condition("guests.driftline.dev/g", "Ready")?;
        ready["message"].as_str()?.contains("held by another client").then_some(())
    });
    waits(&tenant, "run", &["held by another client", "End the other client"]);
    drop(holder);
    tenant.wait_for("backupruns.driftline.dev/run", "Complete", SOON);
}

#[test]
fn a_guest_without_a_disk_that_can_be_backed_up_fails_the_run() {
    let installation = Installation::shared();
    let tenant = installation.tenant();
    let machine = Plan::new().start();
    tenant.repository(NODE, "local");
    tenant.guest(NODE, "g", &machine.qmp());
    fails(&tenant, "run", "g", "local", &["NoEligibleDisk"]);
}
