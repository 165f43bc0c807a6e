//! A disk's image that QEMU writes, in whatever folder it stands: the point's own, or the one where it is staged.

use std::{fs::File, os::fd::AsFd, path::Path};

use rustix::fs::FallocateFlags;

use super::{
    RepoError, layout,
    store::{Act, Folder, StoreError},
};
use crate::{
    ids::DiskName,
    qcow2::{header::Header, tool::QemuImg},
};

/// Makes an empty image and allocates `reserve_bytes` for it ahead. `backing` is what its header names.
pub(super) fn create(
    folder: &Folder,
    tool: &QemuImg,
    disk: &DiskName,
    virtual_size: u64,
    reserve_bytes: u64,
    backing: Option<&str>,
) -> Result<(), RepoError> {
    let name = layout::image(disk);
    let path = folder.path().join(&name);
    let file = folder.create(&name)?;
    folder.pass(Act::Tool, &name)?;
    tool.create_stored(file.as_fd(), virtual_size, backing)
        .map_err(|source| RepoError::Tool { path: path.clone(), source })?;
    Header::read(&file)
        .and_then(|header| header.expect_stored(virtual_size))
        .map_err(|source| RepoError::Header { path, source })?;
    // Not synced: after a power cut an unfinished image is discarded, whatever is in it.
    allocate(folder, &name, &file, reserve_bytes)
}

/// Allocates `reserve_bytes` in all for an image that is being written.
pub(super) fn reserve(folder: &Folder, disk: &DiskName, reserve_bytes: u64) -> Result<(), RepoError> {
    let name = layout::image(disk);
    allocate(folder, &name, &open(folder, &name, true)?, reserve_bytes)
}

/// Fails unless an image, which people know as `path`, has that length and is of the shape of a stored one.
pub(super) fn expect(image: &File, path: &Path, bytes: u64, virtual_size: u64) -> Result<(), RepoError> {
    let failed = |source| StoreError { act: Act::Read, path: path.to_owned(), source };
    let length = image.metadata().map_err(failed)?.len();
    if length != bytes {
        let why = format!("it has {length} bytes, the manifest says {bytes}");
        return Err(RepoError::File { path: path.to_owned(), why });
    }
    Header::read(image)
        .and_then(|header| header.expect_stored(virtual_size))
        .map_err(|source| RepoError::Header { path: path.to_owned(), source })
}

/// A file that has to be there.
pub(super) fn open(folder: &Folder, name: &str, write: bool) -> Result<File, RepoError> {
    let missing = || RepoError::File { path: folder.path().join(name), why: "it is missing".into() };
    folder.open(name, write)?.ok_or_else(missing)
}

fn allocate(folder: &Folder, name: &str, file: &File, bytes: u64) -> Result<(), RepoError> {
    folder.pass(Act::Allocate, name)?;
    if bytes == 0 {
        return Ok(());
    }
    rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes).map_err(|errno| RepoError::Reserve {
        path: folder.path().join(name),
        bytes,
        source: errno.into(),
    })
}
