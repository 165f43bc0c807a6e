//! Every file operation of a repository, beneath an opened folder. Names are single components; symbolic links are
//! never followed (`openat2`). What is made belongs to the files' owner. Each operation that changes something first
//! passes the gate, at which a test stops it to see what a crash there would leave.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Uid};

use crate::{qcow2::tool::FileOwner, retry::Retry};

/// What is about to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The act.
    pub act: Act,
    /// Its subject, as people know it.
    pub path: PathBuf,
}

/// A kind of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Act {
    /// Open or look up.
    Open,
    /// Read bytes or entries.
    Read,
    /// Make a folder.
    MakeFolder,
    /// Make a file that was not there.
    Create,
    /// Give a file or folder to its owner.
    Own,
    /// Write bytes.
    Write,
    /// Set the length, and with it free what was allocated behind it.
    Truncate,
    /// Allocate space ahead.
    Allocate,
    /// Bring a file to the disk.
    Sync,
    /// Bring a folder's entries to the disk.
    SyncFolder,
    /// Give a file its name.
    Rename,
    /// Remove a file or an empty folder.
    Remove,
    /// Let `qemu-img` write.
    Tool,
}

impl Act {
    /// The act in a sentence that starts with "Cannot".
    fn verb(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::MakeFolder => "make the folder",
            Self::Create => "create",
            Self::Own => "change the owner of",
            Self::Write => "write",
            Self::Truncate => "set the length of",
            Self::Allocate => "allocate space for",
            Self::Sync | Self::SyncFolder => "sync",
            Self::Rename => "rename into place",
            Self::Remove => "remove",
            Self::Tool => "let qemu-img write",
        }
    }
}

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {} {}", act.verb(), path.display())]
pub struct StoreError {
    /// What was to be done.
    pub act: Act,
    /// To what.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl StoreError {
    /// Reason word for conditions, events and metrics.
    pub fn reason(&self) -> &'static str {
        use rustix::io::Errno;
        match Errno::from_io_error(&self.source) {
            Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => "RepositoryFull",
            Some(Errno::ROFS) => "RepositoryReadOnly",
            Some(Errno::ACCESS | Errno::PERM) => "RepositoryAccessDenied",
            Some(Errno::LOOP | Errno::XDEV) => "OutsideRoots",
            Some(Errno::STALE | Errno::NODEV | Errno::NOTCONN | Errno::NOENT | Errno::HOSTDOWN) => "RepositoryGone",
            _ => "RepositoryIOError",
        }
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self.reason() {
            "OutsideRoots" | "RepositoryAccessDenied" | "RepositoryReadOnly" => Retry::OnChange,
            _ => Retry::Backoff,
        }
    }
}

/// Asked before each operation that changes something; an error stops it there.
pub type Gate = Arc<dyn Fn(&Operation) -> io::Result<()> + Send + Sync>;

/// What all folders of a repository share.
#[derive(Clone, Default)]
pub(crate) struct Rules {
    pub(crate) owner: Option<FileOwner>,
    pub(crate) gate: Option<Gate>,
}

/// An opened folder. Clones share the descriptor.
#[derive(Clone)]
pub(crate) struct Folder {
    fd: Arc<OwnedFd>,
    path: PathBuf,
    rules: Rules,
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens `path` beneath `folder`: no symbolic link on the way, nothing outside.
pub(crate) fn open_beneath(folder: impl AsFd, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(&folder, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Ok(fd) => return Ok(fd),
            // EAGAIN: something was renamed meanwhile (openat2(2)); the kernel could not tell, so look again.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

impl Folder {
    /// `fd` is a folder that people know as `path`.
    pub(crate) fn new(fd: OwnedFd, path: PathBuf, rules: Rules) -> Self {
        Self { fd: Arc::new(fd), path, rules }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Lets the gate speak about an act on `name`; used here, and where `qemu-img` does the act.
    pub(crate) fn pass(&self, act: Act, name: &str) -> Result<(), StoreError> {
        let path = if name.is_empty() { self.path.clone() } else { self.path.join(name) };
        match &self.rules.gate {
            None => Ok(()),
            Some(gate) => {
                gate(&Operation { act, path: path.clone() }).map_err(|source| StoreError { act, path, source })
            }
        }
    }

    pub(crate) fn error(&self, act: Act, name: &str, source: impl Into<io::Error>) -> StoreError {
        let path = if name.is_empty() { self.path.clone() } else { self.path.join(name) };
        StoreError { act, path, source: source.into() }
    }

    /// The folder `name` in this one; None where there is none.
    pub(crate) fn folder(&self, name: &str) -> Result<Option<Self>, StoreError> {
        match open_beneath(&*self.fd, Path::new(name), FOLDER, Mode::empty()) {
            Ok(fd) => Ok(Some(Self::new(fd, self.path.join(name), self.rules.clone()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error(Act::Open, name, error)),
        }
    }

    /// Makes the folder `name`; None where something of that name is there already.
    pub(crate) fn make_folder(&self, name: &str) -> Result<Option<Self>, StoreError> {
        self.pass(Act::MakeFolder, name)?;
        match rustix::fs::mkdirat(&*self.fd, name, Mode::RWXU) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Ok(None),
            Err(errno) => return Err(self.error(Act::MakeFolder, name, errno)),
        }
        let made = self.folder(name)?.ok_or_else(|| self.error(Act::Open, name, rustix::io::Errno::NOENT))?;
        self.own(name, made.fd())?;
        self.sync()?;
        Ok(Some(made))
    }

    /// The folder `name`, made where it is not there yet.
    pub(crate) fn ensure_folder(&self, name: &str) -> Result<Self, StoreError> {
        // Twice, because another writer may make it between the look and the act.
        for _ in 0..2 {
            if let Some(folder) = self.folder(name)? {
                // It may be there without having reached the disk: a crash came before the sync.
                self.sync()?;
                return Ok(folder);
            }
            if let Some(folder) = self.make_folder(name)? {
                return Ok(folder);
            }
        }
        Err(self.error(Act::MakeFolder, name, rustix::io::Errno::EXIST))
    }

    /// Makes the file `name`, which must not be there.
    pub(crate) fn create(&self, name: &str) -> Result<File, StoreError> {
        self.pass(Act::Create, name)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let fd = open_beneath(&*self.fd, Path::new(name), flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| self.error(Act::Create, name, error))?;
        self.own(name, fd.as_fd())?;
        Ok(fd.into())
    }

    /// The regular file `name`; None where nothing is there.
    pub(crate) fn open(&self, name: &str, write: bool) -> Result<Option<File>, StoreError> {
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        // NONBLOCK: a FIFO that somebody put there must not hang us before we see that it is one.
        let fd = match open_beneath(&*self.fd, Path::new(name), access | OFlags::NONBLOCK, Mode::empty()) {
            Ok(fd) => fd,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.error(Act::Open, name, error)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(|errno| self.error(Act::Open, name, errno))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.error(Act::Open, name, io::Error::other("it is not a regular file")));
        }
        Ok(Some(fd.into()))
    }

    /// The content of a small file; None where nothing is there.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(file) = self.open(name, false)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| self.error(Act::Read, name, error))?;
        if bytes.len() as u64 > limit {
            return Err(self.error(Act::Read, name, io::Error::other(format!("it is larger than {limit} bytes"))));
        }
        Ok(Some(bytes))
    }

    /// Writes a whole file under a name that does not count yet, and brings it to the disk. A leftover of that name is
    /// replaced.
    pub(crate) fn prepare(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.remove(name)?;
        let mut file = self.create(name)?;
        self.pass(Act::Write, name)?;
        file.write_all(bytes).map_err(|error| self.error(Act::Write, name, error))?;
        self.sync_file(name, &file)
    }

    /// Gives a prepared file its name; false where something has that name already. The folder is synced either way.
    pub(crate) fn publish(&self, from: &str, to: &str) -> Result<bool, StoreError> {
        use rustix::io::Errno;
        self.pass(Act::Rename, to)?;
        let fd = &*self.fd;
        let done = match rustix::fs::renameat_with(fd, from, fd, to, RenameFlags::NOREPLACE) {
            // No such flag on this file system (NFS): a link refuses an existing name as well.
            Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::linkat(fd, from, fd, to, AtFlags::empty())
                .and_then(|()| rustix::fs::unlinkat(fd, from, AtFlags::empty())),
            done => done,
        };
        match done {
            Ok(()) => self.sync().map(|()| true),
            Err(Errno::EXIST) => self.sync().map(|()| false),
            Err(errno) => Err(self.error(Act::Rename, to, errno)),
        }
    }

    /// Renames within the folder, over whatever has the new name. The folder is synced.
    pub(crate) fn replace(&self, from: &str, to: &str) -> Result<(), StoreError> {
        self.pass(Act::Rename, to)?;
        rustix::fs::renameat(&*self.fd, from, &*self.fd, to).map_err(|errno| self.error(Act::Rename, to, errno))?;
        self.sync()
    }

    /// Removes the file `name`; fine where it is not there.
    pub(crate) fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.unlink(name, AtFlags::empty())
    }

    /// Removes the folder `name` if it is empty; fine where it is not there. False: something is in it, and it stays.
    pub(crate) fn remove_empty_folder(&self, name: &str) -> Result<bool, StoreError> {
        use rustix::io::Errno;
        match self.unlink(name, AtFlags::REMOVEDIR) {
            Ok(()) => Ok(true),
            Err(error) if matches!(Errno::from_io_error(&error.source), Some(Errno::NOTEMPTY | Errno::EXIST)) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Frees the space of the file `name` that is about to be removed: a descriptor that somebody keeps would hold it
    /// (QEMU 7.2 keeps those of a machine that never ran; measured). A file that has another name too is left as it is,
    /// and so is whatever cannot be opened: the removal says what is wrong.
    pub(crate) fn empty(&self, name: &str) {
        use std::os::unix::fs::MetadataExt;
        let Ok(Some(file)) = self.open(name, true) else { return };
        if self.pass(Act::Truncate, name).is_ok()
            && file.metadata().is_ok_and(|metadata| metadata.nlink() == 1)
            && let Err(error) = file.set_len(0)
        {
            tracing::debug!(%error, name, "the space of a file stays taken until nobody has it open");
        }
    }

    fn unlink(&self, name: &str, flags: AtFlags) -> Result<(), StoreError> {
        if !self.contains(name)? {
            return Ok(());
        }
        self.pass(Act::Remove, name)?;
        match rustix::fs::unlinkat(&*self.fd, name, flags) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.error(Act::Remove, name, errno)),
        }
    }

    /// Whether anything has that name.
    pub(crate) fn contains(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.kind(name.as_ref())?.is_some())
    }

    /// Whether `name` is a folder itself, not a link to one; false where nothing is there.
    pub(crate) fn is_folder(&self, name: &OsStr) -> Result<bool, StoreError> {
        Ok(self.kind(name)? == Some(FileType::Directory))
    }

    /// What `name` is itself, a link being a link; None where nothing is there.
    pub(crate) fn kind(&self, name: &OsStr) -> Result<Option<FileType>, StoreError> {
        match rustix::fs::statat(&*self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.error(Act::Open, &name.to_string_lossy(), errno)),
        }
    }

    /// The names in the folder, sorted.
    pub(crate) fn entries(&self) -> Result<Vec<OsString>, StoreError> {
        use std::os::unix::ffi::OsStrExt;
        let failed = |errno: rustix::io::Errno| self.error(Act::Read, "", errno);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&*self.fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Brings a file's bytes to the disk.
    pub(crate) fn sync_file(&self, name: &str, file: &File) -> Result<(), StoreError> {
        self.pass(Act::Sync, name)?;
        file.sync_all().map_err(|error| self.error(Act::Sync, name, error))
    }

    /// Brings the folder's entries to the disk.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        self.pass(Act::SyncFolder, "")?;
        rustix::fs::fsync(&*self.fd).map_err(|errno| self.error(Act::SyncFolder, "", errno))
    }

    fn own(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), StoreError> {
        let Some(owner) = self.rules.owner else { return Ok(()) };
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        self.pass(Act::Own, name)?;
        rustix::fs::fchown(fd, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))
            .map_err(|errno| self.error(Act::Own, name, errno))
    }
}
