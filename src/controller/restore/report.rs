//! A RestoreRun's status (pure): from what was really done and what its agent says.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::{OnAgent, Plan, Started, World};
use crate::{
    api::{
        RestoreRunStatus,
        condition::{self, Stage},
        restore::RestoreDisk,
        run::RunAgent,
        words::Reason,
    },
    controller::{begin_to_wait, run::report::percent, seen, signed, time},
    rpc::v1,
};

/// The status after a step.
pub fn report(plan: &Plan, world: &World, old: Option<&RestoreRunStatus>, now: Timestamp) -> RestoreRunStatus {
    let mut status = old.cloned().unwrap_or_default();
    status.observed_generation = Some(world.generation);
    if let (Plan::Follow, Some(Started { on_agent: OnAgent::Silent, lost_since: None, .. })) = (plan, &world.started) {
        // Asked and not answered yet: what was shown is still the best that is known.
        return status;
    }
    if *plan == Plan::Intend {
        status.agent = Some(RunAgent { node: world.node.clone(), session: String::new(), lost_since: None });
    }
    let mut verified = false;
    if let Some(started) = &world.started {
        let mut session = started.session.clone();
        if let OnAgent::State(state) = &started.on_agent {
            session.clone_from(&state.session);
            verified = state.verified;
            progress(&mut status, state);
        }
        status.agent = Some(RunAgent { node: world.node.clone(), session, lost_since: started.lost_since.map(Time) });
    }
    if matches!(plan, Plan::Wait { .. }) {
        status.agent = None;
    }
    let (phase, stage, reason, message) = words(plan, world);
    if matches!(plan, Plan::Wait { .. } | Plan::Refused { .. }) {
        begin_to_wait(&mut status.conditions, &reason, now);
    }
    let why = (reason.as_str(), message.as_str());
    let ended = matches!(plan, Plan::Complete | Plan::Fail { .. });
    if ended {
        status.completion_time.get_or_insert(Time(now));
    }
    let truth = |is: bool| if is { "True" } else { "False" };
    let generation = world.generation;
    condition::set(&mut status.conditions, condition::COMPLETE, truth(*plan == Plan::Complete), why, generation, now);
    condition::set(
        &mut status.conditions,
        condition::FAILED,
        truth(matches!(plan, Plan::Fail { .. })),
        why,
        generation,
        now,
    );
    if *plan == Plan::Complete {
        status.progress = "100%".to_owned();
        if world.verify {
            let compared = (Reason::DigestsCompared.as_str(), Reason::DigestsCompared.meaning());
            condition::set(&mut status.conditions, condition::VERIFIED, truth(verified), compared, generation, now);
        }
    }
    condition::set_stage(&mut status.conditions, stage, why, generation, now);
    phase.clone_into(&mut status.phase);
    status
}

/// The status of what has ended: nothing of it changes, but that a later spec was seen. Whoever waits compares the two.
pub fn kept(old: Option<&RestoreRunStatus>, generation: Option<i64>) -> RestoreRunStatus {
    let mut status = old.cloned().unwrap_or_default();
    status.observed_generation = generation;
    seen(&mut status.conditions, generation);
    status
}

fn progress(status: &mut RestoreRunStatus, state: &v1::RestoreState) {
    status.start_time = time(state.start_time).map(Time).or(status.start_time.take());
    status.completion_time = time(state.completion_time).map(Time).or(status.completion_time.take());
    let sum = |of: fn(&v1::RestoreDiskState) -> u64| state.disks.iter().map(of).fold(0u64, u64::saturating_add);
    status.progress = percent(sum(|d| d.done_bytes), sum(|d| d.total_bytes));
    status.disks = state
        .disks
        .iter()
        .map(|d| RestoreDisk {
            name: d.name.clone(),
            path: d.path.clone(),
            total_bytes: signed(d.total_bytes),
            done_bytes: signed(d.done_bytes),
            chain: d.chain.clone(),
        })
        .collect();
}

/// Phase, stage, reason and message of a step.
fn words(plan: &Plan, world: &World) -> (&'static str, Stage, String, String) {
    let going =
        |phase, reason: Reason, message: String| (phase, Stage::Reconciling, reason.as_str().to_owned(), message);
    match plan {
        Plan::Wait { blocker, .. } => ("Pending", Stage::NotReady, blocker.reason.clone(), blocker.message.clone()),
        Plan::Intend | Plan::Start => {
            going("Starting", Reason::Starting, format!("The agent of node {} is being asked to start.", world.node))
        }
        Plan::Refused { reason, message } => ("Starting", Stage::Reconciling, reason.clone(), message.clone()),
        Plan::Cancel => going(
            phase(world).0,
            Reason::Cancelling,
            format!("The agent of node {} is being asked to cancel.", world.node),
        ),
        Plan::Follow | Plan::Keep | Plan::Release => {
            let (phase, message) = phase(world);
            going(phase, Reason::Running, message.to_owned())
        }
        Plan::Complete => {
            let message = "The restored images are whole and have their names.".to_owned();
            ("Complete", Stage::Ready, Reason::RestoreComplete.as_str().to_owned(), message)
        }
        Plan::Fail { reason, message } => ("Failed", Stage::Stalled, reason.clone(), message.clone()),
    }
}

fn phase(world: &World) -> (&'static str, &'static str) {
    match world.started.as_ref().map(|s| &s.on_agent) {
        None => ("Pending", "The restore has not started."),
        Some(OnAgent::Silent | OnAgent::Unknown) => ("Starting", "The agent holds the restore."),
        Some(OnAgent::State(state)) => match state.phase() {
            v1::RestorePhase::Unspecified | v1::RestorePhase::Preparing => ("Preparing", "The images are being made."),
            v1::RestorePhase::Copying => ("Copying", "The data is being written."),
            v1::RestorePhase::Verifying
            | v1::RestorePhase::Complete
            | v1::RestorePhase::Failed
            | v1::RestorePhase::Cancelled => ("Verifying", "The images are being compared with the stored digests."),
        },
    }
}
