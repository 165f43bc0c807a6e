//! One run each: refused, cancelled, waiting, harmed, stuck.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use driftline::{
    engine::{Phase, TypeReason, gate::Passage},
    ids::{BitmapName, BitmapRole},
    qmp::{
        command::{AddFd, BlockdevAdd, BlockdevBackup, Sync},
        fake::{Fault, Pace, When},
    },
};
use serde_json::json;

use super::{
    host::{Host, UUID, assert_complete, assert_failed},
    shape::Shape,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_point_says_who_what_when_and_why() {
    let host = Host::new(Pace::AtOnce);
    let before = jiff::Timestamp::now();
    let state = host.run("run-1").await;
    assert_complete(&state);
    let manifest = &state.point.as_ref().unwrap().manifest;
    let identity = &manifest.identity;
    assert_eq!((identity.sequence, identity.run.as_str(), identity.guest.namespace.as_str()), (1, "run-1", "team-a"));
    assert!((before..jiff::Timestamp::now()).contains(&identity.checkpoint_time));
    assert_eq!(state.checkpoint_time, Some(identity.checkpoint_time));
    assert_eq!((manifest.versions.qemu.as_str(), state.attempts), ("7.2.22", 1));
    assert_eq!(state.type_reason, Some(TypeReason::FirstBackup));
    for &(disk, size) in Shape::FIRST.disks() {
        let found = identity.disks.iter().find(|found| found.name.as_str() == disk).unwrap();
        assert_eq!((found.virtual_size, found.type_reason.as_str()), (size, "FirstBackup"));
        let bitmaps = host.qemu.bitmaps(disk);
        let named = |role| {
            let name = |bitmap: &&_| {
                let bitmap: &driftline::qmp::fake::FakeBitmap = bitmap;
                bitmap.name.parse::<BitmapName>().unwrap().role == role
            };
            bitmaps.iter().find(name).unwrap()
        };
        let (checkpoint, sentinel) = (named(BitmapRole::Checkpoint), named(BitmapRole::Sentinel));
        assert_eq!((checkpoint.count(), checkpoint.recording, checkpoint.persistent), (0, true, disk == "disk1"));
        assert_eq!((sentinel.count(), sentinel.recording, sentinel.persistent), (65536, false, disk == "disk1"));
        assert_eq!(sentinel.granules.first(), Some(&((size - 1) / 65536)));
        assert!(checkpoint.name.contains(found.lineage.as_str()) && checkpoint.name.contains(identity.point.as_str()));
    }
    let second = host.run("run-2").await;
    assert_eq!(second.type_reason, Some(TypeReason::Requested));
    assert_eq!(second.point.unwrap().manifest.identity.sequence, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_instant_is_told_of_before_qemu_has_done_the_transaction() {
    let host = Host::new(Pace::Manual);
    let sent = Arc::new(tokio::sync::Notify::new());
    let notify = sent.clone();
    let gate = move |passage| {
        let here = matches!(passage, Passage::Sending("transaction"));
        if here {
            notify.notify_one();
        }
        !here
    };
    let going = host.start(&host.gated(Arc::new(gate)), &host.request("run"));
    sent.notified().await;
    // What is written now is in the point: nobody may have been told that it is not.
    assert_eq!(going.control.state.borrow().checkpoint_time, None);
    going.task.abort();
    let _ = going.task.await;
    let next = host.start(&host.engine(), &host.request("run"));
    assert!(next.copying().await.checkpoint_time.is_some());
    host.qemu.finish_jobs();
    assert_complete(&next.end().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_run_waits_for_the_first_and_says_so() {
    let host = Host::new(Pace::Manual);
    let first = host.start(&host.engine(), &host.request("first"));
    first.copying().await;
    let second = host.start(&host.engine(), &host.request("second"));
    let waiting = second.reach(|state| state.reason == "GuestInUse").await;
    assert_eq!(waiting.phase, Phase::Waiting);
    assert!(waiting.message.contains("run first"), "{}", waiting.message);
    host.qemu.set_pace(Pace::AtOnce);
    host.qemu.finish_jobs();
    assert_complete(&first.end().await);
    assert_complete(&second.end().await);
    assert_eq!(host.assert_tidy(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_waits_can_be_cancelled_and_let_go() {
    let host = Host::new(Pace::Manual);
    let first = host.start(&host.engine(), &host.request("first"));
    first.copying().await;
    let second = host.start(&host.engine(), &host.request("second"));
    second.reach(|state| state.reason == "GuestInUse").await;
    second.control.cancel.cancel();
    assert_eq!(second.end().await.phase, Phase::Cancelled);
    let third = host.start(&host.engine(), &host.request("third"));
    third.reach(|state| state.reason == "GuestInUse").await;
    third.control.detach.cancel();
    assert_eq!(third.end().await.phase, Phase::Waiting);
    host.qemu.finish_jobs();
    assert_complete(&first.end().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_before_copied_undoes_everything_and_keeps_the_older_checkpoint() {
    let host = Host::new(Pace::AtOnce);
    assert_complete(&host.run("first").await);
    let kept = host.qemu.bitmaps("disk1");
    host.qemu.set_pace(Pace::Manual);
    let going = host.start(&host.engine(), &host.request("second"));
    going.copying().await;
    going.control.cancel.cancel();
    let state = going.end().await;
    assert_eq!((state.phase, state.reason.as_str(), state.retriable), (Phase::Cancelled, "Cancelled", false));
    assert_eq!(host.qemu.bitmaps("disk1"), kept);
    host.assert_clean(2);
    assert_eq!(host.assert_tidy(), 1);
    // A cancelled run stays cancelled.
    assert_eq!(host.run("second").await, state);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_after_copied_comes_too_late() {
    let host = Host::new(Pace::AtOnce);
    let open = Arc::new(AtomicBool::new(false));
    let (gate, reached) = (open.clone(), Arc::new(tokio::sync::Notify::new()));
    let seen = reached.clone();
    let engine = host.gated(Arc::new(move |passage| {
        if passage == Passage::RepositoryBefore("seal") && !gate.load(Ordering::SeqCst) {
            seen.notify_one();
            return false;
        }
        true
    }));
    let going = host.start(&engine, &host.request("run"));
    reached.notified().await;
    going.task.abort();
    let _ = going.task.await;
    let again = host.start(&host.engine(), &host.request("run"));
    again.control.cancel.cancel();
    assert_complete(&again.end().await);
    assert_eq!(host.assert_tidy(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_let_go_is_adopted_by_the_next_engine_with_its_jobs() {
    let host = Host::new(Pace::Manual);
    let going = host.start(&host.engine(), &host.request("run"));
    let jobs: Vec<_> = going.copying().await.disks.into_iter().map(|disk| disk.job_id).collect();
    going.control.detach.cancel();
    assert_eq!(going.end().await.phase, Phase::Copying);
    assert_eq!(host.engine().unfinished().unwrap(), vec![host.request("run")]);
    let again = host.start(&host.engine(), &host.request("run"));
    again.copying().await;
    host.qemu.finish_jobs();
    let state = again.end().await;
    assert_complete(&state);
    assert_eq!(state.disks.into_iter().map(|disk| disk.job_id).collect::<Vec<_>>(), jobs);
    assert_eq!(host.starts(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_another_process_is_finished_first() {
    let host = Host::new(Pace::Manual);
    host.let_go(&host.request("first")).await;
    let second = host.start(&host.engine(), &host.request("second"));
    let waiting = second.reach(|state| state.reason == "FinishingEarlierRun").await;
    assert_eq!(waiting.phase, Phase::Waiting);
    host.qemu.set_pace(Pace::AtOnce);
    host.qemu.finish_jobs();
    assert_complete(&second.end().await);
    assert_complete(&host.engine().finished("first").unwrap());
    assert_eq!(host.assert_tidy(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_failed_job_fails_the_run_and_ends_the_others() {
    let host = Host::new(Pace::Manual);
    let going = host.start(&host.engine(), &host.request("run"));
    let jobs = going.copying().await.disks;
    assert!(host.qemu.fail_job(&jobs[0].job_id.to_string(), "No space left on device"));
    let state = going.end().await;
    assert_failed(&state, "JobFailed");
    assert!(state.message.contains("disk0") && state.message.contains("No space left"), "{}", state.message);
    host.assert_clean(0);
    assert_eq!(host.assert_tidy(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_does_not_end_holds_back_the_guests_runs_until_it_does() {
    let host = Host::new(Pace::Manual);
    let going = host.start(&host.engine(), &host.request("run"));
    going.copying().await;
    host.qemu.hang_cancel(true);
    going.control.cancel.cancel();
    assert_failed(&going.end().await, "TargetStuck");
    assert_failed(&host.run("next").await, "TargetStuck");
    assert_eq!(host.starts(), 1);
    host.qemu.hang_cancel(false);
    host.qemu.set_pace(Pace::AtOnce);
    assert_complete(&host.run("after").await);
    host.assert_clean(2);
    assert_eq!(host.assert_tidy(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_ends_the_run() {
    let host = Host::new(Pace::Manual);
    let going = host.start(&host.engine(), &host.request("run"));
    going.copying().await;
    host.qemu.set_migration(Some("active"));
    host.qemu.emit("MIGRATION", json!({ "status": "active" }));
    assert_failed(&going.end().await, "MigrationStarted");
    host.assert_clean(0);
    host.qemu.set_status("postmigrate");
    assert_failed(&host.run("next").await, "GuestMigrating");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_known_before_is_refused_before_anything_is_done() {
    let mut host = Host::new(Pace::AtOnce);
    let refused = |change: &dyn Fn(&mut driftline::engine::BackupRequest), reason: &'static str| {
        let mut request = host.request(reason);
        change(&mut request);
        (host.start(&host.engine(), &request), reason)
    };
    let runs = vec![
        refused(&|request| request.disks.include = vec!["disk7".parse().unwrap()], "DiskNotFound"),
        refused(
            &|request| {
                request.disks.exclude = Shape::FIRST.disks().iter().map(|(disk, _)| disk.parse().unwrap()).collect()
            },
            "NoEligibleDisk",
        ),
        refused(&|request| request.repository.path = "/elsewhere".into(), "OutsideRoots"),
        refused(
            &|request| request.repository.id = "11111111-2222-3333-4444-555555555555".parse().unwrap(),
            "RepositoryIdMismatch",
        ),
        refused(&|request| request.repository.path = request.repository.path.join("none"), "FolderMissing"),
        refused(&|request| request.guest.uuid = "11111111-2222-3333-4444-555555555555".parse().unwrap(), "WrongGuest"),
    ];
    for (run, reason) in runs {
        assert_failed(&run.end().await, reason);
    }
    host.reserve = u64::MAX / 2;
    assert_failed(&host.run("full").await, "RepositoryFull");
    assert_eq!((host.starts(), host.qemu.count("add-fd")), (0, 0));
    assert_eq!(host.assert_tidy(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_of_another_namespace_is_refused() {
    let host = Host::new(Pace::AtOnce);
    assert_complete(&host.run("first").await);
    let mut request = host.request("second");
    request.guest.namespace = "team-b".to_owned();
    assert_failed(&host.start(&host.engine(), &request).end().await, "GuestBelongsToAnotherNamespace");
    assert_eq!((host.starts(), host.assert_tidy()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_job_on_a_disk_is_left_alone_and_the_run_refused() {
    let host = Host::new(Pace::Manual);
    let image = host.folder.path().join("theirs");
    let mut make = std::process::Command::new("qemu-img");
    assert!(make.args(["create", "-q", "-f", "qcow2"]).arg(&image).arg("200192").status().unwrap().success());
    let file = std::fs::File::options().read(true).write(true).open(&image).unwrap();
    let monitor = host.monitor();
    let client = monitor.client().await.unwrap();
    let add = AddFd { fdset_id: None, opaque: Some("theirs".to_owned()) };
    let set = client.execute_with_fd(&add, std::os::fd::AsFd::as_fd(&file)).await.unwrap();
    let options = json!({ "driver": "qcow2", "node-name": "theirs",
        "file": { "driver": "file", "filename": format!("/dev/fdset/{}", set.fdset_id) } });
    client.execute(&BlockdevAdd { options }).await.unwrap();
    client.execute(&BlockdevBackup::new("theirs", "disk0-node", "theirs", Sync::Full)).await.unwrap();
    client.close();
    let state = host.run("run").await;
    assert_failed(&state, "ForeignJob");
    assert!(state.message.contains("disk0") && state.message.contains("theirs"), "{}", state.message);
    assert_eq!((host.qemu.jobs().len(), host.starts()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_qemu_refuses_fails_the_run_with_its_words() {
    let host = Host::new(Pace::AtOnce);
    let refuse =
        Fault::Refuse { class: "GenericError".to_owned(), description: "Bitmaps are of different sizes".to_owned() };
    host.qemu.fault(When::Every("transaction"), refuse);
    let state = host.run("run").await;
    assert_failed(&state, "RefusedByQEMU");
    assert!(state.message.contains("different sizes"), "{}", state.message);
    host.assert_clean(0);
    assert_eq!(host.assert_tidy(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_cannot_be_written_ends_the_run_and_the_next_engine_goes_on() {
    let host = Host::new(Pace::AtOnce);
    let (journal, away) = (host.folder.path().join("state/journal"), host.folder.path().join("away"));
    let (from, to) = (journal.clone(), away.clone());
    let engine = host.gated(Arc::new(move |passage| {
        if passage == Passage::Replied("transaction") {
            std::fs::rename(&from, &to).unwrap();
        }
        true
    }));
    assert_failed(&host.start(&engine, &host.request("run")).end().await, "JournalUnwritable");
    std::fs::rename(&away, &journal).unwrap();
    assert_complete(&host.run("run").await);
    assert_eq!((host.starts(), host.assert_tidy()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn bitmaps_of_points_that_are_gone_are_removed_and_foreign_ones_left() {
    let host = Host::new(Pace::AtOnce);
    let state = host.run("first").await;
    assert_complete(&state);
    let point = state.point.unwrap().manifest.identity.point.to_string();
    std::fs::remove_dir_all(host.path().join("guests").join(UUID).join(&point)).unwrap();
    let client = host.monitor().client().await.unwrap();
    let name = format!("driftline.0badcafe.{point}.00000001");
    for name in ["theirs", name.as_str()] {
        let add = driftline::qmp::command::BitmapAdd {
            node: "disk1-node".to_owned(),
            name: name.to_owned(),
            granularity: 65536,
            persistent: true,
            disabled: false,
        };
        client.execute(&driftline::qmp::command::BlockDirtyBitmapAdd(add)).await.unwrap();
    }
    client.close();
    let second = host.run("second").await;
    assert_complete(&second);
    assert_eq!(second.type_reason, Some(TypeReason::FirstBackup));
    let names: Vec<_> = host.qemu.bitmaps("disk1").into_iter().map(|bitmap| bitmap.name).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(!names.iter().any(|known| known.contains(&point) && *known != name), "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_that_no_journal_knows_are_removed_only_at_a_persons_word() {
    let host = Host::new(Pace::Manual);
    host.let_go(&host.request("run")).await;
    std::fs::remove_dir_all(host.folder.path().join("state")).unwrap();
    assert_failed(&host.run("next").await, "ForeignJob");
    let (engine, monitor) = (host.engine(), host.monitor());
    let guest = UUID.parse().unwrap();
    let recovered = engine.recover(&monitor, &guest, &host.named(), false).await.unwrap();
    assert_eq!((recovered.found, recovered.adopted.len()), (false, 0));
    assert_eq!(host.qemu.jobs().len(), 2);
    let recovered = engine.recover(&monitor, &guest, &host.named(), true).await.unwrap();
    assert!(recovered.adopted.len() >= 6, "{recovered:?}");
    monitor.disconnect().await;
    host.qemu.set_pace(Pace::AtOnce);
    assert_complete(&host.run("after").await);
    host.assert_clean(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn recover_finishes_what_the_journal_holds() {
    let host = Host::new(Pace::Manual);
    let going = host.start(&host.engine(), &host.request("run"));
    going.copying().await;
    let (engine, monitor, named) = (host.engine(), host.monitor(), host.named());
    let guest = UUID.parse().unwrap();
    assert_eq!(engine.recover(&monitor, &guest, &named, false).await.unwrap_err().reason(), "GuestInUse");
    going.control.detach.cancel();
    going.end().await;
    host.qemu.finish_jobs();
    let recovered = tokio::time::timeout(Duration::from_secs(30), engine.recover(&monitor, &guest, &named, false));
    assert_complete(&recovered.await.unwrap().unwrap().run.unwrap());
    assert_eq!((host.starts(), host.assert_tidy()), (1, 1));
}
