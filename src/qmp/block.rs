//! What QEMU answers about disks, jobs and the guest's state, as types. Pure. The field names are QAPI's
//! (`qapi/block-core.json`, `qapi/job.json`, `qapi/run-state.json`); what nobody here reads is left out.

use serde::Deserialize;
use serde_json::Value;

/// One entry of `query-block`: a device or drive.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BlockDevice {
    /// The `-drive` id; empty for `-blockdev` with `-device`. Never to be used as an address.
    pub device: String,
    /// The device's QOM path or id, such as `/machine/peripheral/disk0/virtio-backend` or `disk1`.
    pub qdev: Option<String>,
    /// True for CD-ROM and floppy drives.
    #[serde(default)]
    pub removable: bool,
    /// `ok`, `failed` or `nospace`, for devices that have one.
    #[serde(rename = "io-status")]
    pub io_status: Option<String>,
    /// The top node; none in an empty drive.
    pub inserted: Option<BlockNode>,
}

/// The QOM path of a device by its path or id.
pub fn qom_path(qdev: &str) -> String {
    if qdev.starts_with('/') { qdev.to_owned() } else { format!("/machine/peripheral/{qdev}") }
}

/// A node, in `query-block` and `query-named-block-nodes`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BlockNode {
    /// Such as `n0`, or `#block123` where QEMU made one up.
    #[serde(rename = "node-name", default)]
    pub node_name: String,
    /// The driver, such as `qcow2`, `raw`, `file`, `copy-before-write`.
    pub drv: String,
    /// True when it is open for reading only.
    pub ro: bool,
    /// The file or the pseudo protocol's text.
    pub file: String,
    /// True when QEMU itself decrypts it.
    #[serde(default)]
    pub encrypted: bool,
    /// The image's facts.
    pub image: ImageInfo,
    /// The bitmaps on this very node.
    #[serde(rename = "dirty-bitmaps", default)]
    pub dirty_bitmaps: Vec<DirtyBitmap>,
}

/// The facts of an image.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfo {
    /// Its file.
    pub filename: String,
    /// Its format or driver.
    pub format: String,
    /// The size that the guest sees, in bytes.
    pub virtual_size: u64,
    /// Bytes taken on the host, where known.
    pub actual_size: Option<u64>,
    /// Bytes of a cluster, for formats that have them.
    pub cluster_size: Option<u32>,
    /// The backing file as the header names it.
    pub backing_filename: Option<String>,
    /// The format's own facts.
    pub format_specific: Option<FormatSpecific>,
}

/// Facts of one format.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct FormatSpecific {
    /// Such as `qcow2`.
    #[serde(rename = "type")]
    pub kind: String,
    /// For qcow2: `compat`, `corrupt`, `extended-l2` and others.
    #[serde(default)]
    pub data: Value,
}

/// A dirty bitmap.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct DirtyBitmap {
    /// None for those that QEMU makes for its jobs.
    pub name: Option<String>,
    /// Bytes that one bit stands for.
    pub granularity: u32,
    /// Bytes that are marked.
    pub count: u64,
    /// True while it records, or will again when the job that uses it ends.
    pub recording: bool,
    /// True while a job or an export uses it; then its count stands still.
    pub busy: bool,
    /// True when it is stored in the image at a clean end.
    pub persistent: bool,
    /// True after a crash: good for nothing but removal.
    #[serde(default)]
    pub inconsistent: bool,
}

/// The block graph: what `x-debug-query-block-graph` returns.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BlockGraph {
    /// Nodes, jobs and devices.
    pub nodes: Vec<GraphNode>,
    /// Who uses whom.
    pub edges: Vec<GraphEdge>,
}

impl BlockGraph {
    /// The node that a node uses by an edge of that name, such as `file`.
    pub fn child(&self, node: &str, edge: &str) -> Option<&str> {
        let id = self.id(node)?;
        let edge = self.edges.iter().find(|one| one.parent == id && one.name == edge)?;
        self.name(edge.child)
    }

    /// The node that uses a node by an edge of that name, such as `backing`.
    pub fn parent(&self, node: &str, edge: &str) -> Option<&str> {
        let id = self.id(node)?;
        let edge = self.edges.iter().find(|one| one.child == id && one.name == edge)?;
        self.name(edge.parent)
    }

    fn id(&self, node: &str) -> Option<u64> {
        let is = |one: &&GraphNode| one.kind == GraphNodeKind::BlockDriver && one.name == node;
        self.nodes.iter().find(is).map(|one| one.id)
    }

    fn name(&self, id: u64) -> Option<&str> {
        self.nodes.iter().find(|node| node.id == id).map(|node| node.name.as_str())
    }
}

/// One member of the block graph.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct GraphNode {
    /// Valid within this one answer.
    pub id: u64,
    /// The node's, job's, drive's or device's name.
    pub name: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: GraphNodeKind,
}

/// What a member of the block graph is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GraphNodeKind {
    /// A node.
    BlockDriver,
    /// A device, drive or export.
    BlockBackend,
    /// A job.
    BlockJob,
    /// One that this build does not know.
    #[serde(untagged)]
    Other(String),
}

/// One edge: the parent uses the child.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GraphEdge {
    /// The user's id.
    pub parent: u64,
    /// The used one's id.
    pub child: u64,
    /// As what: `file`, `backing`, `root`, `target`, `main node`.
    pub name: String,
    /// What the parent does with it, such as `write`.
    #[serde(default)]
    pub perm: Vec<String>,
    /// What it lets others do meanwhile.
    #[serde(default)]
    pub shared_perm: Vec<String>,
}

/// A job in `query-jobs`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct JobInfo {
    /// Its id.
    pub id: String,
    /// Such as `backup`, `commit`, `mirror`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where it stands.
    pub status: JobStatus,
    /// Units done; bytes for a backup. Jumps to the total at a cancel: no sign of success.
    pub current_progress: u64,
    /// Units in all, as far as known; bytes for a backup.
    pub total_progress: u64,
    /// Why it failed. `concluded` without it is success.
    pub error: Option<String>,
}

/// Where a job stands.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobStatus {
    /// Not started yet.
    Created,
    /// At work.
    Running,
    /// Stands still: by a person, an I/O error, or for a moment inside QEMU.
    Paused,
    /// Could be completed (mirror, commit).
    Ready,
    /// Could be completed, stands still.
    Standby,
    /// Done; waits for the others of its transaction.
    Waiting,
    /// Done; waits for `job-finalize`.
    Pending,
    /// On its way to failure.
    Aborting,
    /// Ended; waits for `job-dismiss`.
    Concluded,
    /// Gone.
    Null,
    /// One that this build does not know.
    #[serde(untagged)]
    Other(String),
}

/// A job in `query-block-jobs`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockJobInfo {
    /// The job's id, whatever the key says.
    pub device: String,
    /// Such as `backup`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Bytes in all.
    pub len: u64,
    /// Bytes done.
    pub offset: u64,
    /// Bytes per second at most; 0 is no bound.
    pub speed: u64,
    /// True while it does something.
    pub busy: bool,
    /// True when it stands still, whoever wished it and however shortly.
    pub paused: bool,
    /// True when it waits to be completed.
    pub ready: bool,
    /// `ok`, `failed` or `nospace`.
    pub io_status: String,
    /// Where it stands.
    pub status: JobStatus,
}

/// A set of passed descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FdSet {
    /// Its number, as in `/dev/fdset/<id>`.
    pub fdset_id: i64,
    /// What is in it.
    pub fds: Vec<FdSetMember>,
}

/// A passed descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct FdSetMember {
    /// Its number inside QEMU.
    pub fd: i64,
    /// The word that came with it.
    pub opaque: Option<String>,
}

/// What `query-status` returns.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct StatusInfo {
    /// The state.
    pub status: RunState,
    /// True when the guest's processors run.
    pub running: bool,
}

/// The machine's state.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// It runs.
    Running,
    /// Stopped by a person or program.
    Paused,
    /// Started with `-S` and never run.
    Prelaunch,
    /// Stopped by an I/O error of a disk.
    IoError,
    /// Waits for a migration that comes in. Not ours to touch.
    Inmigrate,
    /// Ends a migration that goes out. Not ours to touch.
    FinishMigrate,
    /// Was migrated away. Not ours to touch.
    Postmigrate,
    /// Any other: `shutdown`, `suspended`, `guest-panicked`, `watchdog`, `debug`, `internal-error`, …
    #[serde(untagged)]
    Other(String),
}

/// What `query-migrate` returns, as far as it matters: whether one goes on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationInfo {
    /// Such as `setup`, `active`, `completed`; none where there never was one.
    pub status: Option<String>,
    /// Why it failed, where QEMU says so (10.0 does, 7.2 does not always; measured).
    pub error_desc: Option<String>,
}

/// A property in `qom-list`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct QomProperty {
    /// Its name.
    pub name: String,
    /// Such as `child<virtio-blk-pci>` or `string`.
    #[serde(rename = "type")]
    pub kind: String,
}

#[cfg(test)]
mod tests;
