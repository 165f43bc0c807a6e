//! Fleeced runs: on QEMU 8.2 and newer they store the disks of the instant and the guest notices neither the target nor the
//! scratch; below it nothing is ever fleeced. Each test does what the QEMU of the path allows.

use driftline::{
    chain::next::{BackupType, RequestedType, TypeReason},
    engine::{BackupRequest, Phase, RequestedFleecing, Scratch},
};
use serde_json::json;

use super::{
    Going, Host, MIB, SOON, assert_clean, assert_complete, assert_failed, bitmaps, fill,
    storage::{assert_gives_space_back, unnamed_bytes},
    varied, zero,
};
use crate::lab::{
    child::wait_for,
    machine::{Attach, Disk, Machine, Plan},
    reference::Reference,
};

/// A host with a scratch folder of so many bytes.
pub(super) fn host(budget: u64) -> Host {
    let mut host = Host::new();
    let directory = host.folder.path().join("scratch");
    std::fs::create_dir(&directory).unwrap();
    host.scratch = Some(Scratch { directory, budget, reserve: 0 });
    host
}

pub(super) fn request(host: &Host, machine: &Machine, run: &str, bandwidth: u64) -> BackupRequest {
    let request = host.request(machine, run, bandwidth);
    BackupRequest { kind: RequestedType::Auto, fleecing: RequestedFleecing::Always, ..request }
}

/// The nodes of devices are what they were before a run.
pub(super) fn tops(machine: &Machine) -> Vec<(String, String)> {
    let devices = machine.execute("query-block", json!({}));
    let top = |device: &serde_json::Value| {
        let node = device["inserted"]["node-name"].as_str().unwrap_or_default().to_owned();
        (device["qdev"].as_str().unwrap_or_default().to_owned(), node)
    };
    devices.as_array().unwrap().iter().map(top).collect()
}

/// Nothing of the run is left, neither in the machine nor in the scratch folder.
fn assert_gone(host: &Host, machine: &Machine, before: &[(String, String)]) {
    assert_clean(machine);
    host.assert_tidy(machine);
    assert_eq!(tops(machine), before);
    assert_eq!(machine.status(), "running");
    let scratch = host.scratch.as_ref().unwrap();
    assert_eq!(std::fs::read_dir(&scratch.directory).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn below_8_2_nothing_is_fleeced_and_above_it_says_what_is_missing() {
    let machine = Plan::new().disk(Disk::qcow2("disk0", 2 * MIB)).start();
    let host = Host::new();
    let state = Going::start(&host.engine(), machine.qmp(), &request(&host, &machine, "always", 0)).end().await;
    let reason = if machine.can_fleece() { "ScratchMissing" } else { "FleecingUnsafe" };
    assert_failed(&state, reason);
    assert!(!state.retriable && state.message.contains("Auto"), "{}", state.message);
    let host = self::host(64 * MIB);
    let auto = BackupRequest { fleecing: RequestedFleecing::Auto, ..request(&host, &machine, "auto", MIB) };
    let going = Going::start(&host.engine(), machine.qmp(), &auto);
    going.reach(Phase::Copying).await;
    let nodes = machine.execute("query-named-block-nodes", json!({ "flat": true })).to_string();
    assert_eq!(nodes.contains("snapshot-access"), machine.can_fleece(), "{nodes}");
    assert_complete(&going.end().await);
    assert_clean(&machine);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_point_of_a_fleeced_chain_shows_the_disks_of_its_instant() {
    let machine = varied().start();
    if !machine.can_fleece() {
        return;
    }
    let host = host(1 << 30);
    fill(&machine);
    let before = tops(&machine);
    let mut points = Vec::new();
    for round in 0..5u8 {
        for (at, disk) in (0u64..).zip(machine.disks()) {
            let offset = (u64::from(round) * 311_296 + at * 65536) % (2 * MIB);
            machine.write(&disk.name, 0x40 + round, offset, 80_384);
            zero(&machine, &disk.name, (offset + MIB) % (2 * MIB), 65536);
        }
        let reference = Reference::take(&machine);
        let going =
            Going::start(&host.engine(), machine.qmp(), &request(&host, &machine, &format!("run-{round}"), MIB));
        going.reach(Phase::Copying).await;
        for disk in machine.disks() {
            machine.write(&disk.name, 0xe0 + round, 0, 131_072);
            machine.write(&disk.name, 0xe0 + round, disk.size - 66_048, 66_048);
            // Where a snapshot of QEMU 7.2 would show zeros.
            zero(&machine, &disk.name, 65536 * u64::from(round), 2 * 65536);
            zero(&machine, &disk.name, 2 * MIB + 65536 * u64::from(round), 65536);
        }
        let state = going.end().await;
        assert_complete(&state);
        let expected = match round {
            0 => (BackupType::Full, TypeReason::FirstBackup),
            _ => (BackupType::Incremental, TypeReason::CheckpointFound),
        };
        assert!(state.disks.iter().all(|disk| (disk.kind, disk.type_reason) == expected), "{:?}", state.disks);
        assert_gone(&host, &machine, &before);
        host.assert_equal(&machine, &state, &reference);
        points.push((state, reference));
    }
    for (state, reference) in &points {
        host.assert_restores(&machine, state, reference);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scratch_that_is_full_fails_the_run_and_the_guest_notices_nothing() {
    let machine = Plan::new().disk(Disk::qcow2("disk0", 16 * MIB)).start();
    if !machine.can_fleece() {
        return;
    }
    let host = host(2 * MIB);
    machine.write("disk0", 1, 0, 16 * MIB);
    let before = tops(&machine);
    let going = Going::start(&host.engine(), machine.qmp(), &request(&host, &machine, "full", MIB));
    going.reach(Phase::Copying).await;
    for at in 0..15 {
        machine.write("disk0", 2, at * MIB, MIB);
    }
    let state = going.end().await;
    assert_failed(&state, "SnapshotBroken");
    assert!(state.retriable && state.message.contains("disk0"), "{}", state.message);
    assert_gone(&host, &machine, &before);
    assert_eq!(bitmaps(&machine), vec![]);
    let reference = Reference::take(&machine);
    let state = Going::start(&host.engine(), machine.qmp(), &request(&host, &machine, "next", 0)).end().await;
    assert_complete(&state);
    host.assert_equal(&machine, &state, &reference);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scratch_says_that_it_is_nearly_full_while_there_is_still_time() {
    let machine = Plan::new().disk(Disk::qcow2("disk0", 16 * MIB)).start();
    if !machine.can_fleece() {
        return;
    }
    let host = host(8 * MIB);
    machine.write("disk0", 1, 0, 16 * MIB);
    let reference = Reference::take(&machine);
    let going = Going::start(&host.engine(), machine.qmp(), &request(&host, &machine, "low", 2 * MIB));
    going.reach(Phase::Copying).await;
    let mut shown = going.control.state.subscribe();
    for at in 9..16 {
        machine.write("disk0", 2, at * MIB, MIB);
        assert!(at > 13 || shown.borrow().reason.is_empty(), "after {} MiB of 8", at - 8);
    }
    let low = shown.wait_for(|state| state.reason == "ScratchLow" || state.phase.is_final()).await.unwrap().clone();
    assert_eq!((low.reason.as_str(), low.phase), ("ScratchLow", Phase::Copying), "{}", low.message);
    assert!(low.message.contains("disk0"), "{}", low.message);
    let state = going.end().await;
    assert_complete(&state);
    assert_eq!(state.reason, "");
    host.assert_equal(&machine, &state, &reference);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_fleeced_run_leaves_nothing_and_a_detached_one_is_adopted() {
    let machine = varied().start();
    if !machine.can_fleece() {
        return;
    }
    let host = host(1 << 30);
    fill(&machine);
    let before = tops(&machine);
    let going = Going::start(&host.engine(), machine.qmp(), &request(&host, &machine, "cancelled", MIB));
    going.reach(Phase::Copying).await;
    going.control.cancel.cancel();
    assert_eq!(going.end().await.phase, Phase::Cancelled);
    assert_gone(&host, &machine, &before);
    let reference = Reference::take(&machine);
    let adopted = request(&host, &machine, "adopted", 2 * MIB);
    let going = Going::start(&host.engine(), machine.qmp(), &adopted);
    going.reach(Phase::Copying).await;
    going.control.detach.cancel();
    going.end().await;
    for disk in machine.disks() {
        machine.write(&disk.name, 0xee, 0, MIB);
    }
    let state = Going::start(&host.engine(), machine.qmp(), &adopted).end().await;
    assert_complete(&state);
    host.assert_equal(&machine, &state, &reference);
    assert_gone(&host, &machine, &before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scratch_gives_its_space_back_though_the_guest_stands_at_the_end() {
    let machine = Plan::new().disk(Disk::qcow2("a", 16 * MIB)).start();
    if !machine.can_fleece() {
        return;
    }
    let host = host(1 << 30);
    machine.write("a", 7, 0, 16 * MIB);
    let going = Going::start(&host.engine(), machine.qmp(), &request(&host, &machine, "run", MIB));
    going.reach(Phase::Copying).await;
    machine.write("a", 8, 4 * MIB, 12 * MIB);
    let used = unnamed_bytes(&machine);
    assert!(used > 6 * MIB, "the scratch holds {used} bytes");
    machine.execute("stop", json!({}));
    assert_gives_space_back(&host, &machine, going).await;
    assert_clean(&machine);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_guest_stays_paused_and_a_killed_one_costs_the_run() {
    let mut machine =
        Plan::new().disk(Disk::qcow2("a", 4 * MIB)).disk(Disk::raw("b", MIB).attach(Attach::Scsi)).paused().start();
    if !machine.can_fleece() {
        return;
    }
    let host = host(1 << 30);
    machine.write("a", 7, 0, 4 * MIB);
    let reference = Reference::take(&machine);
    let state = Going::start(&host.engine(), machine.qmp(), &request(&host, &machine, "paused", 0)).end().await;
    assert_complete(&state);
    host.assert_equal(&machine, &state, &reference);
    assert_eq!(machine.status(), "prelaunch");
    machine.write("a", 8, 0, 4 * MIB);
    let going = Going::start(&host.engine(), machine.qmp(), &request(&host, &machine, "killed", MIB));
    going.reach(Phase::Copying).await;
    machine.kill();
    assert_failed(&going.end().await, "GuestGone");
    machine.start_again();
    let reference = Reference::take(&machine);
    let state = Going::start(&host.engine(), machine.qmp(), &request(&host, &machine, "next", 0)).end().await;
    assert_complete(&state);
    host.assert_equal(&machine, &state, &reference);
    host.go_on(&machine).await;
    host.assert_tidy(&machine);
    assert_clean(&machine);
}

/// An engine that is stopped before or after any act is followed by one that ends the run: with the guest running, the
/// filters out, and an exact point.
#[tokio::test(flavor = "multi_thread")]
async fn a_fleeced_run_that_is_stopped_at_any_act_is_ended_by_the_next_engine() {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };
    let machine =
        Plan::new().disk(Disk::qcow2("a", 2 * MIB)).disk(Disk::raw("b", MIB + 512).attach(Attach::Scsi)).start();
    if !machine.can_fleece() {
        return;
    }
    let host = host(1 << 30);
    machine.write("a", 7, 0, MIB);
    let before = tops(&machine);
    let mut stop_at = 0;
    loop {
        machine.write("a", 1 + u8::try_from(stop_at % 200).unwrap(), 65536, 512);
        let reference = Reference::take(&machine);
        let (seen, reached) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (counted, stopped) = (seen.clone(), reached.clone());
        let engine = host.engine().with_gate(Arc::new(move |_| {
            let open = counted.fetch_add(1, Ordering::SeqCst) < stop_at;
            stopped.store(usize::from(!open), Ordering::SeqCst);
            open
        }));
        let run = request(&host, &machine, &format!("stopped at {stop_at}"), 0);
        let going = Going::start(&engine, machine.qmp(), &run);
        let ended = tokio::task::block_in_place(|| {
            wait_for("the run stops or ends", SOON, || {
                let ended = going.control.state.borrow().phase.is_final();
                (ended || reached.load(Ordering::SeqCst) == 1).then_some(ended)
            })
        });
        going.task.abort();
        let _ = going.task.await;
        let state = Going::start(&host.engine(), machine.qmp(), &run).end().await;
        assert_complete(&state);
        assert_gone(&host, &machine, &before);
        host.assert_equal(&machine, &state, &reference);
        if ended {
            assert!(stop_at > 60, "only {stop_at} acts");
            return;
        }
        stop_at += 3;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleece_that_no_journal_knows_is_removed_at_a_persons_word() {
    let machine = Plan::new().disk(Disk::qcow2("disk0", 4 * MIB)).start();
    if !machine.can_fleece() {
        return;
    }
    let host = host(1 << 30);
    machine.write("disk0", 1, 0, 4 * MIB);
    let before = tops(&machine);
    let lost = request(&host, &machine, "lost", MIB / 2);
    let going = Going::start(&host.engine(), machine.qmp(), &lost);
    going.reach(Phase::Copying).await;
    going.control.detach.cancel();
    going.end().await;
    std::fs::remove_dir_all(host.folder.path().join("state")).unwrap();
    let refused = request(&host, &machine, "refused", 0);
    assert_failed(&Going::start(&host.engine(), machine.qmp(), &refused).end().await, "ForeignJob");
    let monitor = super::host::monitor(machine.qmp());
    let recovered =
        host.engine().recover(&monitor, &machine.uuid().parse().unwrap(), &host.named(), true).await.unwrap();
    assert!(recovered.adopted.iter().any(|what| what.ends_with("-cbw")), "{recovered:?}");
    drop(monitor);
    assert_clean(&machine);
    assert_eq!(tops(&machine), before);
    let reference = Reference::take(&machine);
    let state = Going::start(&host.engine(), machine.qmp(), &request(&host, &machine, "next", 0)).end().await;
    assert_complete(&state);
    host.assert_equal(&machine, &state, &reference);
}

/// A disk that is taken away at any moment of a run costs at most the run.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_may_be_unplugged_at_any_moment_of_a_fleeced_run() {
    let plan = || Plan::new().disk(Disk::qcow2("a", 2 * MIB)).disk(Disk::qcow2("b", 2 * MIB).attach(Attach::Scsi));
    let mut machine = plan().start();
    if !machine.can_fleece() {
        return;
    }
    let host = host(1 << 30);
    for moment in 0..4 {
        machine.write("a", 1, 0, 2 * MIB);
        machine.write("b", 2, 0, 2 * MIB);
        let run = request(&host, &machine, &format!("unplugged {moment}"), 2 * MIB);
        let going = Going::start(&host.engine(), machine.qmp(), &run);
        tokio::time::sleep(std::time::Duration::from_millis(moment * 60)).await;
        tokio::task::block_in_place(|| machine.unplug("b"));
        let state = going.end().await;
        assert!(state.phase.is_final(), "{state:?}");
        assert_clean(&machine);
        host.assert_tidy(&machine);
        machine.plug("b");
        let reference = Reference::take(&machine);
        let next = request(&host, &machine, &format!("next {moment}"), 0);
        let state = Going::start(&host.engine(), machine.qmp(), &next).end().await;
        assert_complete(&state);
        host.assert_equal(&machine, &state, &reference);
    }
}
