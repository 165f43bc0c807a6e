//! What a person asks for with `recover --adopt`: jobs, nodes and descriptors of our shape that no journal of this host
//! knows are removed from QEMU. Without that word they are foreign and left alone. And what each recovery removes:
//! bitmaps that are of no use to anybody.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::{
    descriptors::attempts,
    doors,
    fleece::{below, set_drive},
    overlay::free,
};
use crate::{
    engine::{EngineError, graph::inspect, journal::Journal, orphans},
    ids::{AttemptId, GuestId, JobId, NodeRole, RepositoryId},
    qmp::{
        Client, Command, ExecuteError, Monitor,
        block::JobStatus,
        command::{
            BlockDirtyBitmapRemove, BlockdevDel, JobCancel, JobDismiss, QueryBlock, QueryBlockGraph, QueryFdsets,
            QueryJobs, QueryNamedBlockNodes, RemoveFd,
        },
    },
};

/// How long a cancelled job may take to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Removes them; says what was removed.
pub(in crate::engine) async fn adopt(
    monitor: &Monitor,
    journal: &Journal,
    guest: &GuestId,
) -> Result<Vec<String>, EngineError> {
    let client = monitor.client().await.map_err(|source| EngineError::Connect { source })?;
    let known: BTreeSet<_> =
        journal.all().map_err(EngineError::Journal)?.into_iter().map(|record| record.attempt).collect();
    let mut removed = Vec::new();
    end_jobs(&client, &known, &mut removed).await?;
    let mut nodes: Vec<String> =
        ask(&client, &QueryNamedBlockNodes { flat: true }).await?.into_iter().map(|node| node.node_name).collect();
    // A scratch's file goes with its scratch.
    let of_its_own = |node: &String| role(node) != Some(NodeRole::ScratchFile);
    nodes.retain(|node| of_its_own(node) && is_unknown(attempt_of_node(node), &known));
    nodes.sort_by_key(|node| order(node));
    for node_name in nodes {
        let named = format!("node {node_name}");
        if role(&node_name) == Some(NodeRole::Filter) {
            switch_back(&client, &node_name).await?;
        }
        ask(&client, &BlockdevDel { node_name }).await?;
        removed.push(named);
    }
    let mut kept = journal.kept(guest).map_err(EngineError::Journal)?;
    for set in ask(&client, &QueryFdsets {}).await? {
        if is_unknown(attempts(&set).next(), &known) {
            ask(&client, &RemoveFd { fdset_id: set.fdset_id }).await?;
            removed.push(format!("descriptor set {}", set.fdset_id));
            kept.extend(attempts(&set));
        }
    }
    // QEMU may have kept them: whoever tries again finds out.
    journal.set_kept(guest, &kept).map_err(EngineError::Journal)?;
    Ok(removed)
}

/// Removes bitmaps of the repository that nobody can use any more; says which.
pub(in crate::engine) async fn remove_useless_bitmaps(
    monitor: &Monitor,
    journal: &Journal,
    repository: &RepositoryId,
) -> Result<Vec<String>, EngineError> {
    let client = monitor.client().await.map_err(|source| EngineError::Connect { source })?;
    let in_flight = journal.in_flight(None).map_err(EngineError::Journal)?;
    let guest = inspect(&client).await?;
    let mut removed = Vec::new();
    for bitmap in orphans::at_recovery(&guest.disks, repository, &in_flight) {
        let named = format!("bitmap {} of node {}", bitmap.name, bitmap.node);
        ask(&client, &BlockDirtyBitmapRemove(bitmap)).await?;
        removed.push(named);
    }
    Ok(removed)
}

/// What is used by others goes after them: a fleece from its snapshot down.
fn order(node: &str) -> usize {
    let first = [NodeRole::Snapshot, NodeRole::Filter, NodeRole::Scratch];
    first.iter().position(|role| self::role(node) == Some(*role)).unwrap_or(first.len())
}

fn role(node: &str) -> Option<NodeRole> {
    let (_, end) = node.rsplit_once('-')?;
    NodeRole::ALL.into_iter().find(|role| role.as_str() == end)
}

/// Every device that has the filter gets what is below it; so does an overlay.
async fn switch_back(client: &Client, filter: &str) -> Result<(), EngineError> {
    let graph = ask(client, &QueryBlockGraph {}).await?;
    let Some(below) = below(&graph, filter) else { return Ok(()) };
    for device in ask(client, &QueryBlock {}).await? {
        let has = device.inserted.is_some_and(|node| node.node_name == filter);
        if let Some(qdev) = device.qdev.filter(|_| has) {
            ask(client, &set_drive(&qdev, below)).await?;
        }
    }
    free(client, filter).await
}

async fn end_jobs(client: &Client, known: &BTreeSet<AttemptId>, removed: &mut Vec<String>) -> Result<(), EngineError> {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut left = None;
        for job in ask(client, &QueryJobs {}).await? {
            let attempt = job.id.parse::<JobId>().ok().map(|id| id.attempt);
            if !is_unknown(attempt, known) {
                continue;
            }
            if job.status == JobStatus::Concluded {
                ask(client, &JobDismiss { id: job.id.clone() }).await?;
                removed.push(format!("job {}", job.id));
                continue;
            }
            match client.execute(&JobCancel { id: job.id.clone() }).await {
                // It is ending already.
                Ok(_) | Err(ExecuteError::Qemu { .. }) => left = Some(job.id),
                Err(source) => return Err(EngineError::Qemu { act: "Cancelling a job".to_owned(), source }),
            }
        }
        let Some(job) = left else { return Ok(()) };
        if Instant::now() > until {
            return Err(EngineError::JobStuck { job });
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn is_unknown(attempt: Option<AttemptId>, known: &BTreeSet<AttemptId>) -> bool {
    attempt.is_some_and(|attempt| !known.contains(&attempt))
}

fn attempt_of_node(name: &str) -> Option<AttemptId> {
    name.strip_prefix("dl-")?.get(..8)?.parse().ok()
}

async fn ask<C: Command>(client: &Client, command: &C) -> Result<C::Reply, EngineError> {
    doors::ask(client, &format!("Removing what nobody needs ({})", C::NAME), command).await
}
