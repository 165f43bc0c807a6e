//! The main job: a BackupRun applied by kubectl becomes a full backup of a running machine, a RestorePoint, and a
//! restored image that equals the disk at the checkpoint, byte by byte.

use std::{process::Command, time::Duration};

use serde_json::json;

use crate::{
    installation::{Installation, NODES, Tenant},
    lab::{
        machine::{Attach, Disk, Format, Plan, run},
        reference::Reference,
    },
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
const NODE: &str = NODES[0];

/// A tenant with a repository, whose guest `g` is behind this monitor.
fn tenant_with(machine: &crate::lab::machine::Machine) -> Tenant {
    let tenant = Installation::shared().tenant();
    tenant.repository(NODE, "local");
    tenant.guest(NODE, "g", &machine.qmp());
    tenant
}

/// Restores the run's point in both formats and compares every disk with the reference.
fn restores_equal(tenant: &Tenant, run: &str, reference: &Reference) {
    let point = tenant.point_of(run);
    tenant.wait_for(&format!("restorepoints.driftline.dev/{point}"), "Available", SOON);
    let disks: Vec<&str> = reference.disks().collect();
    for (format, word) in [(Format::Raw, "Raw"), (Format::Qcow2, "Qcow2")] {
        let restore = format!("{run}-{}", format.word());
        let files = tenant.restore(&restore, &point, NODE, &disks, word);
        tenant.wait_for(&format!("restoreruns.driftline.dev/{restore}"), "Complete", SOON);
        tenant.wait_for(&format!("restoreruns.driftline.dev/{restore}"), "Verified", SOON);
        for (disk, file) in disks.iter().zip(&files) {
            reference.assert_equal(disk, file, format);
        }
    }
}

#[test]
fn an_applied_run_becomes_a_point_whose_restore_equals_the_disks() {
    // Odd sizes: the last cluster is not whole. One disk as people start it by hand, one in an iothread.
    let machine = Plan::new()
        .disk(Disk::qcow2("system", 64 * MIB + 512))
        .disk(Disk::raw("data", 48 * MIB + 3 * 512).attach(Attach::Iothread))
        .start();
    machine.write("system", 0x5a, 0, MIB);
    machine.write("system", 0x21, 64 * MIB, 512);
    machine.write("data", 0x77, 10 * MIB + 4096, 3 * MIB);
    let tenant = tenant_with(&machine);
    let reference = Reference::take(&machine);
    tenant.back_up("nightly", "g", "local");
    // Started with the apply: the conditions are there from the first write on.
    let wait = ["wait", "--for=condition=Complete", "--timeout=60s", "backupruns.driftline.dev/nightly"];
    let waited = tenant.kubectl(wait);
    assert!(waited.succeeded(), "{waited}\n{}", tenant.installation.logs());
    restores_equal(&tenant, "nightly", &reference);
}

#[test]
fn a_linux_guest_that_writes_all_the_time_is_restored_to_the_instant() {
    let machine =
        Plan::new().disk(Disk::qcow2("system", 32 * MIB)).disk(Disk::raw("data", 16 * MIB + 512)).linux().start();
    let tenant = tenant_with(&machine);
    let writer = machine.console();
    writer.wait_until_up();
    writer.go();
    // The writer stands still only while the copies are made: the instant lies between stop and go.
    writer.stop();
    let reference = Reference::take(&machine);
    let mut spec = tenant.backup_spec("g", "local");
    spec["transfer"] = json!({ "bandwidth": "16Mi" });
    tenant.create("BackupRun", "live", spec).ok();
    tenant.wait_for("backupruns.driftline.dev/live", "CheckpointCreated", SOON);
    let before = writer.go();
    tenant.wait_for("backupruns.driftline.dev/live", "Complete", SOON);
    let after = writer.status();
    assert!(after.writes > before.writes, "nothing was written while QEMU copied: {before:?} {after:?}");
    assert_eq!(after.errors, 0, "the backup harmed the guest: {after:?}");
    restores_equal(&tenant, "live", &reference);
}

#[test]
fn a_machine_that_was_started_paused_is_backed_up_and_stays_paused() {
    let machine = Plan::new().disk(Disk::qcow2("disk0", 8 * MIB + 1024)).paused().start();
    machine.write("disk0", 0x42, 3 * MIB, MIB);
    let tenant = tenant_with(&machine);
    let reference = Reference::take(&machine);
    tenant.back_up("paused", "g", "local");
    tenant.wait_for("backupruns.driftline.dev/paused", "Complete", SOON);
    assert_eq!(machine.status(), "prelaunch");
    restores_equal(&tenant, "paused", &reference);
}

#[test]
fn stored_disks_open_with_stock_qemu_img() {
    let machine = Plan::new().disk(Disk::raw("disk0", 8 * MIB + 512)).start();
    machine.write("disk0", 0x42, 3 * MIB, MIB);
    let tenant = tenant_with(&machine);
    let reference = Reference::take(&machine);
    tenant.back_up("stock", "g", "local");
    tenant.wait_for("backupruns.driftline.dev/stock", "Complete", SOON);
    let image = tenant.stored_image("local");
    let info = run(Command::new("qemu-img").args(["info", "--output=json"]).arg(&image));
    assert!(info.contains("\"virtual-size\": 8389120"), "{info}");
    run(Command::new("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(&image));
    let compare = ["compare", "-q", "-f", "qcow2", "-F", "raw"];
    run(Command::new("qemu-img").args(compare).arg(&image).arg(reference.file("disk0")));
}
