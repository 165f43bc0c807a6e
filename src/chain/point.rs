//! A restore point as far as chains are concerned: who it is, and what each of its disks continues. Pure.

use serde::{Deserialize, Serialize};

use crate::ids::{DiskName, LineageId, PointId};

/// One point of one guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Point {
    /// The point's id.
    pub id: PointId,
    /// Its place among the guest's points: larger is newer. Clocks are not asked.
    pub sequence: u64,
    /// BLAKE3 of the immutable part of its manifest, in hex.
    pub identity_digest: String,
    /// Its disks.
    pub disks: Vec<PointDisk>,
}

/// One disk of one point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PointDisk {
    /// The disk's name at that point.
    pub name: DiskName,
    /// The sequence of points that it belongs to.
    pub lineage: LineageId,
    /// Virtual size in bytes.
    pub virtual_size: u64,
    /// Size of the stored file in bytes.
    pub bytes: u64,
    /// Whether it is outside of any lineage: nothing continues it.
    #[serde(default)]
    pub copy: bool,
    /// What it continues; nothing for a full.
    pub parent: Option<Parent>,
}

/// What a disk of a point continues.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Parent {
    /// The parent's point.
    pub point: PointId,
    /// The disk there: after an exchange of disks it has another name.
    pub disk: DiskName,
    /// The parent's identity digest, so that another point under the parent's id is noticed.
    pub identity_digest: String,
}

impl Point {
    /// The disk of that name.
    pub fn disk(&self, name: &DiskName) -> Option<&PointDisk> {
        self.disks.iter().find(|disk| disk.name == *name)
    }
}
