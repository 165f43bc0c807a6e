//! Kind Guest: a machine that an agent sees, written by the controller from the agents' own reports. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// A running or stopped QEMU machine that an agent found on its node.
///
/// Guests are made by the controller, in the namespace that the host's own file names. One made by hand stays
/// `Ready=False` with the reason `NotDiscovered` and is never backed up.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "driftline.dev",
    version = "v1alpha1",
    kind = "Guest",
    plural = "guests",
    namespaced,
    shortname = "gst",
    category = "driftline",
    status = "GuestStatus",
    derive = "PartialEq",
    cel,
    doc = "A QEMU machine that an agent sees on its node. Made by the controller from the host's own files; one made by hand is never backed up.",
    printcolumn(
        name = "Node",
        type_ = "string",
        json_path = ".status.node",
        description = "The node whose agent sees the guest."
    ),
    printcolumn(
        name = "Power",
        type_ = "string",
        json_path = ".status.powerState",
        description = "Running, Paused, Off, IOError or Migrating."
    ),
    printcolumn(
        name = "Disks",
        type_ = "string",
        json_path = ".status.eligibleDisks",
        description = "Disks that can be backed up, of all."
    ),
    printcolumn(
        name = "Last-Point",
        type_ = "date",
        json_path = ".status.lastRestorePoint.checkpointTime",
        description = "How long ago the newest restore point was taken."
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether the guest can be backed up now."
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        description = "Why it is ready, or why not."
    ),
    printcolumn(
        name = "QEMU",
        type_ = "string",
        json_path = ".status.qemuVersion",
        priority = 1,
        description = "The version of QEMU that runs it."
    ),
    printcolumn(
        name = "UUID",
        type_ = "string",
        json_path = ".status.uuid",
        priority = 1,
        description = "The machine's identity."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct GuestSpec {}

/// What the agent reports about the guest.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GuestStatus {
    /// The `metadata.generation` that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Reconciling and Stalled, each with a reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The machine's UUID, as QEMU or the host's file gives it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uuid: String,
    /// The node whose agent sees the guest.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// Running, Paused, Off, IOError (stopped by an error of a disk) or Migrating.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub power_state: String,
    /// The version of QEMU that runs the guest.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub qemu_version: String,
    /// How the agent speaks to the machine: QMP.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub connection: String,
    /// What this QEMU can do that backups make use of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// What is peculiar about this QEMU: what its version does to a guest at commands that Driftline therefore never sends it
    /// (docs/qemu.md has the words), such as `FleecingUnsafe`.
    /// `OwnFileSystem`: it runs in a container, so its points have no command line and no firmware variables.
    /// `FileSystemUnknown`: the same, because the agent cannot see whether it does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quirks: Vec<String>,
    /// The guest's disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<GuestDisk>,
    /// Disks that can be backed up, of all, such as `2/3`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub eligible_disks: String,
    /// The newest restore point of this guest that its repositories hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_restore_point: Option<LastRestorePoint>,
}

/// One disk of a guest.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GuestDisk {
    /// The device's id, or its QOM path; this is the name to write in `spec.disks` of a run.
    pub name: String,
    /// The device in QEMU's own terms.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub qdev: String,
    /// The block node of the active layer.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node_name: String,
    /// The driver of the node on which backups work.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub driver: String,
    /// The image's format, such as `qcow2` or `raw`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub format: String,
    /// The image's file on the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// Size of the disk as the guest sees it, in bytes.
    pub virtual_size: i64,
    /// Whether the disk can be backed up.
    pub eligible: bool,
    /// Why it cannot.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ineligible_reason: String,
    /// The disk's dirty bitmaps; those of other programs are shown and left alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bitmaps: Vec<DiskBitmap>,
}

/// A dirty bitmap on a disk.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DiskBitmap {
    /// The bitmap's name in QEMU.
    pub name: String,
    /// Bytes that it marks as written.
    pub bytes: i64,
    /// Whether Driftline made it.
    pub ours: bool,
}

/// The newest restore point of a guest.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LastRestorePoint {
    /// Name of the `restorepoints.driftline.dev` object.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The instant that it holds.
    pub checkpoint_time: Time,
}
