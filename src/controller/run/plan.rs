//! What a BackupRun's next step is (pure): from typed facts and the time to one plan. It never fails; "cannot go on" is
//! a plan with a reason.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    api::words::Reason,
    controller::{advice::with_way_out, since},
    rpc::v1,
};

/// How long something that a person has to mend may be missing before the run fails: what was applied together need
/// not arrive in order.
const GRACE: Duration = Duration::from_secs(30);
/// How long a guest may have a problem that could pass, such as a monitor that is held by another client.
const PROBLEM: Duration = Duration::from_secs(60);
/// How long an agent or a repository may be away: long enough for an upgrade of the agents or a reboot of a server.
const AWAY: Duration = Duration::from_secs(600);
/// How long an agent that holds the run may be silent.
pub(crate) const AGENT_LOST_AFTER: Duration = Duration::from_secs(600);
/// The first pause between two tries; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(360);

/// What keeps a run from starting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Blocker {
    /// One word.
    pub reason: String,
    /// What is wrong and what to do.
    pub message: String,
    /// How long it is waited for.
    pub patience: Duration,
}

impl Blocker {
    /// Somebody is away who comes back as a rule.
    pub(crate) fn away(reason: Reason, message: impl Into<String>) -> Blocker {
        Blocker { reason: reason.as_str().to_owned(), message: message.into(), patience: AWAY }
    }

    /// The guest has a problem that may pass.
    pub(crate) fn problem(reason: Reason, message: impl Into<String>) -> Blocker {
        Blocker { reason: reason.as_str().to_owned(), message: message.into(), patience: PROBLEM }
    }

    /// A person has to mend it.
    pub(crate) fn stays(reason: Reason, message: impl Into<String>) -> Blocker {
        Blocker { reason: reason.as_str().to_owned(), message: message.into(), patience: GRACE }
    }

    /// Waits for it, or gives up: `known_since` is when it could first have been known to be gone.
    pub(crate) fn left(&self, known_since: Timestamp, now: Timestamp) -> Option<Duration> {
        let left = self.patience.saturating_sub(since(known_since, now));
        (!left.is_zero()).then(|| left.min(Duration::from_secs(15)))
    }
}

/// What the agent says about the run.
#[derive(Debug, Clone, PartialEq)]
pub enum OnAgent {
    /// Nothing yet.
    Silent,
    /// That it has never heard of it.
    Unknown,
    /// Its state.
    State(Box<v1::RunState>),
}

/// A try that was written down as started.
#[derive(Debug, Clone, PartialEq)]
pub struct Started {
    /// The node whose agent was chosen.
    pub node: String,
    /// Whether the agent is known to have taken it.
    pub accepted: bool,
    /// What the agent says.
    pub on_agent: OnAgent,
    /// Since when the agent does not answer.
    pub lost_since: Option<Timestamp>,
}

/// The course that a run shall take while its disks are copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Course {
    /// Whether the copy shall stand still.
    pub suspend: bool,
    /// Bytes per second of each disk's job; 0 is without a limit.
    pub bandwidth: u64,
}

impl Course {
    /// The one that the agent has heard.
    fn heard(state: &v1::RunState) -> Course {
        let heard = state.heard.unwrap_or_default();
        Course { suspend: heard.suspend, bandwidth: heard.bandwidth }
    }
}

/// How a run ended, as its status says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// When.
    pub at: Timestamp,
}

/// All that is known about a run.
#[derive(Debug, Clone)]
pub struct World {
    /// Set once it has ended.
    pub settled: Option<Settled>,
    /// When its deletion was asked for.
    pub deleted: Option<Timestamp>,
    /// Whether it has our finalizer.
    pub finalizer: bool,
    /// Whether it shall be cancelled.
    pub cancel: bool,
    /// The course that it shall take.
    pub course: Course,
    /// From when on its time counts.
    pub created: Timestamp,
    /// Since when it waits for this blocker: its creation, the end of the queue or of another blocker, or the
    /// controller's start.
    pub known_since: Timestamp,
    /// How long it may take.
    pub deadline: Duration,
    /// How long it stays after its end.
    pub ttl: Option<Duration>,
    /// How often it is tried again.
    pub backoff_limit: i32,
    /// How often it was started.
    pub attempts: i32,
    /// When the next try is due, after one that failed.
    pub retry_at: Option<Timestamp>,
    /// The try that is going.
    pub started: Option<Started>,
    /// What keeps it from starting; Err.
    pub ready: Result<String, Blocker>,
    /// The run of the same guest that is in front, and how many are.
    pub in_front: Option<(String, i32)>,
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Plan {
    /// It has ended and nothing is left to do, but perhaps to be deleted then.
    Keep {
        /// How long until its time to live is over.
        expires_in: Option<Duration>,
    },
    /// It has ended and its time to live is over.
    Expire,
    /// It is not going any more: take the finalizer away.
    Release,
    /// It waits for something.
    Wait {
        /// For what.
        blocker: Blocker,
        /// When to look again.
        after: Duration,
    },
    /// It waits for another run of its guest.
    Queue {
        /// The run in front.
        behind: String,
        /// How many are in front.
        position: i32,
    },
    /// It waits until its spec does not suspend it.
    Suspend {
        /// How long until its time is over.
        left: Duration,
    },
    /// A try failed and the next one is not due yet.
    Pause {
        /// Until then.
        after: Duration,
    },
    /// Write down who is about to start which try, and hold the object.
    Intend {
        /// The node whose agent is chosen.
        node: String,
        /// Which try.
        attempt: i32,
    },
    /// Ask the agent to start, which it does once however often it is asked.
    Start {
        /// The node.
        node: String,
    },
    /// It is going: show how far.
    Follow,
    /// Tell the agent the course that it shall take.
    Steer {
        /// The node.
        node: String,
        /// The course.
        course: Course,
    },
    /// Ask the agent to cancel it.
    Cancel {
        /// The node.
        node: String,
        /// Why.
        reason: Reason,
    },
    /// A try failed: write down when the next one is due.
    Retry {
        /// The agent's word.
        reason: String,
        /// The agent's sentence.
        message: String,
        /// How long to pause.
        pause: Duration,
    },
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

fn fail(reason: Reason, message: impl Into<String>) -> Plan {
    Plan::Fail { reason: reason.as_str().to_owned(), message: message.into() }
}

/// Decides the next step.
pub fn plan(world: &World, now: Timestamp) -> Plan {
    if let Some(settled) = &world.settled {
        return after_the_end(world, settled, now);
    }
    match (&world.started, world.deleted) {
        (None, Some(_)) => Plan::Release,
        (Some(started), _) => going(world, started, now),
        (None, None) => waiting(world, now),
    }
}

fn after_the_end(world: &World, settled: &Settled, now: Timestamp) -> Plan {
    if world.finalizer {
        return Plan::Release;
    }
    if world.deleted.is_some() {
        return Plan::Keep { expires_in: None };
    }
    let left = world.ttl.map(|ttl| ttl.saturating_sub(since(settled.at, now)));
    if left.is_some_and(|left| left.is_zero()) { Plan::Expire } else { Plan::Keep { expires_in: left } }
}

fn going(world: &World, started: &Started, now: Timestamp) -> Plan {
    let late = since(world.created, now) >= world.deadline;
    let given_up = |lost: Timestamp| {
        // Whoever deletes a run waits for its agent no longer than the run itself does.
        since(world.deleted.map_or(lost, |d| d.max(lost)), now) >= AGENT_LOST_AFTER
    };
    match &started.on_agent {
        OnAgent::State(state) => match state.phase() {
            v1::RunPhase::Complete => Plan::Complete,
            v1::RunPhase::Failed => failed(world, state),
            // What is left of it, and where, only the agent knows.
            v1::RunPhase::Cancelled if late && !world.cancel && world.deleted.is_none() => {
                let message = format!("The run took longer than activeDeadline. {}", state.message);
                fail(Reason::DeadlineExceeded, message.trim_end())
            }
            v1::RunPhase::Cancelled => {
                let message =
                    if state.message.is_empty() { "The run was cancelled on its node." } else { &state.message };
                fail(Reason::Cancelled, message)
            }
            v1::RunPhase::Unspecified
            | v1::RunPhase::Waiting
            | v1::RunPhase::Preparing
            | v1::RunPhase::Copying
            | v1::RunPhase::Finishing => match started.lost_since {
                Some(lost) if given_up(lost) => lost_for_good(started),
                // From here on a cancel comes too late anyway: what is copied is committed.
                Some(_) => Plan::Follow,
                None if world.cancel || world.deleted.is_some() => cancel(started, Reason::Cancelled),
                None if late => cancel(started, Reason::DeadlineExceeded),
                // What is copied cannot be steered any more.
                None if state.phase() != v1::RunPhase::Finishing && Course::heard(state) != world.course => {
                    Plan::Steer { node: started.node.clone(), course: world.course }
                }
                None => Plan::Follow,
            },
        },
        OnAgent::Unknown if world.deleted.is_some() => Plan::Release,
        OnAgent::Unknown if world.cancel => {
            fail(Reason::Cancelled, "The run was cancelled before its agent started it.")
        }
        OnAgent::Unknown if late => fail(Reason::DeadlineExceeded, "The run took longer than activeDeadline."),
        OnAgent::Unknown if !started.accepted => match &world.ready {
            Ok(_) => Plan::Start { node: started.node.clone() },
            // It never began, and what it needs is gone meanwhile: it waits again, and is asked for under the same id.
            Err(blocker) => wait(blocker, world, now),
        },
        OnAgent::Unknown => again(
            world,
            Reason::RunUnknownToAgent.as_str(),
            &format!(
                "The agent of node {} has no record of the run that it had started: its state folder was lost.",
                started.node
            ),
        ),
        OnAgent::Silent => match started.lost_since {
            Some(lost) if given_up(lost) => lost_for_good(started),
            _ if world.cancel || world.deleted.is_some() => cancel(started, Reason::Cancelled),
            _ if late => cancel(started, Reason::DeadlineExceeded),
            _ if started.accepted => Plan::Follow,
            _ => Plan::Start { node: started.node.clone() },
        },
    }
}

fn cancel(started: &Started, reason: Reason) -> Plan {
    Plan::Cancel { node: started.node.clone(), reason }
}

fn lost_for_good(started: &Started) -> Plan {
    fail(
        Reason::AgentLost,
        format!(
            "The agent of node {} did not answer for ten minutes. When it is back it finishes or undoes the run by itself; a point that it commits is shown.",
            started.node
        ),
    )
}

fn failed(world: &World, state: &v1::RunState) -> Plan {
    let reason = if state.reason.is_empty() { Reason::BackupFailed.as_str() } else { &state.reason };
    let message = with_way_out(reason, &state.message);
    if state.retriable { again(world, reason, &message) } else { Plan::Fail { reason: reason.to_owned(), message } }
}

/// A try failed for something that may pass.
pub(crate) fn again(world: &World, reason: &str, message: &str) -> Plan {
    let (reason, message) = (reason.to_owned(), message.to_owned());
    if world.deleted.is_some() {
        return Plan::Release;
    }
    if world.cancel || world.attempts > world.backoff_limit {
        return Plan::Fail { reason, message };
    }
    let doublings = u32::try_from(world.attempts.max(1) - 1).unwrap_or(0).min(16);
    Plan::Retry { reason, message, pause: FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE) }
}

fn wait(blocker: &Blocker, world: &World, now: Timestamp) -> Plan {
    match blocker.left(world.known_since, now) {
        Some(after) => Plan::Wait { blocker: blocker.clone(), after },
        None => Plan::Fail { reason: blocker.reason.clone(), message: blocker.message.clone() },
    }
}

fn waiting(world: &World, now: Timestamp) -> Plan {
    if world.cancel {
        return fail(Reason::Cancelled, "The run was cancelled before it started.");
    }
    let age = since(world.created, now);
    if age >= world.deadline {
        let why = world.ready.as_ref().err().map(|b| format!(" It waited because: {}", b.message)).unwrap_or_default();
        return fail(Reason::DeadlineExceeded, format!("The run did not start within activeDeadline.{why}"));
    }
    if let Some(at) = world.retry_at
        && at > now
    {
        return Plan::Pause { after: since(now, at).max(Duration::from_millis(100)) };
    }
    // Whatever it would wait for otherwise has time until then.
    if world.course.suspend {
        return Plan::Suspend { left: world.deadline.saturating_sub(age) };
    }
    let node = match &world.ready {
        Ok(node) => node.clone(),
        Err(blocker) => return wait(blocker, world, now),
    };
    match &world.in_front {
        Some((behind, position)) => Plan::Queue { behind: behind.clone(), position: *position },
        None => Plan::Intend { node, attempt: world.attempts + 1 },
    }
}
