//! What somebody else does to a disk between the look at the machine and the instant: a snapshot, a mirror, a throttle. The
//! run ends with the reason, the disk is as they have left it, and the next run is whole.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use driftline::{
    chain::next::RequestedType,
    engine::{BackupRequest, Engine, Phase, RequestedFleecing, RunState, gate::Passage},
};
use serde_json::{Value, json};

use super::{Going, Host, MIB, SOON, assert_clean, assert_complete, assert_failed, fleeced};
use crate::lab::{
    child::wait_for,
    machine::{Disk, Machine, Plan, run},
    reference::{Reference, difference},
};

/// An engine that stops at the `nth` passage of a kind until it is told to go on.
struct Paused {
    engine: Engine,
    reached: mpsc::Receiver<()>,
    go: mpsc::Sender<()>,
}

impl Paused {
    fn at(engine: Engine, wanted: Passage, nth: usize) -> Self {
        let (seen, reached) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        let state = Mutex::new((0, seen, wait));
        let gate = move |passage: Passage| {
            if passage == wanted {
                let mut state = state.lock().unwrap();
                state.0 += 1;
                if state.0 == nth {
                    // Whoever listened may have given up.
                    let _ = state.1.send(());
                    let _ = state.2.recv_timeout(Duration::from_secs(60));
                }
            }
            true
        };
        Self { engine: engine.with_gate(Arc::new(gate)), reached, go }
    }

    /// Runs `request` and does `act` at the passage.
    async fn run<T>(&self, machine: &Machine, request: &BackupRequest, act: impl FnOnce() -> T) -> (RunState, T) {
        let going = Going::start(&self.engine, machine.qmp(), request);
        let done = tokio::task::block_in_place(|| {
            self.reached.recv_timeout(SOON).expect("the passage is reached");
            let done = act();
            self.go.send(()).unwrap();
            done
        });
        (going.end().await, done)
    }
}

fn machine() -> Machine {
    let machine = Plan::new().disk(Disk::qcow2("disk0", 4 * MIB)).start();
    machine.write("disk0", 7, 0, 3 * MIB);
    machine
}

/// What an image shows, in a file beside it.
fn raw(image: &Path) -> PathBuf {
    let raw = image.with_extension("raw");
    run(Command::new("qemu-img").args(["convert", "-U", "-f", "qcow2", "-O", "raw"]).arg(image).arg(&raw));
    raw
}

fn snapshot(machine: &Machine, disk: &str) -> PathBuf {
    let (node, overlay) = (machine.disk(disk).format_node(), machine.folder().join(format!("{disk}-overlay.qcow2")));
    let (file, name) = (overlay.to_str().unwrap(), format!("{disk}-overlay"));
    let arguments = json!({"node-name": node, "snapshot-file": file, "snapshot-node-name": name});
    machine.execute("blockdev-snapshot-sync", arguments);
    overlay
}

/// A run during which somebody takes a snapshot, and the next one.
async fn snapshot_at(passage: Passage, nth: usize, fleecing: RequestedFleecing) {
    let host = fleeced::host(1 << 30);
    let machine = machine();
    if fleecing == RequestedFleecing::Always && !machine.can_fleece() {
        return;
    }
    let request = |run: &str| BackupRequest { fleecing, ..fleeced::request(&host, &machine, run, 0) };
    assert_complete(&Going::start(&host.engine(), machine.qmp(), &request("first")).end().await);
    machine.write("disk0", 1, 65536, 512);
    let paused = Paused::at(host.engine(), passage, nth);
    let (state, overlay) = paused
        .run(&machine, &request("second"), || {
            let overlay = snapshot(&machine, "disk0");
            machine.write("disk0", 0xee, 10 * 65536, 65536);
            overlay
        })
        .await;
    assert_failed(&state, "ActiveLayerChanged");
    assert!(state.retriable, "{state:?}");
    assert_clean(&machine);
    assert_eq!(fleeced::tops(&machine)[0].1, "disk0-overlay");
    let third = Going::start(&host.engine(), machine.qmp(), &request("third")).end().await;
    assert_complete(&third);
    machine.flush("disk0");
    let expected = raw(&overlay);
    assert_eq!(difference(&expected, &raw(&host.stored(&machine, &third, "disk0"))), None);
}

/// QEMU moves a filter that nobody uses yet above the overlay: the job would read the overlay, and its bitmap know the layer
/// below.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_just_before_the_fleeced_instant_is_no_part_of_an_increment() {
    snapshot_at(Passage::Sending("qom-set"), 1, RequestedFleecing::Always).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_before_a_fleeced_checkpoint_ends_the_run() {
    snapshot_at(Passage::Sending("transaction"), 1, RequestedFleecing::Always).await;
}

/// The job would copy the frozen base.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_just_before_the_instant_of_a_direct_run_ends_it() {
    snapshot_at(Passage::Sending("transaction"), 1, RequestedFleecing::Never).await;
}

fn mirror(machine: &Machine) -> PathBuf {
    let (target, begun) = begin_mirror(machine);
    begun.unwrap();
    target
}

fn begin_mirror(machine: &Machine) -> (PathBuf, Result<Value, String>) {
    let target = machine.folder().join("mirror.qcow2");
    run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&target).arg("4M"));
    let file = json!({"driver": "file", "filename": target.to_str().unwrap()});
    machine.execute("blockdev-add", json!({"driver": "qcow2", "node-name": "mirror-target", "file": file}));
    let device = machine.disk("disk0").format_node();
    let arguments =
        json!({"job-id": "mirror", "device": device, "target": "mirror-target", "sync": "full", "auto-dismiss": false});
    (target, machine.try_execute("blockdev-mirror", arguments))
}

/// The guest writes and the mirror is completed: its target is the guest's disk now.
fn assert_mirrored(machine: &Machine, target: &Path) {
    let job = || -> Value {
        let jobs = machine.execute("query-jobs", json!({}));
        jobs.as_array().unwrap().iter().find(|job| job["id"] == "mirror").cloned().unwrap_or_default()
    };
    let until = |status: &str| wait_for(status, SOON, || (job()["status"] == status).then_some(()));
    until("ready");
    machine.write("disk0", 0xee, MIB, 65536);
    machine.flush("disk0");
    machine.execute("job-complete", json!({"id": "mirror"}));
    until("concluded");
    assert_eq!(job()["error"], Value::Null);
    machine.execute("job-dismiss", json!({"id": "mirror"}));
    machine.flush("disk0");
    let at = usize::try_from(MIB).unwrap();
    assert_eq!(fs::read(raw(target)).unwrap()[at], 0xee, "the guest's write is in its disk");
}

/// `query-block` does not show a mirror's filter; a device that is taken past it writes to what the mirror drops at its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_begins_while_a_fleeced_run_does_keeps_the_guests_writes() {
    let host = fleeced::host(1 << 30);
    let machine = machine();
    if !machine.can_fleece() {
        return;
    }
    let paused = Paused::at(host.engine(), Passage::Sending("add-fd"), 1);
    let request = fleeced::request(&host, &machine, "first", 0);
    let (state, target) = paused.run(&machine, &request, || mirror(&machine)).await;
    assert_failed(&state, "ForeignJob");
    tokio::task::block_in_place(|| assert_mirrored(&machine, &target));
    assert_clean(&machine);
}

/// So the last look before the instant sees every job that could be there.
#[tokio::test(flavor = "multi_thread")]
async fn qemu_refuses_a_mirror_once_the_filter_of_a_run_is_there() {
    let host = fleeced::host(1 << 30);
    let machine = machine();
    if !machine.can_fleece() {
        return;
    }
    let paused = Paused::at(host.engine(), Passage::Sending("qom-set"), 1);
    let request = fleeced::request(&host, &machine, "first", 0);
    let (state, refused) = paused.run(&machine, &request, || begin_mirror(&machine).1).await;
    assert!(refused.as_ref().unwrap_err().contains("root block node"), "{refused:?}");
    assert_complete(&state);
}

fn put_throttle_on(machine: &Machine, node: &str) -> String {
    let limits = json!({"bps-total": 100 * MIB});
    machine.execute("object-add", json!({"qom-type": "throttle-group", "id": "group", "limits": limits}));
    let throttle = json!({"driver": "throttle", "node-name": "throttle", "throttle-group": "group", "file": node});
    machine.execute("blockdev-add", throttle);
    let qdev = fleeced::tops(machine)[0].0.clone();
    machine.execute("qom-set", json!({"path": qdev, "property": "drive", "value": "throttle"}));
    qdev
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttle_that_is_put_on_while_a_fleeced_run_begins_stays() {
    let host = fleeced::host(1 << 30);
    let machine = machine();
    if !machine.can_fleece() {
        return;
    }
    let paused = Paused::at(host.engine(), Passage::Sending("add-fd"), 1);
    let request = fleeced::request(&host, &machine, "first", 0);
    let node = machine.disk("disk0").format_node();
    let (state, _) = paused.run(&machine, &request, || put_throttle_on(&machine, &node)).await;
    assert_failed(&state, "FilterChanged");
    assert_eq!(fleeced::tops(&machine)[0].1, "throttle");
    assert_clean(&machine);
}

/// A node that was put on the run's filter holds it; what the message says frees it.
#[tokio::test(flavor = "multi_thread")]
async fn a_throttle_on_the_runs_filter_is_named_with_the_way_out() {
    let host = fleeced::host(1 << 30);
    let machine = machine();
    if !machine.can_fleece() {
        return;
    }
    let going = Going::start(&host.engine(), machine.qmp(), &fleeced::request(&host, &machine, "first", 2 * MIB));
    going.reach(Phase::Copying).await;
    let filter = fleeced::tops(&machine)[0].1.clone();
    put_throttle_on(&machine, &filter);
    let state = going.end_within(Duration::from_secs(120)).await;
    assert_failed(&state, "FilterStuck");
    let node = machine.disk("disk0").format_node();
    for part in [&filter, "node throttle", &format!("file {node}"), "blockdev-reopen", "driftline recover"] {
        assert!(state.message.contains(part), "{part}: {}", state.message);
    }
    assert_eq!(machine.status(), "running");
    let throttle = json!({"driver": "throttle", "node-name": "throttle", "throttle-group": "group", "file": node});
    machine.execute("blockdev-reopen", json!({"options": [throttle]}));
    let reference = Reference::take(&machine);
    let second =
        Going::start(&host.engine(), machine.qmp(), &fleeced::request(&host, &machine, "second", 0)).end().await;
    assert_complete(&second);
    host.assert_equal(&machine, &second, &reference);
    assert_eq!(fleeced::tops(&machine)[0].1, "throttle");
    assert_clean(&machine);
}

/// The agent dies right after it has let the guest go on; later a person pauses the guest.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_a_person_has_paused_is_not_continued_by_recovery() {
    let host = fleeced::host(1 << 30);
    let machine = Plan::new().disk(Disk::qcow2("a", 4 * MIB)).disk(Disk::qcow2("b", 4 * MIB)).start();
    if !machine.can_fleece() {
        return;
    }
    let (seen, reached) = mpsc::channel();
    let (seen, continued) = (Mutex::new(seen), Mutex::new(false));
    let engine = host.engine().with_gate(Arc::new(move |passage| {
        let mut continued = continued.lock().unwrap();
        *continued |= passage == Passage::Replied("cont");
        let stop = *continued && passage == Passage::Sending("blockdev-add");
        if stop {
            seen.lock().unwrap().send(()).unwrap();
        }
        !stop
    }));
    let request = fleeced::request(&host, &machine, "first", 0);
    let going = Going::start(&engine, machine.qmp(), &request);
    tokio::task::block_in_place(|| reached.recv_timeout(SOON).unwrap());
    going.task.abort();
    let _ = going.task.await;
    machine.execute("stop", json!({}));
    let _ = Going::start(&host.engine(), machine.qmp(), &request).end().await;
    assert_eq!(machine.status(), "paused");
}

/// What remembers how runs ended forgets it when the clock jumps.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_end_was_forgotten_is_not_done_twice() {
    let host = Host::new();
    let machine = machine();
    let request = BackupRequest { kind: RequestedType::Auto, ..host.request(&machine, "first", 0) };
    let first = Going::start(&host.engine(), machine.qmp(), &request).end().await;
    assert_complete(&first);
    fs::remove_dir_all(host.folder.path().join("state/finished")).unwrap();
    let again = Going::start(&host.engine(), machine.qmp(), &request).end().await;
    assert_complete(&again);
    assert_eq!(again.point, first.point);
    let scan = host.repository().scan(&machine.uuid().parse().unwrap()).unwrap();
    assert_eq!(scan.points.len(), 1);
}
