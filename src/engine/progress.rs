//! How a run stands, as the world sees it, and the fold that keeps it: what QEMU says of the jobs goes in, the state
//! comes out. Pure. Events only wake the engine; `query-jobs` decides, so a fold over the newest answers is enough.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    course::{Course, OwnerWish},
    journal::{Record, RecordDisk, State},
    quiesce::Quiesced,
    request::BackupRequest,
};
use crate::{
    chain::{
        next::{BackupType, RequestedType, TypeReason},
        point::Point,
    },
    ids::{AttemptId, DiskName, JobId},
    qmp::block::{BlockJobInfo, JobInfo, JobStatus},
    repo::manifest::Manifest,
};

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Waits for the guest's lock.
    Waiting,
    /// Targets are being made.
    Preparing,
    /// The checkpoint stands, the jobs are copying.
    Copying,
    /// Every byte is copied and flushed: checks, digests, manifest.
    Finishing,
    /// The point is durable.
    Complete,
    /// Nothing was committed; the reason says why.
    Failed,
    /// Nothing was committed, as somebody wished.
    Cancelled,
}

impl Phase {
    /// Whether the run has ended; it never changes from then on.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Complete | Self::Failed | Self::Cancelled)
    }
}

/// One run's state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunState {
    /// The run's uid.
    pub run: String,
    /// Where it stands.
    pub phase: Phase,
    /// Why it failed, was cancelled or waits, as a word; empty otherwise.
    pub reason: String,
    /// The same as a sentence.
    pub message: String,
    /// When the engine took it up.
    pub start_time: Timestamp,
    /// The instant that the point shows, once it stands.
    pub checkpoint_time: Option<Timestamp>,
    /// When it ended.
    pub completion_time: Option<Timestamp>,
    /// What was asked for.
    pub requested_type: RequestedType,
    /// What it became: full only if all disks are.
    #[serde(rename = "type")]
    pub kind: Option<BackupType>,
    /// Why.
    pub type_reason: Option<TypeReason>,
    /// Whether the copy goes by way of the scratch folder.
    #[serde(default)]
    pub staged: bool,
    /// Whether it is read from a snapshot, so that its target cannot hurt the guest.
    #[serde(default)]
    pub fleeced: bool,
    /// What became of the freeze that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesced: Option<Quiesced>,
    /// Bytes per second that were asked for, over each disk's job; 0 is without a limit.
    #[serde(default)]
    pub requested_bandwidth: u64,
    /// What is wished of its course, as the journal has it.
    #[serde(default)]
    pub course: Course,
    /// What this process has heard of whoever asked for it.
    #[serde(default)]
    pub heard: OwnerWish,
    /// Each disk.
    pub disks: Vec<DiskState>,
    /// Attempts begun so far.
    pub attempts: u32,
    /// The point, once it is durable.
    pub point: Option<Box<CommittedPoint>>,
    /// Whether trying again can help, when failed.
    pub retriable: bool,
}

/// A point that a run made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommittedPoint {
    /// The manifest as it was written.
    pub manifest: Manifest,
    /// The manifest's digest.
    pub manifest_digest: String,
    /// The point and those that it builds on.
    #[serde(default)]
    pub chain: Vec<Point>,
}

/// One disk of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskState {
    /// The disk.
    pub name: DiskName,
    /// What is stored of it.
    #[serde(rename = "type")]
    pub kind: BackupType,
    /// Why.
    pub type_reason: TypeReason,
    /// The job in QEMU.
    pub job_id: JobId,
    /// QEMU's word for the job's state; empty while there is none.
    pub job_status: String,
    /// QEMU's word for the state of the job's I/O; empty while there is none.
    pub io_status: String,
    /// Whether the job stands still.
    pub paused: bool,
    /// Bytes per second allowed; 0 is without a limit.
    pub speed: u64,
    /// Bytes to copy.
    pub total_bytes: u64,
    /// Bytes copied; during `Finishing` all of them.
    pub done_bytes: u64,
    /// Bytes that the stored file takes, once it is sealed.
    pub stored_bytes: u64,
    /// What QEMU says went wrong.
    pub error: String,
}

impl RunState {
    /// A run that has not begun.
    pub fn waiting(request: &BackupRequest, now: Timestamp) -> Self {
        Self {
            run: request.run.clone(),
            phase: Phase::Waiting,
            reason: String::new(),
            message: String::new(),
            start_time: now,
            checkpoint_time: None,
            completion_time: None,
            requested_type: request.kind,
            kind: None,
            type_reason: None,
            staged: false,
            fleeced: false,
            quiesced: None,
            requested_bandwidth: request.bandwidth,
            course: Course::default(),
            heard: OwnerWish::default(),
            disks: Vec::new(),
            attempts: 0,
            point: None,
            retriable: false,
        }
    }

    /// Takes over what the journal says, without losing what QEMU said of jobs that are still the same.
    pub fn follow_record(&mut self, record: &Record) {
        self.start_time = record.started;
        self.attempts = record.attempts;
        // While it is being sent, nobody knows whether there is an instant yet: whoever writes then may still be in it.
        self.checkpoint_time = record.checkpoint_time().filter(|_| !matches!(record.state, State::Sending { .. }));
        (self.kind, self.type_reason) = common_type(record).unzip();
        (self.staged, self.fleeced) = (record.staging.is_some(), record.is_fleeced());
        self.quiesced = record.quiesced.clone();
        self.course = record.course;
        let known = std::mem::take(&mut self.disks);
        self.disks = record
            .disks
            .iter()
            .map(|disk| {
                let job_id = JobId { attempt: record.attempt.clone(), lineage: disk.lineage.clone() };
                known.iter().find(|old| old.job_id == job_id).cloned().unwrap_or_else(|| DiskState {
                    name: disk.name.clone(),
                    kind: disk.choice.kind,
                    type_reason: disk.choice.reason,
                    job_id,
                    job_status: String::new(),
                    io_status: String::new(),
                    paused: false,
                    speed: record.bandwidth(),
                    total_bytes: disk.virtual_size,
                    done_bytes: 0,
                    stored_bytes: 0,
                    error: String::new(),
                })
            })
            .collect();
    }

    /// Takes over what `query-jobs` and `query-block-jobs` say. QEMU pauses jobs for instants, such as around a drain: that is
    /// nobody's wish, and is not shown.
    pub fn follow_jobs(&mut self, jobs: &[JobInfo], block_jobs: &[BlockJobInfo]) {
        let suspended = self.course.is_suspended();
        for disk in &mut self.disks {
            let id = disk.job_id.to_string();
            if let Some(job) = jobs.iter().find(|job| job.id == id) {
                let status =
                    if job.status == JobStatus::Paused && !suspended { &JobStatus::Running } else { &job.status };
                disk.job_status = status_word(status).to_owned();
                disk.total_bytes = job.total_progress;
                disk.done_bytes = job.current_progress;
                disk.error = job.error.clone().unwrap_or_default();
            }
            if let Some(job) = block_jobs.iter().find(|job| job.device == id) {
                disk.io_status.clone_from(&job.io_status);
                disk.paused = job.paused && suspended;
                disk.speed = job.speed;
            }
        }
    }

    /// Ends the run without a point.
    pub fn fail(&mut self, failure: &super::journal::Failure, now: Timestamp) {
        self.phase = if failure.cancelled { Phase::Cancelled } else { Phase::Failed };
        self.reason.clone_from(&failure.reason);
        self.message.clone_from(&failure.message);
        self.retriable = failure.retriable;
        self.completion_time = Some(now);
    }

    /// Ends the run with its point.
    pub fn complete(&mut self, point: CommittedPoint, now: Timestamp) {
        self.phase = Phase::Complete;
        self.reason.clear();
        self.message.clear();
        self.retriable = false;
        self.completion_time = Some(now);
        for disk in &mut self.disks {
            disk.done_bytes = disk.total_bytes;
            if let Some(stored) = point.manifest.storage.disks.iter().find(|stored| stored.name == disk.name) {
                disk.stored_bytes = stored.bytes;
            }
        }
        self.point = Some(Box::new(point));
    }

    /// The attempt that the disks' jobs belong to.
    pub fn attempt(&self) -> Option<&AttemptId> {
        self.disks.first().map(|disk| &disk.job_id.attempt)
    }
}

/// The type and reason that stand for the whole run: it is incremental if any disk is, and says why a disk is not.
fn common_type(record: &Record) -> Option<(BackupType, TypeReason)> {
    let increment = |disk: &&RecordDisk| disk.choice.kind == BackupType::Incremental;
    let telling = record.disks.iter().find(|disk| !increment(disk)).or(record.disks.first())?;
    let kind = record.disks.iter().find(increment).map_or(telling.choice.kind, |disk| disk.choice.kind);
    Some((kind, telling.choice.reason))
}

/// QEMU's word for a job's status.
pub fn status_word(status: &JobStatus) -> &str {
    match status {
        JobStatus::Created => "created",
        JobStatus::Running => "running",
        JobStatus::Paused => "paused",
        JobStatus::Ready => "ready",
        JobStatus::Standby => "standby",
        JobStatus::Waiting => "waiting",
        JobStatus::Pending => "pending",
        JobStatus::Aborting => "aborting",
        JobStatus::Concluded => "concluded",
        JobStatus::Null => "null",
        JobStatus::Other(word) => word,
    }
}

#[cfg(test)]
mod tests;
