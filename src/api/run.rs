//! Kind BackupRun: one backup of one guest. Pure.

mod way;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::way::{DataPath, Fleecing, FleecingMode, Quiesce, QuiesceMode, Transfer};

/// One backup of one guest.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "driftline.dev",
    version = "v1alpha1",
    kind = "BackupRun",
    plural = "backupruns",
    namespaced,
    shortname = "brun",
    category = "driftline",
    status = "BackupRunStatus",
    derive = "PartialEq",
    cel,
    doc = "One backup of one guest: applied, it runs once. Deleting it while it runs cancels it; deleting it afterwards deletes no backup data.",
    printcolumn(name = "Guest", type_ = "string", json_path = ".spec.guestRef.name", description = "The guest."),
    printcolumn(
        name = "Type",
        type_ = "string",
        json_path = ".status.type",
        description = "The type that the backup became."
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase", description = "How far it is."),
    printcolumn(
        name = "Progress",
        type_ = "string",
        json_path = ".status.progress",
        description = "Bytes copied, of all."
    ),
    printcolumn(
        name = "Size",
        type_ = "string",
        json_path = ".status.size",
        description = "Bytes stored, once known."
    ),
    printcolumn(
        name = "Duration",
        type_ = "string",
        json_path = ".status.duration",
        description = "From its start on an agent to its end."
    ),
    printcolumn(
        name = "Point",
        type_ = "string",
        json_path = ".status.restorePointRef.name",
        description = "The restore point that it made."
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        priority = 1,
        description = "Why it stands where it does."
    ),
    printcolumn(
        name = "Node",
        type_ = "string",
        json_path = ".status.agent.node",
        priority = 1,
        description = "The node on which it runs."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.guestRef == oldSelf.guestRef && self.repositoryRef == oldSelf.repositoryRef && self.type == oldSelf.type").message("guestRef, repositoryRef and type of a run cannot be changed: make a new BackupRun under another name"),
    validation = Rule::new("has(self.disks) == has(oldSelf.disks) && (!has(self.disks) || self.disks == oldSelf.disks)").message("disks of a run cannot be changed: make a new BackupRun under another name"),
    validation = Rule::new("has(self.fleecing) == has(oldSelf.fleecing) && (!has(self.fleecing) || self.fleecing == oldSelf.fleecing)").message("fleecing of a run cannot be changed: make a new BackupRun under another name"),
    validation = Rule::new("has(self.quiesce) == has(oldSelf.quiesce) && (!has(self.quiesce) || self.quiesce == oldSelf.quiesce)").message("quiesce of a run cannot be changed: make a new BackupRun under another name"),
    validation = Rule::new("(has(self.transfer) ? self.transfer.dataPath : 'Auto') == (has(oldSelf.transfer) ? oldSelf.transfer.dataPath : 'Auto')").message("of transfer only bandwidth can be changed: make a new BackupRun under another name"),
    validation = Rule::new("self.backoffLimit == oldSelf.backoffLimit && self.activeDeadline == oldSelf.activeDeadline && has(self.ttlAfterFinished) == has(oldSelf.ttlAfterFinished) && (!has(self.ttlAfterFinished) || self.ttlAfterFinished == oldSelf.ttlAfterFinished)").message("backoffLimit, activeDeadline and ttlAfterFinished of a run cannot be changed: make a new BackupRun under another name"),
    validation = Rule::new("!oldSelf.cancel || self.cancel").message("cancel cannot be taken back: make a new BackupRun under another name")
)]
pub struct BackupRunSpec {
    /// The guest to back up, in this namespace.
    pub guest_ref: GuestRef,
    /// The repository that takes the restore point.
    pub repository_ref: RepositoryRef,
    /// Auto (the default): of each disk what has changed since its last point, where that is known exactly, else all data,
    /// with the reason. Incremental: fails where that is not known. Full: all data, each disk the start of a new lineage.
    /// Copy: all data, and nothing continues the point. Example: `Full`.
    #[serde(default, rename = "type")]
    pub backup_type: BackupType,
    /// Which disks. Without it: all that can be backed up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<DiskSelection>,
    /// How the guest is kept from the repository, so that a slow or broken one cannot hurt it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleecing: Option<Fleecing>,
    /// Whether the guest agent freezes the guest's file systems for the instant. Without it: no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesce: Option<Quiesce>,
    /// How the data is carried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<Transfer>,
    /// Set to true to have the copy stand still, and to false to have it go on. Only a run that is fleeced can stand still, for
    /// an hour at most, in which what the guest overwrites fills the scratch folder; then it is cancelled. A run that has not
    /// been started waits until this is false. `activeDeadline` goes on counting. Default false.
    #[serde(default)]
    pub suspend: bool,
    /// Set to true to cancel the run. Once all data is copied a cancel comes too late and the run completes. It
    /// cannot be taken back.
    #[serde(default)]
    pub cancel: bool,
    /// How often a failed try is repeated, with pauses of 10s, 20s, 40s and so on up to 6m. What cannot be mended by
    /// trying again is not tried again. Default 2.
    #[serde(default = "default_backoff_limit")]
    #[schemars(range(min = 0, max = 100))]
    pub backoff_limit: i32,
    /// How long the run may take from its creation, waiting included; then it is cancelled and has failed. Default
    /// `24h`. Example: `6h`.
    #[serde(default = "default_active_deadline")]
    #[schemars(length(max = 28))]
    #[x_kube(validation = Rule::new(crate::api::duration::RULE).message(crate::api::duration::RULE_SAYS))]
    pub active_deadline: String,
    /// How long this object stays after the run has ended; then it is deleted. Its restore point stays. Without it the
    /// object stays until somebody deletes it. Example: `7d`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 28))]
    #[x_kube(validation = Rule::new(crate::api::duration::RULE).message(crate::api::duration::RULE_SAYS))]
    pub ttl_after_finished: Option<String>,
}

fn default_backoff_limit() -> i32 {
    2
}

fn default_active_deadline() -> String {
    "24h".to_owned()
}

/// A guest of the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GuestRef {
    /// Name of the `guests.driftline.dev` object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A repository.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryRef {
    /// Name of the `backuprepositories.driftline.dev` object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its namespace. Without it: the namespace of this object. Another one works only where the repository's
    /// `usagePolicy.allowedNamespaces` allows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
}

impl RepositoryRef {
    /// The repository's namespace, for an object that stands in `own`.
    pub fn namespace_or<'a>(&'a self, own: &'a str) -> &'a str {
        self.namespace.as_deref().unwrap_or(own)
    }
}

/// What a backup copies.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackupType {
    /// What has changed, where that is known exactly, else all data.
    #[default]
    Auto,
    /// What has changed, or nothing: the run fails.
    Incremental,
    /// All data; each disk starts a new lineage.
    Full,
    /// All data, outside of any lineage: nothing continues it.
    Copy,
}

impl BackupType {
    /// The word in specs and statuses.
    pub fn as_str(self) -> &'static str {
        match self {
            BackupType::Auto => "Auto",
            BackupType::Incremental => "Incremental",
            BackupType::Full => "Full",
            BackupType::Copy => "Copy",
        }
    }
}

/// Which disks of the guest.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.include) || !has(self.exclude) || !self.include.exists(d, d in self.exclude)").message("a disk stands in include and in exclude: leave it in one of them")
)]
pub struct DiskSelection {
    /// Only these disks, by the names that the Guest's `status.disks` shows. Without it: all that can be backed up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 128)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub include: Vec<String>,
    /// All but these disks. A name that no disk has is no error: the disk may be gone for good.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 128)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub exclude: Vec<String>,
}

/// What became of the freeze.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RunQuiesce {
    /// Frozen, or NotFrozen: the condition `Quiesced` says why.
    pub outcome: String,
    /// For how long the guest's file systems stood still, such as `12ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_for: Option<String>,
}

/// How far the run is.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BackupRunStatus {
    /// The `metadata.generation` that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Complete or Failed once the run has ended; CheckpointCreated from the instant on that the point holds; Quiesced then, where
    /// the guest was to be frozen; Suspended where
    /// it stands still, or was to; Ready, Reconciling and Stalled throughout.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Pending, Queued, Starting, Preparing, Copying, Suspended, Finishing, Complete or Failed. For the columns; the conditions
    /// are what to rely on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// Bytes copied, of all, such as `43%`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub progress: String,
    /// Bytes stored, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub size: String,
    /// From the start on an agent to the end, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub duration: String,
    /// When the run started on an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// The instant that the restore point holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_time: Option<Time>,
    /// When the run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// The type that was asked for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub requested_type: String,
    /// The type that it became: Full only if all disks are.
    #[serde(default, rename = "type", skip_serializing_if = "String::is_empty")]
    pub backup_type: String,
    /// Why it became that type.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub type_reason: String,
    /// Which way the data takes: Direct into the repository, or Staged by way of the host's scratch folder.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub data_path: String,
    /// Whether the run is fleeced: what it copies is read from a snapshot, so that a slow or broken repository cannot hurt the
    /// guest. One that is not is safe by its data path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleeced: Option<bool>,
    /// What became of the freeze of the guest's file systems, where one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesce: Option<RunQuiesce>,
    /// How far each disk is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub disks: Vec<RunDisk>,
    /// The restore point that the run made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_point_ref: Option<RestorePointRef>,
    /// The agent that does the work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<RunAgent>,
    /// How often the run was started, the current try included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<i32>,
    /// When the next try starts, after one that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_time: Option<Time>,
    /// How many runs of the same guest are in front of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<i32>,
}

/// One disk of a run.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RunDisk {
    /// The disk's name.
    pub name: String,
    /// The type that this disk's backup became.
    #[serde(default, rename = "type", skip_serializing_if = "String::is_empty")]
    pub backup_type: String,
    /// Why it became that type.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub type_reason: String,
    /// The block job's id in QEMU.
    #[serde(default, rename = "jobID", skip_serializing_if = "String::is_empty")]
    pub job_id: String,
    /// The job's status in QEMU's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub job_status: String,
    /// `ok`, or QEMU's word for the job's I/O error.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub io_status: String,
    /// Whether the job is paused.
    pub paused: bool,
    /// The job's limit in bytes per second; 0: none.
    pub speed: i64,
    /// Bytes to copy.
    pub total_bytes: i64,
    /// Bytes copied.
    pub done_bytes: i64,
    /// Bytes that the stored image takes.
    pub stored_bytes: i64,
    /// What went wrong with this disk.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// A restore point.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RestorePointRef {
    /// Name of the `restorepoints.driftline.dev` object.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

/// Who does the work of a run.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RunAgent {
    /// The agent's node.
    pub node: String,
    /// The agent's session: another one means that the agent was restarted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub session: String,
    /// When the agent last answered; set while it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_since: Option<Time>,
}

#[cfg(test)]
mod tests;
