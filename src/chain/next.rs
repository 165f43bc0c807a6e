//! Which type the next backup of a disk gets, what it builds on, and why. Pure: what was asked for, the bitmaps on the disk
//! and what the repository holds come in as values. The engine calls it for each disk, the person reads the reason.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{
    graph::Graph,
    point::{Parent, PointDisk},
};
use crate::ids::{BitmapName, BitmapRole, DiskName, LineageId, PointId};

/// Bytes that one bit of a bitmap of ours stands for: what is marked in a sentinel that nothing has shrunk.
pub const GRANULARITY: u32 = 65536;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RequestedType {
    /// An increment where an exact one is possible, else a full.
    Auto,
    /// An increment, or nothing.
    Incremental,
    /// Everything, as the start of a new lineage.
    Full,
    /// Everything, outside of any lineage.
    Copy,
}

/// What a backup stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BackupType {
    /// Everything: the point stands on its own, and others continue it.
    Full,
    /// What has changed since the point that it continues.
    Incremental,
    /// Everything: the point stands on its own, and nothing continues it.
    Copy,
}

/// Why a disk got its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TypeReason {
    /// The newest point's checkpoint is whole: what has changed since is known exactly.
    CheckpointFound,
    /// The newest point's checkpoint cannot be used, the one before it can.
    OlderCheckpointFound,
    /// The repository has no point of this disk.
    FirstBackup,
    /// The bitmaps on the disk are gone: removed, or lost with a QEMU that was killed.
    BitmapMissing,
    /// A job or an export of somebody else uses the bitmap.
    BitmapBusy,
    /// QEMU was killed while it had the image open, or somebody stopped the bitmap from recording.
    BitmapInconsistent,
    /// The repository does not have the point that the bitmap continues.
    BaseNotInRepository,
    /// The point that the bitmap continues has no disk of this lineage.
    BaseBelongsToAnotherDisk,
    /// The image was copied: several disks have bitmaps of one lineage.
    LineageNotUnique,
    /// The base or a point that it builds on is missing or another, or an image of theirs is not as it was stored.
    ChainBroken,
    /// The disk was made smaller since, even if it has grown again.
    DiskShrunk,
    /// Somebody's snapshot: the bitmaps of the guest's points are on a layer below the one that is written now.
    ActiveLayerChanged,
    /// The image's format keeps no bitmaps over a restart of QEMU.
    NotSupportedByFormat,
    /// The request said so.
    Requested,
}

/// The word of a unit variant, as it stands in manifests and statuses.
macro_rules! words {
    ($kind:ident: $($name:ident),+) => {
        impl $kind {
            /// All of them.
            pub const ALL: &'static [$kind] = &[$($kind::$name,)+];

            /// The word in manifests, statuses and on the command line.
            pub fn as_str(self) -> &'static str {
                match self { $($kind::$name => stringify!($name),)+ }
            }
        }
    };
}

words!(RequestedType: Auto, Incremental, Full, Copy);
words!(BackupType: Full, Incremental, Copy);
words!(TypeReason: CheckpointFound, OlderCheckpointFound, FirstBackup, BitmapMissing, BitmapBusy, BitmapInconsistent,
    BaseNotInRepository, BaseBelongsToAnotherDisk, LineageNotUnique, ChainBroken, DiskShrunk, ActiveLayerChanged,
    NotSupportedByFormat, Requested);

/// A disk as far as its type is concerned.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    /// Its name now.
    pub name: &'a DiskName,
    /// Its size now, in bytes.
    pub virtual_size: u64,
    /// Whether its format keeps bitmaps over a restart of QEMU.
    pub persistent: bool,
    /// The repository's bitmaps on the layer that is written.
    pub bitmaps: Vec<Bitmap>,
    /// Lineages of the repository's bitmaps on the layers below.
    pub below: BTreeSet<LineageId>,
}

/// A bitmap of ours on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    /// Whose it is.
    pub name: BitmapName,
    /// Bytes that are marked.
    pub bytes: u64,
    /// Whether it records.
    pub recording: bool,
    /// Whether a job or export uses it.
    pub busy: bool,
    /// Whether it is good for nothing but removal.
    pub inconsistent: bool,
}

/// What an increment builds on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Base {
    /// The disk of the point that it continues.
    pub parent: Parent,
    /// The lineage of both.
    pub lineage: LineageId,
    /// Records what was written since that point.
    pub checkpoint: BitmapName,
    /// Bytes that the checkpoint marks now.
    pub dirty: u64,
    /// Tells whether the disk was shrunk since that point.
    pub sentinel: BitmapName,
    /// Whether the disk has another size than at that point: then it gets a new sentinel.
    pub resized: bool,
}

/// A type, what it builds on, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// What the disk gets.
    pub kind: BackupType,
    /// Why.
    pub reason: TypeReason,
    /// Of an increment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
}

/// The type of the next backup of a disk. `shared` are the lineages that several disks of the guest have bitmaps of, and
/// `graph` holds the guest's points. None, with the reason, where an increment was asked for and is impossible.
///
/// # Errors
/// Why an increment, which was asked for, would not be exact.
pub fn choose(
    requested: RequestedType,
    disk: &Candidate<'_>,
    shared: &BTreeSet<LineageId>,
    graph: &Graph,
) -> Result<Choice, TypeReason> {
    let full = |reason| Choice { kind: BackupType::Full, reason, base: None };
    match requested {
        RequestedType::Copy => Ok(Choice { kind: BackupType::Copy, reason: TypeReason::Requested, base: None }),
        RequestedType::Full if is_known(disk, graph) => Ok(full(TypeReason::Requested)),
        RequestedType::Full => Ok(full(TypeReason::FirstBackup)),
        RequestedType::Auto | RequestedType::Incremental => match base(disk, shared, graph) {
            Ok((base, reason)) => Ok(Choice { kind: BackupType::Incremental, reason, base: Some(base) }),
            Err(reason) if requested == RequestedType::Incremental => Err(reason),
            Err(reason) => Ok(full(reason)),
        },
    }
}

fn is_known(disk: &Candidate<'_>, graph: &Graph) -> bool {
    graph.points().iter().any(|point| point.disk(disk.name).is_some_and(|disk| !disk.copy))
}

fn has_lineage(graph: &Graph, lineage: &LineageId) -> bool {
    let mut disks = graph.points().iter().flat_map(|point| &point.disks);
    disks.any(|disk| disk.lineage == *lineage && !disk.copy)
}

/// The newest checkpoint from which an increment is exact, or what is wrong with the newest one.
fn base(disk: &Candidate<'_>, shared: &BTreeSet<LineageId>, graph: &Graph) -> Result<(Base, TypeReason), TypeReason> {
    let mut checkpoints: Vec<_> = disk.bitmaps.iter().filter(|b| b.name.role == BitmapRole::Checkpoint).collect();
    checkpoints.sort_by(|a, b| b.name.point.cmp(&a.name.point));
    let mut newest_is = None;
    for checkpoint in checkpoints {
        match base_at(checkpoint, disk, shared, graph) {
            Ok(base) if newest_is.is_none() => return Ok((base, TypeReason::CheckpointFound)),
            Ok(base) => return Ok((base, TypeReason::OlderCheckpointFound)),
            Err(reason) => newest_is = newest_is.or(Some(reason)),
        }
    }
    Err(newest_is.unwrap_or_else(|| match () {
        () if disk.below.iter().any(|lineage| has_lineage(graph, lineage)) => TypeReason::ActiveLayerChanged,
        () if !is_known(disk, graph) => TypeReason::FirstBackup,
        // A clone of an image that is, or was, backed up as another guest's disk.
        () if !disk.below.is_empty() => TypeReason::BaseNotInRepository,
        () if disk.persistent => TypeReason::BitmapMissing,
        () => TypeReason::NotSupportedByFormat,
    }))
}

fn base_at(
    checkpoint: &Bitmap,
    disk: &Candidate<'_>,
    shared: &BTreeSet<LineageId>,
    graph: &Graph,
) -> Result<Base, TypeReason> {
    let lineage = &checkpoint.name.lineage;
    if shared.contains(lineage) {
        return Err(TypeReason::LineageNotUnique);
    }
    // A snapshot by libvirt gives the overlay bitmaps of the same names, which miss what was written before it (measured).
    if disk.below.contains(lineage) {
        return Err(TypeReason::ActiveLayerChanged);
    }
    if checkpoint.busy {
        return Err(TypeReason::BitmapBusy);
    }
    if checkpoint.inconsistent || !checkpoint.recording {
        return Err(TypeReason::BitmapInconsistent);
    }
    let point = graph.point(&checkpoint.name.point).ok_or(TypeReason::BaseNotInRepository)?;
    // By lineage and not by name: a disk that was moved to another device goes on with what is its own.
    let stored = point.disks.iter().find(|stored| stored.lineage == *lineage && !stored.copy);
    let stored = stored.ok_or(TypeReason::BaseBelongsToAnotherDisk)?;
    let chain = graph.chain(&point.id, &stored.name).map_err(|_| TypeReason::ChainBroken)?;
    if chain.iter().any(|link| graph.is_disputed(link.point)) {
        return Err(TypeReason::ChainBroken);
    }
    let sentinel = sentinel(disk, lineage, &point.id)?;
    if disk.virtual_size < stored.virtual_size {
        return Err(TypeReason::DiskShrunk);
    }
    Ok(Base {
        parent: Parent {
            point: point.id.clone(),
            disk: stored.name.clone(),
            identity_digest: point.identity_digest.clone(),
        },
        lineage: lineage.clone(),
        checkpoint: checkpoint.name.clone(),
        dirty: checkpoint.bytes,
        sentinel,
        resized: is_resized(disk, stored),
    })
}

fn is_resized(disk: &Candidate<'_>, stored: &PointDisk) -> bool {
    disk.virtual_size != stored.virtual_size
}

/// The sentinel that guards the time since a point, if nothing has shrunk the disk in it. One that is younger has not seen
/// all of that time.
fn sentinel(disk: &Candidate<'_>, lineage: &LineageId, since: &PointId) -> Result<BitmapName, TypeReason> {
    let found = disk
        .bitmaps
        .iter()
        .filter(|b| b.name.role == BitmapRole::Sentinel && b.name.lineage == *lineage && b.name.point <= *since)
        .max_by(|a, b| a.name.point.cmp(&b.name.point))
        .ok_or(TypeReason::BitmapMissing)?;
    match () {
        () if found.busy => Err(TypeReason::BitmapBusy),
        // One that records is marked again by whoever writes to the end of the disk.
        () if found.inconsistent || found.recording => Err(TypeReason::BitmapInconsistent),
        () if !is_whole(found.bytes) => Err(TypeReason::DiskShrunk),
        () => Ok(found.name.clone()),
    }
}

/// Whether a sentinel marks what it did when it was made: its one granule.
pub fn is_whole(bytes: u64) -> bool {
    bytes == u64::from(GRANULARITY)
}

#[cfg(test)]
mod tests;
