//! Kind RestorePoint: stored data, a view that the controller writes from the repository's manifests. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::run::RepositoryRef;

/// A restore point that a repository holds.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "driftline.dev",
    version = "v1alpha1",
    kind = "RestorePoint",
    plural = "restorepoints",
    namespaced,
    shortname = "rpt",
    category = "driftline",
    status = "RestorePointStatus",
    derive = "PartialEq",
    cel,
    doc = "Stored data of one guest at one instant: a view that the controller writes from the repository. Deleting it deletes no data, and it comes back; one made by hand does nothing.",
    printcolumn(name = "Guest", type_ = "string", json_path = ".spec.guest.name", description = "The guest."),
    printcolumn(
        name = "Type",
        type_ = "string",
        json_path = ".status.type",
        description = "Full, or what it builds on."
    ),
    printcolumn(
        name = "Time",
        type_ = "date",
        json_path = ".status.checkpointTime",
        description = "How long ago the instant was that it holds."
    ),
    printcolumn(
        name = "Size",
        type_ = "string",
        json_path = ".status.size",
        description = "Bytes that it takes in the repository."
    ),
    printcolumn(
        name = "Chain",
        type_ = "integer",
        json_path = ".status.chainLength",
        description = "Points that a restore of it reads."
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether the repository holds it and all that it builds on."
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        priority = 1,
        description = "Why it is available, or why not."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("a restore point cannot be changed: it shows what the repository holds"))]
pub struct RestorePointSpec {
    /// The point's id in its repository.
    #[serde(rename = "pointID")]
    #[schemars(length(min = 26, max = 26), regex(pattern = r"^[0-9a-hjkmnp-tv-z]{26}$"))]
    pub point_id: String,
    /// The guest whose data it is.
    pub guest: PointGuest,
    /// The repository that holds it.
    pub repository_ref: RepositoryRef,
}

/// The guest of a point, as the manifest names it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PointGuest {
    /// The machine's UUID.
    #[schemars(length(min = 36, max = 36), regex(pattern = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"))]
    pub uuid: String,
    /// The guest's name when the point was taken.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What the repository's manifest says about the point.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RestorePointStatus {
    /// The `metadata.generation` that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Available (the repository holds it), ChainIntact (and every point that it builds on), Ready (both), Reconciling
    /// and Stalled, each with a reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The instant that it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_time: Option<Time>,
    /// Full only if every disk is.
    #[serde(default, rename = "type", skip_serializing_if = "String::is_empty")]
    pub backup_type: String,
    /// Crash: as after a loss of power at that instant. Application: the guest had flushed its file systems.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub consistency: String,
    /// Its number among the guest's points in this repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<i64>,
    /// BLAKE3 digest of the manifest.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub manifest_digest: String,
    /// Bytes that it takes in the repository, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub size: String,
    /// Points that a restore of it reads, itself included: of its longest chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain_length: Option<i32>,
    /// The disks that it holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub disks: Vec<StoredDisk>,
}

/// One disk of a point.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StoredDisk {
    /// The disk's name.
    pub name: String,
    /// The disk's unbroken sequence of points, from a full on.
    pub lineage: String,
    /// The point that this one builds on; none for a full.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub parent: String,
    /// What a restore of the disk reads.
    pub chain: Chain,
    /// Size of the disk as the guest saw it, in bytes.
    pub virtual_size: i64,
    /// Bytes that its image takes in the repository.
    pub stored_bytes: i64,
    /// Format of the stored image.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub format: String,
    /// Full, or what it builds on.
    #[serde(default, rename = "type", skip_serializing_if = "String::is_empty")]
    pub backup_type: String,
    /// Why it has that type.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub type_reason: String,
}

/// The points that a restore of a disk reads.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Chain {
    /// The full on which all of them stand.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub root: String,
    /// How many points, this one included.
    pub length: i32,
    /// Bytes that all of them take in the repository.
    pub bytes: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_points_spec_may_change() {
        let point = RestorePoint::new(
            "p",
            RestorePointSpec {
                point_id: "01hf7yat00000000000000000a".to_owned(),
                guest: PointGuest { uuid: "11111111-2222-3333-4444-555555555555".to_owned(), name: "g".to_owned() },
                repository_ref: RepositoryRef { name: "r".to_owned(), namespace: None },
            },
        );
        point.validate_cel().unwrap();
        point.validate_cel_update(&point).unwrap();
        let mut other = point.clone();
        other.spec.repository_ref.namespace = Some("n".to_owned());
        assert!(other.validate_cel_update(&point).is_err() && point.validate_cel_update(&other).is_err());
    }
}
