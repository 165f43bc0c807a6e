//! Which clusters a qcow2 image itself allocates, and where in the file they stand. Pure: bytes in, extents out.
//!
//! Second step of reading a stored image: the digests are computed from, and a restore is compared with, what stands
//! at these places. Every offset is checked against the file's length before anybody reads there.

use std::io;

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
            Self::Astray { .. } | Self::TooShort { .. } => "ImageMalformed",
            Self::Compressed { .. } => "ImageNotAsStored",
        }
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Read { .. } => Retry::Backoff,
            Self::Astray { .. } | Self::TooShort { .. } | Self::Compressed { .. } => Retry::OnChange,
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
    /// When a table cannot be read, an entry points outside of the file, or a cluster is compressed.
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
