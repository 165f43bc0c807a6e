//! The file that a restore writes: found beneath the restore roots, written under a temporary name, and given its own
//! only at the end. A temporary file is locked while it is written, so that the leftover of a killed restore is known
//! by its missing lock and removed by the next one.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
};
use rustix::fs::{FileType, FlockOperation, Gid, Mode, Uid, XattrFlags};

use super::{Overwrite, RestoreError, RestoreRequest, RestoreRoots, Work};
use crate::{
    ids::GuestId,
    repo::{Act, Folder, Repository, Rules, StoreError},
};

/// Says which guest an image was restored for; what `IfSameGuest` looks at.
const GUEST_ATTRIBUTE: &str = "user.driftline.guest";
/// Says which run wrote an image: how a run that is repeated, because its agent died before it could say that it was done,
/// knows its own result.
const RUN_ATTRIBUTE: &str = "user.driftline.run";
const PREFIX: &str = ".driftline-";
const SUFFIX: &str = ".partial";

/// A target that was looked at, and the temporary file once there is one.
pub(super) struct Target {
    path: PathBuf,
    folder: Folder,
    name: String,
    /// The file that will be replaced: user, group and mode, which the new one takes over.
    replaced: Option<(u32, u32, u32)>,
    temporary: Option<(String, File)>,
    /// The image is there already, by the same run.
    done: bool,
}

impl Target {
    /// Opens the folder of `path` and looks whether the restore may write there. Changes nothing.
    pub(super) fn prepare(
        repository: &Repository,
        roots: &RestoreRoots,
        path: &Path,
        request: &RestoreRequest,
    ) -> Result<Self, RestoreError> {
        let no_name = || RestoreError::NotAFileName { path: path.to_owned() };
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(no_name)?;
        let parent = path.parent().ok_or_else(no_name)?;
        // As text: a path that ends in `/` or `/.` has a file name all the same.
        if !path.as_os_str().as_encoded_bytes().ends_with(name.as_bytes()) {
            return Err(no_name());
        }
        let fd = roots.open(parent).map_err(|source| RestoreError::Path { path: path.to_owned(), source })?;
        let rules = Rules { owner: repository.tool().owner, gate: None };
        let folder = Folder::new(fd, parent.to_owned(), rules);
        let (path, name) = (path.to_owned(), name.to_owned());
        let target = Self { path, folder, name, replaced: None, temporary: None, done: false };
        target.refuse_repository(repository)?;
        target.look(request)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is nothing left to do.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Makes the temporary file.
    pub(super) fn create(&mut self) -> Result<File, RestoreError> {
        let name = format!("{PREFIX}{:016x}{SUFFIX}", rand::random::<u64>());
        let file = self.folder.create(&name).map_err(|source| self.failed(source))?;
        let copy = file.try_clone().map_err(|source| self.io(Act::Open, source));
        // The guard is set first: whatever fails from here on removes the file.
        self.temporary = Some((name, file));
        let copy = copy?;
        rustix::fs::flock(&copy, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| self.io(Act::Create, errno.into()))?;
        Ok(copy)
    }

    /// The temporary file.
    pub(super) fn file(&self) -> Option<&File> {
        self.temporary.as_ref().map(|(_, file)| file)
    }

    /// Gives the file its owner, mode and mark, and brings it to the disk.
    pub(super) fn settle(&self, guest: &GuestId, run: &str) -> Result<(), RestoreError> {
        let Some((name, file)) = &self.temporary else { return Ok(()) };
        // A file system without extended attributes: `IfSameGuest` and the same run will refuse the file, nothing else is
        // lost.
        let _ = rustix::fs::fsetxattr(file, RUN_ATTRIBUTE, run.as_bytes(), XattrFlags::empty());
        let _ = rustix::fs::fsetxattr(file, GUEST_ATTRIBUTE, guest.as_str().as_bytes(), XattrFlags::empty());
        let folder = rustix::fs::fstat(self.folder.fd()).map_err(|errno| self.io(Act::Own, errno.into()))?;
        let (uid, gid, mode) = self.replaced.unwrap_or((folder.st_uid, folder.st_gid, 0o600));
        if rustix::process::geteuid().is_root() {
            rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(|errno| self.io(Act::Own, errno.into()))?;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode & 0o777)).map_err(|errno| self.io(Act::Own, errno.into()))?;
        self.folder.sync_file(name, file).map_err(|source| self.failed(source))
    }

    /// Gives the file its name.
    pub(super) fn publish(mut self) -> Result<PathBuf, RestoreError> {
        let Some((name, file)) = self.temporary.take() else { return Ok(self.path.clone()) };
        let done = if self.replaced.is_some() {
            self.folder.replace(&name, &self.name).map(|()| true)
        } else {
            self.folder.publish(&name, &self.name)
        };
        if !matches!(done, Ok(true)) {
            self.temporary = Some((name, file));
        }
        match done {
            Ok(true) => Ok(self.path.clone()),
            Ok(false) => Err(RestoreError::Exists { path: self.path.clone(), why: "it appeared during the restore" }),
            Err(source) => Err(self.failed(source)),
        }
    }

    /// Looks once more, before the first file gets its name: a copy takes hours, and a machine may have been started
    /// from the old image meanwhile. What it writes would go with the name.
    pub(super) fn refuse_newly_used(&self) -> Result<(), RestoreError> {
        if self.replaced.is_none() {
            return Ok(());
        }
        match self.folder.open(&self.name, false).map_err(|source| self.failed(source))? {
            Some(file) => self.refuse_used(&file),
            None => Ok(()),
        }
    }

    /// Refuses a file on which anybody holds a lock: QEMU holds such on each image that it uses (`block/file-posix.c`). The
    /// kernel is asked for the file itself: `/proc/locks` names the device of the file system below an overlay or a
    /// subvolume, which `stat` does not (seen on overlayfs: the image of a running machine was replaced).
    #[allow(clippy::cast_possible_truncation, reason = "small numbers of a C header, which libc gives as int")]
    fn refuse_used(&self, file: &File) -> Result<(), RestoreError> {
        let mut lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).map_err(|errno| self.io(Act::Read, errno.into()))?;
        if i32::from(lock.l_type) == libc::F_UNLCK {
            Ok(())
        } else {
            Err(RestoreError::InUse { path: self.path.clone() })
        }
    }

    /// Looks at what has the name now.
    fn look(mut self, request: &RestoreRequest) -> Result<Self, RestoreError> {
        let (guest, overwrite) = (&request.guest, request.overwrite);
        match self.folder.kind(self.name.as_ref()).map_err(|source| self.failed(source))? {
            None => return Ok(self),
            Some(FileType::RegularFile) => {}
            // Followed by no policy: opening it says so, and `overwrite` is no way out.
            Some(FileType::Symlink) => {
                self.folder.open(&self.name, false).map_err(|source| self.failed(source))?;
            }
            Some(FileType::Directory) => return Err(RestoreError::IsFolder { path: self.path.clone() }),
            Some(_) => return Err(RestoreError::NotRegular { path: self.path.clone() }),
        }
        self.done = !request.run.is_empty() && self.is_marked(RUN_ATTRIBUTE, &request.run);
        if self.done {
            return Ok(self);
        }
        let refuse = |why| Err(RestoreError::Exists { path: self.path.clone(), why });
        if overwrite == Overwrite::Never {
            return refuse("the overwrite policy is Never");
        }
        let Some(file) = self.folder.open(&self.name, false).map_err(|source| self.failed(source))? else {
            return Ok(self);
        };
        if overwrite == Overwrite::IfSameGuest && !self.is_marked(GUEST_ATTRIBUTE, guest.as_str()) {
            return refuse("it is not marked as an image that was restored for this guest");
        }
        let metadata = file.metadata().map_err(|source| self.io(Act::Read, source))?;
        self.refuse_used(&file)?;
        self.replaced = Some((metadata.uid(), metadata.gid(), metadata.mode()));
        Ok(self)
    }

    /// Whether the file of the name says this about itself. One that cannot be opened says nothing.
    fn is_marked(&self, attribute: &str, expected: &str) -> bool {
        let Ok(Some(file)) = self.folder.open(&self.name, false) else { return false };
        let mut value = [0; 128];
        let length = rustix::fs::fgetxattr(&file, attribute, &mut value[..]).unwrap_or(0);
        value[..length] == *expected.as_bytes()
    }

    /// Restore roots may contain the repository; a stored image must not be replaced all the same.
    fn refuse_repository(&self, repository: &Repository) -> Result<(), RestoreError> {
        let real =
            |fd: i32| std::fs::read_link(format!("/proc/self/fd/{fd}")).map_err(|source| self.io(Act::Open, source));
        let folder = real(self.folder.fd().as_raw_fd())?;
        let root = real(repository.root().as_raw_fd())?;
        if folder.starts_with(root) {
            return Err(RestoreError::InsideRepository { path: self.path.clone() });
        }
        Ok(())
    }

    /// Removes what killed restores left in the folder.
    pub(super) fn clear_leftovers(&self) -> Result<(), RestoreError> {
        for name in self.folder.entries().map_err(|source| self.failed(source))? {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX)) else {
                continue;
            };
            if let Ok(Some(file)) = self.folder.open(name, false)
                && rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            {
                self.folder.remove(name).map_err(|source| self.failed(source))?;
            }
        }
        Ok(())
    }

    fn failed(&self, source: StoreError) -> RestoreError {
        RestoreError::Target { path: self.path.clone(), source }
    }

    fn io(&self, act: Act, source: io::Error) -> RestoreError {
        self.failed(StoreError { act, path: self.path.clone(), source })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some((name, _)) = self.temporary.take()
            && let Err(error) = self.folder.remove(&name)
        {
            tracing::warn!("{error}: the next restore to this folder removes it");
        }
    }
}

/// Fails when a file system cannot take all that its targets may need.
pub(super) fn check_space(works: &[Work<'_>]) -> Result<(), RestoreError> {
    let mut needed: BTreeMap<u64, u64> = BTreeMap::new();
    for work in works.iter().filter(|work| !work.target.is_done()) {
        let target = &work.target;
        let stat = rustix::fs::fstat(target.folder.fd()).map_err(|errno| target.io(Act::Read, errno.into()))?;
        let space = rustix::fs::fstatvfs(target.folder.fd()).map_err(|errno| target.io(Act::Read, errno.into()))?;
        let stored: u64 = work.chain.iter().map(|link| link.disk.bytes).sum();
        let needed = needed.entry(stat.st_dev).or_default();
        *needed += stored.min(work.virtual_size);
        let available = space.f_bavail.saturating_mul(space.f_frsize);
        if *needed > available {
            return Err(RestoreError::NoSpace { path: target.path.clone(), needed: *needed, available });
        }
    }
    Ok(())
}
