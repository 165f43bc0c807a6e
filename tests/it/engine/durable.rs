//! A point counts once the rename of its manifest has reached the disk: a run that was cut off in between, or whose sync
//! failed, is told as complete after another sync only, and until then nothing is given up for it. And a copy that cannot be
//! committed yet is worth waiting for.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use driftline::{
    engine::{BackupRequest, Engine, RequestedType, gate::Passage},
    qmp::fake::Pace,
    repo::Act,
};

use super::{
    host::{Host, UUID, assert_complete, assert_failed},
    shape::Shape,
};

/// The syncs of the folder in which a manifest was renamed, from then on.
#[derive(Clone, Default)]
struct Syncs(Arc<Mutex<Option<PathBuf>>>, Arc<AtomicUsize>);

impl Syncs {
    /// An engine of which the first `failing` of them fail.
    fn engine(&self, host: &Host, failing: usize) -> Engine {
        let (syncs, seen) = (self.clone(), AtomicUsize::new(0));
        host.failing(Arc::new(move |operation| {
            let mut folder = syncs.0.lock().unwrap();
            if operation.act == Act::Rename && operation.path.ends_with("manifest.json") {
                *folder = operation.path.parent().map(Into::into);
            } else if operation.act == Act::SyncFolder && folder.as_ref() == Some(&operation.path) {
                if seen.fetch_add(1, Ordering::SeqCst) < failing {
                    return Err(io::Error::from_raw_os_error(5));
                }
                syncs.1.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        }))
    }

    fn done(&self) -> usize {
        self.1.load(Ordering::SeqCst)
    }
}

/// A run whose engine is gone between the manifest's rename and the sync of its folder.
async fn cut_off(host: &Host, syncs: &Syncs) {
    let reached = Arc::new(tokio::sync::Notify::new());
    let notify = reached.clone();
    let engine = syncs.engine(host, 1).with_gate(Arc::new(move |passage| {
        let here = passage == Passage::RepositoryAfter("commit");
        if here {
            notify.notify_one();
        }
        !here
    }));
    let going = host.start(&engine, &host.request("run"));
    reached.notified().await;
    going.task.abort();
    let _ = going.task.await;
    assert_eq!(syncs.done(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_last_sync_fails_is_synced_again_before_the_run_is_complete() {
    let (host, syncs) = (Host::begun(Shape::CONTINUED, Pace::AtOnce).await, Syncs::default());
    assert_complete(&host.start(&syncs.engine(&host, 1), &host.request("run")).end().await);
    assert!(syncs.done() > 0, "told as complete, its rename never brought to the disk");
    assert_eq!(host.assert_tidy(), 1);
    host.assert_clean(host.bitmaps());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_cut_off_right_after_its_rename_is_synced_before_it_is_complete() {
    let (host, syncs) = (Host::begun(Shape::CONTINUED, Pace::AtOnce).await, Syncs::default());
    cut_off(&host, &syncs).await;
    assert_complete(&host.start(&syncs.engine(&host, 0), &host.request("run")).end().await);
    assert!(syncs.done() > 0, "told as complete, its rename never brought to the disk");
    host.assert_clean(host.bitmaps());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_that_cannot_be_brought_to_the_disk_costs_no_older_checkpoint() {
    let (host, syncs) = (Host::begun(Shape { disks: 1, ..Shape::CONTINUED }, Pace::AtOnce).await, Syncs::default());
    // A full begins another lineage, and its clean-up gives up the one before.
    let request = BackupRequest { kind: RequestedType::Full, ..host.request("run") };
    let before = host.qemu.bitmaps("disk0");
    let engine = syncs.engine(&host, usize::MAX);
    for _ in 0..2 {
        assert_failed(&host.start(&engine, &request).end().await, "RepositoryUnavailable");
        assert!(engine.holds(&request), "it has not ended");
        let now = host.qemu.bitmaps("disk0");
        assert!(before.iter().all(|bitmap| now.contains(bitmap)), "{before:?} {now:?}");
    }
    assert_complete(&host.start(&syncs.engine(&host, 0), &request).end().await);
    assert!(syncs.done() > 0);
    // It was set aside meanwhile: the lineage before is given up by the next run.
    host.assert_clean(4);
    assert_eq!(host.assert_tidy(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_fails_again_after_it_has_come_further_is_tried_again_for_as_long() {
    let host = Host::new(Pace::AtOnce);
    let (checks, renames) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let engine = host.failing(Arc::new(move |operation| {
        let failed = Err(io::Error::from_raw_os_error(5));
        if operation.act == Act::Truncate && operation.path.extension().is_some_and(|end| end == "qcow2") {
            match checks.fetch_add(1, Ordering::SeqCst) {
                0 => return failed,
                // What stands for the hours that a large image takes: longer than errors are waited out.
                1 => std::thread::sleep(Duration::from_millis(600)),
                _ => {}
            }
        }
        let commits = operation.act == Act::Rename && operation.path.ends_with("manifest.json");
        if commits && renames.fetch_add(1, Ordering::SeqCst) == 0 { failed } else { Ok(()) }
    }));
    assert_complete(&host.start(&engine, &host.request("run")).end().await);
    assert_eq!(host.assert_tidy(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_whose_run_nobody_remembers_is_synced_before_the_run_is_complete() {
    let (host, syncs) = (Host::new(Pace::AtOnce), Syncs::default());
    cut_off(&host, &syncs).await;
    std::fs::remove_dir_all(host.folder.path().join("state")).unwrap();
    assert_complete(&host.start(&syncs.engine(&host, 0), &host.request("run")).end().await);
    assert!(syncs.done() > 0, "told as complete, its rename never brought to the disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_increment_builds_on_is_brought_to_the_disk_before_the_increment_counts() {
    let host = Host::begun(Shape::CONTINUED, Pace::AtOnce).await;
    let guest = host.path().join("guests").join(UUID);
    let parent = host.repository().points(&UUID.parse().unwrap()).unwrap()[0].manifest.identity.point.to_string();
    let (synced, in_time) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&in_time);
    let engine = host.failing(Arc::new(move |operation| {
        if operation.act == Act::SyncFolder && operation.path == guest.join(&parent) {
            synced.fetch_add(1, Ordering::SeqCst);
        } else if operation.act == Act::Rename && operation.path.ends_with("manifest.json") {
            counted.store(synced.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        Ok(())
    }));
    assert_complete(&host.start(&engine, &host.request("run")).end().await);
    assert!(in_time.load(Ordering::SeqCst) > 0, "its parent may be gone after a power cut, and the bitmap with it");
}
