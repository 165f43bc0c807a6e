//! The course of a run that copies: suspended, resumed, slowed down and cancelled, by whoever asked for it and by people at its
//! host, whoever drives it and whoever dies meanwhile.

use std::{collections::BTreeSet, time::Duration};

use driftline::{
    engine::{
        Engine, EngineError, Followed, Patience, Phase,
        bitmaps::{BitmapAct, NamedBitmap},
        course::{Course, HostWish, OwnerWish},
    },
    ids::GuestId,
    qmp::fake::Pace,
};

use super::{
    crashes::{is_stopped, soak},
    host::{Counter, Going, Host, UUID, assert_complete, assert_failed},
    shape::{Shape, Way},
};

const FLEECED: Shape = Shape { way: Way::Fleeced, ..Shape::CONTINUED };

fn suspend(suspend: bool) -> OwnerWish {
    OwnerWish { suspend: Some(suspend), bandwidth: Some(0) }
}

fn statuses(host: &Host) -> Vec<&'static str> {
    host.qemu.jobs().iter().map(|job| job.status).collect()
}

fn speeds(host: &Host) -> Vec<u64> {
    host.qemu.jobs().iter().map(|job| job.speed).collect()
}

async fn suspended(going: &Going, is: bool) {
    let state = going.reach(|state| state.course.is_suspended() == is || state.phase.is_final()).await;
    assert!(!state.phase.is_final(), "{}: {}", state.reason, state.message);
}

/// A person at the host, whose command is a process of its own.
async fn wish(host: &Host, wish: HostWish) -> Result<Followed, EngineError> {
    let guest: GuestId = UUID.parse().unwrap();
    let (engine, monitor) = (host.engine(), host.monitor());
    tokio::time::timeout(Duration::from_secs(30), engine.wish(&monitor, &guest, wish))
        .await
        .expect("the wish is answered")
}

async fn course(host: &Host, of: HostWish) -> Course {
    match wish(host, of).await.unwrap() {
        Followed::Course { course, run } => {
            assert_eq!(run, "run-1");
            course
        }
        Followed::Ended(state) => panic!("it has ended: {state:?}"),
    }
}

/// Its jobs are as `statuses` within a second or two.
async fn reach(host: &Host, wanted: &str) {
    for _ in 0..300 {
        if statuses(host).iter().all(|status| *status == wanted) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not {wanted}: {:?}", host.qemu.jobs());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_run_stands_still_until_it_is_resumed_and_is_exact() {
    let host = Host::begun(FLEECED, Pace::Manual).await;
    let going = host.start(&host.engine(), &host.request("run-1"));
    going.copying().await;
    let disks = host.disks();
    going.control.owner.send_replace(suspend(true));
    suspended(&going, true).await;
    reach(&host, "paused").await;
    let state = going.reach(|state| state.disks.iter().all(|disk| disk.paused)).await;
    assert_eq!(state.heard, suspend(true));
    host.qemu.finish_jobs();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(statuses(&host), ["paused", "paused"]);
    // Again is no matter.
    going.control.owner.send_replace(suspend(true));
    going.control.owner.send_replace(suspend(false));
    suspended(&going, false).await;
    reach(&host, "running").await;
    host.qemu.finish_jobs();
    let state = going.end().await;
    assert_complete(&state);
    host.assert_stored(&state, &disks);
    host.assert_clean(host.bitmaps());
    host.qemu.set_pace(Pace::AtOnce);
    host.assert_next_is_exact().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_let_go_while_it_stands_still_stands_still_for_the_next_engine() {
    let host = Host::begun(FLEECED, Pace::Manual).await;
    let request = host.request("run-1");
    let first = host.start(&host.engine(), &request);
    first.copying().await;
    first.control.owner.send_replace(OwnerWish { suspend: Some(true), bandwidth: Some(7 << 20) });
    suspended(&first, true).await;
    reach(&host, "paused").await;
    first.control.detach.cancel();
    first.end().await;
    // As if QEMU had not heard it: what stands in the journal holds.
    host.qemu.resume_jobs();
    let second = host.start(&host.engine(), &request);
    suspended(&second, true).await;
    reach(&host, "paused").await;
    assert_eq!(speeds(&host), [7 << 20; 2]);
    assert_eq!(second.reach(|state| state.course.bandwidth.is_some()).await.course.owner.suspend, Some(true));
    second.control.owner.send_replace(suspend(false));
    reach(&host, "running").await;
    assert_eq!(speeds(&host), [0; 2]);
    host.qemu.finish_jobs();
    assert_complete(&second.end().await);
    assert_eq!(host.assert_tidy(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_not_fleeced_is_not_suspended_and_says_so() {
    for way in [Way::Direct, Way::Staged] {
        let host = Host::begun(Shape { way, ..Shape::FIRST }, Pace::Manual).await;
        let going = host.start(&host.engine(), &host.request("run-1"));
        going.copying().await;
        going.control.owner.send_replace(suspend(true));
        let state = going.reach(|state| state.reason == "SuspendNeedsFleecing").await;
        assert!(state.message.contains("bandwidth") && !state.course.is_suspended(), "{state:?}");
        let refused = wish(&host, HostWish::Suspend).await.unwrap_err();
        assert_eq!(refused.reason(), "SuspendNeedsFleecing");
        assert_eq!(host.qemu.count("job-pause"), 0);
        // Slower it can be.
        assert_eq!(course(&host, HostWish::Bandwidth(1 << 20)).await.bandwidth, Some(1 << 20));
        let wanted = [1 << 20; 2];
        for _ in 0..300 {
            if speeds(&host) == wanted {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(speeds(&host), wanted);
        going.control.owner.send_replace(suspend(false));
        going.reach(|state| state.reason.is_empty()).await;
        host.qemu.finish_jobs();
        assert_complete(&going.end().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn people_at_the_host_and_the_owner_do_not_take_each_others_word_back() {
    let host = Host::begun(FLEECED, Pace::Manual).await;
    let going = host.start(&host.engine(), &host.request("run-1"));
    going.copying().await;
    assert!(course(&host, HostWish::Suspend).await.is_suspended());
    reach(&host, "paused").await;
    going.control.owner.send_replace(suspend(true));
    going.reach(|state| state.course.owner.suspend == Some(true)).await;
    assert!(course(&host, HostWish::Resume).await.is_suspended(), "the owner still wishes it");
    reach(&host, "paused").await;
    going.control.owner.send_replace(suspend(false));
    reach(&host, "running").await;
    host.qemu.finish_jobs();
    assert_complete(&going.end().await);
    let none = wish(&host, HostWish::Cancel).await.unwrap_err();
    assert_eq!(none.reason(), "NoRun");
    assert_eq!(host.assert_tidy(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_run_that_is_cancelled_at_the_host_leaves_nothing() {
    let host = Host::begun(FLEECED, Pace::Manual).await;
    let going = host.start(&host.engine(), &host.request("run-1"));
    going.copying().await;
    assert!(course(&host, HostWish::Suspend).await.is_suspended());
    let Followed::Ended(state) = wish(&host, HostWish::Cancel).await.unwrap() else { panic!("it goes on") };
    assert_eq!(state.phase, Phase::Cancelled);
    assert_eq!(going.end().await.phase, Phase::Cancelled);
    assert_eq!(host.assert_tidy(), 0);
    host.assert_clean(2);
    host.qemu.set_pace(Pace::AtOnce);
    host.assert_next_is_exact().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wished_of_a_run_that_nobody_drives_is_done_at_once() {
    let host = Host::begun(FLEECED, Pace::Manual).await;
    host.let_go(&host.request("run-1")).await;
    assert!(course(&host, HostWish::Suspend).await.is_suspended());
    assert_eq!(statuses(&host), ["paused", "paused"]);
    assert!(!course(&host, HostWish::Resume).await.is_suspended());
    assert_eq!(statuses(&host), ["running", "running"], "as if nothing had ever been wished");
    let needed = NamedBitmap {
        disk: "disk0".parse().unwrap(),
        name: host.qemu.bitmaps("disk0")[0].name.clone(),
        foreign: false,
    };
    let guest: GuestId = UUID.parse().unwrap();
    let refused = host.engine().change_bitmap(&host.monitor(), &guest, &needed, BitmapAct::Remove).await.unwrap_err();
    assert_eq!(refused.reason(), "BitmapInFlight", "the run may build on it");
    assert!(course(&host, HostWish::Suspend).await.is_suspended());
    assert_eq!(course(&host, HostWish::Bandwidth(3 << 20)).await.bandwidth, Some(3 << 20));
    assert_eq!(speeds(&host), [3 << 20; 2]);
    assert!(!course(&host, HostWish::Resume).await.is_suspended());
    assert_eq!(statuses(&host), ["running", "running"]);
    let Followed::Ended(state) = wish(&host, HostWish::Cancel).await.unwrap() else { panic!("it goes on") };
    assert_eq!(state.phase, Phase::Cancelled);
    assert_eq!(host.assert_tidy(), 0);
    host.assert_clean(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_comes_after_the_copy_says_which_point_is_stored() {
    let host = Host::begun(FLEECED, Pace::AtOnce).await;
    // Its engine stops right before it commits.
    let copied = |passage| passage == driftline::engine::gate::Passage::RepositoryBefore("seal");
    let going = host.stopped("run-1", copied).await;
    going.abort().await;
    let late = wish(&host, HostWish::Cancel).await.unwrap_err();
    assert_eq!(late.reason(), "TooLate");
    assert_complete(&host.run("run-1").await);
    assert_eq!(host.assert_tidy(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_stands_still_for_too_long_is_undone() {
    let host = Host::begun(FLEECED, Pace::Manual).await;
    let engine: Engine = host.engine();
    let patience = Patience { suspended: Duration::from_millis(200), ..host.patience() };
    let going = host.start(&engine.with_patience(patience), &host.request("run-1"));
    going.copying().await;
    going.control.owner.send_replace(suspend(true));
    let state = going.end().await;
    assert_failed(&state, "SuspendedTooLong");
    assert!(!state.retriable);
    assert_eq!(host.assert_tidy(), 0);
    host.assert_clean(2);
    host.qemu.set_pace(Pace::AtOnce);
    host.assert_next_is_exact().await;
}

/// Suspends a run once it copies, slows it down, resumes it, and waits for its end.
async fn steer(host: &Host, going: &Going) {
    going.reach(|state| state.phase == Phase::Copying || state.phase.is_final()).await;
    going.control.owner.send_replace(suspend(true));
    going.reach(|state| state.disks.iter().all(|disk| disk.paused)).await;
    going.control.owner.send_replace(OwnerWish { suspend: Some(false), bandwidth: Some(1 << 20) });
    going.reach(|state| state.disks.iter().all(|disk| disk.speed == 1 << 20)).await;
    host.qemu.finish_jobs();
    going.reach_end().await;
}

/// Whatever act its engine is stopped at: the next one has the jobs follow what is wished then, and the point is exact.
#[tokio::test(flavor = "multi_thread")]
async fn a_steered_run_that_is_stopped_at_any_act_is_ended_by_the_next_engine() {
    let shape = Shape { disks: 1, ..FLEECED };
    let host = Host::begun(shape, Pace::Manual).await;
    let counter = Counter::new(usize::MAX);
    let going = host.start(&host.gated(counter.gate()), &host.request("run"));
    steer(&host, &going).await;
    assert_complete(&going.end().await);
    let (first, stride) = soak().unwrap_or((4, 13));
    for stop_at in (first..counter.count()).step_by(stride) {
        let host = Host::begun(shape, Pace::Manual).await;
        let disks = host.disks();
        is_stopped(&host, stop_at, async |going: &Going| steer(&host, going).await).await;
        let going = host.start(&host.engine(), &host.request("run"));
        going.control.owner.send_replace(suspend(false));
        let state = loop {
            host.qemu.finish_jobs();
            let ended = tokio::time::timeout(Duration::from_millis(20), going.reach_end()).await;
            if ended.is_ok() {
                break going.end().await;
            }
        };
        assert_eq!(state.phase, Phase::Complete, "stopped at {stop_at}: {} {}", state.reason, state.message);
        assert_eq!((host.starts(), host.assert_tidy()), (1, 1), "stopped at {stop_at}");
        host.assert_clean(host.bitmaps());
        host.assert_stored(&state, &disks);
        host.qemu.set_pace(Pace::AtOnce);
        host.assert_next_is_exact().await;
    }
}

/// Whatever act its engine was stopped at, a cancel at the host undoes a run; once all is copied it says that it comes too late.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_cancelled_at_the_host_after_any_act_is_undone_or_comes_to_its_point() {
    for shape in [Shape { disks: 1, ..Shape::FIRST }, Shape { disks: 1, ..FLEECED }] {
        let host = Host::begun(shape, Pace::AtOnce).await;
        let counter = Counter::new(usize::MAX);
        assert_complete(&host.start(&host.gated(counter.gate()), &host.request("run")).end().await);
        let (first, stride) = soak().unwrap_or((2, 7));
        let mut answers = BTreeSet::new();
        for stop_at in (first..counter.count()).step_by(stride) {
            let host = Host::begun(shape, Pace::AtOnce).await;
            let disks = host.disks();
            is_stopped(&host, stop_at, Going::reach_end).await;
            let answer = match wish(&host, HostWish::Cancel).await {
                Ok(Followed::Ended(state)) => format!("{:?}", state.phase),
                Ok(Followed::Course { course, .. }) => panic!("stopped at {stop_at}: {course:?}"),
                Err(error) => error.reason().to_owned(),
            };
            match answer.as_str() {
                "Cancelled" => {
                    assert_eq!(host.assert_tidy(), 0, "stopped at {stop_at}");
                    host.assert_clean(2 * host.before);
                }
                "TooLate" | "Complete" => {
                    let state = host.run("run").await;
                    assert_complete(&state);
                    assert_eq!((host.starts(), host.assert_tidy()), (1, 1), "stopped at {stop_at}");
                    host.assert_stored(&state, &disks);
                    host.assert_clean(host.bitmaps());
                }
                // Before its first word in the journal, and after its last.
                "NoRun" => assert!(host.assert_tidy() <= 1, "stopped at {stop_at}"),
                other => panic!("stopped at {stop_at}: {other}"),
            }
            host.assert_next_is_exact().await;
            answers.insert(answer);
        }
        for answer in ["Cancelled", "TooLate"] {
            assert!(answers.contains(answer), "{answers:?}");
        }
    }
}
