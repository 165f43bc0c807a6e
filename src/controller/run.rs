//! Kind BackupRun: checked, queued, started once on its guest's agent, followed to its end. Facts come from the
//! inventory and the agents, the decision is `plan`, the status is `report`; this file observes and acts.

use std::{sync::Arc, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    ResourceExt,
    runtime::{controller::Action, events::EventType},
};

use super::{context::Context, error::Error, write};
use crate::{
    api::{
        BackupRun, BackupRunStatus, condition, duration, naming, quantity,
        run::{BackupType, DataPath, FleecingMode, QuiesceMode},
        words::{FINALIZER, Reason},
    },
    engine::quiesce::FREEZE_TIMEOUT,
    retry::Retry,
    rpc::{client::RpcError, v1},
    sentence::sentence,
};

mod check;
mod ended;
pub mod plan;
pub mod report;
#[cfg(test)]
mod tests;

use check::Target;
use plan::{Blocker, Course, OnAgent, Plan, Settled, Started, World};
use report::Facts;

/// More steps than any reconcile needs; what is left goes on at the next.
const STEPS: usize = 6;
/// How often a run that is going is looked at without news.
const WATCHDOG: Duration = Duration::from_secs(15);
/// An agent that is silent for less is not worth a word in the status.
const SILENCE_SHOWN: Duration = Duration::from_secs(10);

/// Whether the run has ended: then its phase never changes.
pub fn is_settled(run: &BackupRun) -> bool {
    run.status.as_ref().is_some_and(settled_conditions)
}

fn settled_conditions(status: &BackupRunStatus) -> bool {
    condition::is_true(&status.conditions, condition::COMPLETE)
        || condition::is_true(&status.conditions, condition::FAILED)
}

/// When the run was seen to have ended. Not `completionTime`, which is the node's: its clock must not delete objects.
fn settled_at(conditions: &[Condition]) -> Option<jiff::Timestamp> {
    let ended = conditions
        .iter()
        .filter(|c| c.status == "True" && (c.type_ == condition::COMPLETE || c.type_ == condition::FAILED));
    ended.map(|c| c.last_transition_time.0).max()
}

/// Brings one run on its way, step by step, and its status up to date.
///
/// # Errors
/// When the API server or an agent did not take a step; it is safe to repeat.
pub async fn reconcile(context: Arc<Context>, run: Arc<BackupRun>) -> Result<Action, Error> {
    let mut run = run.as_ref().clone();
    for _ in 0..STEPS {
        let (mut world, target, facts) = observe(&context, &run);
        let next = plan::plan(&world, context.now());
        tracing::debug!(run = write::full_name(&run.metadata), ?next, "BackupRun");
        let next = match next {
            Plan::Keep { expires_in } => {
                forget(&context, &run);
                let status = report::kept(run.status.as_ref(), run.metadata.generation);
                write::status(&context, &mut run, &status, "Backup").await?;
                return Ok(expires_in.map_or_else(Action::await_change, Action::requeue));
            }
            Plan::Expire => {
                write::delete(&context, &run).await?;
                let note = "Deleted, because its ttlAfterFinished was over. Its restore point stays.";
                write::event(&context, &run, EventType::Normal, Reason::Expired.as_str(), "Expire", note).await;
                return Ok(Action::await_change());
            }
            Plan::Release => {
                forget(&context, &run);
                write::finalizer(&context, &mut run, false).await?;
                return Ok(Action::requeue(Duration::from_secs(1)));
            }
            Plan::Start { ref node } => match start(&context, &run, &world.ready, &target, node).await {
                Ok(state) => {
                    follow(&context, &run, node);
                    context.backups.tell(&agent_id(&run), state.clone(), context.now());
                    if let Some(started) = &mut world.started {
                        started.on_agent = OnAgent::State(Box::new(state));
                    }
                    plan::plan(&world, context.now())
                }
                Err(Refusal { unsure: true, message, .. }) => {
                    // It may have been taken all the same: only the same id may be asked for again.
                    tracing::info!(run = write::full_name(&run.metadata), "{message}");
                    follow(&context, &run, node);
                    next
                }
                Err(Refusal { reason, message, retry: Retry::OnChange, .. }) => Plan::Fail { reason, message },
                Err(Refusal { reason, message, .. }) => plan::again(&world, &reason, &message),
            },
            Plan::Cancel { ref node, .. } => {
                cancel(&context, &run, node).await;
                next
            }
            Plan::Steer { ref node, course } => {
                steer(&context, &run, node, course).await;
                next
            }
            other => other,
        };
        if matches!(next, Plan::Wait { .. }) && world.started.is_some() {
            forget(&context, &run);
        }
        let mut facts = facts;
        if let (Plan::Complete, Some(Started { on_agent: OnAgent::State(state), .. })) = (&next, &world.started) {
            facts.point = ended::show_point(&context, &run, &target, state).await?;
        }
        if let Some(Started { on_agent: OnAgent::State(state), .. }) = &world.started
            && facts.session.is_empty()
        {
            facts.session.clone_from(&state.session);
        }
        // The finalizer comes before the intent: from the intent on the run may be going.
        if matches!(next, Plan::Intend { .. }) {
            write::finalizer(&context, &mut run, true).await?;
        }
        let status = report::report(&next, &world, &facts, run.status.as_ref(), context.now());
        if let Err(error) = write::status(&context, &mut run, &status, "Backup").await {
            // Its end cannot be written while another manager holds a field; deleting it must not wait for that.
            let deleted = run.metadata.deletion_timestamp.is_some();
            if deleted && settled_conditions(&status) && error.field_conflict().is_some() {
                write::finalizer(&context, &mut run, false).await?;
            }
            return Err(error);
        }
        let ended = settled_conditions(&status);
        if ended && !is_settled(&run) {
            ended::count(&context, &run, &status, &world);
        }
        run.status = Some(status);
        match next {
            Plan::Intend { .. } => {}
            Plan::Complete | Plan::Fail { .. } => return finish(&context, &run).await,
            Plan::Wait { after, .. } | Plan::Pause { after } => return Ok(Action::requeue(after)),
            Plan::Retry { pause, .. } => return Ok(Action::requeue(pause)),
            Plan::Queue { .. } | Plan::Follow => return Ok(Action::requeue(WATCHDOG)),
            Plan::Suspend { left } => return Ok(Action::requeue(left)),
            Plan::Cancel { .. } | Plan::Steer { .. } | Plan::Start { .. } => {
                return Ok(Action::requeue(Duration::from_secs(3)));
            }
            Plan::Keep { .. } | Plan::Expire | Plan::Release => return Ok(Action::await_change()),
        }
    }
    Ok(Action::requeue(Duration::from_secs(1)))
}

/// After the end: nothing holds the object any longer, and whoever waited is woken.
async fn finish(context: &Context, run: &BackupRun) -> Result<Action, Error> {
    forget(context, run);
    let namespace = run.namespace().unwrap_or_default();
    let same = |r: &BackupRun| {
        r.namespace().as_deref() == Some(&namespace)
            && r.spec.guest_ref.name == run.spec.guest_ref.name
            && !is_settled(r)
    };
    for other in context.runs.find(same) {
        context.runs.wake(&namespace, &other.name_any());
    }
    context.guests.wake(&namespace, &run.spec.guest_ref.name);
    // The copy in hand may be older than the finalizer in it; the next reconcile has the newest.
    Ok(Action::requeue(Duration::from_millis(200)))
}

fn agent_id(run: &BackupRun) -> String {
    let attempts = run.status.as_ref().and_then(|s| s.attempts).unwrap_or(0);
    naming::agent_run(run.metadata.uid.as_deref().unwrap_or_default(), attempts)
}

pub(super) fn forget(context: &Context, run: &BackupRun) {
    context.backups.forget(&agent_id(run));
    context.metrics.going("BackupRun", context.backups.running());
}

fn follow(context: &Arc<Context>, run: &BackupRun, node: &str) {
    let (namespace, name) = (run.namespace().unwrap_or_default(), run.name_any());
    let waker = Arc::downgrade(context);
    let wake = move || {
        if let Some(context) = waker.upgrade() {
            context.runs.wake(&namespace, &name);
        }
    };
    context.backups.follow(context.agents.clone(), (node, &agent_id(run)), context.clock.clone(), wake);
    context.metrics.going("BackupRun", context.backups.running());
}

fn observe(context: &Arc<Context>, run: &BackupRun) -> (World, Target, Facts) {
    let now = context.now();
    let spec = &run.spec;
    let status = run.status.clone().unwrap_or_default();
    let created = run.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
    let mut facts =
        Facts { generation: run.metadata.generation.unwrap_or(0), requested: spec.backup_type, ..Facts::default() };
    let deadline = duration::parse(&spec.active_deadline);
    let ttl = spec.ttl_after_finished.as_deref().map(duration::parse).transpose();
    let bandwidth = spec.transfer.as_ref().and_then(|t| t.bandwidth.as_deref()).map(quantity::parse).transpose();
    let invalid = deadline.as_ref().err().map(|e| format!("activeDeadline: {e}"));
    let invalid = invalid.or_else(|| ttl.as_ref().err().map(|e| format!("ttlAfterFinished: {e}")));
    let invalid = invalid.or_else(|| bandwidth.as_ref().err().map(|e| format!("transfer.bandwidth: {e}")));

    let settled =
        settled_conditions(&status).then(|| Settled { at: settled_at(&status.conditions).unwrap_or(created) });
    let started = status.agent.as_ref().filter(|_| settled.is_none() && status.retry_time.is_none()).map(|agent| {
        if !agent.session.is_empty() {
            // After a restart of the controller: whoever took the run is asked how it goes.
            follow(context, run, &agent.node);
        }
        let seen = context.backups.seen(&agent_id(run)).unwrap_or_default();
        facts.session.clone_from(&agent.session);
        let long = |at: &jiff::Timestamp| super::since(*at, now) >= SILENCE_SHOWN;
        let lost_since =
            seen.lost_since.map(|at| agent.lost_since.as_ref().map_or(at, |old| old.0.min(at))).filter(long);
        let on_agent = match seen.state {
            Some((state, at)) => {
                facts.seen_at = Some(at);
                OnAgent::State(Box::new(state))
            }
            None if seen.unknown => OnAgent::Unknown,
            None => OnAgent::Silent,
        };
        Started { node: agent.node.clone(), accepted: !agent.session.is_empty(), on_agent, lost_since }
    });
    let (ready, target) = check::check(context, run);
    let ready = match invalid {
        Some(message) => Err(Blocker::stays(Reason::InvalidSpec, message)),
        None => ready,
    };
    let waits_for = ready.as_ref().err().map(|blocker| blocker.reason.as_str()).unwrap_or_default();
    let world = World {
        deleted: run.metadata.deletion_timestamp.as_ref().map(|t| t.0),
        finalizer: run.finalizers().iter().any(|f| f == FINALIZER),
        cancel: spec.cancel,
        course: Course { suspend: spec.suspend, bandwidth: bandwidth.ok().flatten().unwrap_or(0) },
        created,
        known_since: status
            .retry_time
            .as_ref()
            .map_or(created, |t| t.0)
            .max(super::waits_since(&status.conditions, waits_for, created, now))
            .max(context.started),
        deadline: deadline.unwrap_or(Duration::from_secs(86_400)),
        ttl: ttl.ok().flatten(),
        backoff_limit: spec.backoff_limit,
        attempts: status.attempts.unwrap_or(0),
        retry_at: status.retry_time.as_ref().map(|t| t.0),
        in_front: if settled.is_none() && started.is_none() { in_front(context, run) } else { None },
        ready,
        settled,
        started,
    };
    (world, target, facts)
}

/// Runs of the same guest that are going, or were there before and wait in the queue too.
fn in_front(context: &Context, run: &BackupRun) -> Option<(String, i32)> {
    let age = |r: &BackupRun| (r.metadata.creation_timestamp.as_ref().map(|t| t.0), r.metadata.uid.clone());
    let mut others = context.runs.find(|r| {
        let status = r.status.as_ref();
        let going = status.is_some_and(|s| s.agent.is_some());
        let queued = status.is_none_or(|s| s.phase == "Queued") && age(r) < age(run);
        r.metadata.uid != run.metadata.uid
            && r.namespace() == run.namespace()
            && r.spec.guest_ref.name == run.spec.guest_ref.name
            && !is_settled(r)
            && !is_let_go(r)
            && (going || queued)
    });
    others.sort_by_key(age);
    let waiting = context.runs.find(|r| !is_settled(r) && r.status.as_ref().is_some_and(|s| s.phase == "Queued")).len();
    context.metrics.queued(waiting);
    Some((others.first()?.name_any(), super::small(u32::try_from(others.len()).unwrap_or(u32::MAX))))
}

/// Whether the run is deleted and only somebody else's finalizer holds its object: nothing of it goes, or ever will.
pub(super) fn is_let_go(run: &BackupRun) -> bool {
    let ours = run.finalizers().iter().any(|f| f == FINALIZER);
    run.metadata.deletion_timestamp.is_some() && (!ours || run.status.as_ref().is_none_or(|s| s.agent.is_none()))
}

/// An agent's no, or its silence.
struct Refusal {
    reason: String,
    message: String,
    retry: Retry,
    unsure: bool,
}

/// Asks the agent to start. Safe to repeat: it answers a known id with the state that it finds.
async fn start(
    context: &Context,
    run: &BackupRun,
    ready: &Result<String, Blocker>,
    target: &Target,
    node: &str,
) -> Result<v1::RunState, Refusal> {
    let silent = |message: String| Refusal { reason: String::new(), message, retry: Retry::Backoff, unsure: true };
    // What was true when the intent was written need not be so now, above all after a restart of the controller or the
    // agent. Whether the agent has the run already is found out by following it, which needs nothing but its id.
    if let Err(blocker) = ready {
        return Err(silent(format!("The run is not asked for now: {}", blocker.message)));
    }
    let Some((repository, id)) = &target.repository else {
        return Err(silent("The repository is not known yet".to_owned()));
    };
    let Some(agent) = context.agents.get(node) else {
        return Err(silent(format!("Node {node} has no agent")));
    };
    let spec = &run.spec;
    let disks = spec.disks.clone().unwrap_or_default();
    let bandwidth = spec.transfer.as_ref().and_then(|t| t.bandwidth.as_deref()).and_then(|b| quantity::parse(b).ok());
    let quiesce = spec.quiesce.clone().unwrap_or_default();
    let request = v1::StartBackupRequest {
        run_uid: agent_id(run),
        run_name: run.name_any(),
        guest: Some(v1::GuestRef {
            namespace: run.namespace().unwrap_or_default(),
            name: spec.guest_ref.name.clone(),
            uuid: target.guest_uuid.clone(),
        }),
        repository: Some(v1::RepositoryAddress { path: repository.spec.filesystem.path.clone(), id: id.clone() }),
        r#type: match spec.backup_type {
            BackupType::Auto => v1::BackupType::Auto.into(),
            BackupType::Incremental => v1::BackupType::Incremental.into(),
            BackupType::Full => v1::BackupType::Full.into(),
            BackupType::Copy => v1::BackupType::Copy.into(),
        },
        include_disks: disks.include,
        exclude_disks: disks.exclude,
        bandwidth: bandwidth.unwrap_or(0),
        policy_name: String::new(),
        policy_uid: String::new(),
        fleecing: match spec.fleecing.as_ref().map(|fleecing| fleecing.mode).unwrap_or_default() {
            FleecingMode::Auto => v1::Fleecing::Auto.into(),
            FleecingMode::Always => v1::Fleecing::Always.into(),
            FleecingMode::Never => v1::Fleecing::Never.into(),
        },
        quiesce: match quiesce.mode {
            QuiesceMode::Never => v1::Quiesce::Never.into(),
            QuiesceMode::Preferred => v1::Quiesce::Preferred.into(),
            QuiesceMode::Required => v1::Quiesce::Required.into(),
        },
        freeze_timeout: quiesce.freeze_timeout.trim_end_matches('s').parse().unwrap_or(FREEZE_TIMEOUT),
        data_path: match spec.transfer.as_ref().map(|transfer| transfer.data_path).unwrap_or_default() {
            DataPath::Auto => v1::DataPath::Auto.into(),
            DataPath::Direct => v1::DataPath::Direct.into(),
            DataPath::Staged => v1::DataPath::Staged.into(),
        },
    };
    agent.start_backup(request).await.map_err(|error| Refusal {
        reason: error.reason().to_owned(),
        message: sentence(&error),
        retry: error.retry(),
        unsure: !matches!(error, RpcError::Refused { .. }),
    })
}

/// Asks the agent to cancel; what came of it comes with the run's state.
async fn cancel(context: &Arc<Context>, run: &BackupRun, node: &str) {
    let id = agent_id(run);
    let Some(agent) = context.agents.get(node) else { return };
    match agent.cancel_run(&id).await {
        Ok(_) => {}
        Err(error) => tracing::info!(run = write::full_name(&run.metadata), reason = error.reason(), "{error}"),
    }
    // Also where the agent was never heard to take the run: it says so, or tells how the run ended.
    follow(context, run, node);
}

/// Tells the agent the course that the run shall take; that it was heard comes with the run's state.
async fn steer(context: &Context, run: &BackupRun, node: &str, course: Course) {
    let Some(agent) = context.agents.get(node) else { return };
    let course = v1::RunCourse { suspend: course.suspend, bandwidth: course.bandwidth };
    if let Err(error) = agent.steer_run(&agent_id(run), course).await {
        tracing::info!(run = write::full_name(&run.metadata), reason = error.reason(), "{error}");
    }
}
