//! Images of an attempt that are written beside the guest, in the host's scratch folder, and carried to the repository once
//! they are whole: a repository that is slow, full or gone has nothing to do with the guest then. They have names, because a
//! finished copy outlives the agent and QEMU.

use std::{
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags, SeekFrom};

use super::{
    RepoError, Roots, image, layout,
    store::{Act, Folder, Rules, StoreError},
};
use crate::{
    chain::point::Parent,
    ids::{AttemptId, DiskName, GuestId},
    qcow2::tool::QemuImg,
};

/// Bytes that are carried at once.
const CHUNK: usize = 1 << 20;

/// Where the images of an attempt are staged, whether they are or not.
#[derive(Clone)]
pub struct Stage {
    directory: PathBuf,
    guest: GuestId,
    attempt: AttemptId,
    tool: QemuImg,
    rules: Rules,
}

impl Stage {
    /// The place of `attempt` in the scratch folder `directory`. Its files belong to whom `tool` runs as; acts pass the gate of
    /// `roots`.
    pub fn new(directory: &Path, guest: &GuestId, attempt: &AttemptId, tool: &QemuImg, roots: &Roots) -> Self {
        let rules = Rules { owner: tool.owner, gate: roots.gate.clone() };
        let (guest, attempt) = (guest.clone(), attempt.clone());
        Self { directory: directory.to_owned(), guest, attempt, tool: tool.clone(), rules }
    }

    /// Makes its folder.
    ///
    /// # Errors
    /// When it is there already or cannot be made.
    pub fn create(&self) -> Result<Staging, RepoError> {
        let scratch = self.scratch()?;
        let name = self.name();
        let taken = || scratch.error(Act::MakeFolder, &name, rustix::io::Errno::EXIST);
        let folder = scratch.make_folder(&name)?.ok_or_else(taken)?;
        Ok(Staging { folder, tool: self.tool.clone() })
    }

    /// What was staged; none where there is nothing.
    ///
    /// # Errors
    /// When the scratch folder cannot be opened.
    pub fn open(&self) -> Result<Option<Staging>, RepoError> {
        let folder = self.scratch()?.folder(&self.name())?;
        Ok(folder.map(|folder| Staging { folder, tool: self.tool.clone() }))
    }

    /// Removes what was staged, if anything was.
    ///
    /// # Errors
    /// The first thing that cannot be removed; the others are.
    pub fn discard(&self) -> Result<(), RepoError> {
        let scratch = match self.scratch() {
            Ok(scratch) => scratch,
            // Nothing is left in a folder that is gone.
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        discard(&scratch, &self.name())
    }

    /// Removes what any attempt at a guest has staged in the scratch folder `directory`: the guest's lock is held, and no
    /// journal knows of one.
    ///
    /// # Errors
    /// As `discard`.
    pub fn discard_all(directory: &Path, guest: &GuestId, tool: &QemuImg, roots: &Roots) -> Result<(), RepoError> {
        let scratch = scratch(directory, Rules { owner: tool.owner, gate: roots.gate.clone() })?;
        let all = layout::staged(guest, "");
        let entries = scratch.entries()?;
        let of_guest = entries.iter().filter_map(|name| name.to_str()).filter(|name| name.starts_with(&all));
        of_guest.map(|name| discard(&scratch, name)).fold(Ok(()), Result::and)
    }

    /// Its folder, as people know it.
    pub fn path(&self) -> PathBuf {
        self.directory.join(self.name())
    }

    fn scratch(&self) -> Result<Folder, StoreError> {
        scratch(&self.directory, self.rules.clone())
    }

    fn name(&self) -> String {
        layout::staged(&self.guest, self.attempt.as_str())
    }
}

fn scratch(directory: &Path, rules: Rules) -> Result<Folder, StoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(directory, flags, Mode::empty());
    let failed =
        |errno: rustix::io::Errno| StoreError { act: Act::Open, path: directory.to_owned(), source: errno.into() };
    Ok(Folder::new(opened.map_err(failed)?, directory.to_owned(), rules))
}

fn discard(scratch: &Folder, name: &str) -> Result<(), RepoError> {
    let Some(folder) = scratch.folder(name)? else { return Ok(()) };
    let mut failed = None;
    for name in folder.entries()?.iter().filter_map(|name| name.to_str()) {
        folder.empty(name);
        failed = failed.or(folder.remove(name).err());
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    scratch.remove_empty_folder(name)?;
    Ok(scratch.sync()?)
}

/// The staged images of an attempt.
pub struct Staging {
    folder: Folder,
    tool: QemuImg,
}

impl Staging {
    /// Makes a disk's empty image, as `PartialPoint::create_disk` does.
    ///
    /// # Errors
    /// As there.
    pub fn create_disk(
        &self,
        disk: &DiskName,
        virtual_size: u64,
        reserve_bytes: u64,
        parent: Option<&Parent>,
    ) -> Result<(), RepoError> {
        let backing = parent.map(layout::backing);
        image::create(&self.folder, &self.tool, disk, virtual_size, reserve_bytes, backing.as_deref())
    }

    /// Allocates `reserve_bytes` in all for a disk's image that is being written.
    ///
    /// # Errors
    /// `Reserve` where the space is not there or cannot be allocated ahead.
    pub fn reserve_disk(&self, disk: &DiskName, reserve_bytes: u64) -> Result<(), RepoError> {
        image::reserve(&self.folder, disk, reserve_bytes)
    }

    /// A disk's image, open for reading and writing.
    ///
    /// # Errors
    /// When it is not there.
    pub fn open_disk(&self, disk: &DiskName) -> Result<OwnedFd, RepoError> {
        Ok(image::open(&self.folder, &layout::image(disk), true)?.into())
    }

    /// Brings a disk's image, which nobody writes any longer, to the disk.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn sync_disk(&self, disk: &DiskName) -> Result<(), RepoError> {
        let name = layout::image(disk);
        let file = image::open(&self.folder, &name, true)?;
        self.folder.sync_file(&name, &file)?;
        Ok(self.folder.sync()?)
    }

    /// Copies a disk's image into a new one of the point's folder: what is data there, at its place. `progress` gets the
    /// bytes that are carried, and says whether to go on.
    pub(super) fn carry_disk(
        &self,
        disk: &DiskName,
        into: &Folder,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), RepoError> {
        let name = layout::image(disk);
        let from = image::open(&self.folder, &name, false)?;
        into.remove(&name)?;
        let to = into.create(&name)?;
        into.pass(Act::Write, &name)?;
        let read = |source| self.folder.error(Act::Read, &name, source);
        let length = from.metadata().map_err(read)?.size();
        // First, so that a hole at the end is one.
        to.set_len(length).map_err(|source| into.error(Act::Truncate, &name, source))?;
        let (mut buffer, mut at, mut carried) = (vec![0; CHUNK], 0, 0);
        while let Some((start, end)) = next_data(&from, at).map_err(read)? {
            at = start;
            while at < end {
                let count = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
                from.read_exact_at(&mut buffer[..count], at).map_err(read)?;
                to.write_all_at(&buffer[..count], at).map_err(|source| into.error(Act::Write, &name, source))?;
                at += count as u64;
                carried += count as u64;
                if !progress(carried) {
                    let given_up = io::Error::new(io::ErrorKind::Interrupted, "nobody waits for it any more");
                    return Err(into.error(Act::Write, &name, given_up).into());
                }
            }
        }
        Ok(())
    }
}

/// The next stretch of `file` from `at` on that is no hole.
fn next_data(file: &File, at: u64) -> io::Result<Option<(u64, u64)>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        // Behind the last data (lseek(2)).
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    Ok(Some((start, rustix::fs::seek(file, SeekFrom::Hole(start))?)))
}
