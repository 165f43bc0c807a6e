//! Kind RestoreRun: one restore of one point to files of a node. What is read comes from the repository's own list of
//! points, never from the RestorePoint object, which is only a name for it.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{ResourceExt, runtime::controller::Action};

use super::{advice::silent, context::Context, error::Error, write};
use crate::{
    api::{
        BackupRepository, RestoreRun, RestoreRunStatus, condition,
        restore::{ImageFormat, OverwritePolicy, RestoreMode, Verify},
        words::{FINALIZER, Reason},
    },
    retry::Retry,
    rpc::{client::RpcError, v1},
    sentence::sentence,
};

pub mod plan;
pub mod report;

use plan::{Blocker, OnAgent, Plan, Started, World};

/// More steps than any reconcile needs; what is left goes on at the next.
const STEPS: usize = 6;
/// How often a restore that is going is looked at without news.
const WATCHDOG: Duration = Duration::from_secs(15);
/// An agent that is silent for less is not worth a word in the status.
const SILENCE_SHOWN: Duration = Duration::from_secs(10);

/// Whether the restore has ended: then its phase never changes.
pub fn is_settled(restore: &RestoreRun) -> bool {
    restore.status.as_ref().is_some_and(settled_conditions)
}

fn settled_conditions(status: &RestoreRunStatus) -> bool {
    condition::is_true(&status.conditions, condition::COMPLETE)
        || condition::is_true(&status.conditions, condition::FAILED)
}

/// The point that is restored, as its repository holds it.
struct Source {
    repository: BackupRepository,
    id: String,
    point: Arc<v1::Point>,
}

/// Brings one restore on its way, step by step, and its status up to date.
///
/// # Errors
/// When the API server or an agent did not take a step; it is safe to repeat.
pub async fn reconcile(context: Arc<Context>, restore: Arc<RestoreRun>) -> Result<Action, Error> {
    let mut restore = restore.as_ref().clone();
    for _ in 0..STEPS {
        let (mut world, source) = observe(&context, &restore).await;
        let next = plan::plan(&world, context.now());
        tracing::debug!(restore = write::full_name(&restore.metadata), ?next, "RestoreRun");
        let next = match next {
            Plan::Keep => {
                context.restoring.forget(&uid(&restore));
                let status = report::kept(restore.status.as_ref(), restore.metadata.generation);
                write::status(&context, &mut restore, &status, "Restore").await?;
                return Ok(Action::await_change());
            }
            Plan::Release => {
                context.restoring.forget(&uid(&restore));
                write::finalizer(&context, &mut restore, false).await?;
                return Ok(Action::requeue(Duration::from_secs(1)));
            }
            Plan::Start => match start(&context, &restore, source.as_ref()).await {
                Ok(state) => {
                    follow(&context, &restore);
                    context.restoring.tell(&uid(&restore), state.clone(), context.now());
                    if let Some(started) = &mut world.started {
                        started.on_agent = OnAgent::State(Box::new(state));
                    }
                    plan::plan(&world, context.now())
                }
                Err(Refusal::Silent(message)) => {
                    tracing::info!(restore = write::full_name(&restore.metadata), "{message}");
                    follow(&context, &restore);
                    next
                }
                Err(Refusal::No { retry: Retry::Backoff | Retry::Now, reason, message }) => {
                    tracing::info!(restore = write::full_name(&restore.metadata), reason, "{message}");
                    let now = context.now();
                    let conditions = restore.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
                    let first = super::waits_since(conditions, &reason, context.started, now).max(context.started);
                    plan::refused(reason, &message, first, now)
                }
                Err(Refusal::No { reason, message, retry: Retry::OnChange }) => Plan::Fail { reason, message },
            },
            Plan::Cancel => {
                cancel(&context, &restore).await;
                next
            }
            other => other,
        };
        if next == Plan::Intend {
            write::finalizer(&context, &mut restore, true).await?;
        }
        let status = report::report(&next, &world, restore.status.as_ref(), context.now());
        if let Err(error) = write::status(&context, &mut restore, &status, "Restore").await {
            // Its end cannot be written while another manager holds a field; deleting it must not wait for that.
            let deleted = restore.metadata.deletion_timestamp.is_some();
            if deleted && settled_conditions(&status) && error.field_conflict().is_some() {
                write::finalizer(&context, &mut restore, false).await?;
            }
            return Err(error);
        }
        if settled_conditions(&status) && !is_settled(&restore) {
            count(&context, &restore, &status);
        }
        restore.status = Some(status);
        match next {
            Plan::Intend => {}
            Plan::Complete | Plan::Fail { .. } => {
                context.restoring.forget(&uid(&restore));
                context.metrics.going("RestoreRun", context.restoring.running());
                return Ok(Action::requeue(Duration::from_millis(200)));
            }
            Plan::Wait { after, .. } => return Ok(Action::requeue(after)),
            Plan::Follow => return Ok(Action::requeue(WATCHDOG)),
            Plan::Cancel | Plan::Start | Plan::Refused { .. } => return Ok(Action::requeue(Duration::from_secs(3))),
            Plan::Keep | Plan::Release => return Ok(Action::await_change()),
        }
    }
    Ok(Action::requeue(Duration::from_secs(1)))
}

fn uid(restore: &RestoreRun) -> String {
    restore.metadata.uid.clone().unwrap_or_default()
}

fn follow(context: &Arc<Context>, restore: &RestoreRun) {
    let (namespace, name) = (restore.namespace().unwrap_or_default(), restore.name_any());
    let waker = Arc::downgrade(context);
    let wake = move || {
        if let Some(context) = waker.upgrade() {
            context.restores.wake(&namespace, &name);
        }
    };
    let target = (restore.spec.target.node_name.as_str(), uid(restore));
    context.restoring.follow(context.agents.clone(), (target.0, &target.1), context.clock.clone(), wake);
    context.metrics.going("RestoreRun", context.restoring.running());
}

async fn observe(context: &Arc<Context>, restore: &RestoreRun) -> (World, Option<Source>) {
    let now = context.now();
    let status = restore.status.clone().unwrap_or_default();
    let created = restore.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
    let settled = settled_conditions(&status);
    let started = status.agent.as_ref().filter(|_| !settled).map(|agent| {
        if !agent.session.is_empty() {
            follow(context, restore);
        }
        let seen = context.restoring.seen(&uid(restore)).unwrap_or_default();
        let long = |at: &Timestamp| super::since(*at, now) >= SILENCE_SHOWN;
        let lost_since =
            seen.lost_since.map(|at| agent.lost_since.as_ref().map_or(at, |old| old.0.min(at))).filter(long);
        let on_agent = match seen.state {
            Some((state, _)) => OnAgent::State(Box::new(state)),
            None if seen.unknown => OnAgent::Unknown,
            None => OnAgent::Silent,
        };
        Started { session: agent.session.clone(), on_agent, lost_since }
    });
    // What has ended needs nothing any more.
    let (source, blocker) = match settled {
        true => (None, None),
        false => match check(context, restore).await {
            Ok(source) => (Some(source), None),
            Err(blocker) => (None, Some(blocker)),
        },
    };
    let waits_for = blocker.as_ref().map(|blocker| blocker.reason.as_str()).unwrap_or_default();
    let world = World {
        settled,
        deleted: restore.metadata.deletion_timestamp.as_ref().map(|t| t.0),
        finalizer: restore.finalizers().iter().any(|f| f == FINALIZER),
        cancel: restore.spec.cancel,
        known_since: super::waits_since(&status.conditions, waits_for, created, now).max(context.started),
        node: restore.spec.target.node_name.clone(),
        overwrite: restore.spec.overwrite_policy == OverwritePolicy::Always,
        verify: restore.spec.verify == Verify::Digest,
        generation: restore.metadata.generation.unwrap_or(0),
        blocker,
        started,
    };
    (world, source)
}

/// Whether the restore can start: the point is what its repository says that it is, and the node's agent is there.
async fn check(context: &Context, restore: &RestoreRun) -> Result<Source, Blocker> {
    let namespace = restore.namespace().unwrap_or_default();
    let name = &restore.spec.restore_point_ref.name;
    let Some(object) = context.points.get(&namespace, name) else {
        let message = format!(
            "There is no RestorePoint {name} in this namespace: see `kubectl get restorepoints.driftline.dev`."
        );
        return Err(Blocker::stays(Reason::PointNotFound, message));
    };
    let reference = &object.spec.repository_ref;
    let at = reference.namespace_or(&namespace);
    let repository = context.repositories.get(at, &reference.name).filter(|r| r.spec.allows(at, &namespace));
    let Some(repository) = repository else {
        let message = format!(
            "RestorePoint {name} names a BackupRepository {at}/{} that is not there or that this namespace may not use.",
            reference.name
        );
        return Err(Blocker::stays(Reason::RepositoryNotFound, message));
    };
    let status = repository.status.clone().unwrap_or_default();
    let ready = condition::is_true(&status.conditions, condition::READY);
    let repository_uid = repository.metadata.uid.clone().unwrap_or_default();
    let (Some(id), true, true) = (status.repository_id, ready, context.catalogue.knows(&repository_uid)) else {
        return Err(Blocker::away(
            Reason::RepositoryNotReady,
            format!("BackupRepository {at}/{} is not ready: see its conditions.", reference.name),
        ));
    };
    // The name leads to the point that the repository holds under it, for this namespace and no other.
    let point = context.catalogue.point(&repository_uid, &(namespace.clone(), name.clone()));
    let Some(point) = point.filter(|p| p.id == object.spec.point_id) else {
        let message = format!(
            "The repository holds no point that RestorePoint {name} of this namespace shows: it was made by hand, or its data is gone."
        );
        return Err(Blocker::stays(Reason::PointNotAvailable, message));
    };
    if !point.chain_intact {
        return Err(Blocker::stays(Reason::PointNotAvailable, point.chain_problem.clone()));
    }
    let has: Vec<_> = point.disks.iter().map(|d| d.name.as_str()).collect();
    if let Some(missing) = restore.spec.target.disks.iter().find(|d| !has.contains(&d.name.as_str())) {
        let message = format!("RestorePoint {name} has no disk {}; it has {}.", missing.name, has.join(", "));
        return Err(Blocker::stays(Reason::DiskNotFound, message));
    }
    let node = &restore.spec.target.node_name;
    if let Some(only) = repository.spec.filesystem.node_name.as_deref().filter(|only| only != node) {
        let message = format!("BackupRepository {at}/{} is on node {only}: restore to that node.", reference.name);
        return Err(Blocker::stays(Reason::RepositoryNotOnNode, message));
    }
    if !context.inventory.node(node).is_some_and(|v| v.connected) {
        return Err(Blocker::away(Reason::AgentUnavailable, silent(node, context.nodes.look_up(context, node).await)));
    }
    Ok(Source { repository, id, point })
}

/// Why an agent did not start.
enum Refusal {
    /// It did not answer: it may have started all the same.
    Silent(String),
    /// It said no.
    No { reason: String, message: String, retry: Retry },
}

/// Asks the agent to start. Safe to repeat: it answers a known id with the state that it finds.
async fn start(context: &Context, restore: &RestoreRun, source: Option<&Source>) -> Result<v1::RestoreState, Refusal> {
    let node = &restore.spec.target.node_name;
    let Some(source) = source else { return Err(Refusal::Silent("The point cannot be looked up now".to_owned())) };
    let Some(agent) = context.agents.get(node) else {
        return Err(Refusal::Silent(format!("Node {node} has no agent")));
    };
    let spec = &restore.spec;
    let RestoreMode::Flatten = spec.mode;
    let disks = spec.target.disks.iter().map(|d| v1::RestoreDisk { name: d.name.clone(), path: d.path.clone() });
    let request = v1::StartRestoreRequest {
        run_uid: uid(restore),
        repository: Some(v1::RepositoryAddress {
            path: source.repository.spec.filesystem.path.clone(),
            id: source.id.clone(),
        }),
        namespace: restore.namespace().unwrap_or_default(),
        guest_uuid: source.point.guest.as_ref().map(|g| g.uuid.clone()).unwrap_or_default(),
        point_id: source.point.id.clone(),
        disks: disks.collect(),
        format: match spec.format {
            ImageFormat::Qcow2 => v1::ImageFormat::Qcow2.into(),
            ImageFormat::Raw => v1::ImageFormat::Raw.into(),
        },
        overwrite_policy: match spec.overwrite_policy {
            OverwritePolicy::Never => v1::OverwritePolicy::Never.into(),
            OverwritePolicy::Always => v1::OverwritePolicy::Always.into(),
        },
        verify_digests: spec.verify == Verify::Digest,
    };
    agent.start_restore(request).await.map_err(|error| match error {
        RpcError::Refused { reason, message, retry, .. } => Refusal::No { reason, message, retry },
        silent => Refusal::Silent(sentence(&silent)),
    })
}

/// Asks the agent to cancel; what came of it comes with the restore's state.
async fn cancel(context: &Arc<Context>, restore: &RestoreRun) {
    if let Some(agent) = context.agents.get(&restore.spec.target.node_name)
        && let Err(error) = agent.cancel_restore(&uid(restore)).await
    {
        tracing::info!(restore = write::full_name(&restore.metadata), reason = error.reason(), "{error}");
    }
    follow(context, restore);
}

fn count(context: &Context, restore: &RestoreRun, status: &RestoreRunStatus) {
    let reason = condition::find(&status.conditions, condition::FAILED).map(|c| c.reason.as_str()).unwrap_or_default();
    let result = match condition::is_true(&status.conditions, condition::COMPLETE) {
        true => "Complete",
        false if reason == Reason::Cancelled.as_str() => "Cancelled",
        false => "Failed",
    };
    context.metrics.ended("RestoreRun", result, reason);
    let took = match (&status.start_time, &status.completion_time) {
        (Some(Time(start)), Some(Time(end))) => super::since(*start, *end).as_secs(),
        _ => 0,
    };
    tracing::info!(restore = write::full_name(&restore.metadata), result, reason, seconds = took, "The restore ended");
}
