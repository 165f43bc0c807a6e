//! The names that QEMU carries for us: block jobs, bitmaps and block nodes. They say whose they are.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{AttemptId, LineageId, ParseIdError, PointId, RepositoryId, is_hex8, refuse};

/// A block job of ours: `driftline.<attempt8>.<lineage8>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId {
    /// The try that started it.
    pub attempt: AttemptId,
    /// The disk's lineage.
    pub lineage: LineageId,
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "driftline.{}.{}", self.attempt, self.lineage)
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for JobId {
    type Error = ParseIdError;
    fn try_from(text: String) -> Result<Self, ParseIdError> {
        text.parse()
    }
}

impl FromStr for JobId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let mut parts = text.split('.');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("driftline"), Some(attempt), Some(lineage), None) => {
                Ok(Self { attempt: attempt.parse()?, lineage: lineage.parse()? })
            }
            _ => refuse("a job of ours", text, "driftline.<attempt>.<lineage>"),
        }
    }
}

/// What a bitmap of ours is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BitmapRole {
    /// Records what was written since the point.
    Checkpoint,
    /// Frozen, with only the last granule set: a shrink clears it.
    Sentinel,
    /// What one job copies.
    Increment,
}

/// A bitmap of ours: `driftline.<repo8>.<point>.<lineage8>` and the same with `.end` (sentinel) or `.inc` (a job's own).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BitmapName {
    /// The first eight digits of the repository's id.
    pub repository: String,
    /// The point that it continues.
    pub point: PointId,
    /// The disk's lineage.
    pub lineage: LineageId,
    /// What it is for.
    pub role: BitmapRole,
}

impl BitmapName {
    /// The bitmap of `role` for one disk of one point.
    pub fn new(repository: &RepositoryId, point: &PointId, lineage: &LineageId, role: BitmapRole) -> Self {
        Self { repository: repository.short().to_owned(), point: point.clone(), lineage: lineage.clone(), role }
    }

    /// True when the name belongs to the repository, as far as eight digits can tell.
    pub fn is_of(&self, repository: &RepositoryId) -> bool {
        self.repository == repository.short()
    }
}

impl fmt::Display for BitmapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = match self.role {
            BitmapRole::Checkpoint => "",
            BitmapRole::Sentinel => ".end",
            BitmapRole::Increment => ".inc",
        };
        write!(f, "driftline.{}.{}.{}{end}", self.repository, self.point, self.lineage)
    }
}

impl From<BitmapName> for String {
    fn from(name: BitmapName) -> String {
        name.to_string()
    }
}

impl TryFrom<String> for BitmapName {
    type Error = ParseIdError;
    fn try_from(text: String) -> Result<Self, ParseIdError> {
        text.parse()
    }
}

impl FromStr for BitmapName {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let mut parts = text.split('.');
        let (Some("driftline"), Some(repository), Some(point), Some(lineage)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return refuse("a bitmap of ours", text, "driftline.<repository>.<point>.<lineage>[.end|.inc]");
        };
        let role = match (parts.next(), parts.next()) {
            (None, _) => BitmapRole::Checkpoint,
            (Some("end"), None) => BitmapRole::Sentinel,
            (Some("inc"), None) => BitmapRole::Increment,
            _ => return refuse("a bitmap of ours", text, "nothing, .end or .inc behind the lineage"),
        };
        if !is_hex8(repository) {
            return refuse("a bitmap of ours", text, "8 hex digits of the repository's id");
        }
        Ok(Self { repository: repository.to_owned(), point: point.parse()?, lineage: lineage.parse()?, role })
    }
}

/// What a block node of ours is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeRole {
    /// The job's target.
    Target,
    /// The source of the sentinel's bits.
    SentinelSource,
    /// Takes what the guest overwrites while it is copied.
    Scratch,
    /// The scratch's file below its format: warns before the limit is reached.
    ScratchFile,
    /// Above the disk: copies what is about to be overwritten into the scratch.
    Filter,
    /// Shows the disk as it was at the instant.
    Snapshot,
}

impl NodeRole {
    /// All of them.
    pub const ALL: [NodeRole; 6] = [
        NodeRole::Target,
        NodeRole::SentinelSource,
        NodeRole::Scratch,
        NodeRole::ScratchFile,
        NodeRole::Filter,
        NodeRole::Snapshot,
    ];

    /// The end of the node's name.
    pub fn as_str(self) -> &'static str {
        match self {
            NodeRole::Target => "t",
            NodeRole::SentinelSource => "sn",
            NodeRole::Scratch => "fl",
            NodeRole::ScratchFile => "flf",
            NodeRole::Filter => "cbw",
            NodeRole::Snapshot => "snap",
        }
    }
}

/// A block node of ours: `dl-<attempt8>-<n>-<role>`, 31 characters at most (QEMU's limit).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName {
    /// The try that made it.
    pub attempt: AttemptId,
    /// The disk's index in the journal.
    pub index: u16,
    /// What it is for.
    pub role: NodeRole,
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dl-{}-{}-{}", self.attempt, self.index, self.role.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bitmap_name_reads_back_as_what_was_written() {
        let repository: RepositoryId = "9f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10".parse().unwrap();
        let point = PointId::new(1_700_000_000_000, None, 7);
        let lineage = LineageId::from_random(0xabc);
        for role in [BitmapRole::Checkpoint, BitmapRole::Sentinel, BitmapRole::Increment] {
            let name = BitmapName::new(&repository, &point, &lineage, role);
            assert_eq!(name.to_string().parse::<BitmapName>().unwrap(), name);
            assert!(name.is_of(&repository));
        }
    }

    #[test]
    fn foreign_bitmaps_are_not_ours() {
        for text in ["libvirt-1", "driftline", "driftline.9f0c7e1e.x.00000abc", "driftline.9f0c7e1e.01j.0.end.inc", ""]
        {
            assert!(text.parse::<BitmapName>().is_err(), "{text}");
        }
    }

    #[test]
    fn node_names_fit_into_qemus_31_characters() {
        let node = NodeName { attempt: AttemptId::from_random(1), index: u16::MAX, role: NodeRole::Snapshot };
        assert!(node.to_string().len() <= 31);
    }
}
