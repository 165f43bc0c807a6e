//! The sentinel's bits: a sparse qcow2 whose one bitmap has only the disk's last granule set.
//!
//! QEMU can give a bitmap bits only by a merge from another one. The sentinel of a lineage (a disabled bitmap that a
//! shrink clears, see the commit protocol) takes its single granule from the image made here, which QEMU gets as a
//! read-only descriptor of an anonymous file: nothing is left behind on any file system, whoever dies when. The image
//! is written by hand, after QEMU's docs/interop/qcow2.txt, because three runs of qemu-img and qemu-io for each disk
//! would cost more than the rest of a small backup. `image` is pure, `open_source` makes the file.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use crate::chain::next::GRANULARITY;

/// The name of the bitmap inside the source image.
pub const SOURCE_BITMAP: &str = "last-granule";

const CLUSTER: u64 = 65536;
const BITMAPS_EXTENSION: u32 = 0x2385_2875;

/// A sparse file: its length in bytes and what stands in it by offset; the rest is zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The file's length in bytes.
    pub length: u64,
    /// Offset and content of each piece.
    pub pieces: Vec<(u64, Vec<u8>)>,
}

impl Image {
    fn write(&self, file: &File) -> io::Result<()> {
        file.set_len(self.length)?;
        self.pieces.iter().try_for_each(|(offset, bytes)| file.write_all_at(bytes, *offset))
    }
}

/// The source image for a disk of `virtual_size` bytes.
///
/// The granule that is set is `[floor((size-1)/64Ki)*64Ki, size)`: counting 64 KiB back from the end would set two
/// on a size that is no multiple of 64 KiB (measured on QEMU 7.2 and 10.0).
pub fn image(virtual_size: u64) -> Image {
    let l1_entries = virtual_size.div_ceil(CLUSTER * (CLUSTER / 8)).max(1);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER);
    let granules = virtual_size.div_ceil(u64::from(GRANULARITY)).max(1);
    let last = granules - 1;
    let table_entries = granules.div_ceil(8 * CLUSTER);
    let table_clusters = (table_entries * 8).div_ceil(CLUSTER);

    let refcount_table = CLUSTER;
    let refcount_block = 2 * CLUSTER;
    let l1_table = 3 * CLUSTER;
    let directory = l1_table + l1_clusters * CLUSTER;
    let table = directory + CLUSTER;
    let data = table + table_clusters * CLUSTER;
    let clusters = data / CLUSTER + 1;

    let mut entry = Vec::new();
    entry.extend(table.to_be_bytes());
    entry.extend(u32::try_from(table_entries).unwrap_or(u32::MAX).to_be_bytes());
    entry.extend(0u32.to_be_bytes());
    entry.extend([1, 16]); // type: dirty tracking; granularity: 2^16
    entry.extend(u16::try_from(SOURCE_BITMAP.len()).unwrap_or(u16::MAX).to_be_bytes());
    entry.extend(0u32.to_be_bytes());
    entry.extend(SOURCE_BITMAP.as_bytes());
    entry.resize(entry.len().next_multiple_of(8), 0);

    let mut header = Vec::with_capacity(144);
    header.extend(*b"QFI\xfb");
    header.extend(3u32.to_be_bytes());
    header.extend(0u64.to_be_bytes()); // no backing file
    header.extend(0u32.to_be_bytes());
    header.extend(16u32.to_be_bytes()); // cluster bits
    header.extend(virtual_size.to_be_bytes());
    header.extend(0u32.to_be_bytes()); // no encryption
    header.extend(u32::try_from(l1_entries).unwrap_or(u32::MAX).to_be_bytes());
    header.extend(l1_table.to_be_bytes());
    header.extend(refcount_table.to_be_bytes());
    header.extend(1u32.to_be_bytes());
    header.extend(0u32.to_be_bytes()); // no snapshots
    header.extend(0u64.to_be_bytes());
    header.extend(0u64.to_be_bytes()); // incompatible features
    header.extend(0u64.to_be_bytes()); // compatible features
    header.extend(1u64.to_be_bytes()); // autoclear: the bitmaps are consistent
    header.extend(4u32.to_be_bytes()); // 16 bits for each refcount
    header.extend(104u32.to_be_bytes());
    header.extend(BITMAPS_EXTENSION.to_be_bytes());
    header.extend(24u32.to_be_bytes());
    header.extend(1u32.to_be_bytes());
    header.extend(0u32.to_be_bytes());
    header.extend((entry.len() as u64).to_be_bytes());
    header.extend(directory.to_be_bytes());
    header.extend(0u64.to_be_bytes()); // end of the extensions

    let refcounts: Vec<u8> = (0..clusters).flat_map(|_| 1u16.to_be_bytes()).collect();
    let bit = last % (8 * CLUSTER);
    let pieces = vec![
        (0, header),
        (refcount_table, refcount_block.to_be_bytes().to_vec()),
        (refcount_block, refcounts),
        (directory, entry),
        (table + (table_entries - 1) * 8, data.to_be_bytes().to_vec()),
        (data + bit / 8, vec![1 << (bit % 8)]),
    ];
    Image { length: clusters * CLUSTER, pieces }
}

/// An anonymous file with the source image for a disk of `virtual_size` bytes, open for reading only: QEMU takes a
/// read-only node only from a read-only descriptor (measured on QEMU 7.2 and 10.0).
pub fn open_source(virtual_size: u64) -> io::Result<OwnedFd> {
    let file = File::from(rustix::fs::memfd_create("driftline-sentinel", rustix::fs::MemfdFlags::CLOEXEC)?);
    image(virtual_size).write(&file)?;
    Ok(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file as qemu-img sees it.
    fn written(size: u64, dir: &tempfile::TempDir) -> std::path::PathBuf {
        let path = dir.path().join(format!("{size}.qcow2"));
        image(size).write(&File::create(&path).unwrap()).unwrap();
        path
    }

    fn qemu_img(args: &[&str]) -> serde_json::Value {
        let out = std::process::Command::new("qemu-img").args(args).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    }

    #[test]
    fn qemu_img_finds_the_source_whole_and_its_bitmap_consistent() {
        let dir = tempfile::tempdir().unwrap();
        for size in [512, 65536, 65537 + 511, 10_000_384, 1 << 30, (1 << 35) + 512, 9 << 40] {
            let path = written(size, &dir);
            let path = path.to_str().unwrap();
            let check = qemu_img(&["check", "--output=json", path]);
            assert_eq!(check["check-errors"], 0, "{check}");
            assert!(check.get("corruptions").is_none() && check.get("leaks").is_none(), "{size}: {check}");
            let info = qemu_img(&["info", "--output=json", path]);
            assert_eq!(info["virtual-size"], size);
            let bitmaps = &info["format-specific"]["data"]["bitmaps"];
            assert_eq!(bitmaps[0]["name"], SOURCE_BITMAP);
            assert_eq!(bitmaps[0]["granularity"], GRANULARITY);
            assert_eq!(bitmaps[0]["flags"], serde_json::json!([]));
        }
    }

    #[test]
    fn exactly_the_last_granule_is_set() {
        for (size, bit) in [(512u64, 0u64), (65536, 0), (66048, 1), (10_000_384, 152), (8 * 65536 * 65536, 524_287)] {
            let image = image(size);
            let (offset, byte) = image.pieces.last().unwrap();
            let within = (offset - (image.length - CLUSTER)) * 8 + u64::from(byte[0].trailing_zeros());
            assert_eq!((within, byte[0].count_ones()), (bit, 1), "size {size}");
        }
    }

    #[test]
    fn the_descriptor_can_be_read_only() {
        let file = File::from(open_source(10_000_384).unwrap());
        assert!(file.write_at(b"x", 0).is_err());
        let mut magic = [0; 4];
        file.read_exact_at(&mut magic, 0).unwrap();
        assert_eq!(&magic, b"QFI\xfb");
    }
}
