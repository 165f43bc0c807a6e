//! Which type the next backup of a disk gets, and why. Pure: what was asked for and what the repository holds come in
//! as values, the type and its reason go out. The engine calls it for each disk, the person reads the reason.

use serde::{Deserialize, Serialize};

use super::point::Point;
use crate::ids::DiskName;

/// What a backup stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BackupType {
    /// Everything: the point stands on its own.
    Full,
}

/// Why a disk got its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TypeReason {
    /// The repository has no point of this disk.
    FirstBackup,
    /// The request said so.
    Requested,
}

impl BackupType {
    /// The word in manifests, statuses and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "Full",
        }
    }
}

impl TypeReason {
    /// The word in manifests and statuses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FirstBackup => "FirstBackup",
            Self::Requested => "Requested",
        }
    }
}

/// A type and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// What the disk gets.
    pub kind: BackupType,
    /// Why.
    pub reason: TypeReason,
}

/// The type of the next backup of `disk`, when `requested` was asked for and `points` are the guest's.
pub fn choose(requested: BackupType, disk: &DiskName, points: &[Point]) -> Choice {
    let known = points.iter().any(|point| point.disk(disk).is_some());
    match requested {
        BackupType::Full => Choice {
            kind: BackupType::Full,
            reason: if known { TypeReason::Requested } else { TypeReason::FirstBackup },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chain::point::PointDisk,
        ids::{LineageId, PointId},
    };

    fn point_of(disk: &str) -> Point {
        Point {
            id: PointId::new(1, None, 0),
            sequence: 1,
            identity_digest: String::new(),
            disks: vec![PointDisk {
                name: disk.parse().unwrap(),
                lineage: LineageId::from_random(1),
                virtual_size: 1,
                bytes: 1,
                parent: None,
            }],
        }
    }

    #[test]
    fn a_disk_without_a_point_is_a_first_backup() {
        for points in [vec![], vec![point_of("disk1")]] {
            let choice = choose(BackupType::Full, &"disk0".parse().unwrap(), &points);
            assert_eq!(choice.reason, TypeReason::FirstBackup);
        }
    }

    #[test]
    fn a_full_of_a_stored_disk_was_requested() {
        let choice = choose(BackupType::Full, &"disk0".parse().unwrap(), &[point_of("disk0")]);
        assert_eq!(choice, Choice { kind: BackupType::Full, reason: TypeReason::Requested });
    }
}
