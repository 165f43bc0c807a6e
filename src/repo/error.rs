//! What can go wrong with a repository, one variant per kind of failure, each with the word that conditions, events and
//! metrics carry.

use std::{io, path::PathBuf};

use super::{digests::TableError, manifest::ManifestError, roots::RootsError, store::StoreError};
use crate::{
    ids::{DiskName, GuestId, PointId, RepositoryId},
    qcow2::{header::HeaderError, map::MapError, tool::ToolError},
    retry::Retry,
    sentence::counted,
};

/// Why something about a repository was not done.
#[derive(Debug, thiserror::Error)]
pub enum RepoError {
    /// The path is outside of what the host allows.
    #[error(transparent)]
    Path(RootsError),
    /// Not text: the journal of a run could not name it.
    #[error(
        "Repository {path:?} cannot be written to: its path has bytes that are not UTF-8. Give the folder another name"
    )]
    PathNotUtf8 {
        /// The path.
        path: PathBuf,
    },
    /// The folder is there, but no repository: an unmounted file system looks like that.
    #[error("Folder {path:?} is not a repository: is its file system mounted?")]
    NotMounted {
        /// The path.
        path: PathBuf,
    },
    /// Another repository stands there.
    #[error("Folder {path:?} is repository {found}, not {expected}")]
    IdMismatch {
        /// The path.
        path: PathBuf,
        /// The one that stands there.
        found: RepositoryId,
        /// The one that was meant.
        expected: RepositoryId,
    },
    /// Written by a newer Driftline.
    #[error("Repository {path:?} has format {format}, this version knows up to {known}")]
    TooNew {
        /// The path.
        path: PathBuf,
        /// Its format.
        format: u64,
        /// What this version knows.
        known: u32,
    },
    /// A marker that cannot be read.
    #[error("The marker of repository {path:?} cannot be read")]
    MarkerMalformed {
        /// The path.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A new repository needs an empty folder.
    #[error("Folder {path:?} is not empty ({entry:?}) and no repository: give it a folder of its own")]
    NotEmpty {
        /// The path.
        path: PathBuf,
        /// Something that is in it.
        entry: String,
    },
    /// A file operation failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state of the file system could not be asked.
    #[error("Cannot ask for the space of {path:?}")]
    Space {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Space cannot be allocated ahead.
    #[error("Cannot allocate {} ahead for {path:?}", crate::sentence::bytes(*bytes))]
    Reserve {
        /// The file.
        path: PathBuf,
        /// How much.
        bytes: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A manifest cannot be read.
    #[error("The manifest of point {point} is unusable")]
    Manifest {
        /// The point.
        point: PointId,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// There is no such point.
    #[error("Guest {guest} has no point {point} in the repository")]
    NoSuchPoint {
        /// The guest.
        guest: GuestId,
        /// The point.
        point: PointId,
    },
    /// No guest has such a point.
    #[error("No guest has a point {point} in the repository")]
    PointNowhere {
        /// The point.
        point: PointId,
    },
    /// Another folder stands where the repository was opened.
    #[error(
        "The repository that was opened at {} is not there any more: it was moved away, unmounted or replaced; put it back",
        path.display()
    )]
    Replaced {
        /// The path.
        path: PathBuf,
    },
    /// A point's id is used once.
    #[error("Point {point} is there already")]
    PointExists {
        /// The point.
        point: PointId,
    },
    /// A manifest that is not about this point.
    #[error("The manifest is not one of point {point}: {why}")]
    ManifestMismatch {
        /// The point.
        point: PointId,
        /// What differs.
        why: String,
    },
    /// The guest's first manifest names another namespace.
    #[error("Guest {guest} belongs to namespace {owner:?} in this repository, not to {asked:?}")]
    OtherNamespace {
        /// The guest.
        guest: GuestId,
        /// Whose it is.
        owner: String,
        /// Who asked.
        asked: String,
    },
    /// A parent is gone or is another point now, or its image, or one that it builds on, is not as it was stored.
    #[error("Disk {disk} of point {point} continues point {parent}, which is no longer there as it was: {why}")]
    ParentGone {
        /// The point.
        point: PointId,
        /// Its disk.
        disk: DiskName,
        /// What it continues.
        parent: PointId,
        /// What is missing or differs.
        why: String,
    },
    /// An image or table is missing, or has another size.
    #[error("File {path:?} is not as it should be: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// An image's header is not that of a stored image.
    #[error("Image {path:?} is not one of a point")]
    Header {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: HeaderError,
    },
    /// An image's tables cannot be followed.
    #[error("Image {path:?} cannot be read")]
    Map {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: MapError,
    },
    /// An image is corrupt.
    #[error("Image {path:?} has {} and {} by qemu-img check", counted(*corruptions, "corruption"), counted(*errors, "error"))]
    Corrupt {
        /// The image.
        path: PathBuf,
        /// Corruptions.
        corruptions: u64,
        /// Errors of the check.
        errors: u64,
    },
    /// A digest table cannot be read or written.
    #[error("Digest table {path:?} cannot be used")]
    Table {
        /// The table.
        path: PathBuf,
        /// Why.
        #[source]
        source: TableError,
    },
    /// The image tool failed.
    #[error("Image {path:?} was not handled")]
    Tool {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: ToolError,
    },
    /// Somebody else writes to the guest's folder.
    #[error("Guest {guest} is being written to by {holder}")]
    LeaseHeld {
        /// The guest.
        guest: GuestId,
        /// Who holds the lease.
        holder: String,
    },
    /// The lease is not ours, or no longer.
    #[error("The writer lease of guest {guest} is not held by this process")]
    LeaseLost {
        /// The guest.
        guest: GuestId,
    },
}

impl RepoError {
    /// Reason word for conditions, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Path(source) => source.reason(),
            Self::PathNotUtf8 { .. } => "PathNotUTF8",
            Self::NotMounted { .. } => "RepositoryNotMounted",
            Self::IdMismatch { .. } => "RepositoryIdMismatch",
            Self::TooNew { .. } => "RepositoryTooNew",
            Self::MarkerMalformed { .. } => "RepositoryMarkerMalformed",
            Self::NotEmpty { .. } => "RepositoryNotEmpty",
            Self::Store(source) => source.reason(),
            Self::Space { .. } => "RepositoryIOError",
            Self::Reserve { source, .. } => match rustix::io::Errno::from_io_error(source) {
                Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT | rustix::io::Errno::FBIG) => "RepositoryFull",
                _ => "TargetUnsafe",
            },
            Self::Manifest { source, .. } => source.reason(),
            Self::NoSuchPoint { .. } | Self::PointNowhere { .. } => "PointNotFound",
            Self::Replaced { .. } => "RepositoryReplaced",
            Self::PointExists { .. } => "PointExists",
            Self::ManifestMismatch { .. } => "ManifestMismatch",
            Self::OtherNamespace { .. } => "GuestBelongsToAnotherNamespace",
            Self::ParentGone { .. } => "ParentGone",
            Self::File { .. } => "ImageNotAsStored",
            Self::Header { source, .. } => source.reason(),
            Self::Map { source, .. } => source.reason(),
            Self::Corrupt { .. } => "ImageCorrupt",
            Self::Table { source, .. } => source.reason(),
            Self::Tool { source, .. } => source.reason(),
            Self::LeaseHeld { .. } => "GuestInUse",
            Self::LeaseLost { .. } => "LeaseLost",
        }
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Path(source) => source.retry(),
            Self::Store(source) => source.retry(),
            Self::Manifest { source, .. } => source.retry(),
            Self::Header { source, .. } => source.retry(),
            Self::Map { source, .. } => source.retry(),
            Self::Table { source, .. } => source.retry(),
            Self::Tool { source, .. } => source.retry(),
            Self::Reserve { .. } if self.reason() == "TargetUnsafe" => Retry::OnChange,
            Self::Reserve { .. }
            | Self::NotMounted { .. }
            | Self::Space { .. }
            | Self::Replaced { .. }
            | Self::LeaseHeld { .. }
            | Self::LeaseLost { .. } => Retry::Backoff,
            Self::PathNotUtf8 { .. }
            | Self::IdMismatch { .. }
            | Self::TooNew { .. }
            | Self::MarkerMalformed { .. }
            | Self::NotEmpty { .. }
            | Self::NoSuchPoint { .. }
            | Self::PointNowhere { .. }
            | Self::PointExists { .. }
            | Self::ManifestMismatch { .. }
            | Self::OtherNamespace { .. }
            | Self::ParentGone { .. }
            | Self::File { .. }
            | Self::Corrupt { .. } => Retry::OnChange,
        }
    }
}
