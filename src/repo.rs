//! A repository: the folder in which points are stored. Blocking calls on files and `qemu-img`; knows nothing of QMP or
//! Kubernetes. The engine writes through it, restores and verification read through it.
//!
//! A manifest's rename into place is the only commit there is. A path with no marker, or with another id, is refused
//! before anything is written: an unmounted file system must not become a second repository.

pub mod check;
pub mod digests;
mod error;
mod image;
pub mod layout;
mod links;
mod lock;
pub mod manifest;
mod read;
mod roots;
mod seal;
mod space;
mod staging;
mod store;
mod write;

use std::{
    collections::HashMap,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use serde::{Deserialize, Serialize};

pub use error::RepoError;
pub use lock::{Lease, LeaseTimes};
pub use manifest::Manifest;
pub use read::{Scan, StoredPoint, VARIABLES_LIMIT};
pub use roots::{Roots, RootsError};
pub use seal::SealedDisk;
pub(crate) use seal::digest_clusters;
pub use space::{Space, space_at};
pub use staging::{Stage, Staging};
pub use store::{Act, Gate, Operation, StoreError};
pub(crate) use store::{Folder, Rules};
pub use write::{CommittedPoint, PartialPoint};

use crate::ids::{GuestId, RepositoryId};
pub use crate::qcow2::tool::{FileOwner, QemuImg};

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
/// Above any marker, in bytes.
const MARKER_LIMIT: u64 = 64 * 1024;

/// An opened repository. Clones share everything.
#[derive(Clone)]
pub struct Repository {
    inner: Arc<Inner>,
}

struct Inner {
    id: RepositoryId,
    format: u32,
    root: Folder,
    tool: QemuImg,
    /// Leases of this process, for the look at the token before each rename.
    leases: Mutex<HashMap<GuestId, Weak<lock::Inner>>>,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository").field("id", &self.inner.id).field("path", &self.path()).finish_non_exhaustive()
    }
}

/// What makes a folder a repository.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Marker {
    format: u32,
    id: RepositoryId,
    /// Keys of other versions.
    #[serde(flatten)]
    other: serde_json::Map<String, serde_json::Value>,
}

impl Repository {
    /// Makes the empty folder `path` into a repository; a folder that already is this repository is fine.
    ///
    /// # Errors
    /// When the path is not UTF-8, is outside of the roots, is another repository, or holds anything else. Nothing is written
    /// then.
    pub fn initialise(roots: &Roots, path: &Path, id: &RepositoryId, tool: &QemuImg) -> Result<Self, RepoError> {
        check_name(path)?;
        let root = open_root(roots, path, tool)?;
        if root.contains(layout::MARKER)? {
            return Self::opened(root, Some(id), tool);
        }
        // lost+found: the root of an ext4 file system. The new marker: a crash came before its rename.
        let known = [layout::MARKER, layout::MARKER_NEW, "lost+found"];
        if let Some(entry) = root.entries()?.into_iter().find(|entry| !known.iter().any(|known| entry == known)) {
            let entry = entry.to_string_lossy().into_owned();
            return Err(RepoError::NotEmpty { path: path.to_owned(), entry });
        }
        let marker = Marker { format: FORMAT, id: id.clone(), other: serde_json::Map::new() };
        let text = serde_json::to_vec_pretty(&marker)
            .map_err(|source| RepoError::MarkerMalformed { path: path.to_owned(), source })?;
        root.prepare(layout::MARKER_NEW, &text)?;
        // False: another agent was quicker. Whose repository it is then is seen by opening it.
        if !root.publish(layout::MARKER_NEW, layout::MARKER)? {
            root.remove(layout::MARKER_NEW)?;
        }
        Self::opened(root, Some(id), tool)
    }

    /// Opens the repository at `path`, which must be the one of that id where one is given.
    ///
    /// # Errors
    /// When the path is outside of the roots, is no repository, another one, or one of a newer format.
    pub fn open(roots: &Roots, path: &Path, id: Option<&RepositoryId>, tool: &QemuImg) -> Result<Self, RepoError> {
        Self::opened(open_root(roots, path, tool)?, id, tool)
    }

    fn opened(root: Folder, id: Option<&RepositoryId>, tool: &QemuImg) -> Result<Self, RepoError> {
        let path = root.path().to_owned();
        let Some(bytes) = root.read(layout::MARKER, MARKER_LIMIT)? else { return Err(RepoError::NotMounted { path }) };
        let malformed = |source| RepoError::MarkerMalformed { path: path.clone(), source };
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(malformed)?;
        if let Some(format) = value.get("format").and_then(serde_json::Value::as_u64)
            && format > u64::from(FORMAT)
        {
            return Err(RepoError::TooNew { path, format, known: FORMAT });
        }
        let marker: Marker = serde_json::from_value(value).map_err(malformed)?;
        if let Some(expected) = id
            && marker.id != *expected
        {
            return Err(RepoError::IdMismatch { path, found: marker.id, expected: expected.clone() });
        }
        let inner = Inner { id: marker.id, format: marker.format, root, tool: tool.clone(), leases: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The repository's id.
    pub fn id(&self) -> &RepositoryId {
        &self.inner.id
    }

    /// Where it stands.
    pub fn path(&self) -> &Path {
        self.inner.root.path()
    }

    /// Version of its format.
    pub fn format_version(&self) -> u32 {
        self.inner.format
    }

    /// Fails unless the repository's path still leads to the folder that was opened: what is written into one that was
    /// moved away since then is not where anybody looks for it.
    ///
    /// # Errors
    /// `Replaced`.
    pub fn check_still_there(&self, roots: &Roots) -> Result<(), RepoError> {
        let replaced = || RepoError::Replaced { path: self.path().to_owned() };
        let here = roots.open(self.path()).map_err(|_| replaced())?;
        let identity = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
        match (identity(here.as_fd()), identity(self.inner.root.fd())) {
            (Ok(now), Ok(then)) if now == then => Ok(()),
            _ => Err(replaced()),
        }
    }

    /// Room on its file system, and whether that is local and can be written.
    ///
    /// # Errors
    /// When the file system does not say.
    pub fn space(&self) -> Result<Space, RepoError> {
        space::of(self.inner.root.fd()).map_err(|source| RepoError::Space { path: self.path().to_owned(), source })
    }

    /// The right to write to a guest's folder. Waits up to 15 s to see whether another holder lives.
    ///
    /// # Errors
    /// `LeaseHeld` when one does; `PathNotUtf8` for a repository that no run can be written down for.
    pub fn writer_lease(&self, guest: &GuestId, holder: &str) -> Result<Lease, RepoError> {
        self.writer_lease_timed(guest, holder, LeaseTimes::default())
    }

    /// The same with other times, for tests.
    ///
    /// # Errors
    /// As `writer_lease`.
    pub fn writer_lease_timed(&self, guest: &GuestId, holder: &str, times: LeaseTimes) -> Result<Lease, RepoError> {
        check_name(self.path())?;
        let folder = self.inner.root.ensure_folder(layout::GUESTS)?.ensure_folder(guest.as_str())?;
        let lease = Lease::take(folder, guest, holder, times)?;
        let mut leases = self.inner.leases.lock().unwrap_or_else(PoisonError::into_inner);
        leases.retain(|_, lease| lease.strong_count() > 0);
        leases.insert(guest.clone(), Arc::downgrade(lease.inner()));
        Ok(lease)
    }

    /// Fails unless this process holds the guest's lease now.
    fn check_lease(&self, guest: &GuestId) -> Result<(), RepoError> {
        let lease = self.inner.leases.lock().unwrap_or_else(PoisonError::into_inner).get(guest).and_then(Weak::upgrade);
        lease.ok_or_else(|| RepoError::LeaseLost { guest: guest.clone() })?.check()
    }

    /// The opened folder of the repository.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.inner.root.fd()
    }

    /// The tool that this repository's images are handled with.
    pub fn tool(&self) -> &QemuImg {
        &self.inner.tool
    }
}

/// Fails for a path that the journal and the API cannot name. Reading from there goes well.
fn check_name(path: &Path) -> Result<(), RepoError> {
    path.to_str().map(drop).ok_or_else(|| RepoError::PathNotUtf8 { path: path.to_owned() })
}

fn open_root(roots: &Roots, path: &Path, tool: &QemuImg) -> Result<Folder, RepoError> {
    let fd = roots.open(path).map_err(RepoError::Path)?;
    Ok(Folder::new(fd, path.to_owned(), Rules { owner: tool.owner, gate: roots.gate.clone() }))
}
