//! Stopped at every act, and failed at every command and file operation: one, two and three disks, full and incremental,
//! direct, staged and fleeced, cancelled and not. In `make soak` that is each step of each, or with `DRIFTLINE_SOAK=2/4` the
//! second of four parts of them. In `make test` it is every fourth act of an increment of two disks, and of all else some, that
//! are others for each shape.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures::StreamExt;

use driftline::{
    engine::{BackupRequest, Phase},
    qmp::fake::{Fault, Pace, When},
};

use super::{
    host::{Counter, Going, Host, assert_complete},
    shape::Shape,
};

/// Of how many steps `make test` takes one, for the shape that it looks at closely and for the others.
#[derive(Clone, Copy)]
struct Stride(usize, usize);

const EACH: Stride = Stride(4, 131);
const SOME: Stride = Stride(11, 131);

/// Does `act` for each number, a few at a time: much of a run is waiting for `qemu-img`.
async fn each<F: Future<Output = ()> + Send + 'static>(
    Stride(closely, others): Stride,
    shape: Shape,
    numbers: std::ops::Range<usize>,
    act: impl Fn(usize) -> F,
) {
    let stride = if shape == Shape::CONTINUED { closely } else { others };
    let (first, stride) = soak().unwrap_or((position(shape) * 17 % stride, stride));
    futures::stream::iter(numbers.skip(first).step_by(stride).map(|number| tokio::spawn(act(number))))
        .buffer_unordered(4)
        .for_each(|done| async move { done.unwrap() })
        .await;
}

/// Which part of the steps is taken, counted from 0, and of how many; none: not all of them.
pub(super) fn soak() -> Option<(usize, usize)> {
    let asked = std::env::var("DRIFTLINE_SOAK").ok()?;
    let (part, parts) = asked.split_once('/').unwrap_or(("1", "1"));
    Some((part.parse::<usize>().unwrap() - 1, parts.parse().unwrap()))
}

fn position(shape: Shape) -> usize {
    Shape::all().iter().position(|one| *one == shape).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_stopped_at_any_act_is_followed_by_one_that_ends_the_run() {
    for shape in Shape::all() {
        stopped_at_any_act(shape).await;
    }
}

async fn stopped_at_any_act(shape: Shape) {
    let host = Host::begun(shape, Pace::AtOnce).await;
    let counter = Counter::new(usize::MAX);
    assert_complete(&host.start(&host.gated(counter.gate()), &host.request("run")).end().await);
    let acts = counter.count();
    assert!(acts > if shape.disks == 1 { 60 } else { 80 }, "only {acts} acts pass the gate");

    each(EACH, shape, 0..acts, move |stop_at| async move {
        let host = Host::begun(shape, Pace::AtOnce).await;
        let disks = host.disks();
        let ended = !is_stopped(&host, stop_at, Going::reach_end).await;
        // The number of looks at the jobs differs by one or two from run to run.
        assert!(!ended || stop_at + 8 > acts, "the run ended before act {stop_at} of {acts}");
        let state = host.run("run").await;
        assert_complete(&state);
        assert_eq!(host.starts(), 1, "{shape:?} stopped at {stop_at}");
        assert_eq!(host.assert_tidy(), 1, "{shape:?} stopped at {stop_at}");
        host.assert_clean(host.bitmaps());
        host.assert_stored(&state, &disks);
        host.assert_next_is_exact().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_that_is_stopped_at_any_act_leaves_nothing() {
    for shape in Shape::all() {
        cancelled_at_any_act(shape).await;
    }
}

async fn cancelled_at_any_act(shape: Shape) {
    let host = Host::begun(shape, Pace::Manual).await;
    let counter = Counter::new(usize::MAX);
    let going = host.start(&host.gated(counter.gate()), &host.request("run"));
    cancel(&going).await;
    let state = going.end().await;
    assert_eq!(state.phase, Phase::Cancelled, "{}: {}", state.reason, state.message);
    let acts = counter.count();

    each(SOME, shape, 0..acts, move |stop_at| async move {
        let host = Host::begun(shape, Pace::Manual).await;
        let disks = host.disks();
        let stopped = is_stopped(&host, stop_at, cancel).await;
        host.qemu.set_pace(Pace::AtOnce);
        host.qemu.finish_jobs();
        let state = host.run("run").await;
        let text = format!("{shape:?} stopped at {stop_at}, {stopped}: {} {}", state.reason, state.message);
        let points = host.assert_tidy();
        if state.phase == Phase::Complete {
            // The cancel went with the engine that it was said to.
            assert!(stopped && points == 1, "{text}");
            host.assert_clean(host.bitmaps());
            host.assert_stored(&state, &disks);
        } else {
            assert!(state.phase == Phase::Cancelled && points == 0, "{text}");
            host.assert_clean(2 * host.before);
        }
        host.assert_next_is_exact().await;
    })
    .await;
}

/// Begins the run and breaks it off at its act `stop_at`, or once it has come to `end`. Whether it was stopped.
pub(super) async fn is_stopped(host: &Host, stop_at: usize, end: impl AsyncFnOnce(&Going)) -> bool {
    is_stopped_in(host, &host.request("run"), stop_at, end).await
}

/// The same of a run that is asked for in its own way.
pub(super) async fn is_stopped_in(
    host: &Host,
    request: &BackupRequest,
    stop_at: usize,
    end: impl AsyncFnOnce(&Going),
) -> bool {
    let counter = Counter::new(stop_at);
    let going = host.start(&host.gated(counter.gate()), request);
    let stopped = tokio::select! {
        () = counter.stopped() => true,
        () = end(&going) => false,
    };
    going.task.abort();
    let _ = going.task.await;
    stopped
}

/// Cancels a run once it copies, and waits for its end.
async fn cancel(going: &Going) {
    going.reach(|state| state.phase == Phase::Copying).await;
    going.control.cancel.cancel();
    going.reach_end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_that_are_stopped_again_and_again_still_commit_one_point() {
    const STEPS: [usize; 5] = [3, 7, 11, 17, 29];
    let all = Shape::all().into_iter().flat_map(|shape| STEPS.map(|step| (shape, step)));
    let some = Shape::all().into_iter().step_by(3).zip(STEPS.into_iter().cycle());
    for (shape, step) in if soak().is_some() { all.collect::<Vec<_>>() } else { some.collect() } {
        let host = Host::begun(shape, Pace::AtOnce).await;
        let disks = host.disks();
        for round in 0..40 {
            if !is_stopped(&host, step + round % 5, Going::reach_end).await {
                break;
            }
        }
        let state = host.run("run").await;
        if state.phase == Phase::Failed {
            assert_eq!(state.reason, "TooManyAttempts", "{}", state.message);
        } else {
            assert_complete(&state);
            host.assert_stored(&state, &disks);
        }
        assert!(host.starts() <= 1, "{} starts", host.starts());
        assert_eq!(host.assert_tidy(), usize::from(state.phase == Phase::Complete));
        host.assert_next_is_exact().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ends_at_any_command_changes_nothing() {
    for (fault, shape) in faults([Fault::CutBefore, Fault::CutAfter]) {
        let host = Host::begun(shape, Pace::AtOnce).await;
        let before = host.qemu.log().len();
        assert_complete(&host.run("run").await);
        let commands = host.qemu.log().len() - before;
        each(SOME, shape, 1..commands + 1, move |command| {
            let fault = fault.clone();
            async move {
                let host = Host::begun(shape, Pace::AtOnce).await;
                let disks = host.disks();
                host.qemu.fault(When::Nth(host.qemu.log().len() + command), fault.clone());
                let state = host.run("run").await;
                let text = format!("{shape:?} {fault:?} at command {command}: {} {}", state.reason, state.message);
                assert!(host.starts() <= 1, "{text}");
                assert_eq!(host.assert_tidy(), usize::from(state.phase == Phase::Complete), "{text}");
                if state.phase == Phase::Complete {
                    host.assert_stored(&state, &disks);
                    host.assert_clean(host.bitmaps());
                } else {
                    // Before the intent is written nothing has happened, and the run says so.
                    assert!(state.phase == Phase::Failed && state.retriable && host.starts() == 0, "{text}");
                    host.assert_clean(2 * host.before);
                }
                host.assert_next_is_exact().await;
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_that_is_killed_at_any_command_leaves_a_whole_point_or_none() {
    for (fault, shape) in faults([Fault::KillBefore, Fault::KillAfter]) {
        let host = Host::begun(shape, Pace::AtOnce).await;
        let before = host.qemu.log().len();
        assert_complete(&host.run("run").await);
        let log = host.qemu.log().split_off(before);
        let flushed = log.iter().rposition(|logged| logged.command == "remove-fd").unwrap() + 1;
        each(SOME, shape, 1..log.len() + 1, move |command| {
            let fault = fault.clone();
            async move {
                let mut host = Host::begun(shape, Pace::AtOnce).await;
                let disks = host.disks();
                host.qemu.fault(When::Nth(host.qemu.log().len() + command), fault.clone());
                let state = host.run("run").await;
                let text = format!("{shape:?} {fault:?} at command {command}: {} {}", state.reason, state.message);
                assert_eq!(host.assert_tidy(), usize::from(state.phase == Phase::Complete), "{text}");
                if state.phase == Phase::Complete {
                    assert!(command >= flushed, "{text}");
                    host.assert_stored(&state, &disks);
                } else {
                    assert!(state.phase == Phase::Failed && state.retriable, "{text}");
                }
                host.restart();
                let state = host.run("next").await;
                assert_complete(&state);
                host.assert_stored(&state, &disks);
                host.assert_clean(2);
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_operation_that_fails_or_breaks_off_leaves_nothing_behind() {
    for shape in Shape::all() {
        failing_at_any_operation(shape).await;
    }
}

async fn failing_at_any_operation(shape: Shape) {
    let host = Host::begun(shape, Pace::AtOnce).await;
    let (seen, gate) = count(usize::MAX, false);
    assert_complete(&host.start(&host.failing(gate), &host.request("run")).end().await);
    let operations = seen.load(Ordering::SeqCst);
    each(SOME, shape, 0..2 * operations, move |number| {
        let (at, breaks) = (number / 2, number % 2 == 1);
        async move {
            let host = Host::begun(shape, Pace::AtOnce).await;
            let disks = host.disks();
            let (_, gate) = count(at, breaks);
            // A panic in the run's own task, such as when the lease is given back, is a crash like the others.
            let first = host.start(&host.failing(gate), &host.request("run")).task.await;
            let text = format!("{shape:?} operation {at}, breaks {breaks}: {first:?}");
            if let Ok(first) = &first
                && first.phase == Phase::Failed
                && !breaks
            {
                assert!(first.retriable, "{text}");
            }
            let state = host.run("next").await;
            assert!(state.phase == Phase::Complete, "{text}; then {} {}", state.reason, state.message);
            host.assert_stored(&state, &disks);
            let points = host.assert_tidy();
            assert!((1..=2).contains(&points), "{text}");
            // The broken run's own outcome can be asked for and is one of the two.
            assert!(matches!(host.run("run").await.phase, Phase::Complete | Phase::Failed), "{text}");
            host.assert_tidy();
        }
    })
    .await;
}

/// Each fault in each kind of run.
fn faults(faults: [Fault; 2]) -> impl Iterator<Item = (Fault, Shape)> {
    faults.into_iter().flat_map(|fault| Shape::all().into_iter().map(move |shape| (fault.clone(), shape)))
}

/// A gate that lets everything pass but the operation `at`, which fails for want of space, or breaks off.
fn count(at: usize, breaks: bool) -> (Arc<AtomicUsize>, driftline::repo::Gate) {
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = seen.clone();
    let gate: driftline::repo::Gate = Arc::new(move |operation| {
        if counted.fetch_add(1, Ordering::SeqCst) != at {
            return Ok(());
        }
        assert!(!breaks, "broken off at {operation:?}");
        Err(std::io::Error::from_raw_os_error(28))
    });
    (seen, gate)
}
