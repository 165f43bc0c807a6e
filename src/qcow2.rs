//! What the crate knows of qcow2: the header, the map of allocated clusters (both pure, over bytes), and the one door
//! to `qemu-img`, which does everything that changes an image. Files are handed over as descriptors: no name that an
//! image carries inside is ever followed.
//!
//! Source of the format: QEMU `docs/interop/qcow2.txt`.

pub mod header;
pub mod map;
pub mod tool;

use std::{fs::File, io, os::unix::fs::FileExt};

/// Cluster size of every stored image, in bytes. Another size is refused: behind NBD, QEMU wrote wrong data into
/// images of 1 MiB clusters without an error (measured on QEMU 7.2 and 10.0).
pub const CLUSTER: u64 = 65_536;
/// The same, as the length of a buffer.
pub const CLUSTER_LENGTH: usize = 65_536;

/// Bytes that can be read at a position: a file, or a buffer in tests.
pub trait ReadAt {
    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` when the bytes end before the buffer is full, or what the file system says.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let bytes = start
            .checked_add(buf.len())
            .and_then(|end| self.get(start..end))
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        ReadAt::read_exact_at(self.as_slice(), buf, offset)
    }
}
