//! A point's manifest: what the point is (`identity`, never changed again) and how it is stored now (`storage`, which a
//! merge rewrites). Pure. Keys that this version does not know are kept, at every level.
//!
//! A child names its parent by id and identity digest, so that a merge of the parent breaks no descendant.

mod error;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::error::ManifestError;
use super::{layout, read::VARIABLES_LIMIT};
use crate::{
    chain::point::{Parent, Point, PointDisk},
    ids::{DiskName, GuestId, LineageId, PointId, RepositoryId},
};

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

/// Above any size in bytes and any count that can have been stored, and far enough below what a number can hold that
/// nobody who adds some of them up has to think of it.
const LIMIT: u64 = 1 << 56;

/// One restore point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Version of the format: 1.
    pub format: u32,
    /// What the point is.
    pub identity: Identity,
    /// How it is stored now.
    pub storage: Storage,
    /// What is known of the machine.
    #[serde(default)]
    pub definition: Definition,
    /// Who made it.
    #[serde(default)]
    pub versions: Versions,
    /// Keys of other versions.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// What the point is. Its digest is what children name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// The repository that it was made in.
    pub repository: RepositoryId,
    /// The point's id.
    pub point: PointId,
    /// Its place among the guest's points: larger is newer.
    pub sequence: u64,
    /// The machine.
    pub guest: GuestIdentity,
    /// The policy that made it, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyIdentity>,
    /// UID of the run that made it.
    pub run: String,
    /// The run's try.
    pub attempt: String,
    /// The instant whose content is stored.
    pub checkpoint_time: jiff::Timestamp,
    /// What the guest's programs will find.
    pub consistency: Consistency,
    /// What its run was asked for: `Auto`, `Incremental`, `Full` or `Copy`. Empty where an earlier version made it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub requested_type: String,
    /// Full only if every disk is.
    #[serde(rename = "type")]
    pub kind: PointType,
    /// Its disks.
    pub disks: Vec<DiskIdentity>,
    /// Keys of other versions.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The machine of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestIdentity {
    /// Its UUID.
    pub uuid: GuestId,
    /// Its name at that time.
    pub name: String,
    /// The namespace that it belongs to.
    pub namespace: String,
    /// Keys of other versions.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The policy of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyIdentity {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Keys of other versions.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// What the guest's programs will find in a restored image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Consistency {
    /// What they would find after a power cut.
    Crash,
    /// What they wrote out when they were asked to.
    Application,
}

/// Whether a point or disk stands alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PointType {
    /// Stands alone.
    Full,
    /// Continues a parent.
    Incremental,
    /// Stands alone, and nothing continues it.
    Copy,
}

/// What a disk of a point is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskIdentity {
    /// Its name at that time.
    pub name: DiskName,
    /// The unbroken sequence that it belongs to.
    pub lineage: LineageId,
    /// Virtual size in bytes.
    pub virtual_size: u64,
    /// Whether it stands alone.
    #[serde(rename = "type")]
    pub kind: PointType,
    /// Why that type was taken.
    pub type_reason: String,
    /// BLAKE3 of its first digest table, in hex.
    pub table_digest: String,
    /// What it continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// Keys of other versions.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// How a point is stored now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// One for each disk of the identity.
    pub disks: Vec<StoredDisk>,
    /// Keys of other versions.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// How a disk of a point is stored now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredDisk {
    /// Which disk.
    pub name: DiskName,
    /// The image's file, always the one that `layout` computes.
    pub file: String,
    /// The image's format: `qcow2`.
    pub format: String,
    /// Size of the image's file in bytes.
    pub bytes: u64,
    /// The digest table's file, always the one that `layout` computes.
    pub table: String,
    /// Generation of the digest table: 1, and one more with each merge.
    pub generation: u32,
    /// BLAKE3 of the digest table as it is now, in hex.
    pub table_digest: String,
    /// What the image needs below it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// Keys of other versions.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// What is known of the machine, for people and for a restore of the whole machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Definition {
    /// The block graph as QEMU told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_graph: Option<Value>,
    /// QEMU's command line, with secrets taken out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_line: Option<Vec<String>>,
    /// The variables of its firmware, as they were shortly before the instant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variables: Vec<StoredVariables>,
    /// The pflash drives whose variables could not be stored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variables_left_out: Vec<DiskName>,
    /// Keys of other versions.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The variables of a machine's firmware (NVRAM): a copy of the file behind a pflash drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredVariables {
    /// The pflash drive.
    pub name: DiskName,
    /// The file, always the one that `layout` computes.
    pub file: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// BLAKE3 of the file, in hex.
    pub digest: String,
    /// Keys of other versions.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Who made a point.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Versions {
    /// Version of Driftline.
    pub driftline: String,
    /// Version of QEMU.
    pub qemu: String,
    /// Keys of other versions.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Manifest {
    /// Reads a manifest and checks that its parts fit together.
    ///
    /// # Errors
    /// When it is malformed, of a newer format, or contradicts itself.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let value: Value = serde_json::from_slice(bytes).map_err(|source| ManifestError::Malformed { source })?;
        if let Some(format) = value.get("format").and_then(Value::as_u64)
            && format > u64::from(FORMAT)
        {
            return Err(ManifestError::TooNew { format });
        }
        let manifest: Self = serde_json::from_value(value).map_err(|source| ManifestError::Malformed { source })?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The bytes that are stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{:#}", json(self)).into_bytes();
        bytes.push(b'\n');
        bytes
    }

    /// BLAKE3 of the identity in its canonical form (keys sorted, no white space), in hex.
    pub fn identity_digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"driftline identity\n").update(canonical(&json(&self.identity)).as_bytes());
        hasher.finalize().to_hex().to_string()
    }

    /// How a disk is stored.
    pub fn stored(&self, disk: &DiskName) -> Option<&StoredDisk> {
        self.storage.disks.iter().find(|stored| stored.name == *disk)
    }

    /// The point as chains see it: identity and sizes from the identity, parents from how it is stored now.
    pub fn point(&self) -> Point {
        let disks = self.identity.disks.iter().map(|disk| {
            let stored = self.stored(&disk.name);
            PointDisk {
                name: disk.name.clone(),
                lineage: disk.lineage.clone(),
                virtual_size: disk.virtual_size,
                bytes: stored.map_or(0, |stored| stored.bytes),
                copy: disk.kind == PointType::Copy,
                parent: stored.and_then(|stored| stored.parent.clone()),
            }
        });
        Point {
            id: self.identity.point.clone(),
            sequence: self.identity.sequence,
            identity_digest: self.identity_digest(),
            disks: disks.collect(),
        }
    }

    /// Checks that identity and storage name the same disks once each, and only files that `layout` computes.
    ///
    /// # Errors
    /// With the first contradiction.
    pub fn check(&self) -> Result<(), ManifestError> {
        let refuse = |why: String| Err(ManifestError::Contradiction { why });
        if self.identity.disks.is_empty() {
            return refuse("it has no disk".into());
        }
        if self.identity.disks.len() != self.storage.disks.len() {
            return refuse("identity and storage have different numbers of disks".into());
        }
        if !(1..LIMIT).contains(&self.identity.sequence) {
            return refuse(format!("its sequence is {}", self.identity.sequence));
        }
        if let Some(stored) = self.definition.variables.iter().find(|v| v.file != layout::variables(&v.name)) {
            return refuse(format!("the variables of {} name a file that is not their own", stored.name));
        }
        if let Some(stored) = self.definition.variables.iter().find(|v| v.bytes > VARIABLES_LIMIT) {
            return refuse(format!("the variables of {} are larger than any that are stored", stored.name));
        }
        for (at, disk) in self.identity.disks.iter().enumerate() {
            let name = &disk.name;
            if self.identity.disks[..at].iter().any(|other| other.name == *name) {
                return refuse(format!("disk {name} is there twice"));
            }
            let Some(stored) = self.stored(name) else {
                return refuse(format!("disk {name} is not stored"));
            };
            if disk.virtual_size > LIMIT || stored.bytes > LIMIT {
                return refuse(format!("disk {name} is larger than any disk can be"));
            }
            if stored.format != "qcow2" {
                return refuse(format!("disk {name} is stored as {:?}", stored.format));
            }
            if stored.file != layout::image(name) || stored.table != layout::table(name, stored.generation) {
                return refuse(format!("disk {name} names files that are not its own"));
            }
            if stored.generation == 1 && stored.table_digest != disk.table_digest {
                return refuse(format!("disk {name} has two digests of one table"));
            }
            if (disk.kind == PointType::Incremental) != disk.parent.is_some() {
                return refuse(format!("disk {name} is {:?}, and its parent says otherwise", disk.kind));
            }
        }
        Ok(())
    }
}

/// These types hold no map with keys other than texts, so that this cannot fail.
fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// The canonical form of a JSON value: keys in byte order, no white space.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<_> = map.iter().collect();
            keys.sort_by_key(|(key, _)| key.as_bytes());
            let members: Vec<_> = keys
                .into_iter()
                .map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), canonical(value)))
                .collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests;
