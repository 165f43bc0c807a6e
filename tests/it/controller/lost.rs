//! What was lost on the way: answers, state folders, the controller's own memory. A run is neither lost nor doubled, and
//! none waits for what will never come.

use std::sync::atomic::Ordering;

use driftline::{
    api::{BackupRun, Guest, RestoreRun},
    controller::{guest, repository, restore, run},
    rpc::v1,
};
use serde_json::json;

use super::fixtures::{Stage, backup, restore_of, until};

#[tokio::test]
async fn an_agent_that_has_forgotten_a_run_that_it_told_of_does_not_hold_it_up_for_ever() {
    let mut stage = Stage::ready().await;
    stage.apply(backup("b1"));
    stage.agent.on_start(v1::RunPhase::Copying);
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    assert_eq!(stage.status("backupruns", "b1")["phase"], "Copying");
    stage.agent.forget_runs();
    until(&mut stage, async |stage| {
        stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
        stage.condition("backupruns", "b1", "Ready").1 == "Retrying"
    })
    .await;
    assert!(stage.message("backupruns", "b1", "Ready").contains("no record"));
}

#[tokio::test]
async fn a_run_that_was_taken_before_the_controller_died_is_found_though_its_guest_is_not_seen_yet() {
    let mut stage = Stage::ready().await;
    stage.apply(backup("b1"));
    stage.agent.reachable(false);
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    assert_eq!(stage.status("backupruns", "b1")["phase"], "Starting");
    // The request arrived, the answer did not; the controller starts again, and so does the agent.
    stage.agent.take("uid-b1");
    stage.restart().await;
    stage.agent.say_guests(vec![]);
    stage.agent.reachable(true);
    until(&mut stage, async |stage| {
        stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
        let phase = stage.status("backupruns", "b1")["phase"].clone();
        assert_ne!(phase, "Failed", "{}", stage.message("backupruns", "b1", "Ready"));
        phase == "Copying"
    })
    .await;
    assert_eq!(stage.status("backupruns", "b1")["attempts"], 1);
}

#[tokio::test]
async fn a_run_that_never_began_is_not_asked_for_where_its_repository_no_longer_lets_it() {
    let mut stage = Stage::ready().await;
    stage.apply(backup("b1"));
    stage.agent.reachable(false);
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    stage.edit("backuprepositories", "repo", |o| o["spec"]["accessMode"] = json!("ReadOnly"));
    stage.agent.reachable(true);
    until(&mut stage, async |stage| {
        stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
        stage.status("backupruns", "b1")["phase"] == "Pending"
    })
    .await;
    assert_eq!(stage.status("backupruns", "b1")["attempts"], 0, "the next try is the same one");
    stage.now.fetch_add(31, Ordering::SeqCst);
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    assert_eq!(stage.condition("backupruns", "b1", "Failed"), ("True".into(), "RepositoryReadOnly".into()));
    assert_eq!(stage.count("agent StartBackup"), 0);
}

#[tokio::test]
async fn a_run_that_queued_for_long_has_the_same_patience_as_a_new_one() {
    let mut stage = Stage::ready().await;
    stage.apply(backup("b1"));
    stage.agent.on_start(v1::RunPhase::Copying);
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    stage.apply(backup("b2"));
    stage.reconcile::<BackupRun, _>("b2", run::reconcile).await;
    assert_eq!(stage.status("backupruns", "b2")["phase"], "Queued");
    stage.now.fetch_add(3600, Ordering::SeqCst);
    stage.edit("backuprepositories", "repo", |o| o["spec"]["accessMode"] = json!("ReadOnly"));
    stage.reconcile::<BackupRun, _>("b2", run::reconcile).await;
    assert_eq!(stage.status("backupruns", "b2")["phase"], "Pending");
    stage.now.fetch_add(31, Ordering::SeqCst);
    stage.reconcile::<BackupRun, _>("b2", run::reconcile).await;
    assert_eq!(stage.condition("backupruns", "b2", "Failed"), ("True".into(), "RepositoryReadOnly".into()));
}

#[tokio::test]
async fn a_run_that_waited_for_long_for_one_thing_has_patience_for_the_next() {
    let mut stage = Stage::ready().await;
    // The repository's agent is away, which is waited for for ten minutes.
    let ready = |is: &'static str| {
        move |o: &mut serde_json::Value| {
            for c in o["status"]["conditions"].as_array_mut().unwrap().iter_mut().filter(|c| c["type"] == "Ready") {
                c["status"] = json!(is);
            }
        }
    };
    stage.edit("backuprepositories", "repo", ready("Unknown"));
    stage.apply(backup("b1"));
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    assert_eq!(stage.condition("backupruns", "b1", "Ready").1, "RepositoryNotReady");
    stage.now.fetch_add(90, Ordering::SeqCst);
    // It is back, and has not looked at the guest yet, which is waited for for one minute.
    stage.edit("backuprepositories", "repo", ready("True"));
    let problem = v1::Problem { subject: "db-1".into(), reason: "NotSeenYet".into(), message: "Not yet".into() };
    let guest = v1::Guest { name: "db-1".into(), namespace: "team-a".into(), ..v1::Guest::default() };
    stage.agent.say_guests(vec![v1::Guest { problem: Some(problem), ..guest }]);
    until(&mut stage, async |stage| {
        stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
        stage.condition("backupruns", "b1", "Ready").1 == "GuestNotReady"
    })
    .await;
    for (seconds, phase) in [(59, "Pending"), (2, "Failed")] {
        stage.now.fetch_add(seconds, Ordering::SeqCst);
        stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
        assert_eq!(stage.status("backupruns", "b1")["phase"], phase);
    }
}

#[tokio::test]
async fn a_restore_that_never_began_and_whose_point_is_gone_comes_to_an_end() {
    let mut stage = Stage::ready().await;
    stage.agent.have_point();
    stage.forget_answers();
    stage.reconcile::<driftline::api::BackupRepository, _>("repo", repository::reconcile).await;
    let name = stage.names("restorepoints")[0].clone();
    stage.apply(restore_of(&name));
    stage.agent.reachable(false);
    stage.reconcile::<RestoreRun, _>("r1", restore::reconcile).await;
    assert_eq!(stage.status("restoreruns", "r1")["phase"], "Starting");
    stage.delete("restorepoints", &name);
    stage.agent.reachable(true);
    until(&mut stage, async |stage| {
        stage.now.fetch_add(5, Ordering::SeqCst);
        stage.reconcile::<RestoreRun, _>("r1", restore::reconcile).await;
        stage.condition("restoreruns", "r1", "Failed") == ("True".into(), "PointNotFound".into())
    })
    .await;
    assert_eq!(stage.count("agent StartRestore"), 0);
}

#[tokio::test]
async fn what_is_decided_from_an_old_object_does_not_undo_a_runs_end() {
    let mut stage = Stage::ready().await;
    stage.apply(backup("b1"));
    stage.edit("backuprepositories", "repo", |o| o["spec"]["accessMode"] = json!("ReadOnly"));
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    let before = stage.object("backupruns", "b1");
    stage.now.fetch_add(31, Ordering::SeqCst);
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    assert_eq!(stage.condition("backupruns", "b1", "Failed").0, "True");
    // What it waited for comes, and the watch has not brought its end yet.
    stage.edit("backuprepositories", "repo", |o| o["spec"]["accessMode"] = json!("ReadWrite"));
    stage.reconcile::<driftline::api::BackupRepository, _>("repo", repository::reconcile).await;
    let again = stage.reconcile_old::<BackupRun, _>(before, run::reconcile).await;
    assert_eq!(stage.condition("backupruns", "b1", "Failed").0, "True", "{again:?}");
    assert_eq!(stage.count("agent StartBackup"), 0);
}

#[tokio::test]
async fn a_namespace_that_is_going_is_not_held_by_a_run_whose_point_cannot_be_shown_any_more() {
    let mut stage = Stage::ready().await;
    stage.apply(backup("b1"));
    stage.agent.on_start(v1::RunPhase::Copying);
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    stage.end_namespace();
    stage.agent.complete_run();
    until(&mut stage, async |stage| {
        stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
        stage.finalizers("backupruns", "b1").is_empty()
    })
    .await;
    assert_eq!(stage.condition("backupruns", "b1", "Complete").0, "True");
    assert!(stage.log().iter().any(|l| l == "event PointNotShown"));
}

#[tokio::test]
async fn a_node_whose_clock_is_wrong_does_not_delete_a_run_before_its_time() {
    let mut stage = Stage::ready().await;
    stage.now.fetch_add(86_400 * 365, Ordering::SeqCst);
    stage.forget_answers();
    stage.reconcile::<driftline::api::BackupRepository, _>("repo", repository::reconcile).await;
    stage.apply(backup("b1"));
    stage.edit("backupruns", "b1", |o| o["spec"]["ttlAfterFinished"] = json!("1h"));
    stage.agent.on_start(v1::RunPhase::Copying);
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    // Ends a year ago, by its node.
    stage.agent.complete_run();
    until(&mut stage, async |stage| {
        stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
        stage.finalizers("backupruns", "b1").is_empty()
    })
    .await;
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    assert!(stage.exists("backupruns", "b1"));
    stage.now.fetch_add(3601, Ordering::SeqCst);
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    assert!(!stage.exists("backupruns", "b1"));
}

#[tokio::test]
async fn an_agent_that_ends_its_stream_and_answers_again_soon_changes_no_status() {
    let mut stage = Stage::ready().await;
    let before = stage.object("guests", "db-1");
    stage.agent.talks(false);
    // The stream was cut, and at least one attempt to open it again was refused.
    until(&mut stage, async |stage| stage.count("agent WatchGuests") >= 1).await;
    stage.reconcile::<Guest, _>("db-1", guest::reconcile).await;
    let refused = stage.count("agent WatchGuests");
    stage.agent.talks(true);
    until(&mut stage, async |stage| stage.count("agent WatchGuests") > refused).await;
    stage.reconcile::<Guest, _>("db-1", guest::reconcile).await;
    assert_eq!(stage.object("guests", "db-1"), before);
    assert!(!stage.log().iter().any(|line| line.starts_with("event")), "{:#?}", stage.log());
}

#[tokio::test]
async fn a_deleted_run_that_another_finalizer_holds_is_not_waited_for() {
    let mut stage = Stage::ready().await;
    stage.apply(backup("b1"));
    stage.edit("backupruns", "b1", |o| {
        o["metadata"]["finalizers"] = json!(["example.com/audit"]);
        o["metadata"]["creationTimestamp"] = json!("2023-11-14T00:00:00Z");
    });
    stage.delete("backupruns", "b1");
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    stage.apply(backup("b2"));
    stage.agent.on_start(v1::RunPhase::Copying);
    stage.reconcile::<BackupRun, _>("b2", run::reconcile).await;
    assert_eq!(stage.status("backupruns", "b2")["phase"], "Copying");
}

#[tokio::test]
async fn a_run_whose_status_somebody_else_holds_says_so_and_can_be_deleted() {
    let mut stage = Stage::ready().await;
    stage.apply(backup("b1"));
    stage.agent.on_start(v1::RunPhase::Copying);
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    stage.hold_fields();
    stage.delete("backupruns", "b1");
    stage.try_reconcile::<BackupRun, _>("b1", run::reconcile).await;
    assert!(stage.exists("backupruns", "b1"), "it was still going");
    assert_eq!(stage.count("event FieldConflict"), 1);
    until(&mut stage, async |stage| {
        stage.try_reconcile::<BackupRun, _>("b1", run::reconcile).await;
        !stage.exists("backupruns", "b1")
    })
    .await;
    assert!(stage.count("agent CancelRun") >= 1);
}

#[tokio::test]
async fn an_agent_that_refuses_a_restore_for_now_is_heard_and_its_reason_is_the_end() {
    let mut stage = Stage::ready().await;
    stage.agent.have_point();
    stage.forget_answers();
    stage.reconcile::<driftline::api::BackupRepository, _>("repo", repository::reconcile).await;
    stage.apply(restore_of(&stage.names("restorepoints")[0]));
    stage.agent.refuse_restores("StateUnusable");
    for (seconds, ended) in [(0, "False"), (119, "False"), (2, "True")] {
        stage.now.fetch_add(seconds, Ordering::SeqCst);
        stage.reconcile::<RestoreRun, _>("r1", restore::reconcile).await;
        assert_eq!(stage.condition("restoreruns", "r1", "Failed"), (ended.into(), "StateUnusable".into()));
    }
    assert_eq!(stage.finalizers("restoreruns", "r1").len(), 1, "the next look takes it");
}
