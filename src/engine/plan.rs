//! What an attempt does up to the instant, step by step, each with what undoes it. Pure: a function of the journal's
//! record alone, so that after a crash the same names come out again.

mod options;

use std::path::PathBuf;

use serde::Serialize;

use super::{
    journal::{Record, RecordDisk},
    sentinel::SOURCE_BITMAP,
};
use crate::{
    chain::{next::GRANULARITY, point::Parent},
    ids::{BitmapName, BitmapRole, DiskName, NodeRole},
    qmp::command::{Action, BackupPerf, BitmapAdd, BitmapMerge, BitmapMode, BitmapRef, BlockdevBackup, Sync},
};

pub use options::{filter_options, scratch_options, sentinel_options, snapshot_options, target_options};

/// One act of an attempt. Everything before `Send` can be undone without the guest having noticed anything.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "step", rename_all = "camelCase")]
pub enum Step {
    /// Makes the point's folder in the repository; it does not count before its manifest is there.
    CreatePoint,
    /// Makes the folder in which the images are staged.
    CreateStaging,
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
    /// Passes a scratch file of `limit` bytes at most to QEMU and opens it there.
    OpenScratch {
        /// The disk.
        disk: DiskName,
        /// The disk's size in bytes.
        virtual_size: u64,
        /// The most that the file can hold.
        limit: u64,
        /// The node that it becomes.
        node: String,
        /// The node of its file, below the format: warns when the limit is near.
        file: String,
        /// The word of its fd set.
        opaque: String,
    },
    /// Opens a node that keeps in the scratch what is overwritten. Nobody uses it yet.
    OpenFilter {
        /// The node.
        node: String,
        /// What it stands above: what the device has now, with the user's filters.
        over: String,
        /// The scratch.
        scratch: String,
    },
    /// Sends the first transaction of a fleeced run: from here on what is written is recorded, a moment before the instant.
    Record {
        /// Its actions.
        actions: Vec<Action>,
    },
    /// Puts the filters between the devices and their disks: the instant.
    Switch {
        /// Each device with its new node.
        drives: Vec<Drive>,
    },
    /// Opens what the disk was at the instant.
    OpenSnapshot {
        /// The node.
        node: String,
        /// The filter.
        filter: String,
    },
    /// Sends the transaction that starts the jobs: the instant, unless the run is fleeced.
    Send {
        /// Its actions.
        actions: Vec<Action>,
    },
}

/// A device and the node that it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drive {
    /// The device's QOM path or id.
    pub qdev: String,
    /// The node.
    pub node: String,
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
    /// Takes a filter away from between a device and its disk.
    SwitchBack {
        /// The device, with the filter.
        drive: Drive,
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
    /// Removes the staged images.
    DiscardStaging,
    /// Removes the point's folder with its files, unless its manifest is there.
    DiscardPoint,
}

/// The steps of an attempt, in their order.
pub fn steps(record: &Record) -> Vec<Step> {
    let mut steps = vec![Step::CreatePoint];
    if record.staging.is_some() {
        steps.push(Step::CreateStaging);
    }
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
    if record.is_fleeced() {
        steps.extend(fleece(record));
    } else {
        let actions = recording(record).into_iter().chain(increments(record)).chain(jobs(record)).collect();
        steps.push(Step::Send { actions });
    }
    steps
}

/// Checkpoint first: the other order loses writes from the next increment without a word (measured).
fn fleece(record: &Record) -> Vec<Step> {
    let mut steps = Vec::new();
    for (index, disk) in record.disks.iter().enumerate() {
        let node = |role| record.node(index, role);
        steps.push(Step::OpenScratch {
            disk: disk.name.clone(),
            virtual_size: disk.virtual_size,
            limit: disk.scratch.unwrap_or(0),
            node: node(NodeRole::Scratch),
            file: node(NodeRole::ScratchFile),
            opaque: record.fdset(index, NodeRole::Scratch),
        });
        let (over, scratch) = (disk.top.clone(), node(NodeRole::Scratch));
        steps.push(Step::OpenFilter { node: node(NodeRole::Filter), over, scratch });
    }
    steps.push(Step::Record { actions: recording(record) });
    let drive = |(index, disk): (usize, &RecordDisk)| Drive {
        qdev: disk.qdev.clone(),
        node: record.node(index, NodeRole::Filter),
    };
    steps.push(Step::Switch { drives: record.disks.iter().enumerate().map(drive).collect() });
    for index in 0..record.disks.len() {
        let (node, filter) = (record.node(index, NodeRole::Snapshot), record.node(index, NodeRole::Filter));
        steps.push(Step::OpenSnapshot { node, filter });
    }
    steps.push(Step::Send { actions: increments(record).into_iter().chain(jobs(record)).collect() });
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
            Self::CreateStaging => vec![Undo::DiscardStaging],
            // Goes with its folder.
            Self::CreateDisk { .. } | Self::StoreVariables { .. } => Vec::new(),
            Self::OpenTarget { node, opaque, .. } | Self::OpenSentinelSource { node, opaque, .. } => {
                vec![Undo::CloseNode { node: node.clone() }, Undo::RemoveFds { opaque: opaque.clone() }]
            }
            Self::OpenScratch { node, opaque, .. } => {
                vec![Undo::CloseNode { node: node.clone() }, Undo::RemoveFds { opaque: opaque.clone() }]
            }
            Self::OpenFilter { node, .. } | Self::OpenSnapshot { node, .. } => {
                vec![Undo::CloseNode { node: node.clone() }]
            }
            Self::Switch { drives } => drives.iter().map(|drive| Undo::SwitchBack { drive: drive.clone() }).collect(),
            Self::Record { actions } | Self::Send { actions } => {
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

/// Every checkpoint and sentinel. Individual completion, because grouped is refused together with bitmap actions; node names
/// only, because a `-drive` id has killed QEMU here.
fn recording(record: &Record) -> Vec<Action> {
    let mut actions = Vec::new();
    for (index, disk) in record.disks.iter().enumerate() {
        if disk.is_continued() {
            actions.push(add(record, disk, BitmapRole::Checkpoint, &disk.node));
        }
        if disk.needs_sentinel() {
            let source =
                BitmapRef { node: record.node(index, NodeRole::SentinelSource), name: SOURCE_BITMAP.to_owned() };
            actions.push(add(record, disk, BitmapRole::Sentinel, &disk.node));
            actions.push(merge(record, disk, BitmapRole::Sentinel, &disk.node, vec![source]));
        }
    }
    actions
}

/// What each increment copies.
fn increments(record: &Record) -> Vec<Action> {
    let mut actions = Vec::new();
    for (index, disk) in record.disks.iter().enumerate() {
        let Some(base) = disk.base() else { continue };
        // The sentinel's granule too: a disk that was shrunk within it is not noticed (measured: raw, by sectors).
        let here = |name: &BitmapName| BitmapRef { node: disk.node.clone(), name: name.to_string() };
        let source = source(record, index, disk);
        actions.push(add(record, disk, BitmapRole::Increment, &source));
        let bitmaps = vec![here(&base.checkpoint), here(&base.sentinel)];
        actions.push(merge(record, disk, BitmapRole::Increment, &source, bitmaps));
    }
    actions
}

/// The node that a disk's job copies; it has the increment's bitmap.
fn source(record: &Record, index: usize, disk: &RecordDisk) -> String {
    match disk.scratch {
        Some(_) => record.node(index, NodeRole::Snapshot),
        None => disk.node.clone(),
    }
}

/// How many requests each of so many jobs may have in flight. QEMU does the guest's requests and the jobs' by one pool of 64
/// threads, and a request to a target that hangs takes one out of it for as long (measured on 7.2 and 10.0; QEMU's default of 64
/// for each job leaves the guest none): all jobs together take a quarter of them.
pub fn workers(jobs: usize) -> u32 {
    u32::try_from(16 / jobs.max(1)).unwrap_or(1).max(1)
}

fn jobs(record: &Record) -> Vec<Action> {
    let mut actions = Vec::new();
    for (index, disk) in record.disks.iter().enumerate() {
        let target = record.node(index, NodeRole::Target);
        // Its bits stay: nothing that the next backup needs is given up here.
        let increment = || Sync::Bitmap {
            bitmap: record.bitmap(disk, BitmapRole::Increment).to_string(),
            bitmap_mode: BitmapMode::Never,
        };
        let sync = disk.base().map_or(Sync::Full, |_| increment());
        let mut backup = BlockdevBackup::new(record.job(disk).to_string(), source(record, index, disk), target, sync);
        backup.filter_node_name = Some(record.filter(index));
        backup.x_perf = record.workers.map(|max_workers| BackupPerf { max_workers });
        backup.speed = Some(record.bandwidth()).filter(|bandwidth| *bandwidth > 0);
        actions.push(Action::BlockdevBackup(backup));
    }
    actions
}

fn add(record: &Record, disk: &RecordDisk, role: BitmapRole, node: &str) -> Action {
    Action::BlockDirtyBitmapAdd(BitmapAdd {
        node: node.to_owned(),
        name: record.bitmap(disk, role).to_string(),
        granularity: GRANULARITY,
        persistent: disk.persistent && role != BitmapRole::Increment,
        disabled: role != BitmapRole::Checkpoint,
    })
}

fn merge(record: &Record, disk: &RecordDisk, role: BitmapRole, node: &str, bitmaps: Vec<BitmapRef>) -> Action {
    let target = record.bitmap(disk, role).to_string();
    Action::BlockDirtyBitmapMerge(BitmapMerge { node: node.to_owned(), target, bitmaps })
}

#[cfg(test)]
mod tests;
