//! How much room a file system has, and whether it is one on which a guest may safely be backed up directly.

mod device;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use rustix::fs::{Access, AtFlags, Mode, OFlags, StatVfsMountFlags};
use serde::{Deserialize, Serialize};

use self::device::Kernel;

/// The room for a repository, or in a scratch folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Space {
    /// Size of the file system in bytes.
    pub capacity: u64,
    /// What can still be written, in bytes.
    pub available: u64,
    /// A file system of this host on disks of its own, which keeps what is allocated ahead: no network, no other program
    /// and no other writer stands behind a write, as far as the kernel tells.
    pub local: bool,
    /// Mounted for writing, and this process may write.
    pub writable: bool,
}

/// Magic numbers (linux/magic.h, and those of file systems outside of it) of file systems that are known to be local and
/// to keep what is allocated in a file for that file. Anything else is not: a hung server would hang the guest, and so
/// would another writer who takes the room. ZFS takes an allocation, looks whether there is room, and keeps none of it
/// (OpenZFS, `zfs_fallocate_reserve_percent` in zfs(4)).
const LOCAL: &[u64] = &[
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0x0102_1994, // tmpfs
    0xf2f5_2010, // f2fs
    0xca45_1a4e, // bcachefs
    0x3153_464a, // jfs
    0x794c_7630, // overlayfs
];

/// The same of any folder of the host.
///
/// # Errors
/// When it cannot be opened, or its file system does not say.
pub fn space_at(folder: &Path) -> io::Result<Space> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    of(rustix::fs::open(folder, flags, Mode::empty())?.as_fd())
}

fn is_local_kind(kind: u64) -> bool {
    LOCAL.contains(&kind)
}

/// The magic number of a file system.
fn kind(opened: BorrowedFd<'_>) -> io::Result<u64> {
    // Where a word has 32 bits, a magic number with the top bit set comes sign-extended.
    Ok(u64::try_from(rustix::fs::fstatfs(opened)?.f_type & 0xffff_ffff).unwrap_or(0))
}

pub(super) fn of(folder: BorrowedFd<'_>) -> io::Result<Space> {
    let stat = rustix::fs::fstatvfs(folder)?;
    let mounted_for_writing = !stat.f_flag.contains(StatVfsMountFlags::RDONLY);
    let may_write = rustix::fs::accessat(folder, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).is_ok();
    Ok(Space {
        capacity: stat.f_blocks.saturating_mul(stat.f_frsize),
        available: stat.f_bavail.saturating_mul(stat.f_frsize),
        local: is_local_kind(kind(folder)?) && Kernel::default().stands_here(folder)?,
        writable: mounted_for_writing && may_write,
    })
}
