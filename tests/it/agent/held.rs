//! What the agent cannot go on with now but keeps: told as going, with the reason, never as an end that a later point
//! would give the lie.

use driftline::qmp::fake::Pace;

use super::{
    runs::{Lab, copying, ended, restored, run_until},
    *,
};

#[tokio::test]
async fn a_run_whose_journal_cannot_be_written_has_not_failed_and_goes_on_when_it_can() {
    let lab = Lab::new(Pace::Manual);
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    lab.ready(&agent).await;
    agent.start_backup(lab.request("run-1")).await.unwrap();
    run_until(&agent, "run-1", copying).await;
    let (journal, aside) = (lab.host.path("state/journal"), lab.host.path("state/aside"));
    fs::rename(&journal, &aside).unwrap();
    fs::write(&journal, "not a folder").unwrap();
    lab.qemu.finish_jobs();
    let state = run_until(&agent, "run-1", |state| state.reason.starts_with("Journal") || ended(state)).await;
    assert!(!ended(&state), "the journal keeps it: {state:#?}");
    fs::remove_file(&journal).unwrap();
    fs::rename(&aside, &journal).unwrap();
    let state = run_until(&agent, "run-1", ended).await;
    assert_eq!(state.phase(), v1::RunPhase::Complete, "{state:#?}");
    assert_eq!(lab.qemu.transactions(), 1);
}

#[tokio::test]
async fn an_agent_that_has_just_started_does_not_say_that_its_guests_are_gone() {
    let lab = Lab::new(Pace::Manual);
    for _ in 0..10 {
        let running = lab.host.start().await;
        let agent = lab.host.controller(&running);
        let first = agent.watch_guests().await.unwrap().next().await.unwrap().unwrap();
        assert_eq!(first.guests.len(), 1, "its file was there all the time");
        running.stop().await;
    }
}

#[tokio::test]
async fn a_restore_whose_agent_died_before_it_could_say_so_knows_its_own_result() {
    let lab = Lab::new(Pace::AtOnce);
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    lab.ready(&agent).await;
    agent.start_backup(lab.request("run-1")).await.unwrap();
    let point = run_until(&agent, "run-1", ended).await.point.unwrap();
    let image = lab.host.path("restores/new.raw");
    restored(&agent, lab.restore("restore-1", "team-a", &point.id, &image)).await;
    let word = lab.host.path("state/restores/restore-1.json");
    eventually(async || word.exists().then_some(())).await;
    running.stop().await;
    // What a kill between the image's name and the word about it leaves.
    fs::remove_file(&word).unwrap();
    let before = fs::metadata(&image).unwrap();
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    let state = restored(&agent, lab.restore("restore-1", "team-a", &point.id, &image)).await;
    assert_eq!(state.phase(), v1::RestorePhase::Complete, "{state:?}");
    assert_eq!(fs::metadata(&image).unwrap().modified().unwrap(), before.modified().unwrap(), "it was left alone");
    let state = restored(&agent, lab.restore("restore-2", "team-a", &point.id, &image)).await;
    assert_eq!(state.reason, "TargetExists", "another run's image is in the way: {state:?}");
}

/// Destroys the repository of a run whose agent is gone meanwhile, and starts the agent again.
async fn destroyed(lab: &Lab) -> (Running, Agent) {
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    lab.ready(&agent).await;
    agent.start_backup(lab.request("run-1")).await.unwrap();
    run_until(&agent, "run-1", copying).await;
    running.stop().await;
    fs::remove_dir_all(lab.host.path("repos/one")).unwrap();
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    guests_until(&agent, |guests| guests.iter().any(|guest| !guest.uuid.is_empty())).await;
    (running, agent)
}

/// A run into another repository of the guest.
async fn elsewhere(lab: &Lab, agent: &Agent, run: &str) -> v1::StartBackupRequest {
    let path = lab.host.path("repos/two");
    let id = "11111111-9a51-4c7e-8f2b-0d9f2f6f3a10".to_owned();
    fs::create_dir(&path).unwrap();
    let path = path.to_str().unwrap().to_owned();
    let action = Some(v1::repository_request::Action::Initialise(id.clone()));
    agent.repository(v1::RepositoryRequest { path: path.clone(), action }).await.unwrap();
    v1::StartBackupRequest { repository: Some(v1::RepositoryAddress { path, id }), ..lab.request(run) }
}

#[tokio::test]
async fn a_repository_that_is_destroyed_fails_its_run_and_the_guest_goes_on() {
    let lab = Lab::new(Pace::Manual);
    let (_running, agent) = destroyed(&lab).await;
    run_until(&agent, "run-1", copying).await;
    lab.qemu.finish_jobs();
    let state = run_until(&agent, "run-1", ended).await;
    assert_eq!((state.phase(), state.reason.as_str()), (v1::RunPhase::Failed, "FolderMissing"), "{state:?}");
    agent.start_backup(lab.request("run-2")).await.unwrap();
    assert_eq!(run_until(&agent, "run-2", ended).await.reason, "FolderMissing", "whoever backs up into it hears of it");
    agent.start_backup(elsewhere(&lab, &agent, "run-3").await).await.unwrap();
    run_until(&agent, "run-3", copying).await;
    lab.qemu.finish_jobs();
    assert_eq!(run_until(&agent, "run-3", ended).await.phase(), v1::RunPhase::Complete);
}

/// A run that copies and whose journal cannot be used; gives what mends that.
async fn held_back(lab: &Lab) -> (Running, Agent, impl FnOnce() + use<>) {
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    lab.ready(&agent).await;
    agent.start_backup(lab.request("run-1")).await.unwrap();
    run_until(&agent, "run-1", copying).await;
    let (journal, aside) = (lab.host.path("state/journal"), lab.host.path("state/aside"));
    fs::rename(&journal, &aside).unwrap();
    fs::write(&journal, "not a folder").unwrap();
    let mend = move || {
        fs::remove_file(&journal).unwrap();
        fs::rename(&aside, &journal).unwrap();
    };
    (running, agent, mend)
}

/// The same, with all copied, and told.
async fn copied_and_held(lab: &Lab) -> (Running, Agent, impl FnOnce() + use<>) {
    let held = held_back(lab).await;
    lab.qemu.finish_jobs();
    run_until(&held.1, "run-1", |state| state.reason.starts_with("Journal")).await;
    held
}

#[tokio::test]
async fn a_run_that_cannot_go_on_now_gives_up_its_turn() {
    let lab = Lab::new(Pace::Manual);
    let (_running, agent, mend) = copied_and_held(&lab).await;
    lab.qemu.set_pace(Pace::AtOnce);
    agent.start_backup(lab.request("run-2")).await.unwrap();
    // It does not wait for the first without a word.
    run_until(&agent, "run-2", |state| state.reason.starts_with("Journal")).await;
    mend();
    for run in ["run-1", "run-2"] {
        let state = run_until(&agent, run, ended).await;
        assert_eq!(state.phase(), v1::RunPhase::Complete, "{state:?}");
    }
}

#[tokio::test]
async fn a_run_that_cannot_go_on_now_is_cancelled_once_it_can() {
    let lab = Lab::new(Pace::Manual);
    let (_running, agent, mend) = held_back(&lab).await;
    cancel(&agent, "run-1").await;
    run_until(&agent, "run-1", |state| state.reason.starts_with("Journal")).await;
    // Some tries, each of which leaves it to the journal.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let state = run_until(&agent, "run-1", |_| true).await;
    assert!(!ended(&state), "{state:?}");
    mend();
    let state = run_until(&agent, "run-1", ended).await;
    assert_eq!(state.phase(), v1::RunPhase::Cancelled, "{state:?}");
    assert!(lab.qemu.jobs().is_empty(), "it was undone");
}

#[tokio::test]
async fn a_run_that_the_journal_holds_is_not_cancelled_before_its_guest_is_named_again() {
    let lab = Lab::new(Pace::Manual);
    let (_running, agent, mend) = copied_and_held(&lab).await;
    let (file, away) = (lab.host.path("guests.d/a.toml"), lab.host.path("a.toml"));
    fs::rename(&file, &away).unwrap();
    run_until(&agent, "run-1", |state| state.reason == "GuestNotFound").await;
    cancel(&agent, "run-1").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let state = run_until(&agent, "run-1", |_| true).await;
    assert!(!ended(&state), "all is copied, and the next agent would make a point of it: {state:?}");
    mend();
    fs::rename(&away, &file).unwrap();
    let state = run_until(&agent, "run-1", ended).await;
    assert_eq!(state.phase(), v1::RunPhase::Cancelled, "{state:?}");
    assert!(lab.qemu.jobs().is_empty() && lab.qemu.bitmaps("disk0").is_empty(), "it was undone");
}

/// A recovery by a person, once the agent has given up the monitor of a guest that no file names.
async fn recover(lab: &Lab) {
    let config = lab.host.path("host.toml");
    let [state, locks, guests, roots] = ["state", "locks", "guests.d", "repos"].map(|name| lab.host.path(name));
    let text = format!("state = {state:?}\nlocks = {locks:?}\nguests = {guests:?}\nrepositoryRoots = [{roots:?}]\n");
    fs::write(&config, text).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_driftline"));
    command.args(["recover", "--qmp"]).arg(lab.host.path("a.qmp")).arg("--repository").arg(lab.host.path("repos/one"));
    command.env("DRIFTLINE_CONFIG", &config).stdin(std::process::Stdio::null());
    eventually(async || {
        let output = tokio::task::block_in_place(|| command.output().unwrap());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || said.contains("MonitorBusy"), "{said}");
        output.status.success().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_a_person_has_recovered_ends_though_its_guest_is_named_no_more() {
    let lab = Lab::new(Pace::Manual);
    let (_running, agent, mend) = copied_and_held(&lab).await;
    fs::rename(lab.host.path("guests.d/a.toml"), lab.host.path("a.toml")).unwrap();
    run_until(&agent, "run-1", |state| state.reason == "GuestNotFound").await;
    mend();
    recover(&lab).await;
    let state = run_until(&agent, "run-1", ended).await;
    assert_eq!(state.phase(), v1::RunPhase::Complete, "{state:?}");
}

#[tokio::test]
async fn a_run_that_the_next_one_has_finished_is_complete_and_waits_for_it_no_longer() {
    let lab = Lab::new(Pace::Manual);
    let (_running, agent, mend) = copied_and_held(&lab).await;
    // Its pause grows: the other one is there first.
    tokio::time::sleep(Duration::from_secs(8)).await;
    agent.start_backup(lab.request("run-2")).await.unwrap();
    run_until(&agent, "run-2", |state| state.reason.starts_with("Journal")).await;
    mend();
    run_until(&agent, "run-2", copying).await;
    cancel(&agent, "run-1").await;
    let state = run_until(&agent, "run-1", ended).await;
    assert_eq!(state.phase(), v1::RunPhase::Complete, "{state:?}");
    lab.qemu.finish_jobs();
    assert_eq!(run_until(&agent, "run-2", ended).await.phase(), v1::RunPhase::Complete);
}

async fn cancel(agent: &Agent, run: &str) {
    let control = Some(v1::control_run_request::Control::Cancel(true));
    agent.control_run(v1::ControlRunRequest { run_uid: run.to_owned(), control }).await.unwrap();
}
