//! What verification found wrong, as data: a damaged repository is an answer, not an error. Pure.

use serde::{Deserialize, Serialize};

use crate::ids::{DiskName, GuestId, PointId};

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is.
    pub kind: Kind,
    /// The guest that it concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestId>,
    /// The point that it concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point: Option<PointId>,
    /// The disk that it concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskName>,
    /// Where on the disk it starts, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// How many bytes it concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// A sentence for people.
    pub message: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Severity {
    /// Nothing is lost: said so that nobody wonders.
    Notice,
    /// Stored data is lost or cannot be trusted.
    Damage,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A manifest that cannot be read or contradicts its place.
    ManifestUnreadable,
    /// A folder without a manifest: a backup that is going on, or one that was cut off.
    PartialPoint,
    /// A stored image or digest table that is not there.
    FileMissing,
    /// A stored image that is shorter or longer than its manifest says, or that has another header.
    ImageNotAsStored,
    /// `qemu-img check` found the image damaged.
    ImageCorrupt,
    /// A digest table that is not the one of the manifest.
    TableDamaged,
    /// The variables of the guest's firmware are not what was stored.
    VariablesDamaged,
    /// Clusters whose content is not what was stored.
    ClusterDamaged,
    /// Clusters that the table has and the image has not, or the other way round.
    ClusterMissing,
    /// The parent of a disk is gone, is another one, or has not that disk.
    ChainBroken,
    /// Two points of a guest have one sequence number.
    SequenceTwice,
    /// A file that belongs to no point, or to no guest.
    UnknownFile,
    /// Something could not be looked at, with the reason.
    Unchecked,
}

impl Finding {
    /// A finding about the repository as a whole; `about` narrows it down.
    pub fn new(severity: Severity, kind: Kind, message: impl Into<String>) -> Self {
        Self {
            severity,
            kind,
            guest: None,
            point: None,
            disk: None,
            offset: None,
            length: None,
            message: message.into(),
        }
    }

    /// The same finding about one guest.
    #[must_use]
    pub fn guest(mut self, guest: &GuestId) -> Self {
        self.guest = Some(guest.clone());
        self
    }

    /// The same finding about one point.
    #[must_use]
    pub fn point(mut self, point: &PointId) -> Self {
        self.point = Some(point.clone());
        self
    }

    /// The same finding about one disk.
    #[must_use]
    pub fn disk(mut self, disk: &DiskName) -> Self {
        self.disk = Some(disk.clone());
        self
    }

    /// The same finding about one range of the disk, in bytes.
    #[must_use]
    pub fn range(mut self, offset: u64, length: u64) -> Self {
        (self.offset, self.length) = (Some(offset), Some(length));
        self
    }
}
