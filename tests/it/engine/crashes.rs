//! Stopped at every act, and failed at every command and file operation. Of a staged run it is every fifth one, and every one
//! in `make soak`.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures::StreamExt;

use driftline::{
    engine::Phase,
    qmp::fake::{Fault, Pace, When},
};

use super::host::{Counter, Host, Start, assert_complete};

const STARTS: [Start; 3] = [Start::First, Start::Continued, Start::Staged];

/// Does `act` for each number, a few at a time: much of a run is waiting for `qemu-img`.
async fn each<F: Future<Output = ()> + Send + 'static>(
    start: Start,
    numbers: std::ops::Range<usize>,
    act: impl Fn(usize) -> F,
) {
    let step = if start == Start::Staged && std::env::var_os("DRIFTLINE_SOAK").is_none() { 5 } else { 1 };
    futures::stream::iter(numbers.step_by(step).map(|number| tokio::spawn(act(number))))
        .buffer_unordered(4)
        .for_each(|done| async move { done.unwrap() })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_stopped_at_any_act_is_followed_by_one_that_ends_the_run() {
    for start in STARTS {
        stopped_at_any_act(start).await;
    }
}

async fn stopped_at_any_act(start: Start) {
    let host = Host::begun(start, Pace::AtOnce).await;
    let counter = Counter::new(usize::MAX);
    assert_complete(&host.start(&host.gated(counter.gate()), &host.request("run")).end().await);
    let acts = counter.count();
    assert!(acts > 80, "only {acts} acts pass the gate");

    each(start, 0..acts, move |stop_at| async move {
        let host = Host::begun(start, Pace::AtOnce).await;
        let disks = host.disks();
        let counter = Counter::new(stop_at);
        let going = host.start(&host.gated(counter.gate()), &host.request("run"));
        let ended = tokio::select! {
            () = counter.stopped() => false,
            () = going.reach_end() => true,
        };
        going.task.abort();
        let _ = going.task.await;
        // The number of looks at the jobs differs by one or two from run to run.
        assert!(!ended || stop_at + 8 > acts, "the run ended before act {stop_at} of {acts}");
        let state = host.run("run").await;
        assert_complete(&state);
        assert_eq!(host.transactions(), 1, "stopped at {stop_at}");
        assert_eq!(host.assert_tidy(), 1, "stopped at {stop_at}");
        host.assert_clean(host.bitmaps());
        host.assert_stored(&state, &disks);
        host.assert_next_is_exact().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_that_are_stopped_again_and_again_still_commit_one_point() {
    for (step, start) in [3, 7, 11, 17, 29].into_iter().flat_map(|step| STARTS.map(|start| (step, start))) {
        let host = Host::begun(start, Pace::AtOnce).await;
        let disks = host.disks();
        for round in 0..40 {
            let counter = Counter::new(step + round % 5);
            let going = host.start(&host.gated(counter.gate()), &host.request("run"));
            let ended = tokio::select! {
                () = counter.stopped() => false,
                () = going.reach_end() => true,
            };
            going.task.abort();
            let _ = going.task.await;
            if ended {
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
        assert!(host.transactions() <= 1, "{} transactions", host.transactions());
        assert_eq!(host.assert_tidy(), usize::from(state.phase == Phase::Complete));
        host.assert_next_is_exact().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ends_at_any_command_changes_nothing() {
    for (fault, start) in faults([Fault::CutBefore, Fault::CutAfter]) {
        let host = Host::begun(start, Pace::AtOnce).await;
        let before = host.qemu.log().len();
        assert_complete(&host.run("run").await);
        let commands = host.qemu.log().len() - before;
        each(start, 1..commands + 1, move |command| {
            let fault = fault.clone();
            async move {
                let host = Host::begun(start, Pace::AtOnce).await;
                let disks = host.disks();
                host.qemu.fault(When::Nth(host.qemu.log().len() + command), fault.clone());
                let state = host.run("run").await;
                let text = format!("{fault:?} at command {command}: {} {}", state.reason, state.message);
                assert!(host.transactions() <= 1, "{text}");
                assert_eq!(host.assert_tidy(), usize::from(state.phase == Phase::Complete), "{text}");
                if state.phase == Phase::Complete {
                    host.assert_stored(&state, &disks);
                    host.assert_clean(host.bitmaps());
                } else {
                    // Before the intent is written nothing has happened, and the run says so.
                    assert!(state.phase == Phase::Failed && state.retriable && host.transactions() == 0, "{text}");
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
    for (fault, start) in faults([Fault::KillBefore, Fault::KillAfter]) {
        let host = Host::begun(start, Pace::AtOnce).await;
        let before = host.qemu.log().len();
        assert_complete(&host.run("run").await);
        let log = host.qemu.log().split_off(before);
        let flushed = log.iter().rposition(|logged| logged.command == "remove-fd").unwrap() + 1;
        each(start, 1..log.len() + 1, move |command| {
            let fault = fault.clone();
            async move {
                let mut host = Host::begun(start, Pace::AtOnce).await;
                let disks = host.disks();
                host.qemu.fault(When::Nth(host.qemu.log().len() + command), fault.clone());
                let state = host.run("run").await;
                let text = format!("{fault:?} at command {command}: {} {}", state.reason, state.message);
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
    for start in STARTS {
        failing_at_any_operation(start).await;
    }
}

async fn failing_at_any_operation(start: Start) {
    let host = Host::begun(start, Pace::AtOnce).await;
    let (seen, gate) = count(usize::MAX, false);
    assert_complete(&host.start(&host.failing(gate), &host.request("run")).end().await);
    let operations = seen.load(Ordering::SeqCst);
    each(start, 0..2 * operations, move |number| {
        let (at, breaks) = (number / 2, number % 2 == 1);
        async move {
            let host = Host::begun(start, Pace::AtOnce).await;
            let disks = host.disks();
            let (_, gate) = count(at, breaks);
            // A panic in the run's own task, such as when the lease is given back, is a crash like the others.
            let first = host.start(&host.failing(gate), &host.request("run")).task.await;
            let text = format!("operation {at}, breaks {breaks}: {first:?}");
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
fn faults(faults: [Fault; 2]) -> impl Iterator<Item = (Fault, Start)> {
    faults.into_iter().flat_map(|fault| STARTS.map(|start| (fault.clone(), start)))
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
