//! Which bitmaps go, and which never do.

use super::*;
use crate::{
    engine::graph::fixture::{self, bitmap},
    ids::LineageId,
};

const REPOSITORY: &str = "9f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10";

fn point(n: u64) -> PointId {
    PointId::new(n, None, 0)
}

fn lineage(n: u32) -> LineageId {
    LineageId::from_random(n)
}

fn name(n: u64, of: u32, role: BitmapRole) -> String {
    BitmapName::new(&REPOSITORY.parse().unwrap(), &point(n), &lineage(of), role).to_string()
}

fn disk(bitmaps: Vec<BitmapFacts>) -> DiskFacts {
    DiskFacts { bitmaps, ..fixture::disk("disk0") }
}

fn start(bitmaps: Vec<BitmapFacts>, committed: &[u64], in_flight: &[u64]) -> Vec<String> {
    let set = |points: &[u64]| points.iter().map(|n| point(*n)).collect::<BTreeSet<_>>();
    let gone = at_start(&[disk(bitmaps)], &REPOSITORY.parse().unwrap(), &set(committed), &set(in_flight));
    assert!(gone.iter().all(|bitmap| bitmap.node == "n-disk0"));
    gone.into_iter().map(|bitmap| bitmap.name).collect()
}

#[test]
fn a_checkpoint_without_a_manifest_goes_with_its_sentinel() {
    use BitmapRole::{Checkpoint, Sentinel};
    let both = || vec![bitmap(&name(1, 1, Checkpoint)), bitmap(&name(1, 1, Sentinel))];
    assert_eq!(start(both(), &[1], &[]), Vec::<String>::new());
    assert_eq!(start(both(), &[], &[]).len(), 2);
    assert_eq!(start(both(), &[], &[1]), Vec::<String>::new(), "in flight");
}

#[test]
fn a_sentinel_younger_than_the_newest_checkpoint_of_its_lineage_goes() {
    use BitmapRole::{Checkpoint, Sentinel};
    let bitmaps = |at| vec![bitmap(&name(2, 1, Checkpoint)), bitmap(&name(at, 1, Sentinel))];
    assert_eq!(start(bitmaps(1), &[1, 2, 3], &[]), Vec::<String>::new());
    assert_eq!(start(bitmaps(2), &[1, 2, 3], &[]), Vec::<String>::new());
    assert_eq!(start(bitmaps(3), &[1, 2, 3], &[]), vec![name(3, 1, Sentinel)]);
    let other = vec![bitmap(&name(2, 1, Checkpoint)), bitmap(&name(2, 9, Sentinel))];
    assert_eq!(start(other, &[2], &[]), vec![name(2, 9, Sentinel)]);
}

#[test]
fn a_recovery_takes_what_is_useless_whatever_the_repository_holds() {
    use BitmapRole::{Checkpoint, Increment, Sentinel};
    let useless = || BitmapFacts { inconsistent: true, ..bitmap(&name(1, 1, Checkpoint)) };
    let busy = BitmapFacts { busy: true, ..bitmap(&name(3, 1, Increment)) };
    let kept = [bitmap(&name(2, 1, Checkpoint)), bitmap(&name(2, 1, Sentinel)), bitmap("theirs"), busy];
    let all = kept.into_iter().chain([useless(), bitmap(&name(2, 1, Increment))]).collect();
    let gone = at_recovery(&[disk(all)], &REPOSITORY.parse().unwrap(), &BTreeSet::new());
    let gone: Vec<_> = gone.into_iter().map(|bitmap| bitmap.name).collect();
    assert_eq!(gone, [name(1, 1, Checkpoint), name(2, 1, Increment)]);
    let in_flight = [point(1)].into_iter().collect();
    assert_eq!(at_recovery(&[disk(vec![useless()])], &REPOSITORY.parse().unwrap(), &in_flight), vec![]);
}

#[test]
fn every_increments_bitmap_and_every_inconsistent_one_goes() {
    use BitmapRole::{Checkpoint, Increment};
    let mut broken = bitmap(&name(2, 1, Checkpoint));
    broken.inconsistent = true;
    let gone = start(vec![bitmap(&name(1, 1, Increment)), broken], &[1, 2], &[]);
    assert_eq!(gone, vec![name(1, 1, Increment), name(2, 1, Checkpoint)]);
}

#[test]
fn foreign_and_busy_bitmaps_are_never_named() {
    let other = BitmapName::new(
        &"0badcafe-9a51-4c7e-8f2b-0d9f2f6f3a10".parse().unwrap(),
        &point(1),
        &lineage(1),
        BitmapRole::Checkpoint,
    );
    let mut busy = bitmap(&name(1, 1, BitmapRole::Checkpoint));
    busy.busy = true;
    let bitmaps = vec![bitmap("libvirt-1"), bitmap(&other.to_string()), busy];
    assert_eq!(start(bitmaps, &[], &[]), Vec::<String>::new());
}

#[test]
fn after_a_commit_what_the_run_made_and_built_on_stays() {
    use BitmapRole::{Checkpoint, Increment, Sentinel};
    let bitmaps = vec![
        bitmap(&name(1, 1, Checkpoint)),
        bitmap(&name(1, 1, Sentinel)),
        bitmap(&name(2, 1, Checkpoint)),
        bitmap(&name(3, 1, Checkpoint)),
        bitmap(&name(4, 1, Checkpoint)),
        bitmap(&name(4, 1, Sentinel)),
        bitmap(&name(4, 1, Increment)),
    ];
    let other_disk = disk(vec![bitmap(&name(1, 7, Checkpoint)), bitmap(&name(1, 7, Sentinel))]);
    let disks = [disk(bitmaps), other_disk];
    // The base is not the newest before it: that one's point may have been lost.
    let kept = [name(2, 1, Checkpoint), name(1, 1, Sentinel), name(4, 1, Checkpoint), name(4, 1, Sentinel)];
    let expected = vec![name(1, 1, Checkpoint), name(3, 1, Checkpoint), name(4, 1, Increment)];
    assert_eq!(committed(&disks, &kept), expected);
}

#[test]
fn checkpoints_of_points_that_are_still_to_come_do_not_drive_out_the_runs_own() {
    use BitmapRole::{Checkpoint, Sentinel};
    let own = [name(3, 2, Checkpoint), name(3, 2, Sentinel)];
    let theirs = [name(8, 1, Checkpoint), name(9, 1, Checkpoint), name(8, 1, Sentinel)];
    let disks = [disk(theirs.iter().chain(&own).map(|name| bitmap(name)).collect())];
    assert_eq!(committed(&disks, &own), theirs);
}

fn committed(disks: &[DiskFacts], kept: &[String]) -> Vec<String> {
    let kept = kept.iter().map(|name| name.parse().unwrap()).collect();
    let gone = after_commit(disks, &REPOSITORY.parse().unwrap(), &kept, &BTreeSet::new());
    gone.into_iter().map(|bitmap| bitmap.name).collect()
}

#[test]
fn bitmaps_on_a_read_only_disk_wait() {
    let mut disk = disk(vec![bitmap(&name(1, 1, BitmapRole::Checkpoint))]);
    disk.ineligible = Some(crate::engine::graph::Ineligible::ReadOnly);
    let none = BTreeSet::new();
    assert_eq!(at_start(&[disk], &REPOSITORY.parse().unwrap(), &none, &none), vec![]);
}
