//! Commands about disks: nodes, descriptors, bitmaps, backups and the transaction that binds them to one instant.
//!
//! Nodes are always addressed by node name. A `-drive` id resolves to whatever node is on top, such as a job's filter,
//! and has killed QEMU in a transaction (see `quirks`).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Command, Empty, queries};
use crate::qmp::block::{BlockDevice, BlockGraph, BlockNode, FdSet};

queries! {
    /// The devices with their top nodes.
    QueryBlock = "query-block" -> Vec<BlockDevice>;
    /// All nodes and edges of the block graph. Unstable by name; seen the same from QEMU 5.2 to 10.0.
    QueryBlockGraph = "x-debug-query-block-graph" -> BlockGraph;
    /// The descriptors that were passed to QEMU.
    QueryFdsets = "query-fdsets" -> Vec<FdSet>;
}

/// All nodes with images and bitmaps.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct QueryNamedBlockNodes {
    /// Without the nested images of backing files, which `true` leaves out.
    pub flat: bool,
}

impl Command for QueryNamedBlockNodes {
    const NAME: &'static str = "query-named-block-nodes";
    type Reply = Vec<BlockNode>;
}

/// Takes the descriptor that is sent with it (`Client::execute_with_fd`). Each stays until `remove-fd`: QEMU 10.0 keeps
/// it even when the client is gone.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct AddFd {
    /// The set that it joins; a new one without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fdset_id: Option<i64>,
    /// A word by which it is found again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opaque: Option<String>,
}

/// What `add-fd` returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AddedFd {
    /// The set: nodes open it as `/dev/fdset/<id>`.
    pub fdset_id: i64,
    /// The descriptor's number inside QEMU.
    pub fd: i64,
}

impl Command for AddFd {
    const NAME: &'static str = "add-fd";
    type Reply = AddedFd;
}

/// Closes a set's descriptors, as soon as no node uses them.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RemoveFd {
    /// The set.
    pub fdset_id: i64,
}

impl Command for RemoveFd {
    const NAME: &'static str = "remove-fd";
    type Reply = Empty;
}

/// Opens a node.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct BlockdevAdd {
    /// `BlockdevOptions` of QAPI: `driver`, `node-name` and what the driver needs.
    pub options: Value,
}

impl Command for BlockdevAdd {
    const NAME: &'static str = "blockdev-add";
    type Reply = Empty;
    const DEADLINE: Duration = Duration::from_secs(60);
}

/// Closes a node. For a target its answer is the flush: before it the file may be empty inside, whatever the job said
/// (measured); so it may take as long as the storage does.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevDel {
    /// The node.
    pub node_name: String,
}

impl Command for BlockdevDel {
    const NAME: &'static str = "blockdev-del";
    type Reply = Empty;
    const DEADLINE: Duration = Duration::from_secs(600);
}

/// Asks for one `BLOCK_WRITE_THRESHOLD`, at the first write behind an offset of a node.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockSetWriteThreshold {
    /// The node.
    pub node_name: String,
    /// The offset in bytes; 0: no event.
    pub write_threshold: u64,
}

impl Command for BlockSetWriteThreshold {
    const NAME: &'static str = "block-set-write-threshold";
    type Reply = Empty;
}

/// Does all of its actions or none, at one instant. Individual completion only: grouped is refused together with
/// bitmap actions by every QEMU (measured).
#[derive(Debug, Clone, Serialize)]
pub struct Transaction {
    /// In this order.
    pub actions: Vec<Action>,
}

impl Command for Transaction {
    const NAME: &'static str = "transaction";
    type Reply = Empty;
    // Requests in flight are drained first.
    const DEADLINE: Duration = Duration::from_secs(120);
}

/// One act of a transaction.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
pub enum Action {
    /// Makes a bitmap.
    BlockDirtyBitmapAdd(BitmapAdd),
    /// Removes one.
    BlockDirtyBitmapRemove(BitmapRef),
    /// Empties one.
    BlockDirtyBitmapClear(BitmapRef),
    /// Lets one record. In a transaction only for a bitmap that the same transaction adds: `quirks` refuses others.
    BlockDirtyBitmapEnable(BitmapRef),
    /// Freezes one.
    BlockDirtyBitmapDisable(BitmapRef),
    /// Adds the bits of others to one.
    BlockDirtyBitmapMerge(BitmapMerge),
    /// Starts a copy.
    BlockdevBackup(BlockdevBackup),
}

/// Arguments that make a bitmap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BitmapAdd {
    /// The node it is on.
    pub node: String,
    /// Its name, at most 1023 bytes.
    pub name: String,
    /// Bytes that one bit stands for. Given always: by default it is the image's cluster size, 4 KiB on some.
    pub granularity: u32,
    /// Stored in the image at a clean end; only qcow2 v3 can.
    pub persistent: bool,
    /// Made frozen.
    pub disabled: bool,
}

/// A bitmap by its node and name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BitmapRef {
    /// The node it is on.
    pub node: String,
    /// Its name.
    pub name: String,
}

/// Arguments of a merge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BitmapMerge {
    /// The node of the bitmap that gains bits.
    pub node: String,
    /// Its name.
    pub target: String,
    /// Those whose bits it gains, of any node of the same size.
    pub bitmaps: Vec<BitmapRef>,
}

/// Makes a bitmap, outside of a transaction.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct BlockDirtyBitmapAdd(pub BitmapAdd);

impl Command for BlockDirtyBitmapAdd {
    const NAME: &'static str = "block-dirty-bitmap-add";
    type Reply = Empty;
}

/// Removes a bitmap, outside of a transaction. A persistent one is gone from the image at once.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct BlockDirtyBitmapRemove(pub BitmapRef);

impl Command for BlockDirtyBitmapRemove {
    const NAME: &'static str = "block-dirty-bitmap-remove";
    type Reply = Empty;
}

/// Empties a bitmap, outside of a transaction.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct BlockDirtyBitmapClear(pub BitmapRef);

impl Command for BlockDirtyBitmapClear {
    const NAME: &'static str = "block-dirty-bitmap-clear";
    type Reply = Empty;
}

/// Copies a node's content of the instant of its start into another node of exactly the same size.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevBackup {
    /// The job's id. QEMU accepts two backups of one node: the id is the only lock.
    pub job_id: String,
    /// The node that is copied.
    pub device: String,
    /// The node that is written.
    pub target: String,
    /// What is copied.
    #[serde(flatten)]
    pub sync: Sync,
    /// Always false here: an ended job that dismissed itself has no outcome any more.
    pub auto_dismiss: bool,
    /// The name of the filter that QEMU puts above the node while the job runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter_node_name: Option<String>,
    /// Bytes per second; without it no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<u64>,
    /// How it works; from QEMU 6.0 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_perf: Option<BackupPerf>,
}

/// How a backup works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BackupPerf {
    /// How many requests it may have in flight; QEMU's own default is 64.
    pub max_workers: u32,
}

impl BlockdevBackup {
    /// The job `job_id` that copies node `device` into node `target` and waits for its dismissal at the end.
    pub fn new(job_id: impl Into<String>, device: impl Into<String>, target: impl Into<String>, sync: Sync) -> Self {
        Self {
            job_id: job_id.into(),
            device: device.into(),
            target: target.into(),
            sync,
            auto_dismiss: false,
            filter_node_name: None,
            speed: None,
            x_perf: None,
        }
    }
}

impl Command for BlockdevBackup {
    const NAME: &'static str = "blockdev-backup";
    type Reply = Empty;
    const DEADLINE: Duration = Duration::from_secs(120);
}

/// What a backup copies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "sync", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Sync {
    /// All that the disk shows, its backing files' content included.
    Full,
    /// What the top image itself has allocated.
    Top,
    /// Only what is about to be overwritten. Ends only by a cancel.
    None,
    /// What a bitmap marks.
    Bitmap {
        /// The bitmap, on the copied node.
        bitmap: String,
        /// What becomes of it.
        bitmap_mode: BitmapMode,
    },
}

/// What becomes of the bitmap of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BitmapMode {
    /// It keeps its bits.
    Never,
    /// It loses the bits that were copied, if all were.
    OnSuccess,
    /// It loses those that were copied.
    Always,
}
