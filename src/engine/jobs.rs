//! The jobs of a machine, ours and others', for a person: what QEMU tells of each.

use serde::Serialize;

use super::{EngineError, progress::status_word};
use crate::{
    ids::JobId,
    qmp::{
        Client,
        block::{BlockJobInfo, JobInfo},
        command::{Command, QueryBlockJobs, QueryJobs},
    },
};

/// One job, as it is printed too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobFacts {
    /// Its id.
    pub id: String,
    /// Such as `backup`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Such as `running`.
    pub status: String,
    /// Whether Driftline has started it.
    pub ours: bool,
    /// Bytes in all.
    pub length: u64,
    /// Bytes done.
    pub offset: u64,
    /// None of a job of another kind.
    #[serde(flatten)]
    pub block: Option<BlockJobFacts>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What block jobs have beside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockJobFacts {
    /// Whether it does something at this instant.
    pub busy: bool,
    /// Whether it stands still: by a person, an I/O error, or for a moment inside QEMU.
    pub paused: bool,
    /// Whether it waits to be completed.
    pub ready: bool,
    /// Such as `ok`.
    pub io_status: String,
    /// Bytes per second at most; 0 is without a limit.
    pub speed: u64,
}

/// Asks for all of them.
///
/// # Errors
/// When QEMU does not say.
pub async fn jobs(client: &Client) -> Result<Vec<JobFacts>, EngineError> {
    let failed = |command| move |source| EngineError::Inspect { command, source };
    let jobs = client.execute(&QueryJobs {}).await.map_err(failed(QueryJobs::NAME))?;
    let block_jobs = client.execute(&QueryBlockJobs {}).await.map_err(failed(QueryBlockJobs::NAME))?;
    Ok(jobs.iter().map(|job| JobFacts::new(job, &block_jobs)).collect())
}

impl JobFacts {
    fn new(job: &JobInfo, block_jobs: &[BlockJobInfo]) -> Self {
        let block = block_jobs.iter().find(|block| block.device == job.id).map(|block| BlockJobFacts {
            busy: block.busy,
            paused: block.paused,
            ready: block.ready,
            io_status: block.io_status.clone(),
            speed: block.speed,
        });
        Self {
            ours: job.id.parse::<JobId>().is_ok(),
            id: job.id.clone(),
            kind: job.kind.clone(),
            status: status_word(&job.status).to_owned(),
            length: job.total_progress,
            offset: job.current_progress,
            block,
            error: job.error.clone(),
        }
    }
}
