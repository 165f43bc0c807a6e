//! Which clusters a qcow2 image itself allocates, and where in the file they stand. Pure: bytes in, extents out.
//!
//! Second step of reading a stored image: the digests are computed from, and a restore is compared with, what stands
//! at these places. Every offset is checked against the file's length before anybody reads there.

use std::{collections::HashSet, io};

use super::{
    ReadAt,
    header::{Header, be64},
};
use crate::retry::Retry;

/// Neighbouring clusters of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Index of the first cluster, counted from the start of the disk.
    pub first: u64,
    /// How many clusters.
    pub count: u64,
    /// What they are.
    pub kind: Kind,
}

/// What an allocated cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes that stand in the file, the extent's first at this offset, the others behind it.
    Data {
        /// Offset in the file, in bytes.
        host: u64,
    },
    /// Marked as zeros. Hides what a backing file has there.
    Zero,
}

/// All clusters that an image allocates, in the order of the disk, neighbours joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// The extents; clusters in none of them are not allocated by this image.
    pub extents: Vec<Extent>,
}

/// Why the tables of an image cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// A table could not be read.
    #[error("Cannot read the {table} table at byte {offset}")]
    Read {
        /// L1 or L2.
        table: &'static str,
        /// Where it should be.
        offset: u64,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// An entry that points to where nothing can be.
    #[error("The {table} entry of cluster {cluster} points to byte {offset}, outside of the file or between clusters")]
    Astray {
        /// L1 or L2.
        table: &'static str,
        /// Index of the disk's cluster.
        cluster: u64,
        /// Where it points.
        offset: u64,
    },
    /// Two L1 entries that lead to one L2 table.
    #[error("The L1 entry of cluster {cluster} leads to the table at byte {offset}, which another one has already")]
    Shared {
        /// Index of the disk's cluster.
        cluster: u64,
        /// Where both point.
        offset: u64,
    },
    /// The L1 table does not cover the disk.
    #[error("The L1 table has {entries} entries, the disk needs {needed}")]
    TooShort {
        /// Entries in the header.
        entries: u32,
        /// Entries needed.
        needed: u64,
    },
    /// A compressed cluster, which cannot be read at its place.
    #[error("Cluster {cluster} is compressed")]
    Compressed {
        /// Index of the disk's cluster.
        cluster: u64,
    },
}

impl MapError {
    /// Reason word for conditions, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "ImageUnreadable",
            Self::Astray { .. } | Self::Shared { .. } | Self::TooShort { .. } => "ImageMalformed",
            Self::Compressed { .. } => "ImageNotAsStored",
        }
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Read { .. } => Retry::Backoff,
            Self::Astray { .. } | Self::Shared { .. } | Self::TooShort { .. } | Self::Compressed { .. } => {
                Retry::OnChange
            }
        }
    }
}

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

impl Map {
    /// Follows the tables of `image`, whose file is `length` bytes long.
    ///
    /// # Errors
    /// When a table cannot be read, an entry points outside of the file, a table is used twice, or a cluster is compressed.
    pub fn read(image: &(impl ReadAt + ?Sized), header: &Header, length: u64) -> Result<Self, MapError> {
        let size = header.cluster_size();
        let per_table = size / 8;
        let clusters = header.virtual_size.div_ceil(size);
        let needed = clusters.div_ceil(per_table);
        if u64::from(header.l1_entries) < needed {
            return Err(MapError::TooShort { entries: header.l1_entries, needed });
        }
        let inside =
            |offset: u64| offset.is_multiple_of(size) && offset.checked_add(size).is_some_and(|end| end <= length);
        let mut l1 = vec![0; usize::try_from(needed * 8).unwrap_or(usize::MAX)];
        image.read_exact_at(&mut l1, header.l1_offset).map_err(|source| MapError::Read {
            table: "L1",
            offset: header.l1_offset,
            source,
        })?;
        let mut map = Self { extents: Vec::new() };
        // No more tables than the file has room for: else a small file makes a map that fills the memory.
        let mut tables = HashSet::new();
        let mut l2 = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        for (index, entry) in l1.chunks_exact(8).enumerate() {
            let offset = be64(entry, 0) & OFFSET;
            if offset == 0 {
                continue;
            }
            let first = index as u64 * per_table;
            if !inside(offset) {
                return Err(MapError::Astray { table: "L1", cluster: first, offset });
            }
            if !tables.insert(offset) {
                return Err(MapError::Shared { cluster: first, offset });
            }
            image.read_exact_at(&mut l2, offset).map_err(|source| MapError::Read { table: "L2", offset, source })?;
            for (cluster, entry) in (first..clusters).zip(l2.chunks_exact(8)) {
                let entry = be64(entry, 0);
                if entry & COMPRESSED != 0 {
                    return Err(MapError::Compressed { cluster });
                }
                let host = entry & OFFSET;
                if entry & ZERO != 0 && header.version >= 3 {
                    map.push(cluster, Kind::Zero, size);
                } else if host != 0 {
                    // The file may end inside of the last data cluster that was written.
                    if !host.is_multiple_of(size) || host >= length {
                        return Err(MapError::Astray { table: "L2", cluster, offset: host });
                    }
                    map.push(cluster, Kind::Data { host }, size);
                }
            }
        }
        Ok(map)
    }

    /// Clusters that are data, and clusters that are marked as zeros.
    pub fn allocated(&self) -> (u64, u64) {
        self.extents.iter().fold((0, 0), |(data, zero), extent| match extent.kind {
            Kind::Data { .. } => (data + extent.count, zero),
            Kind::Zero => (data, zero + extent.count),
        })
    }

    fn push(&mut self, cluster: u64, kind: Kind, size: u64) {
        if let Some(last) = self.extents.last_mut()
            && last.first + last.count == cluster
        {
            let continues = match (last.kind, kind) {
                (Kind::Zero, Kind::Zero) => true,
                (Kind::Data { host: before }, Kind::Data { host }) => before + last.count * size == host,
                (Kind::Zero, Kind::Data { .. }) | (Kind::Data { .. }, Kind::Zero) => false,
            };
            if continues {
                last.count += 1;
                return;
            }
        }
        self.extents.push(Extent { first: cluster, count: 1, kind });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qcow2::CLUSTER;

    #[test]
    fn a_small_file_whose_l1_entries_all_lead_to_one_table_is_refused_before_the_map_grows() {
        let (l1_offset, table, data) = (CLUSTER, 2 * CLUSTER, 3 * CLUSTER);
        let mut image = vec![0; usize::try_from(4 * CLUSTER).unwrap()];
        let mut write = |at: u64, entry: u64| {
            let at = usize::try_from(at).unwrap();
            image[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        };
        for entry in 0..CLUSTER / 8 {
            write(l1_offset + entry * 8, table);
            write(table + entry * 8, data);
        }
        let header = Header {
            version: 3,
            cluster_bits: 16,
            virtual_size: CLUSTER * (CLUSTER / 8) * (CLUSTER / 8),
            l1_entries: u32::try_from(CLUSTER / 8).unwrap(),
            l1_offset,
            backing: None,
            encryption: 0,
            snapshots: 0,
            incompatible: 0,
        };
        let error = Map::read(&image, &header, image.len() as u64).unwrap_err();
        assert!(matches!(error, MapError::Shared { cluster: 8192, offset } if offset == table), "{error}");
        assert_eq!((error.reason(), error.retry()), ("ImageMalformed", Retry::OnChange));
    }
}
