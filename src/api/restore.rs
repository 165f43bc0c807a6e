//! Kind RestoreRun: one restore of one point. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::run::RunAgent;

/// One restore of one point.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "driftline.dev",
    version = "v1alpha1",
    kind = "RestoreRun",
    plural = "restoreruns",
    namespaced,
    shortname = "rrun",
    category = "driftline",
    status = "RestoreRunStatus",
    derive = "PartialEq",
    cel,
    doc = "One restore of one restore point: applied, it runs once. Deleting it while it runs cancels it.",
    printcolumn(
        name = "Point",
        type_ = "string",
        json_path = ".spec.restorePointRef.name",
        description = "The restore point."
    ),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode", description = "How it is restored."),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase", description = "How far it is."),
    printcolumn(
        name = "Progress",
        type_ = "string",
        json_path = ".status.progress",
        description = "Bytes written, of all."
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
        json_path = ".spec.target.nodeName",
        priority = 1,
        description = "The node to which it restores."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.restorePointRef == oldSelf.restorePointRef && self.mode == oldSelf.mode && self.target == oldSelf.target && self.format == oldSelf.format && self.overwritePolicy == oldSelf.overwritePolicy && self.verify == oldSelf.verify").message("a restore cannot be changed but by cancel: make a new RestoreRun under another name"),
    validation = Rule::new("!oldSelf.cancel || self.cancel").message("cancel cannot be taken back: make a new RestoreRun under another name")
)]
pub struct RestoreRunSpec {
    /// The restore point, in this namespace.
    pub restore_point_ref: PointRef,
    /// Flatten (the default): one new image per disk that needs no other file.
    #[serde(default)]
    pub mode: RestoreMode,
    /// Where to.
    pub target: RestoreTarget,
    /// Format of the new images: Qcow2 (the default) or Raw.
    #[serde(default)]
    pub format: ImageFormat,
    /// What happens where a target file is there already. Never (the default): the restore is refused. Always: the
    /// file is replaced once the new image is whole.
    #[serde(default)]
    pub overwrite_policy: OverwritePolicy,
    /// Digest (the default): every cluster of the new image is compared with its stored digest before the image gets
    /// its name. None: not compared.
    #[serde(default)]
    pub verify: Verify,
    /// Set to true to cancel the restore; what it wrote is removed. It cannot be taken back.
    #[serde(default)]
    pub cancel: bool,
}

/// A restore point of the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PointRef {
    /// Name of the `restorepoints.driftline.dev` object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// How a point is restored.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestoreMode {
    /// One new image per disk that needs no other file.
    #[default]
    Flatten,
}

/// Format of a restored image.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageFormat {
    /// QEMU's own format: sparse on every file system.
    #[default]
    Qcow2,
    /// The bytes of the disk, with holes where it was empty.
    Raw,
}

/// What happens where a target file is there already.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OverwritePolicy {
    /// The restore is refused.
    #[default]
    Never,
    /// The file is replaced once the new image is whole.
    Always,
}

/// How a restored image is checked.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// Every cluster is compared with its stored digest.
    #[default]
    Digest,
    /// Not at all.
    None,
}

/// Where a restore writes to.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RestoreTarget {
    /// The node that gets the images.
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
    /// The disks to restore; disks of the point that are not named are left out.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".into()]),
        validation = Rule::new("self.all(a, self.exists_one(b, b.path == a.path))").message("two disks have the same path: give each disk its own file")
    )]
    pub disks: Vec<TargetDisk>,
}

/// One disk of a restore.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TargetDisk {
    /// The disk's name in the restore point.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// The new image's absolute path on the node, beneath one of the `restoreRoots` that the host's own configuration
    /// gives to this namespace. Example: `/var/lib/machines/team-a/db-1.qcow2`.
    #[schemars(length(min = 2, max = 1024))]
    #[x_kube(
        validation = Rule::new("self.startsWith('/')").message("path must be absolute, such as /var/lib/machines/team-a/db-1.qcow2"),
        validation = Rule::new("!self.split('/').exists(p, p == '..' || p == '.')").message("path must not contain . or .. components: write the file's real path"),
        validation = Rule::new("!self.endsWith('/') && !self.contains('//')").message("path must name a file: no // and no / at its end")
    )]
    pub path: String,
}

/// How far the restore is.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RestoreRunStatus {
    /// The `metadata.generation` that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Complete or Failed once the restore has ended; Verified where digests were compared; Ready, Reconciling and
    /// Stalled throughout.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Pending, Starting, Preparing, Copying, Verifying, Complete or Failed. For the columns; the conditions are what
    /// to rely on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// Bytes written, of all, such as `43%`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub progress: String,
    /// When the restore started on an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the restore ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// How far each disk is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub disks: Vec<RestoreDisk>,
    /// The agent that does the work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<RunAgent>,
}

/// One disk of a restore.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RestoreDisk {
    /// The disk's name.
    pub name: String,
    /// The new image.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Bytes to write.
    pub total_bytes: i64,
    /// Bytes written.
    pub done_bytes: i64,
    /// The points read, the restored one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restore(disks: &[(&str, &str)]) -> RestoreRun {
        let disks = disks.iter().map(|(n, p)| TargetDisk { name: (*n).to_owned(), path: (*p).to_owned() }).collect();
        RestoreRun::new(
            "r",
            RestoreRunSpec {
                restore_point_ref: PointRef { name: "p".to_owned() },
                mode: RestoreMode::Flatten,
                target: RestoreTarget { node_name: "n".to_owned(), disks },
                format: ImageFormat::Raw,
                overwrite_policy: OverwritePolicy::Never,
                verify: Verify::Digest,
                cancel: false,
            },
        )
    }

    #[test]
    fn each_disk_needs_its_own_file() {
        restore(&[("a", "/x/a"), ("b", "/x/b")]).validate_cel().unwrap();
        assert!(restore(&[("a", "/x/a"), ("b", "/x/a")]).validate_cel().is_err());
    }

    #[test]
    fn a_path_that_climbs_or_names_no_file_is_refused() {
        for path in ["x", "//x", "/x/../y", "/x/./y", "/x/", "/x//y"] {
            assert!(restore(&[("a", path)]).validate_cel().is_err(), "{path}");
        }
    }

    #[test]
    fn a_restore_changes_by_cancel_alone_and_cancel_stays() {
        let old = restore(&[("a", "/x/a")]);
        let mut cancelled = old.clone();
        cancelled.spec.cancel = true;
        cancelled.validate_cel_update(&old).unwrap();
        assert!(old.validate_cel_update(&cancelled).is_err());
        let changes: [fn(&mut RestoreRunSpec); 5] = [
            |s| s.restore_point_ref.name = "q".to_owned(),
            |s| s.target.node_name = "m".to_owned(),
            |s| s.format = ImageFormat::Qcow2,
            |s| s.overwrite_policy = OverwritePolicy::Always,
            |s| s.verify = Verify::None,
        ];
        for change in changes {
            let mut new = old.clone();
            change(&mut new.spec);
            assert!(new.validate_cel_update(&old).is_err(), "{new:?}");
        }
    }
}
