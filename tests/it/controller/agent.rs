//! An agent that does what a test says, and writes down what it was asked.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use driftline::{
    controller::agents::{AgentCalls, Answer, Directory},
    ids::PointId,
    retry::Retry,
    rpc::{
        client::{Answers, LinkState, RpcError},
        status::Kind,
        v1,
    },
};
use futures::{FutureExt, StreamExt, future, stream};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

use super::fixtures::{GUEST_UUID, Ids, Log};

struct State {
    log: Log,
    nodes: Vec<&'static str>,
    reachable: bool,
    talks: watch::Sender<bool>,
    phase: v1::RunPhase,
    failure: Option<bool>,
    asked: Ids,
    runs: BTreeMap<String, watch::Sender<v1::RunState>>,
    guests: watch::Sender<v1::WatchGuestsResponse>,
    repository: Option<String>,
    points: Vec<v1::Point>,
    restore: Option<v1::StartRestoreRequest>,
    restore_refusal: Option<&'static str>,
}

#[derive(Clone)]
pub(super) struct FakeAgent(Arc<Mutex<State>>);

fn guest() -> v1::Guest {
    let disk = |name: &str, reason: &str| v1::Disk {
        name: name.to_owned(),
        eligible: reason.is_empty(),
        ineligible_reason: reason.to_owned(),
        ..v1::Disk::default()
    };
    v1::Guest {
        name: "db-1".to_owned(),
        namespace: "team-a".to_owned(),
        labels: [("tier".to_owned(), "gold".to_owned())].into(),
        uuid: GUEST_UUID.to_owned(),
        power_state: v1::PowerState::Running.into(),
        qemu_version: "7.2.0".to_owned(),
        connection: v1::Connection::Qmp.into(),
        disks: vec![disk("disk0", ""), disk("cd0", "CDROM")],
        ..v1::Guest::default()
    }
}

fn stored_point(repository: &str) -> v1::Point {
    v1::Point {
        id: PointId::new(1_700_000_000_000, None, 7).to_string(),
        sequence: 1,
        guest: Some(v1::GuestRef { namespace: "team-a".into(), name: "db-1".into(), uuid: GUEST_UUID.into() }),
        repository_id: repository.to_owned(),
        checkpoint_time: 1_700_000_000_000,
        r#type: v1::BackupType::Full.into(),
        consistency: "Crash".to_owned(),
        disks: vec![v1::PointDisk { name: "disk0".into(), stored_bytes: 4096, chain_length: 1, ..Default::default() }],
        chain_intact: true,
        ..v1::Point::default()
    }
}

impl FakeAgent {
    pub(super) fn new(log: Log) -> FakeAgent {
        let guests = watch::Sender::new(v1::WatchGuestsResponse { guests: vec![guest()], problems: vec![] });
        FakeAgent(Arc::new(Mutex::new(State {
            log,
            nodes: vec!["n1"],
            reachable: true,
            talks: watch::Sender::new(true),
            phase: v1::RunPhase::Copying,
            failure: None,
            asked: Ids::new(),
            runs: BTreeMap::new(),
            guests,
            repository: None,
            points: vec![],
            restore: None,
            restore_refusal: None,
        })))
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    /// Whether calls about runs are answered.
    pub(super) fn reachable(&self, is: bool) {
        self.with(|s| s.reachable = is);
    }

    /// Whether the stream of guests is open; false ends it, too.
    pub(super) fn talks(&self, does: bool) {
        self.with(|s| s.talks.send_replace(does));
    }

    /// The nodes whose EndpointSlices name an agent; each is this one.
    pub(super) fn runs_on(&self, nodes: &[&'static str]) {
        self.with(|s| s.nodes = nodes.to_vec());
    }

    /// The phase in which a run is that was started.
    pub(super) fn on_start(&self, phase: v1::RunPhase) {
        self.with(|s| (s.phase, s.failure) = (phase, None));
    }

    /// A run that was started has failed at once.
    pub(super) fn fail_at_start(&self, retriable: bool) {
        self.with(|s| s.failure = Some(retriable));
    }

    /// All runs become complete.
    pub(super) fn complete_run(&self) {
        self.with(|s| {
            let point = stored_point(&s.repository.clone().unwrap_or_default());
            for run in s.runs.values() {
                run.send_modify(|r| {
                    r.phase = v1::RunPhase::Complete.into();
                    r.completion_time = 1_700_000_100_000;
                    r.point = Some(point.clone());
                });
            }
            s.points.push(point);
        });
    }

    /// Takes a run whose asker never hears of it.
    pub(super) fn take(&self, id: &str) {
        let state = v1::RunState {
            run_uid: id.to_owned(),
            phase: v1::RunPhase::Copying.into(),
            session: "s1".into(),
            ..v1::RunState::default()
        };
        self.with(|s| s.runs.insert(id.to_owned(), watch::Sender::new(state)));
    }

    /// Has lost its state folder.
    pub(super) fn forget_runs(&self) {
        self.with(|s| s.runs.clear());
    }

    /// Changes the states of all runs.
    pub(super) fn change_runs(&self, change: impl Fn(&mut v1::RunState)) {
        self.with(|s| s.runs.values().for_each(|run| run.send_modify(&change)));
    }

    /// The ids under which runs were asked for.
    pub(super) fn ids(&self) -> std::collections::BTreeSet<&'static str> {
        self.with(|s| s.asked.iter().map(|id| &*id.clone().leak()).collect())
    }

    pub(super) fn say_guests(&self, guests: Vec<v1::Guest>) {
        self.with(|s| s.guests.send_replace(v1::WatchGuestsResponse { guests, problems: vec![] }));
    }

    pub(super) fn have_repository(&self, id: &str) {
        self.with(|s| s.repository = Some(id.to_owned()));
    }

    /// The repository holds a point; its id.
    pub(super) fn have_point(&self) -> String {
        self.with(|s| {
            let point = stored_point(&s.repository.clone().unwrap_or_default());
            s.points.push(point.clone());
            point.id
        })
    }

    pub(super) fn repository_id(&self) -> Option<String> {
        self.with(|s| s.repository.clone())
    }

    /// Says "try again" to each start of a restore.
    pub(super) fn refuse_restores(&self, reason: &'static str) {
        self.with(|s| s.restore_refusal = Some(reason));
    }

    pub(super) fn restore_request(&self) -> v1::StartRestoreRequest {
        self.with(|s| s.restore.clone()).expect("a restore was asked for")
    }
}

fn silent(call: &'static str) -> RpcError {
    RpcError::Unreachable { node: "n1".to_owned(), call, why: "cut".to_owned() }
}

fn unknown(call: &'static str) -> RpcError {
    refused(call, Kind::NotFound, "RunNotFound")
}

fn refused(call: &'static str, kind: Kind, reason: &str) -> RpcError {
    let (node, message) = ("n1".to_owned(), format!("{call}: {reason}"));
    RpcError::Refused { node, call, kind, reason: reason.to_owned(), message, retry: Retry::OnChange }
}

fn now<'a, T: Send + 'a>(answer: Result<T, RpcError>) -> Answer<'a, T> {
    future::ready(answer).boxed()
}

impl State {
    fn note(&self, what: &str) {
        self.log.lock().unwrap().push(format!("agent {what}"));
    }

    fn run(&self, call: &'static str, id: &str) -> Result<&watch::Sender<v1::RunState>, RpcError> {
        if !self.reachable {
            return Err(silent(call));
        }
        self.runs.get(id).ok_or_else(|| unknown(call))
    }

    fn ask(&mut self, request: &v1::RepositoryRequest) -> v1::RepositoryResponse {
        use v1::repository_request::Action;
        let problem = |reason: &str| v1::RepositoryResponse {
            problem: Some(v1::Problem { subject: request.path.clone(), reason: reason.into(), message: reason.into() }),
            ..v1::RepositoryResponse::default()
        };
        let id = match (request.action.clone().unwrap(), self.repository.clone()) {
            (Action::Initialise(id), None) => {
                self.note("Initialise");
                self.repository = Some(id.clone());
                id
            }
            (Action::Initialise(id), Some(has)) if has != id => return problem("Foreign"),
            (Action::Validate(_), None) => return problem("RepositoryNotMounted"),
            (Action::Validate(id), Some(has)) if !id.is_empty() && has != id => return problem("RepositoryIdMismatch"),
            (Action::Initialise(_) | Action::Validate(_), Some(has)) => has,
        };
        v1::RepositoryResponse { id, writable: true, local: true, capacity_bytes: 1 << 30, ..Default::default() }
    }
}

impl Directory for FakeAgent {
    fn get(&self, node: &str) -> Option<Arc<dyn AgentCalls>> {
        self.with(|s| s.nodes.contains(&node)).then(|| Arc::new(self.clone()) as Arc<dyn AgentCalls>)
    }

    fn nodes(&self) -> Vec<String> {
        self.with(|s| s.nodes.iter().map(|&node| node.to_owned()).collect())
    }
}

impl AgentCalls for FakeAgent {
    fn link(&self) -> LinkState {
        LinkState { connected: true, problem: None }
    }

    fn describe(&self) -> Answer<'_, v1::DescribeResponse> {
        now(Ok(v1::DescribeResponse { node: "n1".into(), session: "s1".into(), version: "0".into() }))
    }

    fn watch_guests(&self) -> Answer<'_, Answers<v1::WatchGuestsResponse>> {
        let (receiver, mut talks) = self.with(|s| {
            s.note("WatchGuests");
            (s.guests.subscribe(), s.talks.subscribe())
        });
        if !*talks.borrow() {
            return now(Err(silent("WatchGuests")));
        }
        let cut = async move { drop(talks.wait_for(|does| !does).await) };
        now(Ok(WatchStream::new(receiver).map(Ok).take_until(Box::pin(cut)).boxed()))
    }

    fn start_backup(&self, request: v1::StartBackupRequest) -> Answer<'_, v1::RunState> {
        now(self.with(|s| {
            s.asked.insert(request.run_uid.clone());
            if !s.reachable {
                return Err(silent("StartBackup"));
            }
            s.note("StartBackup");
            if request.guest.as_ref().is_none_or(|g| g.uuid.is_empty()) {
                return Err(refused("StartBackup", Kind::Invalid, "InvalidRequest"));
            }
            let mut state = v1::RunState {
                run_uid: request.run_uid.clone(),
                phase: s.phase.into(),
                session: "s1".into(),
                start_time: 1_700_000_000_000,
                heard: Some(v1::RunCourse { suspend: false, bandwidth: request.bandwidth }),
                ..v1::RunState::default()
            };
            if let Some(retriable) = s.failure {
                state.phase = v1::RunPhase::Failed.into();
                (state.reason, state.message, state.retriable) = ("TargetUnsafe".into(), "No room".into(), retriable);
            }
            let run = s.runs.entry(request.run_uid).or_insert_with(|| watch::Sender::new(state));
            Ok(run.borrow().clone())
        }))
    }

    fn watch_run<'a>(&'a self, id: &'a str) -> Answer<'a, Answers<v1::RunState>> {
        let receiver = self.with(|s| s.run("WatchRun", id).map(watch::Sender::subscribe));
        now(receiver.map(|r| WatchStream::new(r).map(Ok).boxed()))
    }

    fn cancel_run<'a>(&'a self, id: &'a str) -> Answer<'a, v1::RunState> {
        now(self.with(|s| {
            s.note("CancelRun");
            let run = s.run("ControlRun", id)?;
            let before = run.borrow().clone();
            run.send_modify(|r| r.phase = v1::RunPhase::Cancelled.into());
            Ok(before)
        }))
    }

    fn steer_run<'a>(&'a self, id: &'a str, course: v1::RunCourse) -> Answer<'a, v1::RunState> {
        now(self.with(|s| {
            s.note("SteerRun");
            let run = s.run("ControlRun", id)?;
            let before = run.borrow().clone();
            run.send_modify(|r| r.heard = Some(course));
            Ok(before)
        }))
    }

    fn start_restore(&self, request: v1::StartRestoreRequest) -> Answer<'_, v1::RestoreState> {
        now(self.with(|s| {
            if !s.reachable {
                return Err(silent("StartRestore"));
            }
            s.note("StartRestore");
            if let Some(reason) = s.restore_refusal {
                let (node, call, message) = ("n1".to_owned(), "StartRestore", format!("StartRestore: {reason}"));
                let (kind, retry) = (Kind::Unavailable, Retry::Backoff);
                return Err(RpcError::Refused { node, call, kind, reason: reason.to_owned(), message, retry });
            }
            s.restore = Some(request.clone());
            Ok(done(&request))
        }))
    }

    fn watch_restore<'a>(&'a self, _id: &'a str) -> Answer<'a, Answers<v1::RestoreState>> {
        let (request, reachable) = self.with(|s| (s.restore.clone(), s.reachable));
        if !reachable {
            return now(Err(silent("WatchRestore")));
        }
        now(request.map(|r| stream::iter([Ok(done(&r))]).boxed()).ok_or_else(|| unknown("WatchRestore")))
    }

    fn cancel_restore<'a>(&'a self, _id: &'a str) -> Answer<'a, v1::RestoreState> {
        now(Err(unknown("ControlRestore")))
    }

    fn repository(&self, request: v1::RepositoryRequest) -> Answer<'_, v1::RepositoryResponse> {
        now(Ok(self.with(|s| s.ask(&request))))
    }

    fn list_points(&self, _request: v1::ListPointsRequest) -> Answer<'_, Answers<v1::Point>> {
        let points = self.with(|s| s.points.clone());
        now(Ok(stream::iter(points.into_iter().map(Ok)).boxed()))
    }
}

fn done(request: &v1::StartRestoreRequest) -> v1::RestoreState {
    v1::RestoreState {
        run_uid: request.run_uid.clone(),
        phase: v1::RestorePhase::Complete.into(),
        session: "s1".into(),
        verified: true,
        ..v1::RestoreState::default()
    }
}
