//! What a BackupRepository's next step is (pure): from what the agents said and the time to one plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    api::words::Reason,
    controller::{
        advice::{SEE_ITS_POD, silent, with_way_out},
        guest::plan::Node,
        since,
    },
    ids::RepositoryId,
    rpc::v1,
};

/// How soon to look again at what is not as it should be.
pub(super) const SOON: Duration = Duration::from_secs(20);

/// What one agent said about the repository.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The agent looked.
    Said(v1::RepositoryResponse),
    /// The agent did not answer, or refused to look: reason and message.
    Silent(String, String),
}

impl Answer {
    pub(super) fn problem(&self) -> Option<(String, String)> {
        match self {
            Answer::Said(v1::RepositoryResponse { problem: Some(p), .. }) => {
                Some((p.reason.clone(), with_way_out(&p.reason, &p.message)))
            }
            Answer::Said(_) => None,
            Answer::Silent(reason, message) => Some((reason.clone(), message.clone())),
        }
    }
}

/// What all agents said when they were asked last.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct View {
    /// By node.
    pub answers: BTreeMap<String, Answer>,
    /// Whether it was about the repository of this id (else only whether there is one).
    pub id: Option<String>,
    /// The sessions of the agents that were asked.
    pub sessions: BTreeMap<String, String>,
    /// The generation of the object.
    pub generation: i64,
    /// When.
    pub at: Timestamp,
    /// Why the points could not be listed.
    pub unlisted: Option<String>,
}

impl View {
    /// Why a node cannot use the repository; None: it can.
    pub fn problem_on(&self, node: &str) -> Option<(String, String)> {
        match self.answers.get(node) {
            Some(answer) => answer.problem(),
            None => {
                Some((Reason::AgentUnavailable.as_str().to_owned(), format!("The agent of {node} has not looked yet")))
            }
        }
    }
}

/// What is known about a repository.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// What of the spec cannot be read.
    pub invalid: Option<String>,
    /// Never to be initialised.
    pub read_only: bool,
    /// The id in the status.
    pub id: Option<String>,
    /// Whether the folder is known to have been this repository.
    pub initialised: bool,
    /// An older object that shows the same repository.
    pub owner: Option<String>,
    /// The one node that has it.
    pub only_node: Option<String>,
    /// Whether that one is in the cluster. Only looked up where it has no agent.
    pub node: Node,
    /// Agents that are there and should see it, with their sessions.
    pub sessions: BTreeMap<String, String>,
    /// Agents that should see it and do not answer.
    pub absent: BTreeSet<String>,
    /// What they said last.
    pub view: Option<View>,
    /// The object's generation.
    pub generation: i64,
    /// How often to look.
    pub frequency: Duration,
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Plan {
    /// It cannot go on until somebody changes something.
    Refuse(Reason, String),
    /// The folder cannot become a repository as it is, with the agent's word.
    Unfit {
        /// The word.
        reason: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// There is nobody to ask.
    NoAgent(String),
    /// Ask all agents whether the folder is a repository already.
    Look,
    /// It is one: take its id.
    Adopt(String),
    /// It is none: choose an id and write it down.
    Choose,
    /// Have one agent initialise the folder.
    Initialise {
        /// The agent's node.
        node: String,
        /// The id.
        id: String,
    },
    /// Ask all agents about the repository of this id.
    Validate(String),
    /// Nothing to do until then.
    Rest {
        /// How long.
        after: Duration,
    },
}

/// Decides the next step.
pub fn plan(world: &World, now: Timestamp) -> Plan {
    if let Some(message) = &world.invalid {
        return Plan::Refuse(Reason::InvalidSpec, message.clone());
    }
    if let Some(owner) = &world.owner {
        let message = format!(
            "BackupRepository {owner} shows the same repository: use that one, and delete this object. No data goes with it."
        );
        return Plan::Refuse(Reason::UsedByAnotherObject, message);
    }
    let Some(first) = world.sessions.keys().next() else {
        return Plan::NoAgent(match &world.only_node {
            Some(node) => silent(node, world.node),
            None => format!("No agent answers: {SEE_ITS_POD}."),
        });
    };
    // Answers of agents that were restarted meanwhile, of others, or about an earlier spec say nothing.
    let fresh = world
        .view
        .as_ref()
        .filter(|v| v.sessions == world.sessions && v.generation == world.generation && v.id == world.id);
    match (&world.id, world.initialised, fresh) {
        (None, _, None) => Plan::Look,
        (None, _, Some(view)) => look(world, view, now),
        (Some(id), false, _) if !world.read_only => Plan::Initialise { node: first.clone(), id: id.clone() },
        (Some(id), _, None) => Plan::Validate(id.clone()),
        (Some(id), _, Some(view)) => match left(view, world.frequency, now) {
            Some(after) => Plan::Rest { after },
            None => Plan::Validate(id.clone()),
        },
    }
}

/// What follows from the answers to whether the folder is a repository already.
fn look(world: &World, view: &View, now: Timestamp) -> Plan {
    let mut ids = BTreeSet::new();
    let mut silent = false;
    let mut unfit = None;
    for (node, answer) in &view.answers {
        match answer {
            Answer::Said(said) if said.id.parse::<RepositoryId>().is_ok() => drop(ids.insert(said.id.clone())),
            Answer::Said(_) => {
                // A folder without a marker; whether it is empty is seen by whoever initialises it.
                let other = answer.problem().filter(|(reason, _)| reason != "RepositoryNotMounted");
                unfit = unfit.or(other.map(|(reason, message)| (reason, format!("Node {node}: {message}"))));
            }
            Answer::Silent(..) => silent = true,
        }
    }
    let mut ids = ids.into_iter();
    match (ids.next(), ids.next(), silent) {
        (Some(id), None, _) => Plan::Adopt(id),
        (Some(a), Some(b), _) => Plan::Refuse(
            Reason::Unavailable,
            format!(
                "The agents see different repositories ({a}, {b}) at this path: mount the same folder everywhere, or name one node in filesystem.nodeName."
            ),
        ),
        // An agent that did not look could be the one that has the repository: nothing is made before all have.
        (None, _, true) => look_again(view, now),
        (None, _, false) if !world.absent.is_empty() && !world.read_only => match look_again(view, now) {
            Plan::Rest { .. } => {
                let nodes: Vec<_> = world.absent.iter().map(String::as_str).collect();
                let message = format!(
                    "Nothing is made before all agents have looked whether the folder is a repository already; those of {} do not answer.",
                    nodes.join(", ")
                );
                Plan::Unfit { reason: Reason::AgentUnavailable.as_str().to_owned(), message }
            }
            again => again,
        },
        (None, _, false) if world.read_only => {
            let told =
                view.answers.values().find_map(Answer::problem).map(|(_, m)| format!(" {m}")).unwrap_or_default();
            Plan::Refuse(
                Reason::NotInitialised,
                format!("The folder is no repository, and accessMode is ReadOnly.{told}"),
            )
        }
        // Its file system may not be mounted yet: an id that was chosen now would not be the repository's.
        (None, _, false) => match (unfit, look_again(view, now)) {
            (None, _) => Plan::Choose,
            (Some((reason, message)), Plan::Rest { .. }) => Plan::Unfit { reason, message },
            (Some(_), again) => again,
        },
    }
}

/// Asks again when the answers are no longer good.
fn look_again(view: &View, now: Timestamp) -> Plan {
    match left(view, SOON, now) {
        Some(after) => Plan::Rest { after },
        None => Plan::Look,
    }
}

/// How long the answers are still good; None: they are not.
fn left(view: &View, frequency: Duration, now: Timestamp) -> Option<Duration> {
    let wrong = view.unlisted.is_some() || view.answers.values().any(|a| a.problem().is_some());
    let good_for = if wrong { SOON.min(frequency) } else { frequency };
    good_for.checked_sub(since(view.at, now)).filter(|d| !d.is_zero())
}
