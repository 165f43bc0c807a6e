//! What a RestoreRun's next step is (pure): from typed facts and the time to one plan.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

pub use crate::controller::run::plan::Blocker;
use crate::{
    api::words::Reason,
    controller::{advice::with_way_out, run::plan::AGENT_LOST_AFTER, since},
    rpc::v1,
};

/// What the agent says about the restore.
#[derive(Debug, Clone, PartialEq)]
pub enum OnAgent {
    /// Nothing yet.
    Silent,
    /// That it has never heard of it.
    Unknown,
    /// Its state.
    State(Box<v1::RestoreState>),
}

/// A restore that was written down as started.
#[derive(Debug, Clone, PartialEq)]
pub struct Started {
    /// The session of the agent that took it; empty until one did.
    pub session: String,
    /// What the agent says.
    pub on_agent: OnAgent,
    /// Since when the agent does not answer.
    pub lost_since: Option<Timestamp>,
}

/// All that is known about a restore.
#[derive(Debug, Clone)]
pub struct World {
    /// Whether it has ended.
    pub settled: bool,
    /// When its deletion was asked for.
    pub deleted: Option<Timestamp>,
    /// Whether it has our finalizer.
    pub finalizer: bool,
    /// Whether it shall be cancelled.
    pub cancel: bool,
    /// From when on its blockers could have been known to be gone.
    pub known_since: Timestamp,
    /// The node that gets the images.
    pub node: String,
    /// Whether files that are there are replaced.
    pub overwrite: bool,
    /// Whether digests are compared.
    pub verify: bool,
    /// The object's generation.
    pub generation: i64,
    /// What keeps it from starting.
    pub blocker: Option<Blocker>,
    /// The restore on its agent.
    pub started: Option<Started>,
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Plan {
    /// It has ended and nothing is left to do.
    Keep,
    /// It is not going any more: take the finalizer away.
    Release,
    /// It waits for something.
    Wait {
        /// For what.
        blocker: Blocker,
        /// When to look again.
        after: Duration,
    },
    /// Write down that it is about to start, and hold the object.
    Intend,
    /// Ask the agent to start, which it does once however often it is asked.
    Start,
    /// Its agent refused for something that may pass: ask again.
    Refused {
        /// The agent's word.
        reason: String,
        /// The agent's sentence.
        message: String,
    },
    /// It is going: show how far.
    Follow,
    /// Ask the agent to cancel it.
    Cancel,
    /// It is complete.
    Complete,
    /// It has failed.
    Fail {
        /// One word.
        reason: String,
        /// What went wrong and what to do.
        message: String,
    },
}

/// How long an agent may refuse for something that may pass.
const REFUSED: Duration = Duration::from_secs(120);

/// What an agent's "try again" leads to; `first` is when it said this first.
pub fn refused(reason: String, message: &str, first: Timestamp, now: Timestamp) -> Plan {
    let message = with_way_out(&reason, message);
    if since(first, now) < REFUSED { Plan::Refused { reason, message } } else { Plan::Fail { reason, message } }
}

fn fail(reason: Reason, message: impl Into<String>) -> Plan {
    Plan::Fail { reason: reason.as_str().to_owned(), message: message.into() }
}

/// Decides the next step.
pub fn plan(world: &World, now: Timestamp) -> Plan {
    match (&world.started, world.settled, world.deleted) {
        (_, true, _) if world.finalizer => Plan::Release,
        (_, true, _) => Plan::Keep,
        (None, false, Some(_)) => Plan::Release,
        (None, false, None) => waiting(world, now),
        (Some(started), false, _) => going(world, started, now),
    }
}

fn waiting(world: &World, now: Timestamp) -> Plan {
    if world.cancel {
        return fail(Reason::Cancelled, "The restore was cancelled before it started.");
    }
    wait(world, now)
}

fn wait(world: &World, now: Timestamp) -> Plan {
    match &world.blocker {
        None => Plan::Intend,
        Some(blocker) => match blocker.left(world.known_since, now) {
            Some(after) => Plan::Wait { blocker: blocker.clone(), after: after.min(Duration::from_secs(5)) },
            None => Plan::Fail { reason: blocker.reason.clone(), message: blocker.message.clone() },
        },
    }
}

fn going(world: &World, started: &Started, now: Timestamp) -> Plan {
    let stop = world.cancel || world.deleted.is_some();
    let lost = |at: Timestamp| since(world.deleted.map_or(at, |d| d.max(at)), now) >= AGENT_LOST_AFTER;
    match &started.on_agent {
        OnAgent::State(state) => match state.phase() {
            v1::RestorePhase::Complete => Plan::Complete,
            v1::RestorePhase::Failed => {
                let reason = if state.reason.is_empty() { Reason::RestoreFailed.as_str() } else { &state.reason };
                Plan::Fail { reason: reason.to_owned(), message: with_way_out(reason, &state.message) }
            }
            v1::RestorePhase::Cancelled => {
                fail(Reason::Cancelled, "The restore was cancelled; what it wrote is removed.")
            }
            v1::RestorePhase::Unspecified
            | v1::RestorePhase::Preparing
            | v1::RestorePhase::Copying
            | v1::RestorePhase::Verifying => match started.lost_since {
                Some(at) if lost(at) => lost_for_good(world),
                None if stop => Plan::Cancel,
                Some(_) | None => Plan::Follow,
            },
        },
        OnAgent::Unknown if world.deleted.is_some() => Plan::Release,
        OnAgent::Unknown if world.cancel => {
            fail(Reason::Cancelled, "The restore was cancelled before its agent started it.")
        }
        // It never began: it starts now, or waits again for what is gone meanwhile.
        // Or its agent was restarted under way: what had no name yet is gone, and what had its own is known by its mark.
        // Without that mark a file that is replaced could be in use since.
        OnAgent::Unknown if started.session.is_empty() || !world.overwrite => match wait(world, now) {
            Plan::Intend => Plan::Start,
            other => other,
        },
        OnAgent::Unknown => fail(
            Reason::RunUnknownToAgent,
            format!(
                "The agent of node {} was restarted and has no record of the restore. Look at the target files: those that are there are whole. Make a new RestoreRun for the others.",
                world.node
            ),
        ),
        OnAgent::Silent => match started.lost_since {
            Some(at) if lost(at) => lost_for_good(world),
            _ if stop => Plan::Cancel,
            _ if started.session.is_empty() => Plan::Start,
            _ => Plan::Follow,
        },
    }
}

fn lost_for_good(world: &World) -> Plan {
    fail(Reason::AgentLost, format!("The agent of node {} did not answer for ten minutes.", world.node))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn world() -> World {
        World {
            settled: false,
            deleted: None,
            finalizer: false,
            cancel: false,
            known_since: at(0),
            node: "n1".to_owned(),
            overwrite: false,
            verify: true,
            generation: 1,
            blocker: None,
            started: None,
        }
    }

    fn going_with(on_agent: OnAgent) -> World {
        World {
            started: Some(Started { session: "s".to_owned(), on_agent, lost_since: None }),
            finalizer: true,
            ..world()
        }
    }

    #[test]
    fn the_intent_is_written_before_the_agent_is_asked() {
        assert_eq!(plan(&world(), at(1)), Plan::Intend);
        let started = Some(Started { session: String::new(), on_agent: OnAgent::Silent, lost_since: None });
        assert_eq!(plan(&World { started, ..world() }, at(1)), Plan::Start);
    }

    #[test]
    fn an_agent_that_says_try_again_is_asked_for_two_minutes_and_its_reason_is_the_end() {
        let said = |second| refused("StateUnusable".to_owned(), "No room", at(10), at(second));
        let (reason, message) = ("StateUnusable".to_owned(), "No room".to_owned());
        assert_eq!(said(129), Plan::Refused { reason: reason.clone(), message: message.clone() });
        assert_eq!(said(130), Plan::Fail { reason, message });
    }

    #[test]
    fn a_point_made_by_hand_fails_the_restore_after_the_grace() {
        let blocker = Some(Blocker::stays(Reason::PointNotAvailable, "x"));
        let world = World { blocker, ..world() };
        assert!(matches!(plan(&world, at(29)), Plan::Wait { .. }));
        assert!(matches!(plan(&world, at(30)), Plan::Fail { reason, .. } if reason == "PointNotAvailable"));
    }

    #[test]
    fn a_restore_that_its_agent_has_forgotten_is_asked_for_again_unless_it_replaces_files() {
        let world = going_with(OnAgent::Unknown);
        assert_eq!(plan(&world, at(1)), Plan::Start);
        let world = World { overwrite: true, ..world };
        assert!(matches!(plan(&world, at(1)), Plan::Fail { reason, .. } if reason == "RunUnknownToAgent"));
    }

    #[test]
    fn deleting_cancels_first_and_lets_go_when_nothing_is_going_any_more() {
        let copying = v1::RestoreState { phase: v1::RestorePhase::Copying.into(), ..Default::default() };
        let mut world = going_with(OnAgent::State(Box::new(copying)));
        world.deleted = Some(at(5));
        assert_eq!(plan(&world, at(6)), Plan::Cancel);
        let unknown = World { deleted: Some(at(5)), ..going_with(OnAgent::Unknown) };
        assert_eq!(plan(&unknown, at(6)), Plan::Release);
        assert_eq!(plan(&World { settled: true, ..world }, at(7)), Plan::Release);
    }
}
