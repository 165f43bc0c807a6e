//! Scenarios of reconcile: a mock API server that keeps objects as the real one does, agents of the test's own making,
//! and a clock that the test turns. Whatever a run does to them is written down in order, so that a test can say what
//! came before what, and what never came.

mod agent;
mod fixtures;
mod gone;
mod lost;
mod server;

use std::sync::atomic::Ordering;

use driftline::{
    api::{BackupRepository, BackupRun, Guest, RestorePoint, RestoreRun},
    controller::{guest, point, repository, restore, run},
    rpc::v1,
};
use fixtures::{REPOSITORY_ID, Stage, backup, until};
use serde_json::json;

#[tokio::test]
async fn an_applied_run_becomes_complete_with_its_intent_before_its_one_start() {
    let mut stage = Stage::ready().await;
    stage.apply(backup("b1"));
    stage.agent.on_start(v1::RunPhase::Copying);
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    assert_eq!(stage.status("backupruns", "b1")["phase"], "Copying");
    assert_eq!(stage.finalizers("backupruns", "b1"), ["driftline.dev/cancel"]);
    let log = stage.log();
    let find =
        |text: &str| log.iter().position(|l| l.contains(text)).unwrap_or_else(|| panic!("no {text} in {log:#?}"));
    assert!(find("PATCH backupruns/b1 finalizers") < find("PATCH backupruns/b1/status Starting"));
    assert!(find("PATCH backupruns/b1/status Starting") < find("agent StartBackup"));

    stage.agent.complete_run();
    until(&mut stage, async |stage| {
        stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
        stage.finalizers("backupruns", "b1").is_empty()
    })
    .await;
    let status = stage.status("backupruns", "b1");
    assert_eq!((status["phase"].as_str(), status["progress"].as_str()), (Some("Complete"), Some("100%")));
    let point = status["restorePointRef"]["name"].as_str().unwrap().to_owned();
    assert!(stage.exists("restorepoints", &point));
    stage.reconcile::<RestorePoint, _>(&point, point::reconcile).await;
    assert_eq!(stage.condition("restorepoints", &point, "Available"), ("True".into(), "InRepository".into()));
    assert_eq!(stage.count("agent StartBackup"), 1);
    assert!(stage.log().iter().any(|l| l == "event BackupComplete"));
}

#[tokio::test]
async fn a_controller_that_restarts_follows_the_run_and_never_starts_it_again() {
    let mut stage = Stage::ready().await;
    stage.apply(backup("b1"));
    stage.agent.on_start(v1::RunPhase::Copying);
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    stage.restart().await;
    stage.agent.complete_run();
    until(&mut stage, async |stage| {
        stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
        stage.status("backupruns", "b1")["phase"] == "Complete"
    })
    .await;
    assert_eq!(stage.count("agent StartBackup"), 1);
}

#[tokio::test]
async fn while_an_agent_is_silent_only_the_same_id_is_asked_for_again() {
    let mut stage = Stage::ready().await;
    stage.apply(backup("b1"));
    stage.agent.reachable(false);
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    assert_eq!(stage.status("backupruns", "b1")["phase"], "Starting");
    stage.agent.reachable(true);
    stage.agent.on_start(v1::RunPhase::Copying);
    until(&mut stage, async |stage| {
        stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
        stage.status("backupruns", "b1")["phase"] == "Copying"
    })
    .await;
    assert_eq!(stage.agent.ids(), ["uid-b1"].into());
    assert_eq!(stage.status("backupruns", "b1")["attempts"], 1);
}

#[tokio::test]
async fn deleting_a_running_run_cancels_it_first_and_then_lets_it_go() {
    let mut stage = Stage::ready().await;
    stage.apply(backup("b1"));
    stage.agent.on_start(v1::RunPhase::Copying);
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    stage.delete("backupruns", "b1");
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    assert_eq!(stage.count("agent CancelRun"), 1);
    assert!(stage.exists("backupruns", "b1"), "it goes only when nothing is going any more");
    until(&mut stage, async |stage| {
        stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
        !stage.exists("backupruns", "b1")
    })
    .await;
}

#[tokio::test]
async fn mere_progress_is_written_at_most_once_per_second_and_a_new_phase_at_once() {
    let mut stage = Stage::ready().await;
    stage.apply(backup("b1"));
    stage.agent.on_start(v1::RunPhase::Copying);
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    let start = std::time::Instant::now();
    for done in 1..100 {
        stage.agent.change_runs(|r| {
            r.disks =
                vec![v1::DiskState { name: "disk0".into(), total_bytes: 100, done_bytes: done, ..Default::default() }];
        });
        tokio::task::yield_now().await;
        stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    }
    let writes = u64::try_from(stage.count("PATCH backupruns/b1/status Copying")).unwrap();
    assert!(writes <= 2 + start.elapsed().as_secs(), "{writes} writes in {:?}", start.elapsed());
    stage.agent.change_runs(|r| r.phase = v1::RunPhase::Finishing.into());
    until(&mut stage, async |stage| {
        stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
        stage.status("backupruns", "b1")["phase"] == "Finishing"
    })
    .await;
    assert_eq!(stage.status("backupruns", "b1")["progress"], "99%");
}

#[tokio::test]
async fn a_retriable_failure_is_tried_again_under_a_new_id_and_another_is_not() {
    for retriable in [true, false] {
        let mut stage = Stage::ready().await;
        stage.apply(backup("b1"));
        stage.agent.fail_at_start(retriable);
        stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
        if !retriable {
            assert_eq!(stage.condition("backupruns", "b1", "Failed"), ("True".into(), "TargetUnsafe".into()));
            assert!(stage.log().iter().any(|l| l == "event TargetUnsafe"));
            continue;
        }
        assert_eq!(stage.condition("backupruns", "b1", "Ready"), ("False".into(), "Retrying".into()));
        stage.now.fetch_add(11, Ordering::SeqCst);
        stage.agent.on_start(v1::RunPhase::Copying);
        stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
        assert_eq!(stage.status("backupruns", "b1")["attempts"], 2);
        assert_eq!(stage.agent.ids(), ["uid-b1", "uid-b1-2"].into());
    }
}

#[tokio::test]
async fn a_guest_made_by_hand_is_not_discovered_and_is_never_backed_up() {
    let mut stage = Stage::ready().await;
    stage.apply(json!({"kind": "Guest", "metadata": {"name": "made-up"}, "spec": {}}));
    stage.apply(backup("b1"));
    stage.edit("backupruns", "b1", |o| o["spec"]["guestRef"]["name"] = json!("made-up"));
    stage.reconcile::<Guest, _>("made-up", guest::reconcile).await;
    assert_eq!(stage.condition("guests", "made-up", "Ready"), ("False".into(), "NotDiscovered".into()));
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    assert_eq!(stage.status("backupruns", "b1")["phase"], "Pending");
    stage.now.fetch_add(31, Ordering::SeqCst);
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    assert_eq!(stage.condition("backupruns", "b1", "Failed"), ("True".into(), "NotDiscovered".into()));
    assert_eq!(stage.count("agent StartBackup"), 0);
}

#[tokio::test]
async fn a_guest_of_an_agent_is_made_with_its_labels_and_marked_when_its_file_is_gone() {
    let mut stage = Stage::ready().await;
    assert_eq!(stage.object("guests", "db-1")["metadata"]["labels"]["tier"], "gold");
    stage.reconcile::<Guest, _>("db-1", guest::reconcile).await;
    assert_eq!(stage.condition("guests", "db-1", "Ready"), ("True".into(), "Discovered".into()));
    assert_eq!(stage.status("guests", "db-1")["eligibleDisks"], "1/2");
    stage.agent.say_guests(vec![]);
    until(&mut stage, async |stage| {
        stage.reconcile::<Guest, _>("db-1", guest::reconcile).await;
        stage.condition("guests", "db-1", "Ready").1 == "Vanished"
    })
    .await;
    assert_eq!(stage.status("guests", "db-1")["uuid"], fixtures::GUEST_UUID, "what was known stays readable");
}

#[tokio::test]
async fn another_namespace_uses_a_repository_only_where_its_policy_says_so() {
    let mut stage = Stage::ready().await;
    stage.place("backuprepositories", "repo", "elsewhere");
    stage.apply(backup("b1"));
    stage.edit("backupruns", "b1", |o| o["spec"]["repositoryRef"]["namespace"] = json!("elsewhere"));
    stage.now.fetch_add(31, Ordering::SeqCst);
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    assert_eq!(stage.condition("backupruns", "b1", "Failed"), ("True".into(), "NamespaceNotAllowed".into()));
    assert_eq!(stage.count("agent StartBackup"), 0);
}

#[tokio::test]
async fn a_run_of_a_guest_without_eligible_disks_says_which_and_why() {
    let mut stage = Stage::ready().await;
    stage.apply(backup("b1"));
    stage.edit("backupruns", "b1", |o| o["spec"]["disks"] = json!({"exclude": ["disk0"]}));
    stage.now.fetch_add(31, Ordering::SeqCst);
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    assert_eq!(stage.condition("backupruns", "b1", "Failed"), ("True".into(), "NoEligibleDisk".into()));
    let message = stage.message("backupruns", "b1", "Failed");
    assert!(message.contains("cd0 (CDROM)"), "{message}");
}

#[tokio::test]
async fn a_repository_is_initialised_once_under_the_id_that_was_written_before() {
    let mut stage = Stage::empty().await;
    stage.reconcile::<BackupRepository, _>("repo", repository::reconcile).await;
    assert_eq!(stage.condition("backuprepositories", "repo", "Ready"), ("True".into(), "Validated".into()));
    let id = stage.status("backuprepositories", "repo")["repositoryID"].as_str().unwrap().to_owned();
    assert_eq!(stage.agent.repository_id(), Some(id));
    let log = stage.log();
    let intent = log.iter().position(|l| l.contains("status Initialising")).expect("the intent");
    assert!(intent < log.iter().position(|l| l == "agent Initialise").expect("the act"));
    stage.restart().await;
    stage.reconcile::<BackupRepository, _>("repo", repository::reconcile).await;
    assert_eq!(stage.count("agent Initialise"), 1);
}

#[tokio::test]
async fn a_folder_that_is_a_repository_already_is_adopted_with_its_points() {
    let mut stage = Stage::empty().await;
    stage.agent.have_repository(REPOSITORY_ID);
    stage.agent.have_point();
    stage.reconcile::<BackupRepository, _>("repo", repository::reconcile).await;
    assert_eq!(stage.status("backuprepositories", "repo")["repositoryID"], REPOSITORY_ID);
    assert_eq!(stage.count("agent Initialise"), 0);
    assert_eq!(stage.names("restorepoints").len(), 1);
}

#[tokio::test]
async fn a_deleted_restore_point_comes_back_and_its_data_was_never_touched() {
    let mut stage = Stage::ready().await;
    stage.agent.have_point();
    stage.forget_answers();
    stage.reconcile::<BackupRepository, _>("repo", repository::reconcile).await;
    let before = stage.names("restorepoints");
    assert_eq!(before.len(), 1);
    stage.delete("restorepoints", &before[0]);
    assert!(stage.names("restorepoints").is_empty());
    stage.reconcile::<BackupRepository, _>("repo", repository::reconcile).await;
    assert_eq!(stage.names("restorepoints"), before);
}

#[tokio::test]
async fn a_guest_whose_object_is_gone_keeps_its_points_in_its_namespace() {
    let mut stage = Stage::ready().await;
    stage.agent.have_point();
    stage.edit("backuprepositories", "repo", |o| {
        o["spec"]["usagePolicy"] = json!({"allowedNamespaces": ["team-a"]});
    });
    stage.move_away("backuprepositories", "repo", "storage");
    stage.delete("guests", "db-1");
    stage.forget_answers();
    stage.reconcile_in::<BackupRepository, _>("storage", "repo", repository::reconcile).await;
    assert_eq!(stage.names("restorepoints").len(), 1);
    assert!(stage.names("restorepoints").iter().all(|point| stage.exists("restorepoints", point)), "in team-a");
}

#[tokio::test]
async fn a_restore_point_made_by_hand_shows_that_it_is_none_and_restores_nothing() {
    let mut stage = Stage::ready().await;
    let point = stage.agent.have_point();
    stage.forget_answers();
    stage.reconcile::<BackupRepository, _>("repo", repository::reconcile).await;
    stage.apply(json!({
        "kind": "RestorePoint",
        "metadata": {"name": "mine"},
        "spec": {"pointID": point, "guest": {"uuid": fixtures::GUEST_UUID, "name": "db-1"}, "repositoryRef": {"name": "repo"}}
    }));
    stage.reconcile::<RestorePoint, _>("mine", point::reconcile).await;
    assert_eq!(stage.condition("restorepoints", "mine", "Available"), ("False".into(), "NotInRepository".into()));
    stage.apply(fixtures::restore_of("mine"));
    stage.now.fetch_add(31, Ordering::SeqCst);
    stage.reconcile::<RestoreRun, _>("r1", restore::reconcile).await;
    assert_eq!(stage.condition("restoreruns", "r1", "Failed"), ("True".into(), "PointNotAvailable".into()));
    assert_eq!(stage.count("agent StartRestore"), 0);
}

#[tokio::test]
async fn a_restore_reads_what_the_repository_says_and_ends_verified() {
    let mut stage = Stage::ready().await;
    let id = stage.agent.have_point();
    stage.forget_answers();
    stage.reconcile::<BackupRepository, _>("repo", repository::reconcile).await;
    let name = stage.names("restorepoints")[0].clone();
    stage.apply(fixtures::restore_of(&name));
    until(&mut stage, async |stage| {
        stage.reconcile::<RestoreRun, _>("r1", restore::reconcile).await;
        stage.finalizers("restoreruns", "r1").is_empty() && stage.status("restoreruns", "r1")["phase"] == "Complete"
    })
    .await;
    let asked = stage.agent.restore_request();
    assert_eq!((asked.point_id, asked.namespace.as_str()), (id, "team-a"));
    assert_eq!(stage.condition("restoreruns", "r1", "Verified").0, "True");
    assert_eq!(stage.count("agent StartRestore"), 1);
}

#[tokio::test]
async fn a_cancel_that_comes_after_the_end_is_seen_and_changes_nothing_else() {
    let mut stage = Stage::ready().await;
    stage.agent.have_point();
    stage.forget_answers();
    stage.reconcile::<BackupRepository, _>("repo", repository::reconcile).await;
    stage.apply(fixtures::restore_of(&stage.names("restorepoints")[0]));
    stage.apply(backup("b1"));
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    stage.agent.complete_run();
    until(&mut stage, async |stage| {
        stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
        stage.reconcile::<RestoreRun, _>("r1", restore::reconcile).await;
        let ended = |plural, name| {
            stage.finalizers(plural, name).is_empty() && stage.status(plural, name)["phase"] == "Complete"
        };
        ended("backupruns", "b1") && ended("restoreruns", "r1")
    })
    .await;
    for (plural, name) in [("backupruns", "b1"), ("restoreruns", "r1")] {
        let mut wanted = stage.status(plural, name);
        stage.edit(plural, name, |o| {
            o["spec"]["cancel"] = json!(true);
            o["metadata"]["generation"] = json!(2);
        });
        stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
        stage.reconcile::<RestoreRun, _>("r1", restore::reconcile).await;
        wanted["observedGeneration"] = json!(2);
        for condition in wanted["conditions"].as_array_mut().unwrap() {
            condition["observedGeneration"] = json!(2);
        }
        assert_eq!(stage.status(plural, name), wanted);
        let written = stage.object(plural, name)["metadata"]["resourceVersion"].clone();
        stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
        stage.reconcile::<RestoreRun, _>("r1", restore::reconcile).await;
        assert_eq!(stage.object(plural, name)["metadata"]["resourceVersion"], written, "once");
    }
}
