//! As much of qcow2 as a scripted QEMU needs: the header of what it opens, the bitmaps stored in it, and the data that
//! its jobs leave in a target. The format is `docs/interop/qcow2.rst` of QEMU.

use std::{collections::BTreeMap, collections::BTreeSet, fs::File, io, os::unix::fs::FileExt};

/// Bytes of a cluster of the copies that jobs make.
pub(super) const CLUSTER: u64 = 64 << 10;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) virtual_size: u64,
    pub(super) cluster_bits: u32,
    pub(super) backing: Option<String>,
}

/// A bitmap stored in an image: bytes of a granule, and the marked granules.
pub(super) type StoredBitmap = (String, u32, BTreeSet<u64>);

/// A job's copy: cluster number to content, `None` for zeros.
pub(super) type Copy = BTreeMap<u64, Option<Vec<u8>>>;

pub(super) fn header(file: &File) -> io::Result<Header> {
    if read(file, 0, 4)? != *b"QFI\xfb" {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "Image is not in qcow2 format"));
    }
    let length = u64::from(u32_at(file, 16)?);
    let backing = match u64_at(file, 8)? {
        0 => None,
        at => Some(String::from_utf8_lossy(&read(file, at, length)?).into_owned()),
    };
    Ok(Header { virtual_size: u64_at(file, 24)?, cluster_bits: u32_at(file, 20)?, backing })
}

/// The bitmaps of an image.
pub(super) fn bitmaps(file: &File) -> io::Result<Vec<StoredBitmap>> {
    let header = header(file)?;
    let cluster = 1_u64 << header.cluster_bits;
    let mut at = u64::from(u32_at(file, 100)?);
    // Extensions: type, length, data padded to 8.
    let (count, directory) = loop {
        let (kind, length) = (u32_at(file, at)?, u32_at(file, at + 4)?);
        match kind {
            0 => return Ok(Vec::new()),
            0x2385_2875 => break (u32_at(file, at + 8)?, u64_at(file, at + 24)?),
            _ => at += 8 + u64::from(length).next_multiple_of(8),
        }
    };
    let mut found = Vec::new();
    let mut at = directory;
    for _ in 0..count {
        let (table, entries) = (u64_at(file, at)?, u32_at(file, at + 8)?);
        let fixed = read(file, at + 16, 8)?;
        let granularity = 1_u32 << fixed[1];
        let name_length = u64::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        let extra = u64::from(u32_at(file, at + 20)?);
        let name = String::from_utf8_lossy(&read(file, at + 24 + extra, name_length)?).into_owned();
        let bits = header.virtual_size.div_ceil(u64::from(granularity));
        let mut marked = BTreeSet::new();
        for entry in 0..u64::from(entries) {
            let value = u64_at(file, table + entry * 8)?;
            let (offset, first) = (value & 0x00ff_ffff_ffff_fe00, entry * cluster * 8);
            let content = match offset {
                0 if value & 1 == 1 => vec![0xff; usize::try_from(cluster).unwrap_or(0)],
                0 => continue,
                offset => read(file, offset, cluster)?,
            };
            let set = |bit: &u64| content[usize::try_from(bit / 8).unwrap_or(0)] >> (bit % 8) & 1 == 1;
            marked.extend((0..bits.saturating_sub(first).min(cluster * 8)).filter(set).map(|bit| first + bit));
        }
        found.push((name, granularity, marked));
        at += (24 + extra + name_length).next_multiple_of(8);
    }
    Ok(found)
}

/// Puts a job's copy into an empty image: the header's extensions and backing name stay, all else is laid out anew.
pub(super) fn fill(file: &File, copy: &Copy) -> io::Result<()> {
    let header = header(file)?;
    if header.cluster_bits != 16 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "Target's clusters are not of 64 KiB"));
    }
    let mut first = read(file, 0, CLUSTER.min(file.metadata()?.len()))?;
    first.resize(usize::try_from(CLUSTER).unwrap_or(0), 0);
    let per_table = CLUSTER / 8;
    let tables = header.virtual_size.div_ceil(CLUSTER * per_table);
    let l1_clusters = (tables * 8).div_ceil(CLUSTER).max(1);
    // Header, L1, L2 tables, data, refcount table, refcount blocks.
    let data_start = 1 + l1_clusters + tables;
    let mut l2 = vec![0_u64; usize::try_from(tables * per_table).unwrap_or(0)];
    let mut next = data_start;
    file.set_len(0)?;
    for (cluster, content) in copy {
        let entry = match content {
            None => 1,
            Some(content) => {
                let offset = next * CLUSTER;
                next += 1;
                file.write_all_at(content, offset)?;
                offset | (1 << 63)
            }
        };
        l2[usize::try_from(*cluster).unwrap_or(usize::MAX)] = entry;
    }
    let refcount_table = next;
    let per_block = CLUSTER / 2;
    let mut blocks = 1;
    while next + 1 + blocks > blocks * per_block {
        blocks += 1;
    }
    let total = next + 1 + blocks;
    let l2_start = 1 + l1_clusters;
    write_words(file, CLUSTER, (0..tables).map(|table| ((l2_start + table) * CLUSTER) | (1 << 63)))?;
    write_words(file, l2_start * CLUSTER, l2)?;
    write_words(file, refcount_table * CLUSTER, (0..blocks).map(|block| (refcount_table + 1 + block) * CLUSTER))?;
    let ones: Vec<u8> = (0..total).flat_map(|_| 1_u16.to_be_bytes()).collect();
    file.write_all_at(&ones, (refcount_table + 1) * CLUSTER)?;
    file.set_len(total * CLUSTER)?;
    let l1_size = u32::try_from(tables).unwrap_or(u32::MAX);
    first[36..40].copy_from_slice(&l1_size.to_be_bytes());
    first[40..48].copy_from_slice(&CLUSTER.to_be_bytes());
    first[48..56].copy_from_slice(&(refcount_table * CLUSTER).to_be_bytes());
    first[56..60].copy_from_slice(&1_u32.to_be_bytes());
    file.write_all_at(&first, 0)?;
    file.sync_all()
}

fn write_words(file: &File, offset: u64, words: impl IntoIterator<Item = u64>) -> io::Result<()> {
    let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_be_bytes).collect();
    file.write_all_at(&bytes, offset)
}

fn read(file: &File, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn u32_at(file: &File, offset: u64) -> io::Result<u32> {
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(u32::from_be_bytes(bytes))
}

fn u64_at(file: &File, offset: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(u64::from_be_bytes(bytes))
}
