//! What increments build on: a point whose images are not as they were stored is continued by nobody.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use driftline::{
    chain::finding::Kind,
    engine::{BackupRequest, BackupType, RequestedType, RunState, TypeReason, gate::Passage},
    qmp::fake::Pace,
    repo::check,
};

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::{
    host::{Host, UUID, assert_complete, assert_failed},
    shape::Shape,
};

const INCREMENT: (BackupType, TypeReason) = (BackupType::Incremental, TypeReason::CheckpointFound);
const BROKEN: (BackupType, TypeReason) = (BackupType::Full, TypeReason::ChainBroken);

/// Done to a point's folder.
type Damage = fn(&Path);

/// What becomes of a point's folder behind our back, all of it about `disk1`.
const DAMAGES: [(&str, Damage); 5] = [
    ("the image is gone", |point| fs::remove_file(point.join("disk1.qcow2")).unwrap()),
    ("the image was cut", |point| cut(&point.join("disk1.qcow2"), 70_000)),
    ("the image is all zeros", |point| {
        let image = point.join("disk1.qcow2");
        let length = fs::metadata(&image).unwrap().len();
        fs::write(image, vec![0; usize::try_from(length).unwrap()]).unwrap();
    }),
    ("the table is gone", |point| fs::remove_file(point.join("disk1.1.digests")).unwrap()),
    ("the table was cut", |point| cut(&point.join("disk1.1.digests"), 60)),
];

fn cut(file: &Path, length: u64) {
    fs::OpenOptions::new().write(true).open(file).unwrap().set_len(length).unwrap();
}

/// The folders of the guest's points, oldest first.
fn points(host: &Host) -> Vec<PathBuf> {
    let points = host.repository().points(&UUID.parse().unwrap()).unwrap();
    let folder = host.path().join("guests").join(UUID);
    points.into_iter().map(|point| folder.join(point.manifest.identity.point.as_str())).collect()
}

fn became(state: &RunState) -> Vec<(BackupType, TypeReason)> {
    state.disks.iter().map(|disk| (disk.kind, disk.type_reason)).collect()
}

async fn exact(host: &Host, run: &str) -> Vec<(BackupType, TypeReason)> {
    for (disk, size) in host.shape.disks() {
        host.qemu.write(disk, size - 1024, run.as_bytes()).unwrap();
    }
    let disks = host.disks();
    let state = host.run(run).await;
    assert_complete(&state);
    host.assert_stored(&state, &disks);
    became(&state)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_put_on_a_parent_that_is_not_as_it_was_stored() {
    for (what, damage) in DAMAGES {
        let host = Host::begun(Shape::CONTINUED, Pace::AtOnce).await;
        damage(&points(&host)[0]);
        let asked = BackupRequest { kind: RequestedType::Incremental, ..host.request("asked") };
        let refused = host.start(&host.engine(), &asked).end().await;
        assert_failed(&refused, "IncrementalImpossible");
        for word in ["disk1", "ChainBroken", "type Auto"] {
            assert!(refused.message.contains(word), "{what}: {}", refused.message);
        }
        assert_eq!(exact(&host, "full").await, [INCREMENT, BROKEN], "{what}");
        assert_eq!(exact(&host, "next").await, [INCREMENT; 2], "{what}");
    }
}

/// Runs a test whose threads may open only what its mode allows: root opens everything else.
fn without_root_s_rights(test: impl Future<Output = ()>) {
    let mut sets = capabilities(None).unwrap();
    sets.effective.remove(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
    set_capabilities(None, sets).unwrap();
    // This thread is the test's alone, and the others are made by it.
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(test);
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_parent_whose_image_alone_may_not_be_opened_costs_a_full() {
    without_root_s_rights(async {
        let host = Host::begun(Shape::CONTINUED, Pace::AtOnce).await;
        set_mode(&points(&host)[0].join("disk1.qcow2"), 0);
        assert_eq!(exact(&host, "full").await, [INCREMENT, BROKEN]);
        assert_eq!(exact(&host, "next").await, [INCREMENT; 2]);
    });
}

#[test]
fn a_parent_of_which_nothing_may_be_opened_any_more_costs_none() {
    without_root_s_rights(async {
        let host = Host::begun(Shape::CONTINUED, Pace::AtOnce).await;
        let parent = points(&host).remove(0);
        let (folder, scans) = (parent.clone(), AtomicUsize::new(0));
        let engine = host.gated(Arc::new(move |passage| {
            // The manifests have been read.
            if passage == Passage::RepositoryBefore("scan") && scans.fetch_add(1, Ordering::Relaxed) == 1 {
                set_mode(&folder, 0);
            }
            true
        }));
        assert_failed(&host.start(&engine, &host.request("run")).end().await, "RepositoryAccessDenied");
        set_mode(&parent, 0o700);
        assert_eq!(exact(&host, "next").await, [INCREMENT; 2]);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn no_disk_continues_a_point_whose_manifest_has_another_digit() {
    let host = Host::begun(Shape::CONTINUED, Pace::AtOnce).await;
    let manifest = points(&host).remove(0).join("manifest.json");
    let good = fs::read_to_string(&manifest).unwrap();
    let bad = good.replace("\"virtualSize\": 131072", "\"virtualSize\": 131070");
    assert_ne!(good, bad);
    fs::write(&manifest, bad).unwrap();
    // What the other disk would continue has another digest, once somebody corrects the digit.
    assert_eq!(exact(&host, "full").await, [BROKEN; 2]);
    assert_eq!(exact(&host, "next").await, [INCREMENT; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_image_at_the_bottom_of_a_chain_breaks_it_for_the_next_run_and_for_verification() {
    let host = Host::begun(Shape::CONTINUED, Pace::AtOnce).await;
    for run in ["second", "third"] {
        assert_eq!(exact(&host, run).await, [INCREMENT; 2]);
    }
    DAMAGES[0].1(&points(&host)[0]);
    let newest = host.repository().points(&UUID.parse().unwrap()).unwrap()[2].manifest.identity.point.clone();
    let verify = check::verify(&host.repository(), None, Some(&newest), &mut |_| (), &false.into());
    let found: Vec<_> =
        verify.unwrap().into_iter().map(|found| (found.kind, found.disk.unwrap().to_string())).collect();
    assert_eq!(found, [(Kind::ChainBroken, "disk1".to_owned())]);
    assert_eq!(exact(&host, "full").await, [INCREMENT, BROKEN]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_is_damaged_during_the_run_keeps_the_point_from_being_committed() {
    let host = Host::begun(Shape::CONTINUED, Pace::AtOnce).await;
    let parent = points(&host).remove(0);
    let engine = host.gated(Arc::new(move |passage| {
        if passage == Passage::RepositoryBefore("commit") {
            cut(&parent.join("disk0.qcow2"), 70_000);
        }
        true
    }));
    let state = host.start(&engine, &host.request("run")).end().await;
    assert_failed(&state, "ParentGone");
    assert!(state.message.contains("70000 bytes"), "{}", state.message);
    assert_eq!(host.assert_tidy(), 0);
    assert_eq!(exact(&host, "full").await, [BROKEN, INCREMENT]);
}
