//! The names of things, parsed once and typed from then on: repositories, guests, disks, points, lineages,
//! attempts, jobs, bitmaps and block nodes. Pure: no I/O, no clock, no randomness but what is handed in.
//!
//! The shapes are those of the commit protocol: a checkpoint bitmap says which repository, point and
//! lineage it continues, so that a renamed or exchanged disk can never be mistaken for another.

mod qemu;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub use self::qemu::{BitmapName, BitmapRole, JobId, NodeName, NodeRole};

/// A text that is not the name it was said to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}: {expected}")]
pub struct ParseIdError {
    /// The kind of name, with its article.
    pub what: &'static str,
    /// What was given.
    pub text: String,
    /// What would have been right.
    pub expected: &'static str,
}

fn refuse<T>(what: &'static str, text: &str, expected: &'static str) -> Result<T, ParseIdError> {
    Err(ParseIdError { what, text: text.to_owned(), expected })
}

fn is_hex8(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Serde, `Display` and `FromStr` through the text form, for names that wrap a `String`.
macro_rules! text_id {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
        impl TryFrom<String> for $name {
            type Error = ParseIdError;
            fn try_from(text: String) -> Result<Self, ParseIdError> {
                text.parse()
            }
        }
        impl $name {
            /// The text form, as it is stored and shown.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
    };
}

/// A repository's identity: a UUID in lower case, made once when the repository is initialised.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepositoryId(String);
text_id!(RepositoryId);

impl RepositoryId {
    /// The first eight hex digits, as bitmap names carry them.
    pub fn short(&self) -> &str {
        &self.0[..8]
    }
}

impl FromStr for RepositoryId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        match uuid::Uuid::try_parse(text) {
            Ok(id) => Ok(Self(id.hyphenated().to_string())),
            Err(_) => refuse("a repository id", text, "a UUID such as 9f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10"),
        }
    }
}

impl From<uuid::Uuid> for RepositoryId {
    fn from(id: uuid::Uuid) -> Self {
        Self(id.hyphenated().to_string())
    }
}

/// A guest's identity: QEMU's machine UUID in lower case, or the one its host file gives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GuestId(String);
text_id!(GuestId);

impl FromStr for GuestId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        match uuid::Uuid::try_parse(text) {
            Ok(id) if id.is_nil() => {
                refuse("a guest's UUID", text, "any UUID but the one of zeros: start QEMU with -uuid")
            }
            Ok(id) => Ok(Self(id.hyphenated().to_string())),
            Err(_) => refuse("a guest's UUID", text, "a UUID such as 9f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10"),
        }
    }
}

/// A disk's name: the `id` or QOM name of its device as the guest's definition gives it, at most 128 characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskName(String);
text_id!(DiskName);

impl DiskName {
    /// The name as one component of a path: everything but letters, digits, `-`, `_` and inner dots percent-encoded.
    pub fn file_stem(&self) -> String {
        const KEEP: &percent_encoding::AsciiSet =
            &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');
        let text = percent_encoding::utf8_percent_encode(&self.0, KEEP).to_string();
        match text.strip_prefix('.') {
            Some(rest) => format!("%2E{rest}"),
            None => text,
        }
    }
}

impl FromStr for DiskName {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        if text.is_empty() || text.len() > 128 || text.chars().any(char::is_control) {
            return refuse("a disk's name", text, "1 to 128 characters, none of them a control character");
        }
        Ok(Self(text.to_owned()))
    }
}

/// A restore point's identity: a ULID in lower case, fresh for each attempt and never used again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PointId(String);
text_id!(PointId);

impl PointId {
    /// Milliseconds since 1970 have 48 bits in a ULID.
    const LAST_MS: u64 = (1 << 48) - 1;

    /// A new id for the instant `unix_ms` (milliseconds since 1970), at least one millisecond after `newest`, so that
    /// a guest's newest point has its largest id even when the clock went back. Behind an id of the last instant there
    /// is no room: then the clock alone counts, and the id is not taken for one of 1970.
    pub fn new(unix_ms: u64, newest: Option<&PointId>, random: u128) -> Self {
        let after = newest.map_or(0, |id| id.unix_ms() + 1);
        let at = if after > Self::LAST_MS { unix_ms } else { unix_ms.max(after) };
        Self(ulid::Ulid::from_parts(at.min(Self::LAST_MS), random).to_string().to_lowercase())
    }

    /// The instant in the id, in milliseconds since 1970.
    pub fn unix_ms(&self) -> u64 {
        ulid::Ulid::from_string(&self.0).map_or(0, |id| id.timestamp_ms())
    }
}

impl FromStr for PointId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        match ulid::Ulid::from_string(text) {
            Ok(id) if id.to_string().to_lowercase() == text => Ok(Self(text.to_owned())),
            _ => refuse("a restore point's id", text, "26 characters of a ULID in lower case"),
        }
    }
}

/// One disk's unbroken sequence of points, from a full on: 8 hex digits made at that full.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LineageId(String);
text_id!(LineageId);

impl LineageId {
    /// A lineage from random bits.
    pub fn from_random(random: u32) -> Self {
        Self(format!("{random:08x}"))
    }
}

impl FromStr for LineageId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        if is_hex8(text) { Ok(Self(text.to_owned())) } else { refuse("a lineage", text, "8 hex digits in lower case") }
    }
}

/// One try at one run: 8 hex digits. Jobs, nodes and fd sets of the try carry it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AttemptId(String);
text_id!(AttemptId);

impl AttemptId {
    /// An attempt from random bits.
    pub fn from_random(random: u32) -> Self {
        Self(format!("{random:08x}"))
    }

    /// The `opaque` of this attempt's fd sets, by which they are found again.
    pub fn fdset_opaque(&self) -> String {
        format!("driftline.{self}")
    }

    /// The attempt whose fd set has this `opaque`, or one that begins with it and a dot; none when it is not ours.
    pub fn of_fdset(opaque: &str) -> Option<Self> {
        opaque.strip_prefix("driftline.")?.split('.').next()?.parse().ok()
    }
}

impl FromStr for AttemptId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        if is_hex8(text) { Ok(Self(text.to_owned())) } else { refuse("an attempt", text, "8 hex digits in lower case") }
    }
}

/// One start of one agent: 16 hex digits, new each time. A changed one means "ask what survived".
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionId(String);
text_id!(SessionId);

impl SessionId {
    /// A session from random bits.
    pub fn from_random(random: u64) -> Self {
        Self(format!("{random:016x}"))
    }
}

impl FromStr for SessionId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        if text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(Self(text.to_owned()));
        }
        refuse("a session", text, "16 hex digits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_point_is_newer_than_the_newest_though_the_clock_went_back() {
        let newest = PointId::new(2_000, None, u128::MAX);
        let next = PointId::new(1_000, Some(&newest), 0);
        assert!(next > newest);
        assert_eq!(next.unix_ms(), 2_001);
    }

    #[test]
    fn a_new_point_behind_the_last_instant_that_an_id_can_hold_is_of_the_clocks_time_and_not_of_1970() {
        let last = PointId::new(u64::MAX, None, u128::MAX);
        assert_eq!(last.unix_ms(), (1 << 48) - 1);
        assert_eq!(PointId::new(1_700_000_000_000, Some(&last), 0).unix_ms(), 1_700_000_000_000);
        let before = PointId::new((1 << 48) - 2, None, u128::MAX);
        assert!(PointId::new(1_700_000_000_000, Some(&before), 0) > before);
    }

    #[test]
    fn a_disk_name_is_one_harmless_component_of_a_path() {
        for (name, stem) in [
            ("disk0", "disk0"),
            ("/machine/peripheral/d0", "%2Fmachine%2Fperipheral%2Fd0"),
            ("..", "%2E."),
            (".hidden", "%2Ehidden"),
            ("a b", "a%20b"),
        ] {
            assert_eq!(name.parse::<DiskName>().unwrap().file_stem(), stem);
        }
    }

    #[test]
    fn the_uuid_of_zeros_is_no_identity() {
        assert!("00000000-0000-0000-0000-000000000000".parse::<GuestId>().is_err());
    }
}
