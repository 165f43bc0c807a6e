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
