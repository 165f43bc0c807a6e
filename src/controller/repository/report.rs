//! A BackupRepository's status (pure): from what the agents said.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::{Answer, View, World};
use crate::{
    api::{
        BackupRepositoryStatus,
        condition::{self, Stage},
        quantity,
        repository::UnavailableOn,
        words::Reason,
    },
    controller::{signed, small},
};

/// How many agents `unavailableOn` names.
const NAMED: usize = 20;

/// What a step showed that the answers themselves do not.
#[derive(Debug, Clone, PartialEq)]
pub struct Trouble {
    /// One word.
    pub reason: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// The status from what is known.
pub fn report(
    world: &World,
    trouble: Option<&Trouble>,
    old: Option<&BackupRepositoryStatus>,
    points: Option<usize>,
    now: Timestamp,
) -> BackupRepositoryStatus {
    let mut status = old.cloned().unwrap_or_default();
    status.kind = "Filesystem".to_owned();
    status.repository_id.clone_from(&world.id);
    status.initialised = world.initialised;
    status.observed_generation = Some(world.generation);
    status.restore_points = points.and_then(|p| i64::try_from(p).ok()).or(status.restore_points);
    let view = world.view.as_ref().filter(|v| v.id.is_some() && v.id == world.id);
    if let Some(view) = view {
        show(&mut status, view);
    }
    let (stage, reason, message) = words(world, trouble, view);
    let takes = view
        .is_some_and(|v| v.answers.values().any(|a| matches!(a, Answer::Said(s) if s.problem.is_none() && s.writable)));
    let writable = match (stage, world.read_only, takes) {
        (Stage::Unknown, _, _) => ("Unknown", reason.as_str(), message.as_str()),
        (_, true, _) => ("False", Reason::ReadOnly.as_str(), "accessMode is ReadOnly."),
        (Stage::Ready, false, true) => ("True", Reason::Validated.as_str(), "The folder takes new points."),
        (Stage::Ready, false, false) => (
            "False",
            Reason::ReadOnly.as_str(),
            "No agent can write to the folder: see whether it is mounted read-only, and who owns it.",
        ),
        (Stage::Reconciling | Stage::NotReady | Stage::Stalled, false, _) => {
            ("False", reason.as_str(), message.as_str())
        }
    };
    let (word, writable_reason, writable_message) = writable;
    condition::set(
        &mut status.conditions,
        condition::WRITABLE,
        word,
        (writable_reason, writable_message),
        world.generation,
        now,
    );
    condition::set_stage(&mut status.conditions, stage, (&reason, &message), world.generation, now);
    status
}

fn words(world: &World, trouble: Option<&Trouble>, view: Option<&View>) -> (Stage, String, String) {
    if let Some(Trouble { reason, message }) = trouble {
        let stage = if reason == Reason::NoAgent.as_str() { Stage::Unknown } else { Stage::Stalled };
        return (stage, reason.clone(), message.clone());
    }
    let Some(view) = view else {
        let reason = if world.id.is_some() && !world.initialised { Reason::Initialising } else { Reason::Validating };
        return (Stage::Reconciling, reason.as_str().to_owned(), reason.meaning().to_owned());
    };
    let wrong: Vec<_> = view.answers.iter().filter_map(|(n, a)| a.problem().map(|(r, m)| (n, r, m))).collect();
    let all = view.answers.len();
    match wrong.as_slice() {
        [] => match &view.unlisted {
            Some(why) => (Stage::Ready, Reason::PointsNotListed.as_str().to_owned(), why.clone()),
            None => (
                Stage::Ready,
                Reason::Validated.as_str().to_owned(),
                format!("All agents that should see the repository do ({all})."),
            ),
        },
        [(node, reason, message), ..] if wrong.len() == all => {
            (Stage::Stalled, reason.clone(), format!("Node {node}: {message}"))
        }
        [(node, _, message), ..] => (
            Stage::Ready,
            Reason::PartlyAvailable.as_str().to_owned(),
            format!("{} of {all} agents cannot use the repository; {node}: {message}", wrong.len()),
        ),
    }
}

fn show(status: &mut BackupRepositoryStatus, view: &View) {
    let good = || {
        view.answers.values().filter_map(|a| match a {
            Answer::Said(said) if said.problem.is_none() => Some(said),
            Answer::Said(_) | Answer::Silent(..) => None,
        })
    };
    status.last_validation_time = Some(Time(view.at));
    status.agents = format!("{}/{}", good().count(), view.answers.len());
    if let Some(said) = good().next() {
        let used = said.capacity_bytes.saturating_sub(said.available_bytes);
        status.format_version = Some(small(said.format_version));
        status.capacity_bytes = Some(signed(said.capacity_bytes));
        status.used_bytes = Some(signed(used));
        status.capacity = quantity::show(said.capacity_bytes);
        status.used = quantity::show(used);
    }
    let wrong = view.answers.iter().filter_map(|(node, a)| a.problem().map(|(r, m)| (node, r, m)));
    status.unavailable_on = wrong
        .take(NAMED)
        .map(|(node, reason, message)| UnavailableOn { node: node.clone(), reason, message })
        .collect();
}
