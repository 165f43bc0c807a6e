//! Which bitmaps of ours are of no use any more. Pure. Only bitmaps of the given repository are ever named, never one
//! of a point that some journal has in flight, and never one that a job or an export uses.

use std::collections::BTreeSet;

use super::graph::{BitmapFacts, DiskFacts};
use crate::{
    ids::{BitmapName, BitmapRole, PointId, RepositoryId},
    qmp::command::BitmapRef,
};

/// Bitmaps at the start of a run: every increment's, checkpoints without a manifest, those that a crash made useless,
/// and sentinels newer than the newest committed checkpoint of their lineage or of a lineage without one.
pub fn at_start(
    disks: &[DiskFacts],
    repository: &RepositoryId,
    committed: &BTreeSet<PointId>,
    in_flight: &BTreeSet<PointId>,
) -> Vec<BitmapRef> {
    refs(disks, repository, in_flight, |name, facts, all| match name.role {
        _ if facts.inconsistent => true,
        BitmapRole::Increment => true,
        BitmapRole::Checkpoint => !committed.contains(&name.point),
        BitmapRole::Sentinel => {
            let newest = all
                .iter()
                .filter(|(other, facts)| {
                    other.role == BitmapRole::Checkpoint
                        && other.lineage == name.lineage
                        && !facts.inconsistent
                        && committed.contains(&other.point)
                })
                .map(|(other, _)| &other.point)
                .max();
            newest.is_none_or(|newest| name.point > *newest)
        }
    })
}

/// Bitmaps that nobody can ever use, whatever the repository holds: every increment's, and those that a crash made useless,
/// which keep QEMU from resizing the disk and from migrating bitmaps.
pub fn at_recovery(disks: &[DiskFacts], repository: &RepositoryId, in_flight: &BTreeSet<PointId>) -> Vec<BitmapRef> {
    refs(disks, repository, in_flight, |name, facts, _| facts.inconsistent || name.role == BitmapRole::Increment)
}

/// Bitmaps after a commit, on the disks of the run: all but `kept`, the checkpoints and sentinels that the run made or
/// built on. With the base's checkpoint, losing the newest point costs an older base and not a full. Those of another
/// lineage are of no use: without its sentinel nothing continues it. Age is not asked for: an image that came from a
/// host whose clock was ahead has checkpoints of points that are still to come.
pub fn after_commit(
    disks: &[DiskFacts],
    repository: &RepositoryId,
    kept: &BTreeSet<BitmapName>,
    in_flight: &BTreeSet<PointId>,
) -> Vec<BitmapRef> {
    refs(disks, repository, in_flight, |name, _, all| {
        let of_the_run = all.iter().any(|(other, _)| kept.iter().any(|own| own.lineage == other.lineage));
        of_the_run && !kept.contains(name)
    })
}

type Ours<'a> = (BitmapName, &'a BitmapFacts);

fn refs(
    disks: &[DiskFacts],
    repository: &RepositoryId,
    in_flight: &BTreeSet<PointId>,
    is_useless: impl Fn(&BitmapName, &BitmapFacts, &[Ours<'_>]) -> bool,
) -> Vec<BitmapRef> {
    let mut useless = Vec::new();
    // On a layer that is read-only now a bitmap cannot be removed; there it waits until the layer is active again.
    for disk in disks.iter().filter(|disk| disk.eligible()) {
        let ours: Vec<Ours<'_>> = disk
            .bitmaps
            .iter()
            .filter_map(|facts| Some((facts.name.parse::<BitmapName>().ok()?, facts)))
            .filter(|(name, _)| name.is_of(repository))
            .collect();
        for (name, facts) in &ours {
            if !facts.busy && !in_flight.contains(&name.point) && is_useless(name, facts, &ours) {
                useless.push(BitmapRef { node: disk.node_name.clone(), name: facts.name.clone() });
            }
        }
    }
    useless
}

#[cfg(test)]
mod tests;
