//! What makes a copied image a stored one: checked, digested cluster by cluster, synced. The digests are of what the
//! image's tables say stands in the file, read from the file directly.

use std::{
    fs::File,
    io::{self, BufWriter, Read},
    os::{fd::AsFd, unix::fs::FileExt},
    sync::atomic::{AtomicBool, Ordering},
    thread::ScopedJoinHandle,
};

use rustix::fs::Advice;

use super::{
    RepoError,
    digests::{Entry, TableWriter, entry},
    layout,
    store::{Act, Folder},
};
use crate::{
    ids::DiskName,
    qcow2::{
        CLUSTER, CLUSTER_LENGTH,
        header::Header,
        map::{Kind, Map},
        tool::QemuImg,
    },
};

/// A disk's image that is ready to be named by a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedDisk {
    /// Which disk.
    pub name: DiskName,
    /// Virtual size in bytes.
    pub virtual_size: u64,
    /// The image's file.
    pub file: String,
    /// Size of the image's file in bytes.
    pub bytes: u64,
    /// The digest table's file.
    pub table: String,
    /// The digest table's generation: 1.
    pub generation: u32,
    /// BLAKE3 of the digest table, in hex.
    pub table_digest: String,
    /// Clusters that are data in the image.
    pub data_clusters: u64,
    /// Clusters that are marked as zeros in the image.
    pub zero_clusters: u64,
}

impl SealedDisk {
    /// Clusters that the image allocates. Of a complete copy it is the job's total-progress divided by 64 KiB,
    /// rounded up (measured on QEMU 7.2 and 10.0).
    pub fn clusters(&self) -> u64 {
        self.data_clusters + self.zero_clusters
    }
}

/// Bytes that are read at once.
const CHUNK: u64 = 16 * CLUSTER;

pub(super) fn seal(
    folder: &Folder,
    disk: &DiskName,
    file: &File,
    tool: &QemuImg,
    progress: &mut dyn FnMut(u64),
) -> Result<SealedDisk, RepoError> {
    let name = layout::image(disk);
    let bytes = file.metadata().map_err(|source| folder.error(Act::Read, &name, source))?.len();
    folder.pass(Act::Truncate, &name)?;
    // Setting the length that it has frees what was allocated behind it (measured on ext4 and tmpfs).
    file.set_len(bytes).map_err(|source| folder.error(Act::Truncate, &name, source))?;
    // The disk writes while one processor digests and the other checks: none of the three needs another to be done.
    let (header, map, table_digest) = std::thread::scope(|scope| {
        let synced = scope.spawn(|| folder.sync_file(&name, file));
        let checked = scope.spawn(|| check(folder, &name, file, tool));
        let digested = digest(folder, disk, file, bytes, progress);
        // What is wrong with a damaged image is what the check says of it.
        joined(checked)?;
        joined(synced)?;
        digested
    })?;
    // What was stored is not read again soon; guests have a better use for the memory.
    let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
    let (data_clusters, zero_clusters) = map.allocated();
    Ok(SealedDisk {
        name: disk.clone(),
        virtual_size: header.virtual_size,
        file: name,
        bytes,
        table: layout::table(disk, 1),
        generation: 1,
        table_digest,
        data_clusters,
        zero_clusters,
    })
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn check(folder: &Folder, name: &str, file: &File, tool: &QemuImg) -> Result<(), RepoError> {
    let path = folder.path().join(name);
    let checked = tool
        .check(file.as_fd(), &AtomicBool::new(false))
        .map_err(|source| RepoError::Tool { path: path.clone(), source })?;
    if checked.corruptions > 0 || checked.check_errors > 0 {
        let (corruptions, errors) = (checked.corruptions, checked.check_errors);
        return Err(RepoError::Corrupt { path, corruptions, errors });
    }
    Ok(())
}

/// Writes the image's digest table.
fn digest(
    folder: &Folder,
    disk: &DiskName,
    file: &File,
    bytes: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<(Header, Map, String), RepoError> {
    let path = folder.path().join(layout::image(disk));
    let header = Header::read(file)
        .and_then(|header| header.expect_stored(header.virtual_size).map(|()| header))
        .map_err(|source| RepoError::Header { path: path.clone(), source })?;
    let map = Map::read(file, &header, bytes).map_err(|source| RepoError::Map { path, source })?;
    let table_digest = write_table(folder, disk, file, &header, &map, progress)?;
    Ok((header, map, table_digest))
}

fn write_table(
    folder: &Folder,
    disk: &DiskName,
    file: &File,
    header: &Header,
    map: &Map,
    progress: &mut dyn FnMut(u64),
) -> Result<String, RepoError> {
    let (aside, name) = (layout::table_new(disk), layout::table(disk, 1));
    let failed = |source| RepoError::Table { path: folder.path().join(&name), source };
    folder.remove(&aside)?;
    let out = folder.create(&aside)?;
    folder.pass(Act::Write, &aside)?;
    let mut table = TableWriter::new(BufWriter::new(out), header.virtual_size).map_err(failed)?;
    let mut problem = None;
    let read = digest_clusters(
        file,
        map,
        header.virtual_size,
        &mut |cluster, entry| {
            problem = table.push(cluster, entry).err();
            problem.is_none()
        },
        progress,
    );
    if let Some(source) = problem {
        return Err(failed(source));
    }
    read.map_err(|source| folder.error(Act::Read, &layout::image(disk), source))?;
    let (out, digest) = table.finish().map_err(failed)?;
    let out = out.into_inner().map_err(|error| folder.error(Act::Write, &aside, error.into_error()))?;
    folder.sync_file(&aside, &out)?;
    folder.replace(&aside, &name)?;
    Ok(digest)
}

/// Gives `visit` what stands in each cluster that the map has, in the order of the disk, until it says no. `progress`
/// gets the bytes that were visited.
pub(crate) fn digest_clusters(
    file: &File,
    map: &Map,
    virtual_size: u64,
    visit: &mut dyn FnMut(u64, Entry) -> bool,
    progress: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let mut buffer = vec![0; usize::try_from(CHUNK).unwrap_or(usize::MAX)];
    let mut done = 0;
    // An advice only: where it is not taken, nothing is lost.
    let _ = rustix::fs::fadvise(file, 0, None, Advice::Sequential);
    for extent in &map.extents {
        let mut at = 0;
        while at < extent.count {
            let count = (extent.count - at).min(CHUNK / CLUSTER);
            let bytes = &mut buffer[..usize::try_from(count * CLUSTER).unwrap_or(usize::MAX)];
            if let Kind::Data { host } = extent.kind {
                read_padded(file, bytes, host + at * CLUSTER)?;
            }
            for (cluster, bytes) in (extent.first + at..).zip(bytes.chunks_exact_mut(CLUSTER_LENGTH)) {
                let entry = match extent.kind {
                    Kind::Zero => Entry::Zero,
                    Kind::Data { .. } => {
                        // Behind the end of the disk an image may hold anything.
                        let inside = virtual_size.saturating_sub(cluster * CLUSTER).min(CLUSTER);
                        bytes[usize::try_from(inside).unwrap_or(usize::MAX)..].fill(0);
                        entry(bytes)
                    }
                };
                if !visit(cluster, entry) {
                    return Ok(());
                }
            }
            at += count;
            done += count * CLUSTER;
            progress(done);
        }
    }
    Ok(())
}

/// Fills `buffer` from `offset` on; what lies behind the file's end is zeros.
pub(crate) fn read_padded(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let (mut filled, mut offset) = (0, offset);
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset) {
            Ok(0) => {
                buffer[filled..].fill(0);
                return Ok(());
            }
            Ok(count) => {
                filled += count;
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// BLAKE3 of a whole file, in hex; None when cancelled.
pub(crate) fn file_digest(mut file: File, cancel: &AtomicBool) -> io::Result<Option<String>> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        if cancel.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match file.read(&mut buffer)? {
            0 => return Ok(Some(hasher.finalize().to_hex().to_string())),
            count => hasher.update(&buffer[..count]),
        };
    }
}
