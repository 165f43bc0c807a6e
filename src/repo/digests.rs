//! The digest table of one disk of one point: which clusters the point itself stores, and the BLAKE3 of each. Pure over
//! bytes. All numbers are little-endian.
//!
//! | part | bytes |
//! | --- | --- |
//! | head | `DRIFTTAB`, version (u32, 1), cluster size (u32, 65536), virtual size of the disk (u64), 0 (u64) |
//! | digests | 32 for each data cluster, in the order of the disk; the last cluster is padded with zeros first |
//! | extents | 24 each: first cluster (u64), count (u64), kind (u64: 1 data, 2 zeros by content), in the order of the disk |
//! | foot | extents (u64), digests (u64), `TABLEEND` |

use std::io::{self, Write};

use crate::{
    qcow2::{CLUSTER, CLUSTER_LENGTH, ReadAt},
    retry::Retry,
};

const HEAD: u64 = 32;
const FOOT: u64 = 24;
const EXTENT: u64 = 24;
const DIGEST: u64 = 32;
const VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"DRIFTTAB";
const END: &[u8; 8] = b"TABLEEND";
const DATA: u64 = 1;
const ZERO: u64 = 2;

/// What a point stores of one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Bytes of this BLAKE3.
    Data([u8; 32]),
    /// Zeros.
    Zero,
}

/// Why a table is none.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// It could not be read.
    #[error("Cannot read the digest table")]
    Read {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It could not be written.
    #[error("Cannot write the digest table")]
    Write {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Written by a newer Driftline.
    #[error("The digest table has version {version}, this version reads {VERSION}")]
    TooNew {
        /// Its version.
        version: u32,
    },
    /// It contradicts itself.
    #[error("The digest table is malformed: {why}")]
    Malformed {
        /// How.
        why: &'static str,
    },
}

impl TableError {
    /// Reason word for conditions, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "TableUnreadable",
            Self::Write { source } => match rustix::io::Errno::from_io_error(source) {
                Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => "RepositoryFull",
                _ => "RepositoryIOError",
            },
            Self::TooNew { .. } => "RepositoryTooNew",
            Self::Malformed { .. } => "TableDamaged",
        }
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Read { .. } | Self::Write { .. } => Retry::Backoff,
            Self::TooNew { .. } | Self::Malformed { .. } => Retry::OnChange,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    first: u64,
    count: u64,
    kind: u64,
    /// How many digests stand before the extent's first.
    rank: u64,
}

/// Writes a table, cluster by cluster.
pub struct TableWriter<W> {
    out: W,
    hasher: blake3::Hasher,
    extents: Vec<Extent>,
    digests: u64,
}

impl<W: Write> TableWriter<W> {
    /// Starts the table of a disk of `virtual_size` bytes.
    ///
    /// # Errors
    /// When the head cannot be written.
    pub fn new(out: W, virtual_size: u64) -> Result<Self, TableError> {
        let mut writer = Self { out, hasher: blake3::Hasher::new(), extents: Vec::new(), digests: 0 };
        writer.write(MAGIC)?;
        writer.write(&VERSION.to_le_bytes())?;
        writer.write(&u32::try_from(CLUSTER).unwrap_or(u32::MAX).to_le_bytes())?;
        writer.write(&virtual_size.to_le_bytes())?;
        writer.write(&[0; 8])?;
        Ok(writer)
    }

    /// Adds what stands in `cluster`, which must lie behind all that were added before.
    ///
    /// # Errors
    /// When it cannot be written, or lies before one that was added.
    pub fn push(&mut self, cluster: u64, entry: Entry) -> Result<(), TableError> {
        let kind = match entry {
            Entry::Data(_) => DATA,
            Entry::Zero => ZERO,
        };
        match self.extents.last_mut() {
            Some(last) if cluster < last.first + last.count => {
                return Err(TableError::Malformed { why: "its clusters are not in the order of the disk" });
            }
            Some(last) if cluster == last.first + last.count && kind == last.kind => last.count += 1,
            _ => self.extents.push(Extent { first: cluster, count: 1, kind, rank: self.digests }),
        }
        if let Entry::Data(digest) = entry {
            self.digests += 1;
            self.write(&digest)?;
        }
        Ok(())
    }

    /// Ends the table: what it was written to, and its BLAKE3 in hex.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> Result<(W, String), TableError> {
        let extents = std::mem::take(&mut self.extents);
        for Extent { first, count, kind, .. } in &extents {
            let words = [*first, *count, *kind].map(u64::to_le_bytes);
            self.write(words.as_flattened())?;
        }
        self.write(&(extents.len() as u64).to_le_bytes())?;
        self.write(&self.digests.to_le_bytes())?;
        self.write(END)?;
        self.out.flush().map_err(|source| TableError::Write { source })?;
        Ok((self.out, self.hasher.finalize().to_hex().to_string()))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), TableError> {
        self.hasher.update(bytes);
        self.out.write_all(bytes).map_err(|source| TableError::Write { source })
    }
}

/// A table that is read where it stands: its extents in memory, its digests when asked for.
pub struct Table<R> {
    bytes: R,
    virtual_size: u64,
    extents: Vec<Extent>,
    digests: u64,
    /// Digests read last: the rank of the first, and their bytes.
    window: (u64, Vec<u8>),
}

/// Digests that are read at once.
const WINDOW: u64 = 2048;

impl<R: ReadAt> Table<R> {
    /// Opens a table of `length` bytes.
    ///
    /// # Errors
    /// When it cannot be read, is of a newer version, or contradicts itself or its length.
    pub fn open(bytes: R, length: u64) -> Result<Self, TableError> {
        let Ends { virtual_size, extents, digests } = Ends::read(&bytes, length)?;
        let mut list = vec![0; usize::try_from(extents * EXTENT).unwrap_or(usize::MAX)];
        read(&bytes, &mut list, HEAD + digests * DIGEST)?;
        let extents = parse_extents(&list, virtual_size.div_ceil(CLUSTER), digests)?;
        Ok(Self { bytes, virtual_size, extents, digests, window: (0, Vec::new()) })
    }

    /// Virtual size of the disk in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// Clusters in the table: data, and zeros.
    pub fn clusters(&self) -> (u64, u64) {
        let all: u64 = self.extents.iter().map(|extent| extent.count).sum();
        (self.digests, all - self.digests)
    }

    /// What the point stores of `cluster`; None where it stores nothing of it.
    ///
    /// # Errors
    /// When the digest cannot be read.
    pub fn get(&mut self, cluster: u64) -> Result<Option<Entry>, TableError> {
        let behind = self.extents.partition_point(|extent| extent.first <= cluster);
        let Some(extent) = behind.checked_sub(1).map(|at| self.extents[at]) else { return Ok(None) };
        if cluster - extent.first >= extent.count {
            return Ok(None);
        }
        if extent.kind == ZERO {
            return Ok(Some(Entry::Zero));
        }
        self.digest(extent.rank + cluster - extent.first).map(|digest| Some(Entry::Data(digest)))
    }

    /// The first cluster at or behind `cluster` of which the point stores anything.
    pub fn next(&self, cluster: u64) -> Option<u64> {
        let at = self.extents.partition_point(|extent| extent.first + extent.count <= cluster);
        self.extents.get(at).map(|extent| extent.first.max(cluster))
    }

    fn digest(&mut self, rank: u64) -> Result<[u8; 32], TableError> {
        let held = self.window.1.len() as u64 / DIGEST;
        if rank < self.window.0 || rank >= self.window.0 + held {
            let count = WINDOW.min(self.digests - rank);
            self.window.1.resize(usize::try_from(count * DIGEST).unwrap_or(usize::MAX), 0);
            self.window.0 = rank;
            read(&self.bytes, &mut self.window.1, HEAD + rank * DIGEST)?;
        }
        let at = usize::try_from((rank - self.window.0) * DIGEST).unwrap_or(usize::MAX);
        let mut digest = [0; 32];
        digest.copy_from_slice(&self.window.1[at..at + 32]);
        Ok(digest)
    }
}

/// Virtual size in bytes of the disk of a table, whose ends and length are those of one.
///
/// # Errors
/// When it cannot be read, is of a newer version, or contradicts its length.
pub fn virtual_size(bytes: &impl ReadAt, length: u64) -> Result<u64, TableError> {
    Ok(Ends::read(bytes, length)?.virtual_size)
}

/// What head and foot say.
struct Ends {
    virtual_size: u64,
    extents: u64,
    digests: u64,
}

impl Ends {
    fn read(bytes: &impl ReadAt, length: u64) -> Result<Self, TableError> {
        let malformed = |why| Err(TableError::Malformed { why });
        if length < HEAD + FOOT {
            return malformed("it is too short");
        }
        let mut head = [0; 32];
        let mut foot = [0; 24];
        read(bytes, &mut head, 0)?;
        read(bytes, &mut foot, length - FOOT)?;
        if head[..8] != *MAGIC || foot[16..] != *END {
            return malformed("its first or last bytes are another file's");
        }
        let version = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        if version != VERSION {
            return Err(TableError::TooNew { version });
        }
        if u64::from(u32::from_le_bytes([head[12], head[13], head[14], head[15]])) != CLUSTER {
            return malformed("its clusters are not of 64 KiB");
        }
        let (extents, digests) = (le64(&foot, 0), le64(&foot, 8));
        let expected = extents
            .checked_mul(EXTENT)
            .zip(digests.checked_mul(DIGEST))
            .and_then(|(extents, digests)| extents.checked_add(digests)?.checked_add(HEAD + FOOT));
        if expected != Some(length) {
            return malformed("its length does not fit its numbers");
        }
        Ok(Self { virtual_size: le64(&head, 16), extents, digests })
    }
}

fn parse_extents(list: &[u8], clusters: u64, digests: u64) -> Result<Vec<Extent>, TableError> {
    let (mut next, mut rank) = (0, 0);
    let mut extents = Vec::with_capacity(list.len() / 24);
    for words in list.chunks_exact(24) {
        let (first, count, kind) = (le64(words, 0), le64(words, 8), le64(words, 16));
        let end = first.checked_add(count);
        if first < next || count == 0 || end.is_none_or(|end| end > clusters) || !(DATA..=ZERO).contains(&kind) {
            return Err(TableError::Malformed { why: "an extent is empty, overlaps another, or lies behind the disk" });
        }
        extents.push(Extent { first, count, kind, rank });
        next = first + count;
        if kind == DATA {
            rank += count;
        }
    }
    if rank != digests {
        return Err(TableError::Malformed { why: "its extents and digests differ in number" });
    }
    Ok(extents)
}

fn read(bytes: &impl ReadAt, buf: &mut [u8], offset: u64) -> Result<(), TableError> {
    bytes.read_exact_at(buf, offset).map_err(|source| TableError::Read { source })
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

/// What `bytes`, a whole cluster padded with zeros, is in a table.
pub fn entry(bytes: &[u8]) -> Entry {
    const ZEROS: &[u8] = &[0; CLUSTER_LENGTH];
    if bytes == &ZEROS[..bytes.len().min(ZEROS.len())] {
        Entry::Zero
    } else {
        Entry::Data(*blake3::hash(bytes).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(entries: &[(u64, Entry)], virtual_size: u64) -> (Vec<u8>, String) {
        let mut writer = TableWriter::new(Vec::new(), virtual_size).unwrap();
        for (cluster, entry) in entries {
            writer.push(*cluster, *entry).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn clusters_out_of_order_are_refused() {
        let mut writer = TableWriter::new(Vec::new(), 1 << 20).unwrap();
        writer.push(3, Entry::Zero).unwrap();
        assert!(writer.push(3, Entry::Zero).is_err());
        assert!(writer.push(1, Entry::Zero).is_err());
    }

    #[test]
    fn a_cluster_of_zeros_is_known_by_its_content() {
        assert_eq!(entry(&[0; CLUSTER_LENGTH]), Entry::Zero);
        let mut bytes = [0; CLUSTER_LENGTH];
        bytes[65_535] = 1;
        assert_eq!(entry(&bytes), Entry::Data(*blake3::hash(&bytes).as_bytes()));
    }

    proptest! {
        #[test]
        fn a_table_reads_back_as_what_was_written(kinds in proptest::collection::vec(0_u8..3, 0..300)) {
            let entries: Vec<_> = (0_u64..).zip(&kinds).filter_map(|(cluster, kind)| match kind {
                0 => None,
                1 => Some((cluster, Entry::Zero)),
                _ => Some((cluster, Entry::Data(*blake3::hash(&cluster.to_le_bytes()).as_bytes()))),
            }).collect();
            let (bytes, digest) = table(&entries, 300 * CLUSTER);
            prop_assert_eq!(blake3::hash(&bytes).to_hex().to_string(), digest);
            let length = bytes.len() as u64;
            let mut read = Table::open(bytes, length).unwrap();
            for cluster in 0..310 {
                let next = entries.iter().map(|(at, _)| *at).find(|at| *at >= cluster);
                prop_assert_eq!(read.next(cluster), next);
            }
            let found: Vec<_> = (0..310).filter_map(|cluster| Some((cluster, read.get(cluster).unwrap()?))).collect();
            prop_assert_eq!(found, entries);
        }

        #[test]
        fn a_changed_byte_never_makes_a_panic(at in 0_usize..1000, value in any::<u8>(), cut in 0_usize..1000) {
            let (mut bytes, _) = table(&[(1, Entry::Zero), (2, Entry::Data([7; 32])), (9, Entry::Data([8; 32]))], 1 << 20);
            let at = at % bytes.len();
            bytes[at] = value;
            bytes.truncate(bytes.len() - if cut < bytes.len() { cut } else { 0 });
            let length = bytes.len() as u64;
            if let Ok(mut table) = Table::open(bytes, length) {
                for cluster in 0..20 {
                    let _ = table.get(cluster);
                }
            }
        }
    }
}
