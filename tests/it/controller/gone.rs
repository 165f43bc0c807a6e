//! A node that was removed for good: its Guests say so and go after a while, never before, and never for less.

use std::sync::atomic::Ordering;

use driftline::{
    api::{BackupRepository, BackupRun, Guest, RestoreRun},
    controller::{guest, repository, restore, run},
    rpc::v1,
};
use serde_json::{Value, json};

use super::fixtures::{Stage, backup, restore_of, until};

const DAY: i64 = 86_400;

/// What `Ready` says of the guest.
fn reason(stage: &Stage) -> String {
    stage.condition("guests", "db-1", "Ready").1
}

/// Since when it says so.
fn since(stage: &Stage) -> Value {
    let conditions = stage.status("guests", "db-1")["conditions"].clone();
    conditions.as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap()["lastTransitionTime"].clone()
}

async fn look(stage: &mut Stage) {
    stage.reconcile::<Guest, _>("db-1", guest::reconcile).await;
}

async fn look_after(stage: &mut Stage, seconds: i64) {
    stage.now.fetch_add(seconds, Ordering::SeqCst);
    look(stage).await;
}

async fn look_until(stage: &mut Stage, wanted: &str) {
    until(stage, async |stage| {
        look(stage).await;
        reason(stage) == wanted
    })
    .await;
}

/// A stage whose only node was removed, and whose guest says so.
async fn gone() -> Stage {
    let mut stage = Stage::ready().await;
    stage.agent.runs_on(&[]);
    look_until(&mut stage, "NodeGone").await;
    stage
}

#[tokio::test]
async fn a_guest_of_a_removed_node_says_so_and_goes_after_a_day_without_its_points() {
    let mut stage = Stage::ready().await;
    stage.agent.have_point();
    stage.forget_answers();
    stage.reconcile::<BackupRepository, _>("repo", repository::reconcile).await;
    let points = stage.names("restorepoints");
    assert_eq!(points.len(), 1);
    assert_eq!(stage.count("GET nodes/n1"), 0, "nobody asks about a node whose agent answers");
    stage.agent.runs_on(&[]);
    look_until(&mut stage, "NodeGone").await;
    assert_eq!(stage.condition("guests", "db-1", "Ready").0, "False");
    assert_eq!(stage.condition("guests", "db-1", "Stalled").0, "True");
    assert_eq!(stage.count("event NodeGone"), 1);
    let message = stage.message("guests", "db-1", "Ready");
    let due = jiff::Timestamp::from_second(stage.now.load(Ordering::SeqCst) + DAY).unwrap();
    for part in ["Node n1", &format!("deleted at {due}"), "restore points stay"] {
        assert!(message.contains(part), "no {part}: {message}");
    }
    let first = since(&stage);
    look_after(&mut stage, DAY - 1).await;
    assert_eq!((reason(&stage).as_str(), since(&stage)), ("NodeGone", first));
    assert_eq!(stage.message("guests", "db-1", "Ready"), message);
    look_after(&mut stage, 1).await;
    assert!(!stage.exists("guests", "db-1"));
    assert_eq!(stage.count("event Forgotten"), 1);
    assert_eq!(stage.names("restorepoints"), points);
    assert!(!stage.log().iter().any(|l| l.starts_with("DELETE restorepoints")));

    // Later than that it is a new guest.
    stage.agent.runs_on(&["n1"]);
    until(&mut stage, async |stage| {
        look(stage).await;
        reason(stage) == "Discovered"
    })
    .await;
    assert_eq!(stage.object("guests", "db-1")["metadata"]["labels"]["tier"], "gold");
}

#[tokio::test]
async fn a_node_that_has_its_object_is_not_gone_whatever_became_of_its_agent() {
    let mut stage = Stage::ready().await;
    stage.has_node("n1", true);
    stage.agent.runs_on(&[]);
    look_until(&mut stage, "AgentUnavailable").await;
    look_after(&mut stage, 9 * DAY).await;
    assert_eq!(reason(&stage), "AgentUnavailable");
    // An agent that is silent while its pod is there proves nothing, either.
    stage.has_node("n1", false);
    stage.agent.talks(false);
    stage.agent.runs_on(&["n1"]);
    look_after(&mut stage, 9 * DAY).await;
    assert_eq!(reason(&stage), "AgentUnavailable");
}

#[tokio::test]
async fn a_node_that_comes_back_was_never_gone() {
    let mut stage = gone().await;
    stage.has_node("n1", true);
    look_after(&mut stage, DAY - 1).await;
    assert_eq!(reason(&stage), "AgentUnavailable");
    stage.agent.runs_on(&["n1"]);
    look_until(&mut stage, "Discovered").await;
    // Gone once more, it has its whole time again.
    stage.has_node("n1", false);
    stage.agent.runs_on(&[]);
    stage.now.fetch_add(11, Ordering::SeqCst);
    look_until(&mut stage, "NodeGone").await;
    look_after(&mut stage, DAY - 1).await;
    assert!(stage.exists("guests", "db-1"));
    look_after(&mut stage, 1).await;
    assert!(!stage.exists("guests", "db-1"));
}

#[tokio::test]
async fn a_guest_that_another_nodes_agent_has_goes_on_there() {
    let mut stage = gone().await;
    stage.agent.runs_on(&["n2"]);
    look_until(&mut stage, "Discovered").await;
    assert_eq!(stage.status("guests", "db-1")["node"], "n2");
    look_after(&mut stage, 9 * DAY).await;
    assert_eq!(reason(&stage), "Discovered");
    assert_eq!(stage.count("DELETE guests/db-1"), 0);
}

#[tokio::test]
async fn a_controller_that_restarts_counts_on_from_where_the_first_began() {
    let mut stage = gone().await;
    let first = since(&stage);
    stage.now.fetch_add(DAY / 2, Ordering::SeqCst);
    stage.restart().await;
    look(&mut stage).await;
    assert_eq!((reason(&stage).as_str(), since(&stage)), ("NodeGone", first));
    look_after(&mut stage, DAY / 2).await;
    assert!(!stage.exists("guests", "db-1"));
    assert_eq!(stage.count("event NodeGone"), 1, "it was said once");
}

#[tokio::test]
async fn a_young_controller_deletes_nothing_before_it_has_heard_the_agents() {
    let mut stage = gone().await;
    stage.restart().await;
    stage.now.fetch_sub(15, Ordering::SeqCst);
    stage.edit("guests", "db-1", |o| {
        for condition in o["status"]["conditions"].as_array_mut().unwrap() {
            condition["lastTransitionTime"] = json!("2020-01-01T00:00:00Z");
        }
    });
    look(&mut stage).await;
    assert!(stage.exists("guests", "db-1"));
    look_after(&mut stage, 15).await;
    assert!(!stage.exists("guests", "db-1"));
}

#[tokio::test]
async fn a_run_that_has_not_ended_holds_its_guest() {
    let mut stage = Stage::ready().await;
    stage.apply(backup("b1"));
    stage.agent.on_start(v1::RunPhase::Copying);
    stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
    stage.agent.runs_on(&[]);
    look_until(&mut stage, "NodeGone").await;
    look_after(&mut stage, 2 * DAY).await;
    assert!(stage.message("guests", "db-1", "Ready").contains("when BackupRun b1 has ended"));
    // The end of its stream.
    stage.agent.forget_runs();
    until(&mut stage, async |stage| {
        stage.now.fetch_add(60, Ordering::SeqCst);
        stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
        assert!(stage.exists("guests", "db-1"));
        stage.condition("backupruns", "b1", "Failed").0 == "True"
    })
    .await;
    look(&mut stage).await;
    assert!(!stage.exists("guests", "db-1"));
}

#[tokio::test]
async fn a_run_that_is_asked_for_on_a_removed_node_fails_and_says_why() {
    let mut stage = gone().await;
    stage.apply(backup("b1"));
    for (seconds, failed) in [(0, "False"), (31, "True")] {
        stage.now.fetch_add(seconds, Ordering::SeqCst);
        stage.reconcile::<BackupRun, _>("b1", run::reconcile).await;
        assert_eq!(stage.condition("backupruns", "b1", "Failed"), (failed.into(), "NodeGone".into()));
    }
    assert_eq!(stage.count("agent StartBackup"), 0);
}

#[tokio::test]
async fn a_restore_to_a_node_that_the_cluster_does_not_have_fails_and_names_the_way_out() {
    for there in [false, true] {
        let mut stage = Stage::ready().await;
        stage.agent.have_point();
        stage.forget_answers();
        stage.reconcile::<BackupRepository, _>("repo", repository::reconcile).await;
        let mut wanted = restore_of(&stage.names("restorepoints")[0]);
        wanted["spec"]["target"]["nodeName"] = json!("n9");
        stage.has_node("n9", there);
        stage.apply(wanted);
        let says = if there { "The agent of node n9 does not answer: " } else { "The cluster has no node n9: " };
        for (seconds, failed) in [(0, "False"), (599, "False"), (2, "True")] {
            stage.now.fetch_add(seconds, Ordering::SeqCst);
            stage.reconcile::<RestoreRun, _>("r1", restore::reconcile).await;
            let found = stage.condition("restoreruns", "r1", "Failed");
            assert_eq!(found, (failed.into(), "AgentUnavailable".into()), "{there}");
            let message = stage.message("restoreruns", "r1", "Failed");
            assert!(message.contains(says), "{message}");
        }
        assert_eq!(stage.count("agent StartRestore"), 0);
    }
}

#[tokio::test]
async fn an_api_server_that_does_not_say_whether_the_node_is_there_changes_nothing() {
    let mut stage = Stage::ready().await;
    stage.tells_of_nodes(false);
    stage.agent.runs_on(&[]);
    look_until(&mut stage, "AgentUnavailable").await;
    stage.tells_of_nodes(true);
    look_after(&mut stage, 11).await;
    assert_eq!(reason(&stage), "NodeGone");
    let before = stage.object("guests", "db-1");
    stage.tells_of_nodes(false);
    look_after(&mut stage, 9 * DAY).await;
    assert_eq!(stage.object("guests", "db-1"), before);
    stage.tells_of_nodes(true);
    look_after(&mut stage, 11).await;
    assert!(!stage.exists("guests", "db-1"));
}

#[tokio::test]
async fn a_node_is_looked_up_once_in_a_while_however_many_guests_it_had() {
    let mut stage = gone().await;
    let guests: Vec<_> = (0..20).map(|n| format!("g{n}")).collect();
    for name in &guests {
        stage.apply(json!({"kind": "Guest", "metadata": {"name": name}, "spec": {}}));
        let status = stage.status("guests", "db-1");
        stage.edit("guests", name, |o| o["status"] = status);
    }
    let before = stage.count("GET nodes/n1");
    stage.now.fetch_add(11, Ordering::SeqCst);
    for name in &guests {
        stage.reconcile::<Guest, _>(name, guest::reconcile).await;
    }
    assert_eq!(stage.count("GET nodes/n1"), before + 1);
}

#[tokio::test]
async fn only_the_object_that_was_read_and_that_the_controller_made_is_deleted() {
    let mut stage = gone().await;
    let read = stage.object("guests", "db-1");
    stage.edit("guests", "db-1", |o| o["metadata"]["resourceVersion"] = json!("99"));
    stage.now.fetch_add(2 * DAY, Ordering::SeqCst);
    stage.reconcile_old::<Guest, _>(read, guest::reconcile).await.unwrap();
    assert!(stage.exists("guests", "db-1"), "it was changed since");
    assert_eq!((stage.count("DELETE guests/db-1"), stage.count("event Forgotten")), (1, 0));
    let labels = stage.object("guests", "db-1")["metadata"]["labels"].clone();
    stage.edit("guests", "db-1", |o| o["metadata"]["labels"] = json!({"tier": "gold"}));
    look(&mut stage).await;
    assert!(stage.message("guests", "db-1", "Ready").contains("did not make this object"));
    stage.edit("guests", "db-1", |o| {
        o["metadata"]["labels"] = labels;
        o["metadata"]["finalizers"] = json!(["example.com/audit"]);
    });
    look(&mut stage).await;
    look(&mut stage).await;
    assert!(stage.message("guests", "db-1", "Ready").contains("is being deleted"));
    assert_eq!(stage.count("DELETE guests/db-1"), 2, "once more, and not again while somebody holds it");
}
