//! A BackupRun's status (pure): from what was really done and what its agent says.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::{OnAgent, Plan, Started, World};
use crate::{
    api::{
        BackupRunStatus,
        condition::{self, Stage},
        duration, quantity,
        run::{BackupType, RestorePointRef, RunAgent, RunDisk, RunQuiesce},
        words::Reason,
    },
    controller::{backup_type, begin_to_wait, seen, signed, since, time},
    engine::SUSPEND_NEEDS_FLEECING,
    rpc::v1,
};

/// What goes into a status beside plan and world.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The object that shows the point.
    pub point: Option<RestorePointRef>,
    /// When the agent's state was published.
    pub seen_at: Option<Timestamp>,
    /// The agent's session.
    pub session: String,
    /// The object's generation.
    pub generation: i64,
    /// The type that its spec asks for.
    pub requested: BackupType,
}

/// The status after a step.
pub fn report(
    plan: &Plan,
    world: &World,
    facts: &Facts,
    old: Option<&BackupRunStatus>,
    now: Timestamp,
) -> BackupRunStatus {
    let mut status = old.cloned().unwrap_or_default();
    status.observed_generation = Some(facts.generation);
    if let (Plan::Follow, Some(Started { on_agent: OnAgent::Silent, lost_since: None, .. })) = (plan, &world.started) {
        // Asked and not answered yet: what was shown is still the best that is known.
        return status;
    }
    status.requested_type = facts.requested.as_str().to_owned();
    status.queue_position = None;
    status.retry_time = None;
    if let Some(started) = &world.started {
        let lost_since = started.lost_since.map(Time);
        status.agent = Some(RunAgent { node: started.node.clone(), session: facts.session.clone(), lost_since });
        status.attempts = Some(world.attempts);
        if let OnAgent::State(state) = &started.on_agent {
            progress(&mut status, state, facts, now);
        }
    }
    if matches!(plan, Plan::Pause { .. }) {
        status.retry_time = world.retry_at.map(Time);
        return status;
    }
    let (phase, stage, reason, mut message) = words(plan, world);
    match plan {
        Plan::Queue { position, .. } => status.queue_position = Some(*position),
        Plan::Retry { pause, .. } => {
            status.retry_time = now.checked_add(*pause).ok().map(Time);
            status.agent = None;
        }
        Plan::Intend { node, attempt } => {
            status.agent = Some(RunAgent { node: node.clone(), session: String::new(), lost_since: None });
            status.attempts = Some(*attempt);
            status.disks = vec![];
            status.progress = String::new();
        }
        Plan::Complete => {
            status.restore_point_ref.clone_from(&facts.point);
            status.progress = "100%".to_owned();
            message = format!("{message} {}", became(&status));
        }
        Plan::Wait { .. } if world.started.is_some() => {
            status.agent = None;
            status.attempts = Some(world.attempts - 1);
        }
        Plan::Wait { .. }
        | Plan::Pause { .. }
        | Plan::Suspend { .. }
        | Plan::Start { .. }
        | Plan::Follow
        | Plan::Steer { .. }
        | Plan::Cancel { .. }
        | Plan::Fail { .. }
        | Plan::Keep { .. }
        | Plan::Expire
        | Plan::Release => {}
    }
    if matches!(plan, Plan::Wait { .. }) {
        begin_to_wait(&mut status.conditions, &reason, now);
    }
    let why = (reason.as_str(), message.as_str());
    let ended = match plan {
        Plan::Complete => Some(("True", "False")),
        Plan::Fail { .. } => Some(("False", "True")),
        _ => None,
    };
    if let Some((complete, failed)) = ended {
        let end = Time(agents_end(world).unwrap_or(now));
        if let Some(start) = &status.start_time {
            status.duration = duration::show(since(start.0, end.0));
        }
        status.completion_time.get_or_insert(end);
        if let Some(agent) = &mut status.agent {
            agent.lost_since = None;
        }
        condition::set(&mut status.conditions, condition::COMPLETE, complete, why, facts.generation, now);
        condition::set(&mut status.conditions, condition::FAILED, failed, why, facts.generation, now);
    } else {
        condition::set(&mut status.conditions, condition::COMPLETE, "False", why, facts.generation, now);
        condition::set(&mut status.conditions, condition::FAILED, "False", why, facts.generation, now);
    }
    let taken = status.checkpoint_time.is_some();
    let instant = if taken { Reason::CheckpointTaken } else { Reason::CheckpointPending };
    let word = if taken { "True" } else { "False" };
    condition::set(
        &mut status.conditions,
        condition::CHECKPOINT_CREATED,
        word,
        (instant.as_str(), instant.meaning()),
        facts.generation,
        now,
    );
    if let Some((word, reason, message)) = quiesced(world) {
        let why = (reason.as_str(), message.as_str());
        condition::set(&mut status.conditions, condition::QUIESCED, word, why, facts.generation, now);
    }
    if let Some((word, reason, message)) = suspended(plan, world, &status) {
        let why = (reason.as_str(), message.as_str());
        condition::set(&mut status.conditions, condition::SUSPENDED, word, why, facts.generation, now);
    }
    condition::set_stage(&mut status.conditions, stage, why, facts.generation, now);
    phase.clone_into(&mut status.phase);
    status
}

/// What was asked for, what each disk became, and why.
fn became(status: &BackupRunStatus) -> String {
    let disk = |d: &RunDisk| format!("{} is {} ({})", d.name, d.backup_type, d.type_reason);
    let disks: Vec<_> = status.disks.iter().map(disk).collect();
    let fleeced = if status.fleeced == Some(true) { ", fleeced" } else { "" };
    format!(
        "{} was asked for: {}. The data goes {}{fleeced}.",
        status.requested_type,
        disks.join(", "),
        status.data_path
    )
}

/// The status of what has ended: nothing of it changes, but that a later spec was seen. Whoever waits compares the two.
pub fn kept(old: Option<&BackupRunStatus>, generation: Option<i64>) -> BackupRunStatus {
    let mut status = old.cloned().unwrap_or_default();
    status.observed_generation = generation;
    seen(&mut status.conditions, generation);
    status
}

fn agents_end(world: &World) -> Option<Timestamp> {
    match &world.started.as_ref()?.on_agent {
        OnAgent::State(state) => time(state.completion_time),
        OnAgent::Silent | OnAgent::Unknown => None,
    }
}

/// Phase, stage, reason and message of a step.
fn words(plan: &Plan, world: &World) -> (&'static str, Stage, String, String) {
    let going =
        |phase, reason: Reason, message: String| (phase, Stage::Reconciling, reason.as_str().to_owned(), message);
    match plan {
        Plan::Wait { blocker, .. } => ("Pending", Stage::NotReady, blocker.reason.clone(), blocker.message.clone()),
        Plan::Queue { behind, position } => going(
            "Queued",
            Reason::Queued,
            format!("{position} run(s) of the same guest are in front, first {behind}."),
        ),
        Plan::Pause { .. } => {
            let text = "A try failed; status.retryTime says when the next one starts.".to_owned();
            ("Pending", Stage::NotReady, Reason::Retrying.as_str().to_owned(), text)
        }
        Plan::Retry { reason, message, .. } => {
            let text = format!(
                "Try {} failed ({reason}: {message}); status.retryTime says when the next one starts.",
                world.attempts
            );
            ("Pending", Stage::NotReady, Reason::Retrying.as_str().to_owned(), text)
        }
        Plan::Intend { node, .. } | Plan::Start { node } => {
            going("Starting", Reason::Starting, format!("The agent of node {node} is being asked to start."))
        }
        Plan::Cancel { node, reason } => {
            let (phase, _) = phase(world);
            going(
                phase,
                Reason::Cancelling,
                format!("The agent of node {node} is being asked to cancel ({}).", reason.as_str()),
            )
        }
        Plan::Suspend { .. } => going("Suspended", Reason::Suspended, Reason::Suspended.meaning().to_owned()),
        Plan::Follow | Plan::Steer { .. } | Plan::Keep { .. } | Plan::Expire | Plan::Release => {
            let (phase, message) = phase(world);
            match trouble(world) {
                Some((reason, trouble)) => (phase, Stage::Reconciling, reason, trouble),
                None => going(phase, Reason::Running, message),
            }
        }
        Plan::Complete => (
            "Complete",
            Stage::Ready,
            Reason::BackupComplete.as_str().to_owned(),
            "The restore point is durable.".to_owned(),
        ),
        Plan::Fail { reason, message } => ("Failed", Stage::Stalled, reason.clone(), message.clone()),
    }
}

fn phase(world: &World) -> (&'static str, String) {
    let Some(started) = &world.started else { return ("Pending", String::new()) };
    let lost = started
        .lost_since
        .map(|at| format!(" Its agent has not answered since {at}; the copy goes on in QEMU."))
        .unwrap_or_default();
    let (phase, message) = match &started.on_agent {
        OnAgent::Silent | OnAgent::Unknown => starting(started),
        OnAgent::State(state) => match state.phase() {
            // It has not come to a lock yet, let alone waited for one.
            v1::RunPhase::Unspecified | v1::RunPhase::Waiting if state.message.is_empty() => starting(started),
            v1::RunPhase::Unspecified | v1::RunPhase::Waiting => ("Queued", state.message.clone()),
            v1::RunPhase::Preparing => ("Preparing", "The targets are being made.".to_owned()),
            v1::RunPhase::Copying if state.suspended_since > 0 => {
                ("Suspended", "The checkpoint stands; the copy stands still.".to_owned())
            }
            v1::RunPhase::Copying => ("Copying", "The checkpoint stands; the disks are being copied.".to_owned()),
            v1::RunPhase::Finishing | v1::RunPhase::Complete | v1::RunPhase::Failed | v1::RunPhase::Cancelled => {
                ("Finishing", "All is copied; the data is being checked and made durable.".to_owned())
            }
        },
    };
    (phase, format!("{message}{lost}"))
}

/// Whether the guest's file systems stood still at the instant, and why not; none where they were not to, and before it.
fn quiesced(world: &World) -> Option<(&'static str, String, String)> {
    let Some(Started { on_agent: OnAgent::State(state), .. }) = &world.started else { return None };
    let quiesced = state.quiesced.as_ref()?;
    Some(match quiesced.frozen {
        true => ("True", Reason::Frozen.as_str().to_owned(), Reason::Frozen.meaning().to_owned()),
        false => ("False", quiesced.reason.clone(), quiesced.message.clone()),
    })
}

/// Whether the run stands still, and why; none for one that never was to.
fn suspended(plan: &Plan, world: &World, status: &BackupRunStatus) -> Option<(&'static str, String, String)> {
    let of = |word, reason: Reason| Some((word, reason.as_str().to_owned(), reason.meaning().to_owned()));
    if let Plan::Suspend { .. } = plan {
        return of("True", Reason::Suspended);
    }
    let before = condition::find(&status.conditions, condition::SUSPENDED).filter(|before| before.status == "True");
    match plan {
        Plan::Fail { reason, message } | Plan::Retry { reason, message, .. } => {
            return before.map(|_| ("False", reason.clone(), message.clone()));
        }
        Plan::Complete => return before.and_then(|_| of("False", Reason::Resumed)),
        _ => {}
    }
    match world.started.as_ref().map(|started| &started.on_agent) {
        Some(OnAgent::State(state)) => match state.phase() {
            v1::RunPhase::Preparing | v1::RunPhase::Copying if state.suspended_since > 0 => {
                let by_host = state.suspended_by_host && !world.course.suspend;
                of("True", if by_host { Reason::SuspendedOnHost } else { Reason::Suspended })
            }
            v1::RunPhase::Copying if world.course.suspend && state.reason == SUSPEND_NEEDS_FLEECING => {
                Some(("False", state.reason.clone(), state.message.clone()))
            }
            v1::RunPhase::Copying | v1::RunPhase::Finishing => before.and_then(|_| of("False", Reason::Resumed)),
            // What the agent has not looked at yet is as it was.
            _ => None,
        },
        // Nobody says that it goes on.
        Some(OnAgent::Silent | OnAgent::Unknown) => None,
        None => before.and_then(|_| of("False", Reason::Resumed)),
    }
}

/// What an agent says of a run that has begun and has not ended, beyond its phase: what it waits for, or what holds it.
fn trouble(world: &World) -> Option<(String, String)> {
    let started = world.started.as_ref().filter(|started| started.lost_since.is_none())?;
    let OnAgent::State(state) = &started.on_agent else { return None };
    let begun = matches!(state.phase(), v1::RunPhase::Preparing | v1::RunPhase::Copying | v1::RunPhase::Finishing);
    (begun && !state.reason.is_empty()).then(|| (state.reason.clone(), state.message.clone()))
}

fn starting(started: &Started) -> (&'static str, String) {
    ("Starting", format!("The agent of node {} holds the run.", started.node))
}

fn progress(status: &mut BackupRunStatus, state: &v1::RunState, facts: &Facts, now: Timestamp) {
    status.start_time = time(state.start_time).map(Time).or(status.start_time.take());
    // The instant latches: whatever comes after it, what the guest wrote since is not in this point.
    status.checkpoint_time = time(state.checkpoint_time).map(Time).or(status.checkpoint_time.take());
    status.backup_type = backup_type(state.r#type()).to_owned();
    status.type_reason.clone_from(&state.type_reason);
    // Known with the disks.
    if !state.disks.is_empty() {
        status.data_path = if state.staged { "Staged" } else { "Direct" }.to_owned();
        status.fleeced = Some(state.fleeced);
    }
    status.quiesce = state.quiesced.as_ref().map(|quiesced| RunQuiesce {
        outcome: if quiesced.frozen { "Frozen" } else { "NotFrozen" }.to_owned(),
        frozen_for: quiesced.frozen.then(|| format!("{}ms", quiesced.frozen_for)),
    });
    status.disks = state.disks.iter().map(disk).collect();
    let sum = |of: fn(&v1::DiskState) -> u64| state.disks.iter().map(of).fold(0u64, u64::saturating_add);
    let (done, total) = (sum(|d| d.done_bytes), sum(|d| d.total_bytes));
    status.progress = percent(done, total);
    if let Some(point) = &state.point {
        status.size = quantity::show(point.disks.iter().map(|d| d.stored_bytes).sum());
    }
    if let Some(start) = &status.start_time {
        let until = time(state.completion_time).unwrap_or_else(|| facts.seen_at.unwrap_or(now));
        status.duration = duration::show(since(start.0, until));
    }
}

/// Done of total as a column shows it; empty while nothing is known.
pub(crate) fn percent(done: u64, total: u64) -> String {
    match u128::from(done.min(total)) * 100 {
        _ if total == 0 => String::new(),
        hundredfold => format!("{}%", hundredfold / u128::from(total)),
    }
}

fn disk(disk: &v1::DiskState) -> RunDisk {
    RunDisk {
        name: disk.name.clone(),
        backup_type: backup_type(disk.r#type()).to_owned(),
        type_reason: disk.type_reason.clone(),
        job_id: disk.job_id.clone(),
        job_status: disk.job_status.clone(),
        io_status: disk.io_status.clone(),
        paused: disk.paused,
        speed: signed(disk.speed),
        total_bytes: signed(disk.total_bytes),
        done_bytes: signed(disk.done_bytes),
        stored_bytes: signed(disk.stored_bytes),
        error: disk.error.clone(),
    }
}
