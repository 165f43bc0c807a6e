//! What follows a run's end (edge): its point is shown, and it is counted.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::events::EventType;

use super::{OnAgent, Started, Target, World};
use crate::{
    api::{BackupRun, BackupRunStatus, condition, run::RestorePointRef, words::Reason},
    controller::{context::Context, error::Error, point, repository, since, write},
    rpc::v1,
    sentence::sentence,
};

/// Shows the point that a run made.
pub(super) async fn show_point(
    context: &Context,
    run: &BackupRun,
    target: &Target,
    state: &v1::RunState,
) -> Result<Option<RestorePointRef>, Error> {
    let (Some((repository, id)), Some(made)) = (&target.repository, &state.point) else { return Ok(None) };
    // A run's summary tells of a point that was just committed on a chain that was just checked.
    let made = v1::Point { chain_intact: true, ..made.clone() };
    let uid = repository.metadata.uid.clone().unwrap_or_default();
    let known = context.catalogue.place(&uid, &made.id);
    let Some(name) = known.or_else(|| point::place(context, repository, id, &made)) else { return Ok(None) };
    context.catalogue.add(&uid, id, name.clone(), made.clone());
    match point::make(context, repository, &name, &made, id).await {
        Ok(()) => {}
        // The namespace is going, or somebody else holds the name: the run is complete all the same, must not be held by
        // its finalizer, and the point is shown when its repository is looked at and it can be.
        Err(error) if error.is_refusal() => {
            let note = format!("The point {} is safe in the repository, but not shown: {}", made.id, sentence(&error));
            let reason = Reason::PointNotShown.as_str();
            write::event(context, run, EventType::Warning, reason, "Backup", &note).await;
            return Ok(None);
        }
        Err(error) => return Err(error),
    }
    context.points.wake(&name.0, &name.1);
    repository::wake(context, repository);
    Ok(Some(RestorePointRef { name: name.1, namespace: name.0 }))
}

/// Counts a run that ended.
pub(super) fn count(context: &Context, run: &BackupRun, status: &BackupRunStatus, world: &World) {
    let failed = condition::find(&status.conditions, condition::FAILED);
    let reason = failed.map(|c| c.reason.as_str()).unwrap_or_default();
    let result = match condition::is_true(&status.conditions, condition::COMPLETE) {
        true => "Complete",
        false if reason == Reason::Cancelled.as_str() => "Cancelled",
        false => "Failed",
    };
    context.metrics.ended("BackupRun", result, reason);
    if let (Some(Started { on_agent: OnAgent::State(state), .. }), Some(Time(start)), Some(Time(end))) =
        (&world.started, &status.start_time, &status.completion_time)
        && result == "Complete"
    {
        let bytes = state.point.iter().flat_map(|p| &p.disks).map(|d| d.stored_bytes).sum();
        context.metrics.complete(bytes, since(*start, *end));
    }
    tracing::info!(run = write::full_name(&run.metadata), result, reason, "The run ended");
}
