//! What a repository's next step is, and what its status says.

use std::time::Duration;

use jiff::Timestamp;

use super::{plan::*, report::report};
use crate::{
    api::{condition, words::Reason},
    controller::guest::plan::Node,
    rpc::v1,
};

const ID: &str = "9f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10";
const OTHER: &str = "11111111-9a51-4c7e-8f2b-0d9f2f6f3a10";

fn world(nodes: &[&str]) -> World {
    World {
        sessions: nodes.iter().map(|n| ((*n).to_owned(), "s".to_owned())).collect(),
        generation: 1,
        frequency: Duration::from_secs(300),
        ..World::default()
    }
}

fn said(id: &str) -> Answer {
    Answer::Said(v1::RepositoryResponse { id: id.to_owned(), writable: true, ..v1::RepositoryResponse::default() })
}

fn wrong(reason: &str) -> Answer {
    let problem = Some(v1::Problem { subject: "/x".into(), reason: reason.into(), message: format!("{reason}!") });
    Answer::Said(v1::RepositoryResponse { problem, ..v1::RepositoryResponse::default() })
}

fn with_view(mut world: World, answers: &[(&str, Answer)]) -> World {
    world.view = Some(View {
        answers: answers.iter().map(|(n, a)| ((*n).to_owned(), a.clone())).collect(),
        id: world.id.clone(),
        sessions: world.sessions.clone(),
        generation: world.generation,
        ..View::default()
    });
    world
}

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

#[test]
fn a_folder_is_looked_at_by_every_agent_before_an_id_is_chosen() {
    assert_eq!(plan(&world(&["a", "b"]), now()), Plan::Look);
    let empty =
        with_view(world(&["a", "b"]), &[("a", wrong("RepositoryNotMounted")), ("b", wrong("RepositoryNotMounted"))]);
    assert_eq!(plan(&empty, now()), Plan::Choose);
}

#[test]
fn a_repository_that_only_one_agent_sees_is_adopted_and_no_second_one_is_made() {
    let one = with_view(world(&["a", "b"]), &[("a", wrong("RepositoryNotMounted")), ("b", said(ID))]);
    assert_eq!(plan(&one, now()), Plan::Adopt(ID.to_owned()));
}

#[test]
fn nothing_is_made_while_an_agent_that_may_have_the_repository_is_silent() {
    let silent = Answer::Silent("AgentUnreachable".into(), "x".into());
    let world = with_view(world(&["a", "b"]), &[("a", wrong("RepositoryNotMounted")), ("b", silent)]);
    assert!(matches!(plan(&world, now()), Plan::Rest { .. }));
}

#[test]
fn no_id_is_chosen_for_a_folder_that_is_missing_or_while_an_agent_of_the_directory_is_away() {
    let missing = with_view(world(&["a"]), &[("a", wrong("FolderMissing"))]);
    assert!(matches!(plan(&missing, now()), Plan::Unfit { reason, .. } if reason == "FolderMissing"));
    assert_eq!(plan(&missing, now() + jiff::SignedDuration::from_secs(60)), Plan::Look);
    let mut away = with_view(world(&["a"]), &[("a", wrong("RepositoryNotMounted"))]);
    assert_eq!(plan(&away, now()), Plan::Choose);
    away.absent.insert("b".to_owned());
    assert!(matches!(plan(&away, now()), Plan::Unfit { message, .. } if message.contains('b')));
    let found = with_view(away, &[("a", said(ID))]);
    assert_eq!(plan(&found, now()), Plan::Adopt(ID.to_owned()));
}

#[test]
fn different_repositories_at_one_path_are_refused() {
    let world = with_view(world(&["a", "b"]), &[("a", said(ID)), ("b", said(OTHER))]);
    assert!(matches!(plan(&world, now()), Plan::Refuse(Reason::Unavailable, _)));
}

#[test]
fn the_id_is_initialised_by_one_agent_and_validated_by_all() {
    let mut world = World { id: Some(ID.to_owned()), ..world(&["a", "b"]) };
    assert_eq!(plan(&world, now()), Plan::Initialise { node: "a".to_owned(), id: ID.to_owned() });
    world.initialised = true;
    assert_eq!(plan(&world, now()), Plan::Validate(ID.to_owned()));
    let world = with_view(world, &[("a", said(ID)), ("b", said(ID))]);
    assert_eq!(plan(&world, now()), Plan::Rest { after: Duration::from_secs(300) });
}

#[test]
fn a_repository_that_was_initialised_is_never_initialised_again() {
    let known = World { id: Some(ID.to_owned()), initialised: true, ..world(&["a"]) };
    let gone = with_view(known, &[("a", wrong("RepositoryNotMounted"))]);
    assert!(matches!(plan(&gone, now()), Plan::Rest { .. } | Plan::Validate(_)));
    let status = report(&gone, None, None, None, now());
    let ready = condition::find(&status.conditions, "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "RepositoryNotMounted"));
    assert_eq!(status.unavailable_on.len(), 1);
}

#[test]
fn a_read_only_repository_is_never_initialised() {
    let mut world = World { read_only: true, ..world(&["a"]) };
    world = with_view(world, &[("a", wrong("RepositoryNotMounted"))]);
    assert!(matches!(plan(&world, now()), Plan::Refuse(Reason::NotInitialised, _)));
}

#[test]
fn answers_of_agents_that_were_restarted_are_asked_for_anew() {
    let known = World { id: Some(ID.to_owned()), initialised: true, ..world(&["a"]) };
    let mut known = with_view(known, &[("a", said(ID))]);
    known.sessions.insert("a".to_owned(), "another".to_owned());
    assert_eq!(plan(&known, now()), Plan::Validate(ID.to_owned()));
}

#[test]
fn some_agents_without_it_leave_it_ready_and_are_named() {
    let known = World { id: Some(ID.to_owned()), initialised: true, ..world(&["a", "b"]) };
    let world = with_view(known, &[("a", said(ID)), ("b", wrong("RepositoryIdMismatch"))]);
    let status = report(&world, None, None, Some(3), now());
    let ready = condition::find(&status.conditions, "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("True", "PartlyAvailable"));
    assert_eq!((status.unavailable_on[0].node.as_str(), status.agents.as_str()), ("b", "1/2"));
    assert_eq!(status.restore_points, Some(3));
    assert!(condition::is_true(&status.conditions, condition::WRITABLE));
}

#[test]
fn without_agents_nothing_is_known() {
    let plan = plan(&World { only_node: Some("n9".to_owned()), ..world(&[]) }, now());
    assert!(
        matches!(plan, Plan::NoAgent(message) if message.contains("agent of node n9") && message.contains("host.toml"))
    );
}

#[test]
fn a_node_that_is_not_in_the_cluster_is_told_as_such() {
    let gone = World { only_node: Some("n9".to_owned()), node: Node::Gone, ..world(&[]) };
    let Plan::NoAgent(message) = plan(&gone, now()) else { panic!("{:?}", plan(&gone, now())) };
    assert_eq!(message, "The cluster has no node n9: name one of `kubectl get nodes` in a new object.");
}

#[test]
fn a_second_object_of_one_repository_is_refused() {
    let world = World { owner: Some("a/r".to_owned()), id: Some(ID.to_owned()), ..world(&["a"]) };
    assert!(matches!(plan(&world, now()), Plan::Refuse(Reason::UsedByAnotherObject, _)));
}
