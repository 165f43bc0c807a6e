//! The guest's file systems stand still for the instant, and never for longer: whatever its agent does, and whoever dies.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use driftline::{
    engine::{
        BackupRequest, Phase, RunState,
        gate::Passage,
        quiesce::{Quiesce, QuiesceMode, Quiesced},
    },
    qmp::fake::Pace,
    repo::manifest::Consistency,
};
use serde_json::{Value, json};

use super::{
    crashes::{is_stopped_in, soak},
    host::{Counter, Going, Host, assert_complete, assert_failed},
    shape::{Shape, Way},
};

/// The guest agent of a scripted guest.
struct Agent {
    path: PathBuf,
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    frozen: bool,
    /// What it was told to do, in its order.
    log: Vec<String>,
    /// It does nothing, until it does not hang any more.
    hangs: bool,
}

impl Agent {
    fn start(host: &Host) -> Agent {
        let path = host.folder.path().join("qga");
        let (listener, state) = (UnixListener::bind(&path).unwrap(), Arc::<(Mutex<State>, Condvar)>::default());
        let shared = state.clone();
        std::thread::spawn(move || {
            // One client after the other, as with QEMU's socket: what was sent is done, whoever has gone.
            for stream in listener.incoming() {
                serve(stream.unwrap(), &shared);
            }
        });
        Agent { path, state }
    }

    fn with<T>(&self, of: impl FnOnce(&mut State) -> T) -> T {
        let result = of(&mut self.state.0.lock().unwrap());
        self.state.1.notify_all();
        result
    }

    fn is_frozen(&self) -> bool {
        self.with(|state| state.frozen)
    }

    fn count(&self, command: &str) -> usize {
        self.with(|state| state.log.iter().filter(|logged| *logged == command).count())
    }

    fn request(&self, host: &Host, mode: QuiesceMode) -> BackupRequest {
        let quiesce = Quiesce { mode, freeze_timeout: 1, guest_agent: Some(self.path.clone()) };
        BackupRequest { quiesce, ..host.request("run") }
    }
}

fn serve(mut stream: UnixStream, shared: &(Mutex<State>, Condvar)) {
    for line in BufReader::new(stream.try_clone().unwrap()).split(b'\n') {
        let Ok(line) = line else { return };
        let message: Value = serde_json::from_slice(line.strip_prefix(&[0xff]).unwrap_or(&line)).unwrap();
        let command = message["execute"].as_str().unwrap().to_owned();
        let mut state = shared.1.wait_while(shared.0.lock().unwrap(), |state| state.hangs).unwrap();
        state.log.push(command.clone());
        let before = state.frozen;
        let (answer, delimited) = match command.as_str() {
            "guest-sync-delimited" => (json!({"return": message["arguments"]["id"]}), true),
            "guest-fsfreeze-status" => (json!({"return": if before { "frozen" } else { "thawed" }}), false),
            "guest-fsfreeze-thaw" => {
                state.frozen = false;
                (json!({"return": u64::from(before)}), false)
            }
            "guest-fsfreeze-freeze" if before => {
                (json!({"error": {"class": "GenericError", "desc": "the agent is in frozen state"}}), false)
            }
            "guest-fsfreeze-freeze" => {
                state.frozen = true;
                (json!({"return": 1}), false)
            }
            other => panic!("{other}"),
        };
        drop(state);
        let mut bytes = if delimited { vec![0xff] } else { Vec::new() };
        bytes.extend(format!("{answer}\n").into_bytes());
        // Whoever asked may have gone.
        let _ = stream.write_all(&bytes);
    }
}

fn consistency(state: &RunState) -> Consistency {
    state.point.as_ref().unwrap().manifest.identity.consistency
}

fn reason(state: &RunState) -> &str {
    match state.quiesced.as_ref() {
        Some(Quiesced::NotFrozen { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_is_frozen_at_its_instant_and_thawed_before_anything_is_copied() {
    for way in [Way::Direct, Way::Staged, Way::Fleeced] {
        let host = Host::begun(Shape { way, ..Shape::FIRST }, Pace::Manual).await;
        let agent = Agent::start(&host);
        let instant = if way == Way::Fleeced { "qom-set" } else { "transaction" };
        let (state, frozen) = (agent.state.clone(), Arc::new(Mutex::new(Vec::new())));
        let seen = frozen.clone();
        let engine = host.gated(Arc::new(move |passage| {
            if passage == Passage::Sending(instant) {
                seen.lock().unwrap().push(state.0.lock().unwrap().frozen);
            }
            true
        }));
        let going = host.start(&engine, &agent.request(&host, QuiesceMode::Required));
        going.copying().await;
        assert!(!agent.is_frozen());
        host.qemu.finish_jobs();
        let state = going.end().await;
        assert_complete(&state);
        assert!(matches!(state.quiesced, Some(Quiesced::Frozen { .. })), "{:?}", state.quiesced);
        assert_eq!(consistency(&state), Consistency::Application);
        // The filters are taken out by the same command, long after.
        assert!(frozen.lock().unwrap()[0], "{way:?}");
        assert_eq!((agent.count("guest-fsfreeze-freeze"), agent.count("guest-fsfreeze-thaw")), (1, 1));
        assert_eq!(host.assert_tidy(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_engine_dies_at_any_act_is_thawed_by_the_next_one() {
    for shape in [Shape { disks: 1, ..Shape::FIRST }, Shape { way: Way::Fleeced, ..Shape::FIRST }] {
        let host = Host::begun(shape, Pace::AtOnce).await;
        let agent = Agent::start(&host);
        let counter = Counter::new(usize::MAX);
        let going = host.start(&host.gated(counter.gate()), &agent.request(&host, QuiesceMode::Required));
        assert_complete(&going.end().await);
        let (first, stride) = soak().unwrap_or((1, 6));
        let mut left_frozen = 0;
        for stop_at in (first..counter.count()).step_by(stride) {
            let host = Host::begun(shape, Pace::AtOnce).await;
            let agent = Agent::start(&host);
            let request = agent.request(&host, QuiesceMode::Required);
            is_stopped_in(&host, &request, stop_at, Going::reach_end).await;
            left_frozen += usize::from(agent.is_frozen());
            let state = host.start(&host.engine(), &request).end().await;
            assert_complete(&state);
            assert!(!agent.is_frozen(), "{shape:?} stopped at {stop_at}");
            assert_eq!(host.qemu.status(), "running");
            assert_eq!(host.assert_tidy(), 1, "{shape:?} stopped at {stop_at}");
        }
        assert!(left_frozen > 0, "no engine was stopped while its guest was frozen");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_hangs_costs_the_guest_nothing_and_a_required_freeze_the_run() {
    let host = Host::new(Pace::AtOnce);
    let agent = Agent::start(&host);
    agent.with(|state| state.hangs = true);
    let state = host.start(&host.engine(), &agent.request(&host, QuiesceMode::Preferred)).end().await;
    assert_complete(&state);
    assert_eq!((reason(&state), consistency(&state)), ("GuestAgentSilent", Consistency::Crash));
    let request = BackupRequest { run: "another".to_owned(), ..agent.request(&host, QuiesceMode::Required) };
    let state = host.start(&host.engine(), &request).end().await;
    assert_failed(&state, "GuestAgentSilent");
    assert!(state.retriable);
    // Whatever was sent to it is done now, in its order.
    agent.with(|state| state.hangs = false);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!agent.is_frozen());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_hangs_in_the_freeze_thaws_once_it_goes_on() {
    let host = Host::new(Pace::AtOnce);
    let agent = Agent::start(&host);
    let state = agent.state.clone();
    let engine = host.gated(Arc::new(move |passage| {
        if passage == Passage::Sending("guest-fsfreeze-freeze") {
            state.0.lock().unwrap().hangs = true;
        }
        true
    }));
    let state = host.start(&engine, &agent.request(&host, QuiesceMode::Preferred)).end().await;
    assert_complete(&state);
    assert_eq!((reason(&state), consistency(&state)), ("GuestAgentSilent", Consistency::Crash));
    agent.with(|state| state.hangs = false);
    for _ in 0..100 {
        if agent.count("guest-fsfreeze-thaw") > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(agent.count("guest-fsfreeze-freeze"), 1, "it came late");
    assert!(!agent.is_frozen());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_frozen_is_not_asked_and_what_somebody_froze_stays_frozen() {
    for (status, frozen, known, wanted) in [
        ("paused", false, true, "GuestNotRunning"),
        ("running", true, true, "FoundFrozen"),
        ("running", false, false, "GuestAgentUnknown"),
    ] {
        let host = Host::new(Pace::AtOnce);
        let agent = Agent::start(&host);
        host.qemu.set_status(status);
        agent.with(|state| state.frozen = frozen);
        for mode in [QuiesceMode::Preferred, QuiesceMode::Required] {
            let mut request = agent.request(&host, mode);
            request.run = format!("{mode:?}");
            request.quiesce.guest_agent = request.quiesce.guest_agent.filter(|_| known);
            let state = host.start(&host.engine(), &request).end().await;
            match mode {
                QuiesceMode::Required => assert_failed(&state, wanted),
                _ => {
                    assert_complete(&state);
                    assert_eq!(reason(&state), wanted);
                }
            }
            assert_eq!((agent.is_frozen(), agent.count("guest-fsfreeze-thaw")), (frozen, 0), "{wanted}");
            assert_eq!(host.qemu.status(), status);
        }
    }
    let host = Host::new(Pace::AtOnce);
    let agent = Agent::start(&host);
    let state = host.start(&host.engine(), &agent.request(&host, QuiesceMode::Never)).end().await;
    assert_eq!((state.phase, state.quiesced), (Phase::Complete, None));
    assert_eq!(agent.with(|state| state.log.clone()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_was_thawed_too_early_is_not_called_frozen() {
    let host = Host::new(Pace::AtOnce);
    let agent = Agent::start(&host);
    for (mode, run) in [(QuiesceMode::Preferred, "preferred"), (QuiesceMode::Required, "required")] {
        let state = agent.state.clone();
        let engine = host.gated(Arc::new(move |passage| {
            if passage == Passage::Sending("transaction") {
                // Windows does so after ten seconds.
                state.0.lock().unwrap().frozen = false;
            }
            true
        }));
        let request = BackupRequest { run: run.to_owned(), ..agent.request(&host, mode) };
        let state = host.start(&engine, &request).end().await;
        if mode == QuiesceMode::Required {
            assert_failed(&state, "ThawedEarly");
        } else {
            assert_complete(&state);
            assert_eq!((reason(&state), consistency(&state)), ("ThawedEarly", Consistency::Crash));
        }
    }
    assert_eq!(host.assert_tidy(), 1);
}
