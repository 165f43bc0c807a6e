//! What can go wrong with a restore.

use std::path::PathBuf;

use crate::{
    chain::graph::Break,
    ids::DiskName,
    qcow2::tool::ToolError,
    repo::{RepoError, RootsError, StoreError},
    retry::Retry,
    sentence::{bytes, counted},
};

/// Why a restore was not done.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// No disk was asked for.
    #[error("The restore names no disk")]
    NoDisks,
    /// A disk is named twice.
    #[error("Disk {disk} is named twice")]
    DiskTwice {
        /// The disk.
        disk: DiskName,
    },
    /// Two disks would be written to one file.
    #[error("Target {path:?} is named for two disks, {first} and {second}")]
    PathTwice {
        /// The path.
        path: PathBuf,
        /// The disk that has it already.
        first: DiskName,
        /// The other one.
        second: DiskName,
    },
    /// The repository could not be read.
    #[error("Cannot read the stored points")]
    Repository {
        /// Why.
        #[source]
        source: RepoError,
    },
    /// The disk has no whole chain.
    #[error("Disk {disk} cannot be put together")]
    Chain {
        /// The disk.
        disk: DiskName,
        /// Where the chain breaks.
        #[source]
        source: Break,
    },
    /// The path is not one that may be written to.
    #[error("Target {path:?} is refused")]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: RootsError,
    },
    /// The path names no file.
    #[error("Target {path:?} must be the absolute path of a file")]
    NotAFileName {
        /// The path.
        path: PathBuf,
    },
    /// A folder has the name.
    #[error("Target {path:?} is a folder: give the new image a name in it, such as {:?}", path.join("disk0.qcow2"))]
    IsFolder {
        /// The path.
        path: PathBuf,
    },
    /// A device, a socket or a pipe has the name.
    #[error("Target {path:?} is no regular file, and an image takes the place of no other")]
    NotRegular {
        /// The path.
        path: PathBuf,
    },
    /// The target stands inside of the repository.
    #[error("Target {path:?} is inside of the repository")]
    InsideRepository {
        /// The path.
        path: PathBuf,
    },
    /// Something is there, and may not be replaced.
    #[error("Target {path:?} is there already: {why}")]
    Exists {
        /// The path.
        path: PathBuf,
        /// Why it may not be replaced.
        why: &'static str,
    },
    /// The file that would be replaced is in use.
    #[error("Target {path:?} is in use: a process has locked it as a disk image")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// There is not enough room.
    #[error("The file system of {path:?} has {} free, the restore may need {}", bytes(*available), bytes(*needed))]
    NoSpace {
        /// The target.
        path: PathBuf,
        /// What may be needed, in bytes.
        needed: u64,
        /// What there is, in bytes.
        available: u64,
    },
    /// A file operation on the target failed.
    #[error("Cannot write target {path:?}")]
    Target {
        /// The target.
        path: PathBuf,
        /// What failed.
        #[source]
        source: StoreError,
    },
    /// The copy failed.
    #[error("Cannot copy disk {disk}")]
    Copy {
        /// The disk.
        disk: DiskName,
        /// Why.
        #[source]
        source: ToolError,
    },
    /// The new image could not be compared.
    #[error("Cannot compare disk {disk} with its digests: {why}")]
    Compare {
        /// The disk.
        disk: DiskName,
        /// Why.
        why: String,
    },
    /// The new image is not what was stored.
    #[error("Disk {disk} differs from its digests in {}, the first at byte {offset} ({stored})", counted(*clusters, "cluster"))]
    Damaged {
        /// The disk.
        disk: DiskName,
        /// How many clusters.
        clusters: u64,
        /// Where the first starts, in bytes.
        offset: u64,
        /// Where its content should have come from.
        stored: String,
    },
    /// It was cancelled.
    #[error("The restore was cancelled")]
    Cancelled,
}

impl RestoreError {
    /// Reason word for conditions, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoDisks
            | Self::DiskTwice { .. }
            | Self::PathTwice { .. }
            | Self::NotAFileName { .. }
            | Self::IsFolder { .. }
            | Self::NotRegular { .. } => "RestoreInvalid",
            Self::Repository { source } => source.reason(),
            Self::Chain { source, .. } => source.reason(),
            Self::Path { source, .. } => match source {
                RootsError::Missing { .. } => "TargetFolderMissing",
                RootsError::Open { .. } => "TargetFolderNotOpened",
                RootsError::NotPlain { .. } | RootsError::Outside { .. } | RootsError::Link { .. } => "OutsideRoots",
            },
            Self::InsideRepository { .. } => "TargetInRepository",
            Self::Exists { .. } => "TargetExists",
            Self::InUse { .. } => "TargetInUse",
            Self::NoSpace { .. } => "TargetFull",
            Self::Target { source, .. } => match source.reason() {
                "RepositoryFull" => "TargetFull",
                "RepositoryReadOnly" => "TargetReadOnly",
                "RepositoryAccessDenied" => "TargetAccessDenied",
                "RepositoryGone" => "TargetFolderMissing",
                "OutsideRoots" => "OutsideRoots",
                _ => "TargetIOError",
            },
            // The text of ENOSPC: the child runs with the locale C.
            Self::Copy { source: ToolError::Failed { stderr, .. }, .. }
                if stderr.contains("No space left on device") =>
            {
                "TargetFull"
            }
            Self::Copy { source, .. } => source.reason(),
            Self::Compare { .. } => "DigestsNotCompared",
            Self::Damaged { .. } => "DigestMismatch",
            Self::Cancelled => "Cancelled",
        }
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Repository { source } => source.retry(),
            Self::Path { source, .. } => source.retry(),
            Self::Target { source, .. } => source.retry(),
            Self::Copy { source, .. } => source.retry(),
            Self::NoSpace { .. } | Self::InUse { .. } | Self::Compare { .. } => Retry::Backoff,
            Self::NoDisks
            | Self::DiskTwice { .. }
            | Self::PathTwice { .. }
            | Self::Chain { .. }
            | Self::NotAFileName { .. }
            | Self::IsFolder { .. }
            | Self::NotRegular { .. }
            | Self::InsideRepository { .. }
            | Self::Exists { .. }
            | Self::Damaged { .. }
            | Self::Cancelled => Retry::OnChange,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_for_people_and_one_cluster_is_singular() {
        let full = RestoreError::NoSpace { path: "/x".into(), needed: 3 << 30, available: 1 << 20 };
        assert_eq!(full.to_string(), "The file system of \"/x\" has 1.00 MiB free, the restore may need 3.00 GiB");
        let disk: DiskName = "disk0".parse().unwrap();
        let damaged = RestoreError::Damaged { disk, clusters: 1, offset: 65536, stored: "stored in point p".into() };
        assert!(damaged.to_string().contains("in 1 cluster, the first at byte 65536"), "{damaged}");
    }
}
