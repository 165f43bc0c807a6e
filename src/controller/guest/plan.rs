//! What to show of a Guest, and when its object goes (pure).

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    api::{condition::Stage, words::Reason},
    controller::advice::SEE_ITS_POD,
    rpc::v1,
};

/// What is known about a guest.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Who says that it has the guest, and what it says.
    pub claims: Vec<(String, v1::Guest)>,
    /// Other guests with its UUID.
    pub doubles: Vec<String>,
    /// The node that had it, by the status of the object.
    pub had: String,
    /// Whether the agent answers that has it, or had it.
    pub agent_answers: bool,
    /// Why it could not be talked to at the last attempt.
    pub trouble: String,
    /// The node that had it. Only looked up where no agent has the guest.
    pub node: Node,
    /// Since when the object says that this node is gone.
    pub gone_since: Option<Timestamp>,
    /// How long the object stays after that.
    pub forget_after: Duration,
    /// Whose the object is.
    pub owner: Owner,
    /// A BackupRun of the guest that has not ended.
    pub going: Option<String>,
}

/// A node of the cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum Node {
    /// It has a Node object, or an agent.
    There,
    /// It has neither.
    Gone,
    /// It was not asked, or the API server did not say.
    #[default]
    Unknown,
}

/// Who may delete a Guest object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum Owner {
    /// Whoever made it: it does not carry the controller's label.
    #[default]
    Somebody,
    /// The controller, which made it.
    Controller,
    /// Nobody any more: it is being deleted.
    Deleted,
}

/// What to show.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Plan {
    /// It can be backed up.
    Discovered,
    /// Nobody ever had it.
    NotDiscovered,
    /// The node that had it no longer does.
    Vanished,
    /// Its agent does not answer, with why it could not be talked to.
    AgentUnavailable(String),
    /// The node that had it is no longer in the cluster, and nobody else has it.
    NodeGone {
        /// The node.
        node: String,
        /// When that was first seen.
        since: Timestamp,
        /// What becomes of the object.
        end: End,
    },
    /// The same for so long that the object is deleted now.
    Forget {
        /// The node.
        node: String,
        /// When that was first seen.
        since: Timestamp,
    },
    /// Several nodes say that they have it.
    ClaimedTwice(Vec<String>),
    /// Another guest has its UUID.
    DuplicateUuid(Vec<String>),
    /// It does not run, with what its agent sees.
    PoweredOff(String),
    /// Its agent says what is wrong with it.
    Problem {
        /// The agent's word.
        reason: String,
        /// The agent's sentence.
        message: String,
    },
}

/// What becomes of the object of a guest whose node is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum End {
    /// It is deleted at this time.
    At(Timestamp),
    /// Its time is over; it is deleted when this BackupRun has ended.
    After(String),
    /// It stays, because the controller did not make it.
    Stays,
    /// It is being deleted.
    Deleted,
}

/// Decides what to show.
pub fn plan(world: &World, now: Timestamp) -> Plan {
    let guest = match world.claims.as_slice() {
        [] if world.had.is_empty() => return Plan::NotDiscovered,
        [] if world.agent_answers => return Plan::Vanished,
        [] => return nobody_has_it(world, now),
        [(_, guest)] => guest,
        several => return Plan::ClaimedTwice(several.iter().map(|(node, _)| node.clone()).collect()),
    };
    if !world.agent_answers {
        return Plan::AgentUnavailable(world.trouble.clone());
    }
    if !guest.uuid.is_empty() && !world.doubles.is_empty() {
        return Plan::DuplicateUuid(world.doubles.clone());
    }
    match (&guest.problem, guest.power_state()) {
        // Nobody listens on its monitor.
        (Some(problem), v1::PowerState::Off) if problem.reason == "QMPUnreachable" => {
            Plan::PoweredOff(problem.message.clone())
        }
        (Some(problem), _) => Plan::Problem { reason: problem.reason.clone(), message: problem.message.clone() },
        (None, v1::PowerState::Off) => {
            Plan::PoweredOff("The guest does not run: start it to have it backed up.".to_owned())
        }
        (
            None,
            v1::PowerState::Unspecified
            | v1::PowerState::Running
            | v1::PowerState::Paused
            | v1::PowerState::IoError
            | v1::PowerState::Migrating,
        ) => Plan::Discovered,
    }
}

/// No agent has it, and the one that had it does not answer. What cannot be found out about its node changes nothing.
fn nobody_has_it(world: &World, now: Timestamp) -> Plan {
    let since = match (world.node, world.gone_since) {
        (Node::There, _) | (Node::Unknown, None) => return Plan::AgentUnavailable(world.trouble.clone()),
        (Node::Gone | Node::Unknown, Some(since)) => since,
        (Node::Gone, None) => now,
    };
    let node = world.had.clone();
    let due = since.checked_add(world.forget_after).unwrap_or(Timestamp::MAX);
    let end = match (world.owner, &world.going, world.node) {
        (Owner::Somebody, _, _) => End::Stays,
        (Owner::Deleted, _, _) => End::Deleted,
        (Owner::Controller, _, _) if now < due => End::At(due),
        (Owner::Controller, Some(run), _) => End::After(run.clone()),
        (Owner::Controller, None, Node::Gone) => return Plan::Forget { node, since },
        (Owner::Controller, None, Node::There | Node::Unknown) => End::At(due),
    };
    Plan::NodeGone { node, since, end }
}

/// Why a guest is as it is: stage, reason, message.
pub fn words(plan: &Plan) -> (Stage, String, String) {
    let (stage, reason, message) = match plan {
        Plan::Discovered => (Stage::Ready, Reason::Discovered, "An agent sees the guest and can back it up.".to_owned()),
        Plan::NotDiscovered => (
            Stage::Stalled,
            Reason::NotDiscovered,
            "No agent has a host file for this guest. Guests are made by the controller: add a file to guests.d on its node, and delete this object if it was made by hand.".to_owned(),
        ),
        Plan::Vanished => (
            Stage::NotReady,
            Reason::Vanished,
            "The node that had this guest no longer has a host file for it. Delete this object if the guest is gone for good; its restore points stay.".to_owned(),
        ),
        Plan::AgentUnavailable(trouble) => {
            let why = if trouble.is_empty() { String::new() } else { format!(" ({trouble})") };
            let message = format!(
                "The agent of the guest's node does not answer{why}: {SEE_ITS_POD}. See also whether its certificate names the node. What is shown is what it said last."
            );
            (Stage::Unknown, Reason::AgentUnavailable, message)
        }
        Plan::NodeGone { node, since, end } => {
            let end = match end {
                End::At(due) => {
                    format!("This object is deleted at {}, unless the node or the guest comes back.", shown(*due))
                }
                End::After(run) => format!("This object is deleted when BackupRun {run} has ended."),
                End::Stays => "The controller did not make this object: delete it if the guest is gone for good.".to_owned(),
                End::Deleted => "This object is being deleted.".to_owned(),
            };
            (Stage::Stalled, Reason::NodeGone, node_gone(node, *since, &end))
        }
        Plan::Forget { node, since } => {
            (Stage::Stalled, Reason::NodeGone, node_gone(node, *since, "This object is deleted now."))
        }
        Plan::ClaimedTwice(nodes) => (
            Stage::Stalled,
            Reason::ClaimedTwice,
            format!("Host files on the nodes {} name this guest: remove all but one of them.", nodes.join(", ")),
        ),
        Plan::DuplicateUuid(others) => (
            Stage::Stalled,
            Reason::DuplicateUUID,
            format!("Other guests have the same UUID ({}): start QEMU with a -uuid of its own.", others.join(", ")),
        ),
        Plan::PoweredOff(message) => (Stage::NotReady, Reason::GuestPoweredOff, message.clone()),
        Plan::Problem { reason, message } => return (Stage::NotReady, reason.clone(), message.clone()),
    };
    (stage, reason.as_str().to_owned(), message)
}

fn node_gone(node: &str, since: Timestamp, end: &str) -> String {
    format!(
        "Node {node}, which had this guest, is no longer in the cluster, as was first seen at {}, and no other node has the guest. {end} Its restore points stay.",
        shown(since)
    )
}

/// A time as the API writes it: what was read back gives the same text as what was written.
fn shown(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn seen(guest: v1::Guest) -> World {
        World { claims: vec![("n1".to_owned(), guest)], agent_answers: true, ..World::default() }
    }

    fn running() -> v1::Guest {
        v1::Guest { uuid: "u".to_owned(), power_state: v1::PowerState::Running.into(), ..v1::Guest::default() }
    }

    /// A guest that the controller showed, on a node that is gone.
    fn gone() -> World {
        World {
            had: "n1".to_owned(),
            node: Node::Gone,
            forget_after: Duration::from_secs(86_400),
            owner: Owner::Controller,
            ..World::default()
        }
    }

    fn shown_gone(since: i64, end: End) -> Plan {
        Plan::NodeGone { node: "n1".to_owned(), since: at(since), end }
    }

    #[test]
    fn a_guest_made_by_hand_is_not_discovered() {
        assert_eq!(plan(&World::default(), at(0)), Plan::NotDiscovered);
        assert_eq!(plan(&World { had: String::new(), ..gone() }, at(0)), Plan::NotDiscovered);
    }

    #[test]
    fn a_guest_whose_file_is_gone_has_vanished_and_one_whose_agent_is_gone_is_unknown() {
        let had = World { had: "n1".to_owned(), agent_answers: true, ..World::default() };
        assert_eq!(plan(&had, at(0)), Plan::Vanished);
        assert_eq!(plan(&World { agent_answers: false, ..had }, at(0)), Plan::AgentUnavailable(String::new()));
        let silent =
            World { agent_answers: false, trouble: "its certificate is another's".to_owned(), ..seen(running()) };
        let (_, reason, message) = words(&plan(&silent, at(0)));
        assert_eq!(reason, "AgentUnavailable");
        assert!(message.contains("(its certificate is another's)"), "{message}");
    }

    #[test]
    fn a_name_or_a_uuid_on_two_nodes_is_refused() {
        let mut world = seen(running());
        assert_eq!(plan(&world, at(0)), Plan::Discovered);
        world.doubles = vec!["n2: b/x".to_owned()];
        assert_eq!(plan(&world, at(0)), Plan::DuplicateUuid(vec!["n2: b/x".to_owned()]));
        world.claims.push(("n2".to_owned(), running()));
        assert_eq!(plan(&world, at(0)), Plan::ClaimedTwice(vec!["n1".to_owned(), "n2".to_owned()]));
    }

    #[test]
    fn the_agents_own_reason_is_shown() {
        let problem =
            v1::Problem { subject: "s".into(), reason: "MonitorBusy".into(), message: "Another client".into() };
        let plan = plan(&seen(v1::Guest { problem: Some(problem), ..running() }), at(0));
        assert_eq!(words(&plan), (Stage::NotReady, "MonitorBusy".to_owned(), "Another client".to_owned()));
    }

    #[test]
    fn a_guest_that_does_not_run_is_not_ready() {
        let off = v1::Guest { power_state: v1::PowerState::Off.into(), ..running() };
        assert!(matches!(plan(&seen(off), at(0)), Plan::PoweredOff(_)));
    }

    #[test]
    fn a_guest_of_a_gone_node_says_so_with_its_end_and_is_forgotten_then() {
        let first = plan(&gone(), at(100));
        assert_eq!(first, shown_gone(100, End::At(at(100 + DAY))));
        let (stage, reason, message) = words(&first);
        assert_eq!((stage, reason.as_str()), (Stage::Stalled, "NodeGone"));
        for part in ["Node n1", "1970-01-01T00:01:40Z", "deleted at 1970-01-02T00:01:40Z", "restore points stay"] {
            assert!(message.contains(part), "no {part}: {message}");
        }
        let later = World { gone_since: Some(at(100)), ..gone() };
        assert_eq!(plan(&later, at(99 + DAY)), first);
        assert_eq!(plan(&later, at(100 + DAY)), Plan::Forget { node: "n1".to_owned(), since: at(100) });
        assert_eq!(plan(&later, at(5)), first, "the clock went back");
    }

    #[test]
    fn the_time_counts_anew_when_the_node_was_there_in_between() {
        let back = World { node: Node::There, gone_since: Some(at(100)), ..gone() };
        assert_eq!(plan(&back, at(9 * DAY)), Plan::AgentUnavailable(String::new()));
        assert_eq!(plan(&gone(), at(9 * DAY)), shown_gone(9 * DAY, End::At(at(10 * DAY))));
    }

    #[test]
    fn a_node_that_cannot_be_looked_up_changes_nothing() {
        let unknown = World { node: Node::Unknown, ..gone() };
        assert_eq!(plan(&unknown, at(9 * DAY)), Plan::AgentUnavailable(String::new()));
        let was_gone = World { gone_since: Some(at(100)), ..unknown };
        assert_eq!(plan(&was_gone, at(9 * DAY)), shown_gone(100, End::At(at(100 + DAY))));
    }

    #[test]
    fn a_guest_that_some_agent_has_is_that_agents_whatever_node_it_had() {
        let moved = World { had: "n1".to_owned(), node: Node::Gone, gone_since: Some(at(1)), ..seen(running()) };
        assert_eq!(plan(&moved, at(9 * DAY)), Plan::Discovered);
        let silent = World { agent_answers: false, ..moved };
        assert_eq!(plan(&silent, at(9 * DAY)), Plan::AgentUnavailable(String::new()));
    }

    #[test]
    fn an_object_is_not_forgotten_while_a_run_goes_or_where_it_is_not_the_controllers() {
        let due = World { gone_since: Some(at(100)), ..gone() };
        let busy = World { going: Some("b1".to_owned()), ..due.clone() };
        assert_eq!(plan(&busy, at(50 + DAY)), shown_gone(100, End::At(at(100 + DAY))));
        assert_eq!(plan(&busy, at(100 + DAY)), shown_gone(100, End::After("b1".to_owned())));
        assert!(words(&plan(&busy, at(100 + DAY))).2.contains("BackupRun b1"));
        for (owner, end) in [(Owner::Somebody, End::Stays), (Owner::Deleted, End::Deleted)] {
            assert_eq!(plan(&World { owner, ..due.clone() }, at(9 * DAY)), shown_gone(100, end));
        }
    }

    #[test]
    fn a_time_that_no_calendar_has_is_one_that_never_comes() {
        let world = World { forget_after: Duration::from_secs(u64::MAX), ..gone() };
        assert_eq!(plan(&world, at(100)), shown_gone(100, End::At(Timestamp::MAX)));
    }
}
