//! Somebody's snapshot during a fleeced run: its overlay lands on the run's filter, from where no machine could be started.

use std::path::Path;

use driftline::{chain::next::TypeReason, engine::Phase};
use serde_json::json;

use super::{
    Going, MIB, SOON, assert_clean, assert_complete, assert_failed,
    fleeced::{host, request, tops},
};
use crate::lab::{
    child::wait_for,
    machine::{Attach, Disk, Format, Machine, Plan},
    reference::Reference,
};

/// Somebody's snapshot of a disk lands on the run's filter.
fn snapshot(machine: &mut Machine, disk: &str, file: &Path) {
    let device = tops(machine).into_iter().find(|(device, _)| device.split('/').any(|part| part == disk)).unwrap();
    assert!(device.1.starts_with("dl-"), "{device:?}");
    let arguments = json!({
        "node-name": device.1, "snapshot-file": file, "format": "qcow2", "snapshot-node-name": format!("over-{disk}"),
    });
    machine.execute("blockdev-snapshot-sync", arguments);
    machine.put(disk, file, Format::Qcow2);
}

/// The format of its base that an overlay names.
fn base_format(overlay: &Path) -> String {
    let said = std::process::Command::new("qemu-img").args(["info", "-U", "--output", "json"]).arg(overlay).output();
    let info: serde_json::Value = serde_json::from_slice(&said.unwrap().stdout).unwrap();
    info["backing-filename-format"].as_str().unwrap().to_owned()
}

/// QEMU writes the filter into the overlay's header, from which no machine could be started: the run ends and the filter
/// goes (ADR 0007).
#[tokio::test(flavor = "multi_thread")]
async fn somebodys_snapshot_during_a_fleeced_run_ends_it_and_its_overlay_is_made_right() {
    let plan = || Plan::new().disk(Disk::qcow2("a", 4 * MIB)).disk(Disk::raw("b", 2 * MIB + 512).attach(Attach::Scsi));
    let mut machine = plan().start();
    if !machine.can_fleece() {
        return;
    }
    let host = host(1 << 30);
    machine.write("a", 1, 0, 4 * MIB);
    machine.write("b", 2, 0, 2 * MIB);
    assert_complete(&Going::start(&host.engine(), machine.qmp(), &request(&host, &machine, "first", 0)).end().await);
    machine.write("a", 3, 0, 4 * MIB);
    machine.write("b", 4, 0, 2 * MIB);
    let run = request(&host, &machine, "second", MIB / 4);
    let going = Going::start(&host.engine(), machine.qmp(), &run);
    going.reach(Phase::Copying).await;
    let overlay = |disk: &str| host.folder.path().join(format!("over-{disk}.qcow2"));
    for disk in ["a", "b"] {
        snapshot(&mut machine, disk, &overlay(disk));
        machine.write(disk, 5, MIB, 70_000);
    }
    let state = going.end().await;
    assert_failed(&state, "ActiveLayerChanged");
    assert_clean(&machine);
    host.assert_tidy(&machine);
    assert_eq!((base_format(&overlay("a")), base_format(&overlay("b"))), ("qcow2".to_owned(), "raw".to_owned()));

    let again = request(&host, &machine, "third", 0);
    let reference = Reference::take(&machine);
    let state = Going::start(&host.engine(), machine.qmp(), &again).end().await;
    assert_complete(&state);
    let reasons: Vec<_> = state.disks.iter().map(|disk| disk.type_reason).collect();
    assert_eq!(reasons, [TypeReason::ActiveLayerChanged; 2]);
    host.assert_equal(&machine, &state, &reference);

    // The machine starts from what the snapshots have made of it.
    machine.quit();
    machine.start_again();
    let state = Going::start(&host.engine(), machine.qmp(), &request(&host, &machine, "fourth", 0)).end().await;
    assert_complete(&state);
    host.assert_equal(&machine, &state, &reference);
}

/// An overlay that somebody's own job holds: the filter stays until that has ended, and the run says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_filter_below_an_overlay_that_is_busy_is_stuck_until_it_is_not() {
    let mut machine = Plan::new().disk(Disk::qcow2("disk0", 8 * MIB)).start();
    if !machine.can_fleece() {
        return;
    }
    let host = host(1 << 30);
    machine.write("disk0", 1, 0, 8 * MIB);
    let run = request(&host, &machine, "stuck", MIB / 4);
    let going = Going::start(&host.engine(), machine.qmp(), &run);
    going.reach(Phase::Copying).await;
    going.control.detach.cancel();
    going.end().await;
    let overlay = host.folder.path().join("over.qcow2");
    snapshot(&mut machine, "disk0", &overlay);
    machine.write("disk0", 2, 0, 4 * MIB);
    machine.execute("block-stream", json!({ "device": "over-disk0", "job-id": "theirs", "speed": 65536 }));
    let state = Going::start(&host.engine(), machine.qmp(), &run).end().await;
    assert_failed(&state, "FilterStuck");
    assert!(state.message.contains("base-node"), "{}", state.message);
    let next = request(&host, &machine, "next", 0);
    let state = Going::start(&host.engine(), machine.qmp(), &next).end().await;
    assert_eq!(state.phase, Phase::Failed, "{state:?}");

    machine.execute("job-cancel", json!({ "id": "theirs" }));
    wait_for("their job ends", SOON, || {
        let jobs = machine.execute("query-jobs", json!({}));
        (!jobs.to_string().contains("theirs")).then_some(())
    });
    let monitor = super::host::monitor(machine.qmp());
    host.engine().recover(&monitor, &machine.uuid().parse().unwrap(), &host.named(), false).await.unwrap();
    drop(monitor);
    assert_clean(&machine);
    host.assert_tidy(&machine);
    assert_eq!(base_format(&overlay), "qcow2");
    let reference = Reference::take(&machine);
    let next = request(&host, &machine, "after", 0);
    let state = Going::start(&host.engine(), machine.qmp(), &next).end().await;
    assert_complete(&state);
    host.assert_equal(&machine, &state, &reference);
}
