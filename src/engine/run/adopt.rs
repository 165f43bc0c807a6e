//! What a person asks for with `recover --adopt`: jobs, nodes and descriptors of our shape that no journal of this host
//! knows are removed from QEMU. Without that word they are foreign and left alone.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::{
    engine::{EngineError, journal::Journal},
    ids::{AttemptId, JobId},
    qmp::{
        Client, Command, ExecuteError, Monitor,
        block::JobStatus,
        command::{BlockdevDel, JobCancel, JobDismiss, QueryFdsets, QueryJobs, QueryNamedBlockNodes, RemoveFd},
    },
};

/// How long a cancelled job may take to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Removes them; says what was removed.
pub(in crate::engine) async fn adopt(monitor: &Monitor, journal: &Journal) -> Result<Vec<String>, EngineError> {
    let client = monitor.client().await.map_err(|source| EngineError::Connect { source })?;
    let known: BTreeSet<_> =
        journal.all().map_err(EngineError::Journal)?.into_iter().map(|record| record.attempt).collect();
    let mut removed = Vec::new();
    end_jobs(&client, &known, &mut removed).await?;
    for node in ask(&client, &QueryNamedBlockNodes { flat: true }).await? {
        if is_unknown(attempt_of_node(&node.node_name), &known) {
            ask(&client, &BlockdevDel { node_name: node.node_name.clone() }).await?;
            removed.push(format!("node {}", node.node_name));
        }
    }
    for set in ask(&client, &QueryFdsets {}).await? {
        let attempt = set.fds.iter().find_map(|fd| attempt_of_fd(fd.opaque.as_deref()?));
        if is_unknown(attempt, &known) {
            ask(&client, &RemoveFd { fdset_id: set.fdset_id }).await?;
            removed.push(format!("descriptor set {}", set.fdset_id));
        }
    }
    Ok(removed)
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

fn attempt_of_fd(opaque: &str) -> Option<AttemptId> {
    opaque.strip_prefix("driftline.")?.get(..8)?.parse().ok()
}

async fn ask<C: Command>(client: &Client, command: &C) -> Result<C::Reply, EngineError> {
    let act = format!("Removing what an unknown attempt left ({})", C::NAME);
    client.execute(command).await.map_err(|source| EngineError::Qemu { act, source })
}
