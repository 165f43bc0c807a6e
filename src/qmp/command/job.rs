//! Commands about jobs. A job is known by its id; one that has ended stays until it is dismissed, for we always start
//! jobs with `auto-dismiss: false`: otherwise its outcome could not be known after a reconnect.

use serde::Serialize;

use super::{Command, Empty, queries};
use crate::qmp::block::{BlockJobInfo, JobInfo};

queries! {
    /// All jobs, with outcome and progress. Success is status `concluded` without an error.
    QueryJobs = "query-jobs" -> Vec<JobInfo>;
    /// The block jobs, with speed and I/O status; `device` is the job's id.
    QueryBlockJobs = "query-block-jobs" -> Vec<BlockJobInfo>;
}

/// Cancels a job, paused or not. The answer comes at once, the end later; nothing happens before a request in flight
/// returns. A concluded one is refused: "cannot accept command verb".
#[derive(Debug, Clone, Serialize)]
pub struct JobCancel {
    /// The job.
    pub id: String,
}

impl Command for JobCancel {
    const NAME: &'static str = "job-cancel";
    type Reply = Empty;
}

/// Makes a job stand still as soon as what it reads and writes now is done. One that somebody has paused, or that is
/// concluded, is refused.
#[derive(Debug, Clone, Serialize)]
pub struct JobPause {
    /// The job.
    pub id: String,
}

impl Command for JobPause {
    const NAME: &'static str = "job-pause";
    type Reply = Empty;
}

/// Lets a paused job go on. One that nobody has paused is refused.
#[derive(Debug, Clone, Serialize)]
pub struct JobResume {
    /// The job.
    pub id: String,
}

impl Command for JobResume {
    const NAME: &'static str = "job-resume";
    type Reply = Empty;
}

/// Forgets a job that is concluded.
#[derive(Debug, Clone, Serialize)]
pub struct JobDismiss {
    /// The job.
    pub id: String,
}

impl Command for JobDismiss {
    const NAME: &'static str = "job-dismiss";
    type Reply = Empty;
}

/// Takes what stands between an overlay and its base out of the chain, and what is allocated there into the overlay; the
/// overlay's header then names the base, with its format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockStream {
    /// The job's id.
    pub job_id: String,
    /// The overlay's node.
    pub device: String,
    /// The base's node.
    pub base_node: String,
    /// What the header is to call the base; QEMU's own name for it where none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_file: Option<String>,
}

impl Command for BlockStream {
    const NAME: &'static str = "block-stream";
    type Reply = Empty;
}

/// Bounds the bandwidth of a running block job.
#[derive(Debug, Clone, Serialize)]
pub struct BlockJobSetSpeed {
    /// The job's id.
    pub device: String,
    /// Bytes per second; 0 is no bound.
    pub speed: u64,
}

impl Command for BlockJobSetSpeed {
    const NAME: &'static str = "block-job-set-speed";
    type Reply = Empty;
}

/// Breaks connections that hang, out of band: QEMU answers it while its main loop waits for them.
#[derive(Debug, Clone, Serialize)]
pub struct Yank {
    /// What is broken.
    pub instances: Vec<YankInstance>,
}

/// Something with a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum YankInstance {
    /// A block node, such as one of NBD.
    BlockNode {
        /// Its name.
        node_name: String,
    },
}

impl Command for Yank {
    const NAME: &'static str = "yank";
    type Reply = Empty;
    const OUT_OF_BAND: bool = true;
}
