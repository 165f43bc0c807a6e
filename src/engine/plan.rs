//! What an attempt does up to the instant, step by step, each with what undoes it. Pure: a function of the journal's
//! record alone, so that after a crash the same names come out again.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value, json};

use super::{
    journal::{Record, RecordDisk},
    sentinel::SOURCE_BITMAP,
};
use crate::{
    chain::{next::GRANULARITY, point::Parent},
    ids::{BitmapName, BitmapRole, DiskName, NodeRole},
    qmp::command::{Action, BitmapAdd, BitmapMerge, BitmapMode, BitmapRef, BlockdevBackup, Sync},
};

/// One act of an attempt. Everything before `Send` can be undone without the guest having noticed anything.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "step", rename_all = "camelCase")]
pub enum Step {
    /// Makes the point's folder in the repository; it does not count before its manifest is there.
    CreatePoint,
    /// Makes a disk's file and takes all the space that it can need.
    CreateDisk {
        /// The disk.
        disk: DiskName,
        /// Its size in bytes: QEMU refuses a target of any other.
        virtual_size: u64,
        /// The most that the file can grow to, in bytes.
        bound: u64,
        /// What it continues.
        #[serde(skip_serializing_if = "Option::is_none")]
        parent: Option<Parent>,
    },
    /// Stores the variables of the guest's firmware beside the disks.
    StoreVariables {
        /// The pflash drive.
        disk: DiskName,
        /// The file that QEMU has open.
        file: PathBuf,
    },
    /// Passes the disk's file to QEMU and opens it there.
    OpenTarget {
        /// The disk.
        disk: DiskName,
        /// The node that it becomes.
        node: String,
        /// The word of its fd set.
        opaque: String,
    },
    /// Passes the source of the sentinel's bits to QEMU and opens it there.
    OpenSentinelSource {
        /// The disk.
        disk: DiskName,
        /// The disk's size in bytes: QEMU merges only bitmaps of one size.
        virtual_size: u64,
        /// The node that it becomes.
        node: String,
        /// The word of its fd set.
        opaque: String,
    },
    /// Sends the transaction: the instant.
    Send {
        /// Its actions.
        actions: Vec<Action>,
    },
}

/// What undoes a step. Each is safe to do when the step was never done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "undo", rename_all = "camelCase")]
pub enum Undo {
    /// Ends a job and forgets it.
    EndJob {
        /// Its id.
        id: String,
    },
    /// Removes a bitmap of this attempt, on whatever node it is by now.
    RemoveBitmap {
        /// Its name.
        name: String,
    },
    /// Closes a node.
    CloseNode {
        /// Its name.
        node: String,
    },
    /// Gives up the fd set of that word.
    RemoveFds {
        /// The word.
        opaque: String,
    },
    /// Removes the point's folder with its files, unless its manifest is there.
    DiscardPoint,
}

/// The steps of an attempt, in their order.
pub fn steps(record: &Record) -> Vec<Step> {
    let mut steps = vec![Step::CreatePoint];
    for disk in &record.disks {
        steps.push(Step::CreateDisk {
            disk: disk.name.clone(),
            virtual_size: disk.virtual_size,
            bound: disk.bound,
            parent: disk.base().map(|base| base.parent.clone()),
        });
    }
    for variables in &record.variables {
        let step = |file: &PathBuf| Step::StoreVariables { disk: variables.disk.clone(), file: file.clone() };
        steps.extend(variables.file.as_ref().map(step));
    }
    for (index, disk) in record.disks.iter().enumerate() {
        steps.push(Step::OpenTarget {
            disk: disk.name.clone(),
            node: record.node(index, NodeRole::Target),
            opaque: record.fdset(index, NodeRole::Target),
        });
        if disk.needs_sentinel() {
            steps.push(Step::OpenSentinelSource {
                disk: disk.name.clone(),
                virtual_size: disk.virtual_size,
                node: record.node(index, NodeRole::SentinelSource),
                opaque: record.fdset(index, NodeRole::SentinelSource),
            });
        }
    }
    steps.push(Step::Send { actions: transaction(record) });
    steps
}

/// What undoes an attempt, whatever of it was done: the steps' undoing, the last one's first.
pub fn undo(record: &Record) -> Vec<Undo> {
    steps(record).iter().rev().flat_map(|step| step.undo()).collect()
}

impl Step {
    /// What undoes the step.
    pub fn undo(&self) -> Vec<Undo> {
        match self {
            Self::CreatePoint => vec![Undo::DiscardPoint],
            // Goes with the point's folder.
            Self::CreateDisk { .. } | Self::StoreVariables { .. } => Vec::new(),
            Self::OpenTarget { node, opaque, .. } | Self::OpenSentinelSource { node, opaque, .. } => {
                vec![Undo::CloseNode { node: node.clone() }, Undo::RemoveFds { opaque: opaque.clone() }]
            }
            Self::Send { actions } => {
                let jobs = actions.iter().filter_map(|action| match action {
                    Action::BlockdevBackup(backup) => Some(Undo::EndJob { id: backup.job_id.clone() }),
                    _ => None,
                });
                let bitmaps = actions.iter().filter_map(|action| match action {
                    Action::BlockDirtyBitmapAdd(add) => Some(Undo::RemoveBitmap { name: add.name.clone() }),
                    _ => None,
                });
                jobs.chain(bitmaps).collect()
            }
        }
    }
}

/// The one transaction of an attempt: every checkpoint and sentinel, what each increment copies, then every job. Checkpoint
/// first: the other order loses writes from the next increment without a word (measured). Individual completion, because
/// grouped is refused together with bitmap actions; node names only, because a `-drive` id has killed QEMU here.
fn transaction(record: &Record) -> Vec<Action> {
    let mut actions = Vec::new();
    for (index, disk) in record.disks.iter().enumerate() {
        if disk.is_continued() {
            actions.push(add(record, disk, BitmapRole::Checkpoint));
        }
        if disk.needs_sentinel() {
            let source =
                BitmapRef { node: record.node(index, NodeRole::SentinelSource), name: SOURCE_BITMAP.to_owned() };
            actions.push(add(record, disk, BitmapRole::Sentinel));
            actions.push(merge(record, disk, BitmapRole::Sentinel, vec![source]));
        }
        if let Some(base) = disk.base() {
            // The sentinel's granule too: a disk that was shrunk within it is not noticed (measured: raw, by sectors).
            let here = |name: &BitmapName| BitmapRef { node: disk.node.clone(), name: name.to_string() };
            actions.push(add(record, disk, BitmapRole::Increment));
            let sources = vec![here(&base.checkpoint), here(&base.sentinel)];
            actions.push(merge(record, disk, BitmapRole::Increment, sources));
        }
    }
    for (index, disk) in record.disks.iter().enumerate() {
        let target = record.node(index, NodeRole::Target);
        // Its bits stay: nothing that the next backup needs is given up here.
        let increment = || Sync::Bitmap {
            bitmap: record.bitmap(disk, BitmapRole::Increment).to_string(),
            bitmap_mode: BitmapMode::Never,
        };
        let sync = disk.base().map_or(Sync::Full, |_| increment());
        let mut backup = BlockdevBackup::new(record.job(disk).to_string(), disk.node.clone(), target, sync);
        backup.filter_node_name = Some(record.filter(index));
        backup.speed = (record.request.bandwidth > 0).then_some(record.request.bandwidth);
        actions.push(Action::BlockdevBackup(backup));
    }
    actions
}

fn add(record: &Record, disk: &RecordDisk, role: BitmapRole) -> Action {
    Action::BlockDirtyBitmapAdd(BitmapAdd {
        node: disk.node.clone(),
        name: record.bitmap(disk, role).to_string(),
        granularity: GRANULARITY,
        persistent: disk.persistent && role != BitmapRole::Increment,
        disabled: role != BitmapRole::Checkpoint,
    })
}

fn merge(record: &Record, disk: &RecordDisk, role: BitmapRole, bitmaps: Vec<BitmapRef>) -> Action {
    let target = record.bitmap(disk, role).to_string();
    Action::BlockDirtyBitmapMerge(BitmapMerge { node: disk.node.clone(), target, bitmaps })
}

/// `blockdev-add` of a target: the parent of its header is not opened, and zeros that are written become holes.
pub fn target_options(node: &str, fdset: i64) -> Value {
    json!({
        "driver": "qcow2",
        "node-name": node,
        "backing": null,
        "detect-zeroes": "on",
        "discard": "unmap",
        "file": {"driver": "file", "filename": format!("/dev/fdset/{fdset}")},
    })
}

/// `blockdev-add` of the source of a sentinel's bits.
pub fn sentinel_options(node: &str, fdset: i64) -> Value {
    json!({
        "driver": "qcow2",
        "node-name": node,
        "read-only": true,
        "file": {"driver": "file", "filename": format!("/dev/fdset/{fdset}"), "read-only": true},
    })
}

#[cfg(test)]
mod tests;
