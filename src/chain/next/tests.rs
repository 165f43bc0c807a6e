//! The table of types: what is wrong with a checkpoint, and the word for it.

use super::*;
use crate::{chain::point::Point, ids::RepositoryId};

const SIZE: u64 = 10 << 20;

fn id(n: u64) -> PointId {
    PointId::new(n, None, 0)
}

fn lineage(n: u32) -> LineageId {
    LineageId::from_random(n)
}

fn name(point: u64, of: u32, role: BitmapRole) -> BitmapName {
    let repository: RepositoryId = "9f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10".parse().unwrap();
    BitmapName::new(&repository, &id(point), &lineage(of), role)
}

fn bitmap(point: u64, of: u32, role: BitmapRole) -> Bitmap {
    let recording = role == BitmapRole::Checkpoint;
    let bytes = if recording { 3 << 16 } else { 1 << 16 };
    Bitmap { name: name(point, of, role), bytes, recording, busy: false, inconsistent: false }
}

/// A disk with checkpoints at points 2 and 3 of lineage 1, and the sentinel that was made at its full, point 1.
fn disk() -> Candidate<'static> {
    static NAME: std::sync::LazyLock<DiskName> = std::sync::LazyLock::new(|| "disk0".parse().unwrap());
    Candidate {
        name: &NAME,
        virtual_size: SIZE,
        persistent: true,
        bitmaps: vec![
            bitmap(2, 1, BitmapRole::Checkpoint),
            bitmap(3, 1, BitmapRole::Checkpoint),
            bitmap(1, 1, BitmapRole::Sentinel),
        ],
        below: BTreeSet::new(),
    }
}

fn point(n: u64, of: u32, parent: Option<u64>) -> Point {
    let parent = parent.map(|n| Parent {
        point: id(n),
        disk: "disk0".parse().unwrap(),
        identity_digest: format!("identity {n}"),
    });
    let disk = PointDisk {
        name: "disk0".parse().unwrap(),
        lineage: lineage(of),
        virtual_size: SIZE,
        bytes: 1,
        copy: false,
        parent,
    };
    Point { id: id(n), sequence: n, identity_digest: format!("identity {n}"), disks: vec![disk] }
}

fn points() -> Vec<Point> {
    vec![point(1, 1, None), point(2, 1, Some(1)), point(3, 1, Some(2))]
}

fn auto(disk: &Candidate<'_>, points: Vec<Point>) -> Choice {
    choose(RequestedType::Auto, disk, &BTreeSet::new(), &Graph::new(points)).unwrap()
}

fn full_because(disk: &Candidate<'_>, points: Vec<Point>) -> TypeReason {
    let choice = auto(disk, points);
    assert_eq!((choice.kind, &choice.base), (BackupType::Full, &None));
    choice.reason
}

#[test]
fn the_newest_checkpoint_is_the_base() {
    let choice = auto(&disk(), points());
    assert_eq!((choice.kind, choice.reason), (BackupType::Incremental, TypeReason::CheckpointFound));
    let base = choice.base.unwrap();
    assert_eq!((base.parent.point, base.lineage, base.dirty), (id(3), lineage(1), 3 << 16));
    assert_eq!(base.checkpoint, name(3, 1, BitmapRole::Checkpoint));
    assert_eq!((base.sentinel, base.resized), (name(1, 1, BitmapRole::Sentinel), false));
}

#[test]
fn the_older_checkpoint_is_the_base_when_the_newest_point_is_lost() {
    let mut left = points();
    left.pop();
    let choice = auto(&disk(), left);
    assert_eq!((choice.kind, choice.reason), (BackupType::Incremental, TypeReason::OlderCheckpointFound));
    assert_eq!(choice.base.unwrap().parent.point, id(2));
}

#[test]
fn a_chain_with_an_image_that_is_not_as_it_was_stored_is_not_continued() {
    let damaged = |n: u64| {
        let damage = [((id(n), "disk0".parse().unwrap()), "it is missing".to_owned())].into();
        let graph = Graph::new(points()).with_damage(damage);
        let choice = choose(RequestedType::Auto, &disk(), &BTreeSet::new(), &graph).unwrap();
        (choice.reason, choice.base.map(|base| base.parent.point))
    };
    assert_eq!(damaged(3), (TypeReason::OlderCheckpointFound, Some(id(2))));
    assert_eq!(damaged(2), (TypeReason::ChainBroken, None));
    assert_eq!(damaged(1), (TypeReason::ChainBroken, None));
}

#[test]
fn a_point_that_its_child_knows_as_another_is_not_continued() {
    let mut changed = points();
    changed[1].identity_digest = "another".into();
    assert_eq!(full_because(&disk(), changed), TypeReason::ChainBroken);
}

#[test]
fn a_disk_under_another_name_goes_on_with_its_lineage() {
    let mut moved = disk();
    let other = "other".parse().unwrap();
    moved.name = &other;
    let base = auto(&moved, points()).base.unwrap();
    assert_eq!(base.parent.disk.as_str(), "disk0");
}

#[test]
fn a_disk_that_has_grown_goes_on_and_gets_a_new_sentinel() {
    let mut grown = disk();
    grown.virtual_size += 1;
    assert!(auto(&grown, points()).base.unwrap().resized);
}

#[test]
fn every_full_says_why() {
    let changed = |change: &dyn Fn(&mut Candidate<'_>)| {
        let mut disk = disk();
        // One checkpoint, or the older one would do.
        disk.bitmaps.remove(0);
        change(&mut disk);
        full_because(&disk, points())
    };
    let checkpoint = |change: &dyn Fn(&mut Bitmap)| changed(&|disk| change(&mut disk.bitmaps[0]));
    let sentinel = |change: &dyn Fn(&mut Bitmap)| changed(&|disk| change(&mut disk.bitmaps[1]));
    assert_eq!(checkpoint(&|b| b.busy = true), TypeReason::BitmapBusy);
    assert_eq!(checkpoint(&|b| b.inconsistent = true), TypeReason::BitmapInconsistent);
    assert_eq!(checkpoint(&|b| b.recording = false), TypeReason::BitmapInconsistent);
    assert_eq!(checkpoint(&|b| b.name.point = id(9)), TypeReason::BaseNotInRepository);
    assert_eq!(checkpoint(&|b| b.name.lineage = lineage(2)), TypeReason::BaseBelongsToAnotherDisk);
    assert_eq!(sentinel(&|b| b.bytes = 0), TypeReason::DiskShrunk);
    assert_eq!(sentinel(&|b| b.bytes *= 2), TypeReason::DiskShrunk);
    assert_eq!(sentinel(&|b| b.recording = true), TypeReason::BitmapInconsistent);
    assert_eq!(sentinel(&|b| b.inconsistent = true), TypeReason::BitmapInconsistent);
    assert_eq!(sentinel(&|b| b.name.point = id(4)), TypeReason::BitmapMissing, "it has not seen all of the time");
    assert_eq!(sentinel(&|b| b.name.lineage = lineage(2)), TypeReason::BitmapMissing);
    assert_eq!(changed(&|disk| disk.virtual_size -= 1), TypeReason::DiskShrunk);
    assert_eq!(changed(&|disk| disk.bitmaps.clear()), TypeReason::BitmapMissing);
    assert_eq!(changed(&|disk| (disk.bitmaps.clear(), disk.persistent = false).1), TypeReason::NotSupportedByFormat);
    assert_eq!(
        changed(&|disk| (disk.bitmaps.clear(), disk.below.insert(lineage(1))).0),
        TypeReason::ActiveLayerChanged
    );
    assert_eq!(changed(&|disk| assert!(disk.below.insert(lineage(1)))), TypeReason::ActiveLayerChanged);
    let mut bare = disk();
    bare.bitmaps.clear();
    assert_eq!(full_because(&bare, vec![]), TypeReason::FirstBackup);
    let mut broken = points();
    broken.remove(0);
    assert_eq!(full_because(&disk(), broken), TypeReason::ChainBroken);
}

#[test]
fn a_clone_of_another_guests_image_is_not_taken_for_a_snapshot() {
    let mut clone = disk();
    clone.bitmaps.clear();
    clone.below = BTreeSet::from([lineage(2)]);
    assert_eq!(full_because(&clone, vec![]), TypeReason::FirstBackup);
    assert_eq!(full_because(&clone, points()), TypeReason::BaseNotInRepository, "it took the place of a known disk");
    let other = "other".parse().unwrap();
    clone.name = &other;
    assert_eq!(full_because(&clone, points()), TypeReason::FirstBackup);
    // One of the guest's own, which was given to another device too.
    clone.below = BTreeSet::from([lineage(1)]);
    assert_eq!(full_because(&clone, points()), TypeReason::ActiveLayerChanged);
}

#[test]
fn a_lineage_of_two_disks_is_nobodys() {
    let shared = BTreeSet::from([lineage(1)]);
    let choice = choose(RequestedType::Auto, &disk(), &shared, &Graph::new(points())).unwrap();
    assert_eq!((choice.kind, choice.reason), (BackupType::Full, TypeReason::LineageNotUnique));
}

#[test]
fn what_was_asked_for_is_done_or_refused_with_the_reason() {
    let choose = |requested, disk: &Candidate<'_>, points| {
        choose(requested, disk, &BTreeSet::new(), &Graph::new(points)).map(|choice| (choice.kind, choice.reason))
    };
    let full = |reason| Ok((BackupType::Full, reason));
    assert_eq!(choose(RequestedType::Full, &disk(), points()), full(TypeReason::Requested));
    assert_eq!(choose(RequestedType::Full, &disk(), vec![]), full(TypeReason::FirstBackup));
    let copy = Ok((BackupType::Copy, TypeReason::Requested));
    assert_eq!(choose(RequestedType::Copy, &disk(), points()), copy);
    let increment = Ok((BackupType::Incremental, TypeReason::CheckpointFound));
    assert_eq!(choose(RequestedType::Incremental, &disk(), points()), increment);
    assert_eq!(choose(RequestedType::Incremental, &disk(), vec![]), Err(TypeReason::BaseNotInRepository));
}

#[test]
fn a_copy_is_nothing_that_can_be_continued() {
    let mut copied = points();
    copied.iter_mut().for_each(|point| point.disks[0].copy = true);
    assert_eq!(full_because(&disk(), copied.clone()), TypeReason::BaseBelongsToAnotherDisk);
    let mut bare = disk();
    bare.bitmaps.clear();
    assert_eq!(full_because(&bare, copied), TypeReason::FirstBackup);
}
