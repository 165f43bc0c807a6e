//! What the journal holds about one attempt at one run. Pure. All names that the attempt uses in QEMU and in the
//! repository are computed from here, so that whoever reads the record knows everything that it can have left behind.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    chain::next::{BackupType, Base, Choice},
    engine::{course::Course, quiesce::Quiesced, request::BackupRequest},
    ids::{AttemptId, BitmapName, BitmapRole, DiskName, JobId, LineageId, NodeName, NodeRole, PointId},
    qmp::Process,
};

/// One attempt at one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The record's own format: 1.
    pub format: u32,
    /// Where the attempt stands.
    pub state: State,
    /// What was asked for.
    pub request: BackupRequest,
    /// When the run was taken up.
    pub started: Timestamp,
    /// Attempts begun, this one included.
    pub attempts: u32,
    /// This attempt.
    pub attempt: AttemptId,
    /// The point that it makes.
    pub point: PointId,
    /// QEMU's process; "QEMU is gone" is proven by it, never by a refused connection. None where it is not seen.
    pub process: Option<Process>,
    /// The monitor's socket, by which a person finds the run. Empty in a record of an earlier version.
    #[serde(default)]
    pub monitor: PathBuf,
    /// QEMU's version.
    pub qemu: String,
    /// Whether the guest was not stopped by an I/O error when the attempt began.
    pub guest_was_well: bool,
    /// The disks.
    pub disks: Vec<RecordDisk>,
    /// How many requests each job may have in flight; none where this QEMU cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<u32>,
    /// The scratch folder in which the images are staged; none where QEMU writes those of the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staging: Option<PathBuf>,
    /// Whether the guest may stand still because of the attempt: then it is continued before anything else.
    #[serde(default)]
    pub stopping: bool,
    /// Whether the guest may be frozen because of the attempt: then it is thawed before anything else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub freezing: bool,
    /// What became of the freeze that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesced: Option<Quiesced>,
    /// What is wished of its course.
    #[serde(default, skip_serializing_if = "Course::is_default")]
    pub course: Course,
    /// The block graph as it was resolved, for the manifest.
    #[serde(default)]
    pub block_graph: serde_json::Value,
    /// QEMU's command line without its secrets, for the manifest. None where the process is not seen.
    #[serde(default)]
    pub command_line: Option<Vec<String>>,
    /// The firmware's variables, which are stored beside the disks.
    #[serde(default)]
    pub variables: Vec<RecordVariables>,
    /// Whether the manifest may have been written: true from just before that on. A record of an earlier version does not tell.
    #[serde(default = "untold")]
    pub committing: bool,
    /// Whether the run was told as ended while nobody knew whether the attempt was committed: whatever is found, that stands.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub told: bool,
    /// Whether the attempt was set aside for a time. Later runs may have been committed since: what they build on is not known
    /// to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
}

/// The variables of a guest's firmware: a small file of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordVariables {
    /// The pflash drive.
    pub disk: DiskName,
    /// The file, by the name that QEMU knows it under. None where the file is not what the machine reads: QEMU keeps parts
    /// of a qcow2 to itself while it runs (measured on QEMU 7.2), and a raw file can be a part of another one.
    pub file: Option<PathBuf>,
}

/// The states of an attempt. `committed` has none: the manifest is the commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "camelCase")]
pub enum State {
    /// Files, nodes and descriptors may exist; the transaction was not sent.
    Intent,
    /// The transaction may have been sent.
    Sending {
        /// The clock just before: the instant of the point.
        at: Timestamp,
    },
    /// The transaction was done: the jobs are, or were, in QEMU.
    Running {
        /// The instant of the point.
        at: Timestamp,
    },
    /// Every job ended without error, every target was closed, every file synced. From here on QEMU is not needed.
    Copied {
        /// The instant of the point.
        at: Timestamp,
    },
    /// It is being undone.
    Failing(Failure),
}

/// Why an attempt is undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The reason word.
    pub reason: String,
    /// The same as a sentence.
    pub message: String,
    /// Whether trying again can help.
    pub retriable: bool,
    /// Whether somebody wished it.
    #[serde(default)]
    pub cancelled: bool,
}

/// One disk of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordDisk {
    /// The disk.
    pub name: DiskName,
    /// The format node, in the QEMU process of the record only.
    pub node: String,
    /// The node that the device uses, likewise.
    pub top: String,
    /// Its lineage.
    pub lineage: LineageId,
    /// Its size in bytes.
    pub virtual_size: u64,
    /// Whether its bitmaps are stored in the image.
    pub persistent: bool,
    /// The type, what it builds on, and why.
    pub choice: Choice,
    /// The most that its file can grow to, in bytes; allocated before the start.
    pub bound: u64,
    /// The device's QOM path or id, by which its node is changed.
    #[serde(default)]
    pub qdev: String,
    /// The most bytes of the scratch that may take what the guest overwrites; only where the run is fleeced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch: Option<u64>,
    /// What the job copied in all, in bytes; known from `copied` on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied: Option<u64>,
}

impl RecordDisk {
    /// What the increment builds on; none for what stands alone.
    pub fn base(&self) -> Option<&Base> {
        self.choice.base.as_ref()
    }

    /// Whether later points can continue this one.
    pub fn is_continued(&self) -> bool {
        self.choice.kind != BackupType::Copy
    }

    /// Whether the disk gets a sentinel: one for each lineage, and for each size that it has had.
    pub fn needs_sentinel(&self) -> bool {
        self.is_continued() && self.base().is_none_or(|base| base.resized)
    }
}

impl Record {
    /// The format that this version writes, and the newest that it reads.
    pub const FORMAT: u32 = 1;

    /// The instant of the point, once there is one.
    pub fn checkpoint_time(&self) -> Option<Timestamp> {
        match &self.state {
            State::Intent | State::Failing(_) => None,
            State::Sending { at } | State::Running { at } | State::Copied { at } => Some(*at),
        }
    }

    /// Whether the point's manifest can be in the repository.
    pub fn may_be_committed(&self) -> bool {
        self.committing && self.disks.iter().all(|disk| disk.copied.is_some())
    }

    /// Whether the jobs read from a snapshot, so that their targets cannot hurt the guest.
    pub fn is_fleeced(&self) -> bool {
        self.disks.iter().any(|disk| disk.scratch.is_some())
    }

    /// Bytes per second over each disk's job; 0 is without a limit.
    pub fn bandwidth(&self) -> u64 {
        self.course.bandwidth.unwrap_or(self.request.bandwidth)
    }

    /// The most bytes of the scratch folder that the attempt may take.
    pub fn scratch_bytes(&self) -> u64 {
        let staged = |disk: &RecordDisk| if self.staging.is_some() { disk.bound } else { 0 };
        let of = |disk: &RecordDisk| disk.scratch.unwrap_or(0).saturating_add(staged(disk));
        self.disks.iter().map(of).fold(0, u64::saturating_add)
    }

    /// Those of them that may not be allocated yet: a scratch is a sparse file without a name, of which only QEMU knows how
    /// far it is; staged images are whole when the attempt leaves its first state.
    pub fn sparse_scratch_bytes(&self) -> u64 {
        if self.state == State::Intent {
            return self.scratch_bytes();
        }
        self.disks.iter().filter_map(|disk| disk.scratch).fold(0, u64::saturating_add)
    }

    /// The job of a disk.
    pub fn job(&self, disk: &RecordDisk) -> JobId {
        JobId { attempt: self.attempt.clone(), lineage: disk.lineage.clone() }
    }

    /// A node of ours for the disk at `index`.
    pub fn node(&self, index: usize, role: NodeRole) -> String {
        let index = u16::try_from(index).unwrap_or(u16::MAX);
        NodeName { attempt: self.attempt.clone(), index, role }.to_string()
    }

    /// A bitmap of ours on a disk.
    pub fn bitmap(&self, disk: &RecordDisk, role: BitmapRole) -> BitmapName {
        BitmapName::new(&self.request.repository.id, &self.point, &disk.lineage, role)
    }

    /// The filter that the job of the disk at `index` puts above its node.
    pub fn filter(&self, index: usize) -> String {
        format!("dl-{}-{index}-f", self.attempt)
    }

    /// The word by which the fd set of a node of ours is found again.
    pub fn fdset(&self, index: usize, role: NodeRole) -> String {
        format!("{}.{index}.{}", self.attempt.fdset_opaque(), role.as_str())
    }

    /// Whether the block node is of the attempt.
    pub fn owns_node(&self, name: &str) -> bool {
        name.strip_prefix("dl-")
            .and_then(|rest| rest.strip_prefix(self.attempt.as_str()))
            .is_some_and(|rest| rest.starts_with('-'))
    }

    /// The repository's folder.
    pub fn repository(&self) -> &PathBuf {
        &self.request.repository.path
    }
}

fn untold() -> bool {
    true
}
