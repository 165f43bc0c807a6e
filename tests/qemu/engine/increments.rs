//! Chains on a real QEMU: each point holds the disks of its own instant, whatever was written, resized, exchanged, copied,
//! lost or snapshotted in between, and each full says why it is one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use driftline::{
    chain::next::{BackupType, RequestedType, TypeReason},
    engine::{Phase, RunState, gate::Passage},
    ids::BitmapRole,
};
use serde_json::json;

use super::{Going, Host, MIB, assert_clean, assert_complete, bitmaps, fill, varied, zero};
use crate::lab::{
    machine::{Disk, Machine, Plan, run},
    monitor::Monitor,
    reference::{Reference, difference},
};

/// A run to its end.
async fn back_up(host: &Host, machine: &Machine, name: &str, kind: RequestedType) -> RunState {
    let mut request = host.request(machine, name, 0);
    request.kind = kind;
    let state = Going::start(&host.engine(), machine.qmp(), &request).end().await;
    if state.phase == Phase::Complete {
        assert_clean(machine);
        host.assert_tidy(machine);
    }
    state
}

/// An `Auto` run of a quiet machine, compared at once; what its disks became.
pub(super) async fn auto(host: &Host, machine: &Machine, name: &str) -> Vec<(BackupType, TypeReason)> {
    let reference = Reference::take(machine);
    let state = back_up(host, machine, name, RequestedType::Auto).await;
    assert_complete(&state);
    host.assert_equal(machine, &state, &reference);
    state.disks.iter().map(|disk| (disk.kind, disk.type_reason)).collect()
}

pub(super) const INCREMENT: (BackupType, TypeReason) = (BackupType::Incremental, TypeReason::CheckpointFound);

fn full(reason: TypeReason) -> (BackupType, TypeReason) {
    (BackupType::Full, reason)
}

fn one_disk() -> Machine {
    let machine = Plan::new().disk(Disk::qcow2("disk0", 4 * MIB)).start();
    machine.write("disk0", 7, 0, 3 * MIB);
    machine
}

fn resize(machine: &Machine, disk: &str, size: u64) {
    machine.execute("block_resize", json!({ "node-name": machine.disk(disk).format_node(), "size": size }));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_point_of_a_chain_shows_the_disks_of_its_instant() {
    let host = Host::new();
    let machine = varied().start();
    fill(&machine);
    let mut points = Vec::new();
    for round in 0..6u8 {
        for (at, disk) in (0u64..).zip(machine.disks()) {
            let offset = (u64::from(round) * 311_296 + at * 65536) % (2 * MIB);
            machine.write(&disk.name, 0x40 + round, offset, 80_384);
            zero(&machine, &disk.name, (offset + MIB) % (2 * MIB), 65536);
        }
        let reference = Reference::take(&machine);
        let request = host.request(&machine, &format!("run-{round}"), MIB);
        let going = Going::start(
            &host.engine(),
            machine.qmp(),
            &driftline::engine::BackupRequest { kind: RequestedType::Auto, ..request },
        );
        going.reach_past(Phase::Preparing).await;
        // What the job has yet to copy, and what it does not copy at all.
        for disk in machine.disks() {
            machine.write(&disk.name, 0xe0 + round, 0, 131_072);
            machine.write(&disk.name, 0xe0 + round, disk.size - 66_048, 66_048);
            zero(&machine, &disk.name, 2 * MIB + 65536 * u64::from(round), 65536);
        }
        let state = going.end().await;
        assert_complete(&state);
        let expected = if round == 0 { full(TypeReason::FirstBackup) } else { INCREMENT };
        for disk in &state.disks {
            assert_eq!((disk.kind, disk.type_reason), expected, "round {round}: {}", disk.name);
            assert!(round == 0 || disk.stored_bytes < MIB + MIB / 2, "{disk:?}");
        }
        assert_eq!(state.kind, Some(expected.0));
        host.assert_equal(&machine, &state, &reference);
        points.push((state, reference));
    }
    assert_clean(&machine);
    host.assert_tidy(&machine);
    for (state, reference) in &points {
        host.assert_equal(&machine, state, reference);
        host.assert_restores(&machine, state, reference);
    }
    let chain = &points[5].0.point.as_ref().unwrap().chain;
    assert_eq!(chain.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_bitmaps_when_qemu_ends() {
    let host = Host::new();
    let disks = || Plan::new().disk(Disk::qcow2("kept", 2 * MIB)).disk(Disk::raw("plain", 2 * MIB));
    let mut machine = disks().start();
    machine.write("kept", 1, 0, MIB);
    assert_eq!(auto(&host, &machine, "first").await, [full(TypeReason::FirstBackup); 2]);
    machine.write("kept", 2, 65536, 512);
    machine.quit();
    machine.start_again();
    // One point may mix a full disk with an incremental one.
    let mixed = [INCREMENT, full(TypeReason::NotSupportedByFormat)];
    assert_eq!(auto(&host, &machine, "clean").await, mixed);
    machine.write("kept", 3, MIB, 512);
    machine.kill();
    machine.start_again();
    // Two of its bitmaps had been stored at the last clean end; the newest one had not.
    let lost = [full(TypeReason::BitmapInconsistent), full(TypeReason::NotSupportedByFormat)];
    assert_eq!(auto(&host, &machine, "killed").await, lost);
    machine.kill();
    machine.start_again();
    let lost = [full(TypeReason::BitmapMissing), full(TypeReason::NotSupportedByFormat)];
    assert_eq!(auto(&host, &machine, "again").await, lost);
    assert_eq!(auto(&host, &machine, "quiet").await, [INCREMENT; 2]);
}

/// QEMU resizes no disk that has an inconsistent bitmap; whoever cannot wait for the next backup has it removed.
#[tokio::test(flavor = "multi_thread")]
async fn bitmaps_that_a_crash_made_useless_go_with_a_recovery() {
    let host = Host::new();
    let mut machine = Plan::new().disk(Disk::qcow2("kept", 2 * MIB)).start();
    assert_eq!(auto(&host, &machine, "first").await, [full(TypeReason::FirstBackup)]);
    machine.quit();
    machine.start_again();
    machine.kill();
    machine.start_again();
    let resize = json!({ "node-name": "fmt-kept", "size": 3 * MIB });
    let refused = Monitor::connect(machine.qmp().as_path()).try_execute("block_resize", resize.clone()).unwrap_err();
    assert!(refused.contains("inconsistent"), "{refused}");
    let monitor = super::host::monitor(machine.qmp());
    let recovered =
        host.engine().recover(&monitor, &machine.uuid().parse().unwrap(), &host.named(), false).await.unwrap();
    drop(monitor);
    assert_eq!((recovered.found, recovered.removed.len()), (false, 2), "{recovered:?}");
    machine.execute("block_resize", resize);
    assert_eq!(auto(&host, &machine, "next").await, [full(TypeReason::BitmapMissing)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_that_grow_go_on_and_disks_that_shrink_start_anew() {
    let host = Host::new();
    let machine = one_disk();
    let odd = 4 * MIB + 512;
    assert_eq!(auto(&host, &machine, "first").await, [full(TypeReason::FirstBackup)]);
    resize(&machine, "disk0", odd);
    machine.write("disk0", 9, 4 * MIB, 512);
    assert_eq!(auto(&host, &machine, "grown").await, [INCREMENT]);
    let sentinels = bitmaps(&machine).into_iter().filter(|(_, name, _)| name.role == BitmapRole::Sentinel);
    assert_eq!(sentinels.count(), 2, "the one that was used, and the one of the new size");
    resize(&machine, "disk0", 5 * MIB);
    assert_eq!(auto(&host, &machine, "grown again").await, [INCREMENT]);
    assert_eq!(auto(&host, &machine, "the same").await, [INCREMENT]);
    resize(&machine, "disk0", 3 * MIB);
    assert_eq!(auto(&host, &machine, "shrunk").await, [full(TypeReason::DiskShrunk)]);
    resize(&machine, "disk0", 2 * MIB);
    resize(&machine, "disk0", 3 * MIB);
    assert_eq!(auto(&host, &machine, "shrunk and grown").await, [full(TypeReason::DiskShrunk)]);
    assert_eq!(auto(&host, &machine, "quiet").await, [INCREMENT]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_shrinks_between_the_choice_and_the_instant_fails_the_run() {
    let host = Host::new();
    let machine = one_disk();
    auto(&host, &machine, "first").await;
    let (machine, resized) = (Arc::new(machine), Arc::new(AtomicBool::new(false)));
    let (there, once) = (machine.clone(), resized);
    let engine = host.engine().with_gate(Arc::new(move |passage| {
        if passage == Passage::Sending("transaction") && !once.swap(true, Ordering::SeqCst) {
            resize(&there, "disk0", 2 * MIB);
            resize(&there, "disk0", 4 * MIB);
        }
        true
    }));
    let mut request = host.request(&machine, "shrunk", 0);
    request.kind = RequestedType::Auto;
    let state = Going::start(&engine, machine.qmp(), &request).end().await;
    assert_eq!((state.phase, state.reason.as_str(), state.retriable), (Phase::Failed, "DiskShrunk", true));
    assert!(state.message.contains("disk0"), "{}", state.message);
    assert_clean(&machine);
    host.assert_tidy(&machine);
    assert_eq!(auto(&host, &machine, "next").await, [full(TypeReason::DiskShrunk)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_are_exchanged_go_on_with_their_own_lineage_and_copied_ones_start_anew() {
    let host = Host::new();
    let mut machine = Plan::new().disk(Disk::qcow2("a", 2 * MIB)).disk(Disk::qcow2("b", 2 * MIB)).start();
    machine.write("a", 0xaa, 0, MIB);
    machine.write("b", 0xbb, 0, MIB);
    assert_eq!(auto(&host, &machine, "first").await, [full(TypeReason::FirstBackup); 2]);
    let files = [machine.disk("a").file.clone(), machine.disk("b").file.clone()];
    machine.write("a", 1, 65536, 512);
    machine.quit();
    let aside = files[0].with_extension("aside");
    fs::rename(&files[0], &aside).unwrap();
    fs::rename(&files[1], &files[0]).unwrap();
    fs::rename(&aside, &files[1]).unwrap();
    machine.start_again();
    machine.write("a", 2, 2 * 65536, 512);
    assert_eq!(auto(&host, &machine, "exchanged").await, [INCREMENT; 2]);
    machine.quit();
    fs::copy(&files[0], &files[1]).unwrap();
    machine.start_again();
    machine.write("b", 3, 3 * 65536, 512);
    assert_eq!(auto(&host, &machine, "copied").await, [full(TypeReason::LineageNotUnique); 2]);
    machine.write("a", 4, 4 * 65536, 512);
    assert_eq!(auto(&host, &machine, "apart").await, [INCREMENT; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_that_is_lost_costs_an_older_base_and_a_chain_that_is_broken_a_full() {
    let host = Host::new();
    let machine = one_disk();
    let mut folders = Vec::new();
    for name in ["first", "second", "third"] {
        machine.write("disk0", 8, 65536 * (1 + folders.len() as u64), 512);
        let state = back_up(&host, &machine, name, RequestedType::Auto).await;
        let point = &state.point.as_ref().unwrap().manifest.identity.point;
        folders.push(host.guest_folder(&machine).join(point.as_str()));
    }
    fs::remove_dir_all(&folders[2]).unwrap();
    machine.write("disk0", 9, 65536 * 9, 512);
    let older = (BackupType::Incremental, TypeReason::OlderCheckpointFound);
    assert_eq!(auto(&host, &machine, "without the third").await, [older]);
    fs::remove_dir_all(&folders[0]).unwrap();
    let reference = Reference::take(&machine);
    let state = back_up_broken(&host, &machine, "without the first").await;
    assert_eq!((state.disks[0].kind, state.disks[0].type_reason), full(TypeReason::ChainBroken));
    host.assert_equal(&machine, &state, &reference);
}

/// A run into a repository that has damage.
async fn back_up_broken(host: &Host, machine: &Machine, name: &str) -> RunState {
    let mut request = host.request(machine, name, 0);
    request.kind = RequestedType::Auto;
    let state = Going::start(&host.engine(), machine.qmp(), &request).end().await;
    assert_complete(&state);
    state
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_snapshot_costs_a_full_and_its_commit_brings_the_old_chain_back() {
    let host = Host::new();
    let machine = one_disk();
    assert_eq!(auto(&host, &machine, "first").await, [full(TypeReason::FirstBackup)]);
    machine.write("disk0", 1, 65536, 512);
    let node = machine.disk("disk0").format_node();
    let overlay = machine.folder().join("overlay.qcow2");
    let snapshot = json!({ "node-name": node, "snapshot-file": overlay, "snapshot-node-name": "overlay" });
    machine.execute("blockdev-snapshot-sync", snapshot);
    machine.write("disk0", 2, 3 * 65536, 512);
    for (name, expected) in [("above", full(TypeReason::ActiveLayerChanged)), ("above again", INCREMENT)] {
        machine.write("disk0", 3, 4 * 65536, 512);
        let now = raw_of(&machine, &overlay);
        let state = back_up_broken(&host, &machine, name).await;
        assert_eq!((state.disks[0].kind, state.disks[0].type_reason), expected);
        assert_stored(&host, &machine, &state, &now);
    }
    machine.execute("block-commit", json!({ "device": "overlay", "job-id": "back", "auto-dismiss": true }));
    crate::lab::child::wait_for("the commit is ready", super::SOON, || {
        (machine.execute("query-jobs", json!({}))[0]["status"] == "ready").then_some(())
    });
    machine.execute("block-job-complete", json!({ "device": "back" }));
    crate::lab::child::wait_for("the overlay is gone", super::SOON, || {
        (machine.execute("query-jobs", json!({})) == json!([])).then_some(())
    });
    machine.write("disk0", 5, 6 * 65536, 512);
    assert_eq!(auto(&host, &machine, "committed").await, [INCREMENT]);
}

/// What a guest sees of an image that it has open.
fn raw_of(machine: &Machine, image: &Path) -> PathBuf {
    machine.flush("disk0");
    let raw = image.with_extension("raw");
    run(Command::new("qemu-img").args(["convert", "-U", "-O", "raw"]).arg(image).arg(&raw));
    raw
}

fn assert_stored(host: &Host, machine: &Machine, state: &RunState, expected: &Path) {
    let restored = expected.with_extension("restored");
    run(Command::new("qemu-img")
        .args(["convert", "-O", "raw"])
        .arg(host.stored(machine, state, "disk0"))
        .arg(&restored));
    assert_eq!(difference(expected, &restored), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_repositories_have_their_own_chains() {
    let (one, other) = (Host::new(), Host::with_id("0badcafe-9a51-4c7e-8f2b-0d9f2f6f3a10"));
    let machine = one_disk();
    assert_eq!(auto(&one, &machine, "one").await, [full(TypeReason::FirstBackup)]);
    machine.write("disk0", 1, 65536, 512);
    assert_eq!(auto(&other, &machine, "other").await, [full(TypeReason::FirstBackup)]);
    for round in 2..4u8 {
        machine.write("disk0", round, 65536 * u64::from(round), 512);
        assert_eq!(auto(&one, &machine, &format!("one {round}")).await, [INCREMENT]);
        machine.write("disk0", round + 8, 65536 * u64::from(round + 8), 512);
        assert_eq!(auto(&other, &machine, &format!("other {round}")).await, [INCREMENT]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cancelled_increment_would_have_stored_is_in_the_next_one() {
    let host = Host::new();
    let machine = one_disk();
    auto(&host, &machine, "first").await;
    machine.write("disk0", 1, 0, 3 * MIB);
    let mut request = host.request(&machine, "cancelled", MIB / 2);
    request.kind = RequestedType::Auto;
    let going = Going::start(&host.engine(), machine.qmp(), &request);
    going.reach(Phase::Copying).await;
    machine.write("disk0", 2, 0, 65536);
    going.control.cancel.cancel();
    assert_eq!(going.end().await.phase, Phase::Cancelled);
    assert_clean(&machine);
    assert_eq!(bitmaps(&machine).len(), 2);
    assert_eq!(auto(&host, &machine, "next").await, [INCREMENT]);
}

#[tokio::test(flavor = "multi_thread")]
async fn types_that_were_asked_for() {
    let host = Host::new();
    let machine = one_disk();
    let state = back_up(&host, &machine, "impossible", RequestedType::Incremental).await;
    assert_eq!((state.phase, state.reason.as_str(), state.retriable), (Phase::Failed, "IncrementalImpossible", false));
    assert!(state.message.contains("disk0") && state.message.contains("FirstBackup"), "{}", state.message);
    assert!(state.message.contains("Auto"), "the way out: {}", state.message);
    let reference = Reference::take(&machine);
    let state = back_up(&host, &machine, "copy", RequestedType::Copy).await;
    assert_complete(&state);
    assert_eq!((state.kind, bitmaps(&machine)), (Some(BackupType::Copy), vec![]));
    host.assert_equal(&machine, &state, &reference);
    assert_eq!(auto(&host, &machine, "auto").await, [full(TypeReason::FirstBackup)]);
    machine.write("disk0", 1, 65536, 512);
    // A copy in between takes nothing from the chain.
    assert_complete(&back_up(&host, &machine, "another copy", RequestedType::Copy).await);
    let reference = Reference::take(&machine);
    let state = back_up(&host, &machine, "increment", RequestedType::Incremental).await;
    assert_complete(&state);
    host.assert_equal(&machine, &state, &reference);
    assert!(state.disks[0].total_bytes <= 2 * 65536, "{:?}", state.disks[0]);
    let state = back_up(&host, &machine, "full", RequestedType::Full).await;
    assert_eq!((state.kind, state.type_reason), (Some(BackupType::Full), Some(TypeReason::Requested)));
}
