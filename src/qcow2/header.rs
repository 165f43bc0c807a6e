//! A qcow2 image's header, read and judged. Pure: bytes in, facts out; nothing in it is believed further than checked.
//!
//! First step of reading a stored image: `Header::read`, then `Header::expect_stored`, then the map.

use std::io;

use super::{CLUSTER, ReadAt};
use crate::{ids::PointId, retry::Retry};

/// What stands in the header of a qcow2 image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Logarithm of the cluster size: 16 for 64 KiB.
    pub cluster_bits: u32,
    /// Virtual size in bytes.
    pub virtual_size: u64,
    /// Entries in the L1 table.
    pub l1_entries: u32,
    /// Where the L1 table starts, in bytes.
    pub l1_offset: u64,
    /// The name that the image gives for its backing file. Shown to people, never opened.
    pub backing: Option<String>,
    /// Nonzero when encrypted.
    pub encryption: u32,
    /// Internal snapshots.
    pub snapshots: u32,
    /// Incompatible feature bits: 0 dirty, 1 corrupt, 2 external data file, 3 compression type, 4 extended L2.
    pub incompatible: u64,
}

/// Why a header is not one, or not one of a stored image.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The first bytes could not be read.
    #[error("Cannot read the qcow2 header")]
    Read {
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// Another format, or nothing at all.
    #[error("The file is not a qcow2 image")]
    NotQcow2,
    /// A value that no qcow2 image has.
    #[error("The qcow2 header says {field} {value}, which no image can have")]
    Malformed {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A valid image, but not of the shape that is stored.
    #[error("The image has {field} {value}, a stored image has {expected}")]
    NotStored {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What a stored image has there.
        expected: String,
    },
}

impl HeaderError {
    /// Reason word for conditions, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "ImageUnreadable",
            Self::NotQcow2 | Self::Malformed { .. } => "ImageMalformed",
            Self::NotStored { .. } => "ImageNotAsStored",
        }
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Read { .. } => Retry::Backoff,
            Self::NotQcow2 | Self::Malformed { .. } | Self::NotStored { .. } => Retry::OnChange,
        }
    }
}

/// The 104 bytes of a version 3 header, or the 72 of version 2.
const LENGTH: usize = 104;

impl Header {
    /// Reads the header of `image`.
    ///
    /// # Errors
    /// When the bytes cannot be read, are of another format, or contradict the format's own limits.
    pub fn read(image: &(impl ReadAt + ?Sized)) -> Result<Self, HeaderError> {
        let mut bytes = [0; LENGTH];
        image.read_exact_at(&mut bytes[..72], 0).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => HeaderError::NotQcow2,
            _ => HeaderError::Read { source },
        })?;
        if bytes[..4] != *b"QFI\xfb" {
            return Err(HeaderError::NotQcow2);
        }
        let version = be32(&bytes, 4);
        match version {
            2 => {}
            3 => image.read_exact_at(&mut bytes, 0).map_err(|source| HeaderError::Read { source })?,
            other => return Err(HeaderError::Malformed { field: "version", value: other.into() }),
        }
        let cluster_bits = be32(&bytes, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(HeaderError::Malformed { field: "cluster bits", value: cluster_bits.into() });
        }
        let header = Self {
            version,
            cluster_bits,
            virtual_size: be64(&bytes, 24),
            l1_entries: be32(&bytes, 36),
            l1_offset: be64(&bytes, 40),
            backing: backing(image, be64(&bytes, 8), be32(&bytes, 16))?,
            encryption: be32(&bytes, 32),
            snapshots: be32(&bytes, 60),
            incompatible: if version == 3 { be64(&bytes, 72) } else { 0 },
        };
        // QEMU's own limit of an L1 table is 32 MiB (block/qcow2.h, QCOW_MAX_L1_SIZE).
        if u64::from(header.l1_entries) > 32 * 1024 * 1024 / 8 {
            return Err(HeaderError::Malformed { field: "L1 entries", value: header.l1_entries.into() });
        }
        if !header.l1_offset.is_multiple_of(header.cluster_size()) {
            return Err(HeaderError::Malformed { field: "L1 offset", value: header.l1_offset });
        }
        Ok(header)
    }

    /// Cluster size in bytes.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Refuses every image that is not of the shape in which points are stored: version 3, clusters of 64 KiB, the
    /// given virtual size in bytes, closed cleanly, without encryption, internal snapshots, a data file of its own,
    /// other compression types or extended L2 entries, and with no backing file but another point's image beside it.
    /// That name is for people only; still, one that leads elsewhere says that somebody else wrote this image.
    ///
    /// # Errors
    /// `NotStored` with the first field that differs.
    pub fn expect_stored(&self, virtual_size: u64) -> Result<(), HeaderError> {
        let fields = [
            ("version", u64::from(self.version), 3),
            ("cluster size", self.cluster_size(), CLUSTER),
            ("virtual size", self.virtual_size, virtual_size),
            ("encryption", self.encryption.into(), 0),
            ("internal snapshots", self.snapshots.into(), 0),
            ("incompatible features", self.incompatible, 0),
        ];
        let refused = |backing: &&String| !is_point_beside(backing);
        match fields.into_iter().find(|(_, value, expected)| value != expected) {
            None => match self.backing.as_ref().filter(refused) {
                None => Ok(()),
                Some(backing) => Err(HeaderError::NotStored {
                    field: "backing file",
                    value: format!("{backing:?}"),
                    expected: "none, or ../<point>/<disk>.qcow2".into(),
                }),
            },
            Some((field, value, expected)) => {
                Err(HeaderError::NotStored { field, value: value.to_string(), expected: expected.to_string() })
            }
        }
    }
}

/// Whether the name is `../<point>/<disk>.qcow2`.
fn is_point_beside(name: &str) -> bool {
    let mut parts = name.split('/');
    matches!(
        (parts.next(), parts.next(), parts.next(), parts.next()),
        (Some(".."), Some(point), Some(file), None)
            if point.parse::<PointId>().is_ok() && file.ends_with(".qcow2") && !file.starts_with('.')
    )
}

fn backing(image: &(impl ReadAt + ?Sized), offset: u64, length: u32) -> Result<Option<String>, HeaderError> {
    if offset == 0 || length == 0 {
        return Ok(None);
    }
    if length > 1023 {
        return Err(HeaderError::Malformed { field: "backing file name length", value: length.into() });
    }
    let mut name = vec![0; length as usize];
    image.read_exact_at(&mut name, offset).map_err(|source| HeaderError::Read { source })?;
    Ok(Some(String::from_utf8_lossy(&name).into_owned()))
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(value)
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn another_format_and_an_empty_file_are_not_qcow2() {
        for bytes in [vec![], vec![0; 200], b"QFI\xfb".to_vec(), b"conectix".repeat(30)] {
            assert!(matches!(Header::read(&bytes), Err(HeaderError::NotQcow2)), "{} bytes", bytes.len());
        }
    }

    #[test]
    fn only_another_point_beside_is_a_name_of_a_backing_file() {
        assert!(is_point_beside("../01hf7yat00000000000000000a/disk0.qcow2"));
        for name in [
            "/srv/x.qcow2",
            "../../01hf7yat00000000000000000a/disk0.qcow2",
            "../01hf7yat00000000000000000a/../disk0.qcow2",
            "../../../etc/x.qcow2",
            "json:{}",
            "nbd://host/x.qcow2",
            "../etc/x.qcow2",
        ] {
            assert!(!is_point_beside(name), "{name}");
        }
    }

    #[test]
    fn a_version_of_tomorrow_is_refused() {
        let mut bytes = vec![0; 200];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        bytes[7] = 4;
        assert!(matches!(Header::read(&bytes), Err(HeaderError::Malformed { field: "version", value: 4 })));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_header_or_an_error_and_never_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if bytes.len() > 8 {
                bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
            }
            let _ = Header::read(&bytes);
        }
    }
}
