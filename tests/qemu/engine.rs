//! The engine against a real QEMU: what is restored equals the disks of the instant, whatever is written meanwhile and
//! whoever dies, and nothing is left behind.

mod away;
mod course;
mod definition;
mod filters;
mod fleeced;
mod host;
mod increments;
mod load;
mod migration;
mod mistake;
mod origins;
mod overlays;
mod quiesce;
mod replies;
mod staged;
mod storage;
mod window;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use driftline::{
    chain::next::RequestedType,
    engine::{BackupRequest, Patience, Phase, RunState, gate::Passage},
    ids::BitmapRole,
};
use serde_json::json;

use crate::lab::{
    child::wait_for,
    machine::{Attach, Disk, Machine, Plan},
    proxy::{Action, Proxy},
    reference::Reference,
};

use host::{Going, Host, assert_clean, bitmaps};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);

fn assert_failed(state: &RunState, reason: &str) {
    assert_eq!((state.phase, state.reason.as_str()), (Phase::Failed, reason), "{}", state.message);
}

fn assert_complete(state: &RunState) {
    assert_eq!(state.phase, Phase::Complete, "{}: {}", state.reason, state.message);
}

/// Disks of every kind, each with something in it.
fn varied() -> Plan {
    let size = 3 * MIB + 512;
    Plan::new()
        .disk(Disk::raw("device", size))
        .disk(Disk::raw("iothread", size + 65536).attach(Attach::Iothread))
        .disk(Disk::qcow2("throttled", size).attach(Attach::Throttle))
        .disk(Disk::qcow2("scsi", 4 * MIB).attach(Attach::Scsi))
        .disk(Disk::qcow2("both", size + 1024).attach(Attach::DriveAndDevice))
        .disk(Disk::raw("drive", size).attach(Attach::Drive))
}

fn fill(machine: &Machine) {
    for (index, disk) in machine.disks().iter().enumerate() {
        let pattern = u8::try_from(index + 1).unwrap();
        machine.write(&disk.name, pattern, 4096, MIB);
        machine.write(&disk.name, pattern + 32, disk.size - 1024, 1024);
        zero(machine, &disk.name, 131_072, 65536);
    }
}

/// Writes zeros; as plain bytes in an iothread, where `qemu-io`'s own zero write polls the wrong context and kills
/// QEMU 7.2 (`aio_poll: Assertion in_aio_context_home_thread`).
fn zero(machine: &Machine, disk: &str, offset: u64, length: u64) {
    if disk == "iothread" {
        machine.write(disk, 0, offset, length);
    } else {
        machine.write_zeroes(disk, offset, length);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_backup_shows_the_disks_of_the_instant_while_writes_go_on() {
    let host = Host::new();
    let machine = varied().start();
    fill(&machine);
    let reference = Reference::take(&machine);

    let request = host.request(&machine, "run-1", 2 * MIB);
    let going = Going::start(&host.engine(), machine.qmp(), &request);
    going.reach(Phase::Copying).await;
    for round in 0..4 {
        for disk in machine.disks() {
            machine.write(&disk.name, 0xee, round * 3 * 262_144, 70_000 / 512 * 512);
            zero(&machine, &disk.name, disk.size - 512 * (round + 1), 512);
        }
    }
    assert!(!machine.execute("query-jobs", json!({})).as_array().unwrap().is_empty(), "the writes came too late");
    let state = going.end().await;

    assert_complete(&state);
    host.assert_equal(&machine, &state, &reference);
    host.assert_tidy(&machine);
    assert_clean(&machine);
    let names: Vec<_> = state.disks.iter().map(|disk| disk.name.to_string()).collect();
    assert_eq!(names.len(), machine.disks().len(), "{names:?}");
    assert!(state.disks.iter().all(|disk| disk.stored_bytes > MIB && disk.done_bytes == disk.total_bytes));
    // The same request again is the same run.
    let again = Going::start(&host.engine(), machine.qmp(), &request).end().await;
    assert_eq!(again, state);
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_record_from_the_instant_and_survive_a_clean_restart_on_qcow2() {
    let host = Host::new();
    let mut machine = varied().start();
    fill(&machine);
    let state = Going::start(&host.engine(), machine.qmp(), &host.request(&machine, "run-1", 0)).end().await;
    assert_complete(&state);
    let point = &state.point.as_ref().unwrap().manifest.identity.point;
    for disk in machine.disks() {
        machine.write(&disk.name, 9, 65536, 512);
    }
    let look = |machine: &Machine, disks: usize| {
        let found = bitmaps(machine);
        assert_eq!(found.len(), 2 * disks, "{found:?}");
        for (file, name, bitmap) in found {
            assert_eq!((&name.point, bitmap["count"].as_u64()), (point, Some(65536)), "{file}: {name}");
            assert_eq!(bitmap["granularity"], 65536);
            assert_eq!(bitmap["recording"], name.role == BitmapRole::Checkpoint, "{file}: {name}");
            assert_eq!(bitmap["persistent"], file.ends_with("qcow2"), "{file}: {name}");
            assert_ne!(bitmap["inconsistent"], true);
        }
    };
    look(&machine, 6);
    machine.quit();
    machine.start_again();
    look(&machine, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_checkpoints_of_the_point_and_of_its_base_and_their_sentinel_stay() {
    let host = Host::new();
    let machine = Plan::new().disk(Disk::qcow2("disk0", 2 * MIB)).start();
    let mut points = Vec::new();
    for run in ["run-1", "run-2", "run-3"] {
        let request = BackupRequest { kind: RequestedType::Auto, ..host.request(&machine, run, 0) };
        let state = Going::start(&host.engine(), machine.qmp(), &request).end().await;
        assert_complete(&state);
        points.push(state.point.unwrap().manifest.identity.point);
    }
    let found = || {
        let mut found: Vec<_> = bitmaps(&machine).into_iter().map(|(_, name, _)| (name.role, name.point)).collect();
        found.sort();
        found
    };
    let expected = vec![
        (BitmapRole::Checkpoint, points[1].clone()),
        (BitmapRole::Checkpoint, points[2].clone()),
        (BitmapRole::Sentinel, points[0].clone()),
    ];
    assert_eq!(found(), expected);
    // Nothing continues what a full has taken the sentinel from.
    let state = Going::start(&host.engine(), machine.qmp(), &host.request(&machine, "full", 0)).end().await;
    let point = state.point.unwrap().manifest.identity.point;
    assert_eq!(found(), [(BitmapRole::Checkpoint, point.clone()), (BitmapRole::Sentinel, point)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_guest_stays_paused() {
    let host = Host::new();
    let machine = Plan::new().disk(Disk::qcow2("disk0", 2 * MIB)).paused().start();
    machine.write("disk0", 7, 0, MIB);
    let reference = Reference::take(&machine);
    let state = Going::start(&host.engine(), machine.qmp(), &host.request(&machine, "run-1", 0)).end().await;
    assert_complete(&state);
    host.assert_equal(&machine, &state, &reference);
    assert_eq!(machine.status(), "prelaunch");
    let sets = || machine.execute("query-fdsets", json!({})).as_array().unwrap().len();
    assert_eq!(sets() > 0, machine.keeps_descriptors_while_paused(), "{} sets", sets());
    host.go_on(&machine).await;
    assert_clean(&machine);
    host.assert_tidy(&machine);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_leaves_nothing_and_the_next_one_is_whole() {
    let host = Host::new();
    let machine = varied().start();
    fill(&machine);
    let going = Going::start(&host.engine(), machine.qmp(), &host.request(&machine, "run-1", MIB));
    going.reach(Phase::Copying).await;
    going.control.cancel.cancel();
    let state = going.end().await;
    assert_eq!((state.phase, state.reason.as_str()), (Phase::Cancelled, "Cancelled"));
    host.assert_tidy(&machine);
    assert_clean(&machine);
    assert_eq!(bitmaps(&machine), vec![]);
    let reference = Reference::take(&machine);
    let state = Going::start(&host.engine(), machine.qmp(), &host.request(&machine, "run-2", 0)).end().await;
    assert_complete(&state);
    host.assert_equal(&machine, &state, &reference);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_run_is_adopted_with_its_one_transaction() {
    let host = Host::new();
    let machine = varied().start();
    let proxy = Proxy::start(&machine);
    fill(&machine);
    let reference = Reference::take(&machine);
    let request = host.request(&machine, "run-1", 2 * MIB);
    let going = Going::start(&host.engine(), proxy.qmp(), &request);
    going.reach(Phase::Copying).await;
    let jobs: Vec<_> = going.control.state.borrow().disks.iter().map(|disk| disk.job_id.clone()).collect();
    going.control.detach.cancel();
    assert_eq!(going.end().await.phase, Phase::Copying);
    for disk in machine.disks() {
        machine.write(&disk.name, 0xee, 0, MIB);
    }
    assert_eq!(host.engine().unfinished().unwrap(), vec![request.clone()]);
    let state = Going::start(&host.engine(), proxy.qmp(), &request).end().await;
    assert_complete(&state);
    assert_eq!(state.disks.iter().map(|disk| disk.job_id.clone()).collect::<Vec<_>>(), jobs);
    assert_eq!(proxy.count("transaction"), 1);
    host.assert_equal(&machine, &state, &reference);
    assert_clean(&machine);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_machine_of_one_uuid_is_told_so_and_does_not_touch_the_firsts_run() {
    let host = Host::new();
    let first = Plan::new().disk(Disk::raw("disk0", 4 * MIB)).start();
    first.write("disk0", 7, 0, 4 * MIB);
    let second = Plan::new().uuid(Some(first.uuid())).disk(Disk::raw("disk0", 4 * MIB)).start();
    let reference = Reference::take(&first);
    let request = host.request(&first, "run-1", MIB);
    let going = Going::start(&host.engine(), first.qmp(), &request);
    going.reach(Phase::Copying).await;
    going.control.detach.cancel();
    going.end().await;
    let patience = Patience { silent_start: Duration::from_millis(300), ..Patience::default() };
    let engine = host.engine().with_patience(patience);
    let state = Going::start(&engine, second.qmp(), &host.request(&second, "run-2", 0)).end().await;
    assert_failed(&state, "OtherMachine");
    assert_clean(&second);
    let state = Going::start(&host.engine(), first.qmp(), &request).end().await;
    assert_complete(&state);
    host.assert_equal(&first, &state, &reference);
    host.assert_tidy(&first);
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_killed_between_concluded_and_the_flush_fails_the_run_and_blocks_nothing() {
    for action in [Action::Hold, Action::HoldReply] {
        let host = Host::new();
        let mut machine = varied().start();
        let mut proxy = Proxy::start(&machine);
        fill(&machine);
        // Before the first target, the source of each disk's sentinel is closed.
        proxy.on("blockdev-del", 1 + u32::try_from(machine.disks().len()).unwrap(), action);
        let going = Going::start(&host.engine(), proxy.qmp(), &host.request(&machine, "run-1", 0));
        tokio::task::block_in_place(|| proxy.wait_held(SOON));
        let jobs = machine.execute("query-jobs", json!({}));
        assert!(jobs.as_array().unwrap().iter().all(|job| job["status"] == "concluded"), "{jobs}");
        machine.kill();
        let state = going.end().await;
        assert_eq!((state.phase, state.reason.as_str(), state.retriable), (Phase::Failed, "GuestGone", true));
        host.assert_tidy(&machine);
        machine.start_again();
        proxy.start_again(&machine);
        let reference = Reference::take(&machine);
        let state = Going::start(&host.engine(), proxy.qmp(), &host.request(&machine, "run-2", 0)).end().await;
        assert_complete(&state);
        host.assert_equal(&machine, &state, &reference);
        assert_clean(&machine);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_killed_after_copied_does_not_hinder_the_commit() {
    let host = Host::new();
    let mut machine = varied().start();
    fill(&machine);
    let reference = Reference::take(&machine);
    let open = Arc::new(AtomicBool::new(false));
    let (gate, reached) = (open.clone(), Arc::new(AtomicBool::new(false)));
    let seen = reached.clone();
    let engine = host.engine().with_gate(Arc::new(move |passage| {
        if passage == Passage::RepositoryBefore("seal") && !gate.load(Ordering::SeqCst) {
            seen.store(true, Ordering::SeqCst);
            return false;
        }
        true
    }));
    let request = host.request(&machine, "run-1", 0);
    let going = Going::start(&engine, machine.qmp(), &request);
    let wait = || wait_for("the run is copied", SOON, || reached.load(Ordering::SeqCst).then_some(()));
    tokio::task::block_in_place(wait);
    machine.kill();
    going.task.abort();
    assert!(going.task.await.unwrap_err().is_cancelled());
    let state = Going::start(&host.engine(), machine.qmp(), &request).end().await;
    assert_complete(&state);
    host.assert_equal(&machine, &state, &reference);
    host.assert_tidy(&machine);
}
