//! Runs, restores and repositories through the agent: idempotent, watched, refused with a reason, and left going when
//! the agent ends.

use driftline::{
    qmp::fake::{FakeDisk, FakeQemu, Pace, Setup},
    rpc::client::RpcError,
};

use super::*;

const UUID: &str = "11111111-1111-4111-8111-111111111111";
const REPOSITORY: &str = "9f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10";

pub(super) struct Lab {
    pub(super) host: Host,
    pub(super) qemu: FakeQemu,
}

impl Lab {
    /// A machine with one disk, and an empty folder for a repository.
    pub(super) fn new(pace: Pace) -> Lab {
        let host = Host::new();
        let image = host.path("disk.img");
        fs::write(&image, vec![7; 1 << 20]).unwrap();
        let setup = Setup::new(host.guest("a", "db-1", "")).uuid(UUID).pace(pace);
        let qemu = setup.disk(FakeDisk::raw("disk0", image)).start().unwrap();
        fs::create_dir(host.path("repos/one")).unwrap();
        Lab { host, qemu }
    }

    pub(super) fn address(&self) -> Option<v1::RepositoryAddress> {
        let path = self.host.path("repos/one").to_str().unwrap().to_owned();
        Some(v1::RepositoryAddress { path, id: REPOSITORY.to_owned() })
    }

    pub(super) fn request(&self, run: &str) -> v1::StartBackupRequest {
        let guest = v1::GuestRef { namespace: "team-a".into(), name: "db-1".into(), uuid: UUID.into() };
        v1::StartBackupRequest {
            run_uid: run.to_owned(),
            run_name: "nightly".to_owned(),
            guest: Some(guest),
            repository: self.address(),
            r#type: v1::BackupType::Full.into(),
            ..Default::default()
        }
    }

    pub(super) fn restore(&self, run: &str, namespace: &str, point: &str, image: &Path) -> v1::StartRestoreRequest {
        v1::StartRestoreRequest {
            run_uid: run.to_owned(),
            repository: self.address(),
            namespace: namespace.to_owned(),
            guest_uuid: UUID.to_owned(),
            point_id: point.to_owned(),
            disks: vec![v1::RestoreDisk { name: "disk0".into(), path: image.to_str().unwrap().to_owned() }],
            format: v1::ImageFormat::Raw.into(),
            overwrite_policy: v1::OverwritePolicy::Never.into(),
            verify_digests: true,
        }
    }

    pub(super) async fn ready(&self, agent: &Agent) {
        let path = self.host.path("repos/one").to_str().unwrap().to_owned();
        let action = Some(v1::repository_request::Action::Initialise(REPOSITORY.to_owned()));
        let answer = agent.repository(v1::RepositoryRequest { path, action }).await.unwrap();
        assert_eq!((answer.problem, answer.id.as_str(), answer.writable), (None, REPOSITORY, true));
        guests_until(agent, |guests| guests.iter().any(|guest| !guest.uuid.is_empty())).await;
    }
}

/// Follows a run until its state is as wanted.
pub(super) async fn run_until(agent: &Agent, run: &str, wanted: impl Fn(&v1::RunState) -> bool) -> v1::RunState {
    let mut last = None;
    let followed = async {
        let mut states = agent.watch_run(run).await.unwrap();
        while let Some(state) = states.next().await {
            let state = state.unwrap();
            last = Some(state.clone());
            if wanted(&state) {
                return state;
            }
        }
        panic!("the stream ended; last: {last:#?}")
    };
    let found = tokio::time::timeout(PATIENCE, followed).await;
    found.unwrap_or_else(|_| panic!("run {run} never came so far"))
}

/// Starts a restore and follows it to its end.
pub(super) async fn restored(agent: &Agent, request: v1::StartRestoreRequest) -> v1::RestoreState {
    let run = request.run_uid.clone();
    agent.start_restore(request).await.unwrap();
    let followed = async {
        let mut states = agent.watch_restore(&run).await.unwrap();
        let mut last = None;
        while let Some(state) = states.next().await {
            last = Some(state.unwrap());
        }
        last.unwrap()
    };
    tokio::time::timeout(PATIENCE, followed).await.unwrap()
}

pub(super) fn ended(state: &v1::RunState) -> bool {
    matches!(state.phase(), v1::RunPhase::Complete | v1::RunPhase::Failed | v1::RunPhase::Cancelled)
}

pub(super) fn copying(state: &v1::RunState) -> bool {
    state.phase() == v1::RunPhase::Copying
}

#[tokio::test]
async fn a_run_is_started_once_and_its_end_is_known_afterwards() {
    let lab = Lab::new(Pace::Manual);
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    lab.ready(&agent).await;
    assert!(agent.watch_run("run-1").await.err().unwrap().is_not_found());
    for _ in 0..3 {
        agent.start_backup(lab.request("run-1")).await.unwrap();
    }
    run_until(&agent, "run-1", copying).await;
    agent.start_backup(lab.request("run-1")).await.unwrap();
    lab.qemu.finish_jobs();
    let state = run_until(&agent, "run-1", ended).await;
    assert_eq!((state.phase(), state.reason.as_str()), (v1::RunPhase::Complete, ""), "{state:#?}");
    assert_eq!(lab.qemu.transactions(), 1);
    let point = state.point.unwrap();
    assert_eq!((point.run_uid.as_str(), point.chain_intact), ("run-1", true));
    assert_eq!((point.disks[0].chain_length, point.disks[0].chain_root.as_str()), (1, point.id.as_str()));
    // Whoever watches may hear of the end a moment before it is counted.
    let counted = || running.metric("driftline_agent_runs_total{result=\"Complete\",reason=\"\"}");
    assert_eq!(eventually(async || counted()).await, "1");
    running.stop().await;

    // The next agent knows how it ended, and does not do it again.
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    let again = agent.start_backup(lab.request("run-1")).await.unwrap();
    assert_eq!(again.point.unwrap().id, point.id);
    let points = agent.list_points(v1::ListPointsRequest { repository: lab.address(), guest_uuid: String::new() });
    let points: Vec<_> = points.await.unwrap().map(Result::unwrap).collect().await;
    assert_eq!(points.iter().map(|point| point.id.as_str()).collect::<Vec<_>>(), [point.id.as_str()]);
    assert_eq!(lab.qemu.transactions(), 1);
}

#[tokio::test]
async fn an_agent_that_ends_leaves_the_job_going_and_its_successor_takes_it_up_unasked() {
    let lab = Lab::new(Pace::Manual);
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    lab.ready(&agent).await;
    agent.start_backup(lab.request("run-1")).await.unwrap();
    let before = run_until(&agent, "run-1", copying).await;
    let mut states = agent.watch_run("run-1").await.unwrap();
    states.next().await.unwrap().unwrap();
    running.stop().await;
    // Whoever watches is told to come again, not that the run failed.
    let last = loop {
        match states.next().await {
            Some(Ok(state)) => assert!(!ended(&state), "{state:#?}"),
            Some(Err(error)) => break error,
            None => panic!("ended without a word"),
        }
    };
    assert!(matches!(last.reason(), "AgentEnding" | "AgentUnreachable"), "{last}");
    assert_eq!(lab.qemu.jobs().len(), 1);

    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    let after = run_until(&agent, "run-1", copying).await;
    assert_eq!(after.disks[0].job_id, before.disks[0].job_id);
    assert_ne!(after.session, before.session);
    lab.qemu.finish_jobs();
    let state = run_until(&agent, "run-1", ended).await;
    assert_eq!(state.phase(), v1::RunPhase::Complete, "{state:#?}");
    assert_eq!(lab.qemu.transactions(), 1);
}

#[tokio::test]
async fn a_second_run_of_a_guest_waits_for_the_first_and_can_be_cancelled_meanwhile() {
    let lab = Lab::new(Pace::Manual);
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    lab.ready(&agent).await;
    agent.start_backup(lab.request("run-1")).await.unwrap();
    run_until(&agent, "run-1", copying).await;
    for run in ["run-2", "run-3"] {
        agent.start_backup(lab.request(run)).await.unwrap();
        run_until(&agent, run, |state| state.reason == "GuestBusy").await;
    }
    let cancel = |run: &str| v1::ControlRunRequest {
        run_uid: run.to_owned(),
        control: Some(v1::control_run_request::Control::Cancel(true)),
    };
    agent.control_run(cancel("run-2")).await.unwrap();
    let state = run_until(&agent, "run-2", ended).await;
    assert_eq!((state.phase(), state.reason.as_str()), (v1::RunPhase::Cancelled, "Cancelled"));
    agent.control_run(cancel("run-1")).await.unwrap();
    assert_eq!(run_until(&agent, "run-1", ended).await.phase(), v1::RunPhase::Cancelled);
    run_until(&agent, "run-3", copying).await;
    lab.qemu.finish_jobs();
    assert_eq!(run_until(&agent, "run-3", ended).await.phase(), v1::RunPhase::Complete);
}

#[tokio::test]
async fn what_cannot_be_backed_up_is_refused_with_the_reason() {
    let lab = Lab::new(Pace::AtOnce);
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    lab.ready(&agent).await;
    let refused = async |change: &dyn Fn(&mut v1::StartBackupRequest)| -> RpcError {
        let mut request = lab.request("run-1");
        change(&mut request);
        agent.start_backup(request).await.unwrap_err()
    };
    let guest = |change: fn(&mut v1::GuestRef)| {
        move |request: &mut v1::StartBackupRequest| change(request.guest.as_mut().unwrap())
    };
    assert_eq!(refused(&guest(|guest| guest.name = "nobody".into())).await.reason(), "GuestNotFound");
    // Another namespace's word for the same machine reaches nothing.
    assert_eq!(refused(&guest(|guest| guest.namespace = "team-b".into())).await.reason(), "GuestNotFound");
    assert_eq!(refused(&guest(|guest| guest.uuid = REPOSITORY.into())).await.reason(), "GuestIsAnother");
    assert_eq!(refused(&guest(|guest| guest.uuid = "x".into())).await.reason(), "InvalidRequest");
    assert_eq!(refused(&|request| request.run_uid = "../x".into()).await.reason(), "InvalidRequest");
    assert_eq!(refused(&|request| request.repository = None).await.reason(), "InvalidRequest");
    assert_eq!(refused(&|request| request.r#type = 77).await.reason(), "InvalidRequest");
    lab.qemu.quit();
    guests_until(&agent, |guests| guests.iter().any(|guest| reason(guest) == "QMPUnreachable")).await;
    let error = refused(&|_| {}).await;
    assert_eq!((error.reason(), error.retry()), ("QMPUnreachable", driftline::retry::Retry::Backoff));
}

#[tokio::test]
async fn a_restore_is_done_once_whatever_is_asked_how_often() {
    let lab = Lab::new(Pace::AtOnce);
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    lab.ready(&agent).await;
    agent.start_backup(lab.request("run-1")).await.unwrap();
    let point = run_until(&agent, "run-1", ended).await.point.unwrap();
    let image = lab.host.path("restores/new.raw");
    assert!(agent.watch_restore("restore-1").await.err().unwrap().is_not_found());
    let state = restored(&agent, lab.restore("restore-1", "team-a", &point.id, &image)).await;
    assert_eq!((state.phase(), state.verified), (v1::RestorePhase::Complete, true), "{state:?}");
    assert_eq!(state.disks[0].chain, std::slice::from_ref(&point.id));
    assert!(fs::read(&image).unwrap() == fs::read(lab.host.path("disk.img")).unwrap());
    // The same UID again, also to the next agent: not done again, though it would be refused as a new one.
    let state = restored(&agent, lab.restore("restore-1", "team-a", &point.id, &image)).await;
    assert_eq!(state.phase(), v1::RestorePhase::Complete, "{state:?}");
    running.stop().await;
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    let state = restored(&agent, lab.restore("restore-1", "team-a", &point.id, &image)).await;
    assert_eq!(state.phase(), v1::RestorePhase::Complete, "{state:?}");
    let state = restored(&agent, lab.restore("restore-2", "team-a", &point.id, &image)).await;
    assert_eq!((state.phase(), state.reason.as_str()), (v1::RestorePhase::Failed, "TargetExists"), "{state:?}");
}

#[tokio::test]
async fn repositories_and_restores_outside_of_the_roots_are_refused() {
    let lab = Lab::new(Pace::AtOnce);
    fs::create_dir(lab.host.path("outside")).unwrap();
    std::os::unix::fs::symlink(lab.host.path("outside"), lab.host.path("repos/link")).unwrap();
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    lab.ready(&agent).await;
    let outside = lab.host.path("outside");
    for path in [outside.clone(), lab.host.path("repos/../outside"), lab.host.path("repos/link")] {
        let action = Some(v1::repository_request::Action::Initialise(REPOSITORY.to_owned()));
        let request = v1::RepositoryRequest { path: path.to_str().unwrap().to_owned(), action };
        let problem = agent.repository(request).await.unwrap().problem.unwrap();
        assert_eq!(problem.reason, "OutsideRoots", "{problem:?}");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);

    agent.start_backup(lab.request("run-1")).await.unwrap();
    let point = run_until(&agent, "run-1", ended).await.point.unwrap();
    let image = lab.host.path("restores/new.raw");
    let state = restored(&agent, lab.restore("restore-1", "team-b", &point.id, &image)).await;
    assert_eq!((state.phase(), state.reason.as_str()), (v1::RestorePhase::Failed, "OutsideRoots"), "{state:?}");
    let state = restored(&agent, lab.restore("restore-2", "team-a", &point.id, &outside.join("new.raw"))).await;
    assert_eq!(state.reason, "OutsideRoots", "{state:?}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!image.exists());
}

#[tokio::test]
async fn a_repository_that_is_not_there_is_told_with_the_reason_and_not_made() {
    let lab = Lab::new(Pace::AtOnce);
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    lab.ready(&agent).await;
    let action = Some(v1::repository_request::Action::Validate(REPOSITORY.to_owned()));
    let path = lab.host.path("repos/missing").to_str().unwrap().to_owned();
    let problem = agent.repository(v1::RepositoryRequest { path, action }).await.unwrap().problem.unwrap();
    assert_eq!(problem.reason, "FolderMissing", "{problem:?}");
    assert!(!lab.host.path("repos/missing").exists());
}

#[tokio::test]
async fn a_folder_tells_which_repository_it_is() {
    use v1::repository_request::Action;
    let lab = Lab::new(Pace::AtOnce);
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    lab.ready(&agent).await;
    let path = lab.host.path("repos/asked");
    fs::create_dir(&path).unwrap();
    let ask = async |action| {
        let path = path.to_str().unwrap().to_owned();
        agent.repository(v1::RepositoryRequest { path, action: Some(action) }).await.unwrap()
    };
    let empty = ask(Action::Validate(String::new())).await;
    assert_eq!(empty.problem.unwrap().reason, "RepositoryNotMounted");
    ask(Action::Initialise(REPOSITORY.to_owned())).await;
    let found = ask(Action::Validate(String::new())).await;
    assert_eq!((found.id.as_str(), found.problem), (REPOSITORY, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_paused_guest_has_kept_is_given_up_when_it_goes_on() {
    let lab = Lab::new(Pace::AtOnce);
    lab.qemu.set_status("paused");
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    lab.ready(&agent).await;
    agent.start_backup(lab.request("run-1")).await.unwrap();
    run_until(&agent, "run-1", ended).await;
    assert!(!lab.qemu.fdsets().is_empty());
    lab.qemu.set_status("running");
    lab.qemu.emit("RESUME", serde_json::Value::Null);
    let given_up = async {
        while !lab.qemu.fdsets().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, given_up).await.unwrap();
    running.stop().await;
}
