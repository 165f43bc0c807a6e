//! What was set aside is settled late, when the guest has newer points or the repository stands elsewhere: no point that is
//! stored is told as lost, and no checkpoint of one goes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use driftline::{
    engine::{BackupRequest, Phase, Recovered, RepositoryRef, RequestedType, gate::Passage},
    qmp::fake::Pace,
};

use super::{
    away::{away, back, backed_up, cut_off, elsewhere, incremental, undecided},
    host::{Host, UUID, assert_complete, assert_failed},
};

/// The folders of the guest's points in a repository.
fn points(repository: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(repository.join("guests").join(UUID)).unwrap();
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
}

/// What was copied of a repository before it had the point, and a run into that copy.
fn copied_before(host: &Host, repository: &Path) -> BackupRequest {
    let path = host.folder.path().join("copy");
    assert!(Command::new("cp").arg("-a").arg(repository).arg(&path).status().unwrap().success());
    for point in points(&path) {
        fs::remove_dir_all(point).unwrap();
    }
    BackupRequest { repository: RepositoryRef { path, id: host.id.clone() }, ..host.request("into the copy") }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_repository_does_not_tell_what_was_committed_into_the_original() {
    let host = Host::new(Pace::AtOnce);
    undecided(&host, false).await;
    let request = copied_before(&host, &away(&host));
    assert_complete(&backed_up(&host, &host.engine(), &request).await);
    assert_eq!(host.engine().finished("run"), None, "the copy cannot know");
    host.assert_clean(2 + 2);
    back(&host);
    assert_complete(&host.run("run").await);
    incremental(&host, "next").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_mounted_elsewhere_tells_what_was_committed_into_it() {
    for before in [false, true] {
        let host = Host::new(Pace::AtOnce);
        undecided(&host, before).await;
        let repository = RepositoryRef { path: away(&host), id: host.id.clone() };
        let request = BackupRequest { repository, ..host.request("next") };
        assert_complete(&backed_up(&host, &host.engine(), &request).await);
        let phase = if before { Phase::Failed } else { Phase::Complete };
        assert_eq!(host.engine().finished("run").unwrap().phase, phase);
        back(&host);
        assert_eq!(host.assert_tidy(), if before { 1 } else { 2 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_waits_until_it_is_known_what_was_committed_before_it() {
    let host = Host::new(Pace::AtOnce);
    undecided(&host, false).await;
    back(&host);
    let (manifest, kept) = (points(&host.path())[0].join("manifest.json"), host.folder.path().join("kept"));
    fs::rename(&manifest, &kept).unwrap();
    // What opens and cannot be read.
    fs::create_dir(&manifest).unwrap();
    let state = host.run("next").await;
    assert_failed(&state, "RepositoryUnavailable");
    assert!(state.retriable && state.message.contains("driftline recover --qmp"), "{}", state.message);
    assert_eq!((points(&host.path()).len(), host.engine().finished("run")), (1, None));
    host.assert_clean(2);
    fs::remove_dir(&manifest).unwrap();
    fs::rename(&kept, &manifest).unwrap();
    incremental(&host, "after").await;
    assert_complete(&host.engine().finished("run").unwrap());
    assert_eq!(host.assert_tidy(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_settled_late_costs_no_newer_checkpoint() {
    let host = Host::new(Pace::AtOnce);
    undecided(&host, false).await;
    back(&host);
    let (manifest, kept) = (points(&host.path())[0].join("manifest.json"), host.folder.path().join("kept"));
    fs::rename(&manifest, &kept).unwrap();
    // Nothing that passes by itself: the guest's backups go on.
    fs::write(&manifest, "{").unwrap();
    let second = host.run("second").await;
    assert_complete(&second);
    host.assert_clean(2 + 2);
    fs::rename(&kept, &manifest).unwrap();
    assert_complete(&host.run("run").await);
    let request = BackupRequest { kind: RequestedType::Auto, ..host.request("third") };
    let third = backed_up(&host, &host.engine(), &request).await;
    assert_complete(&third);
    let parent = third.point.unwrap().manifest.identity.disks[0].parent.clone();
    assert_eq!(parent.map(|parent| parent.point), Some(second.point.unwrap().manifest.identity.point));
    // What was left for it: the late run's.
    host.assert_clean(host.bitmaps() + 1);
}

/// A run that waits for its repository and is cancelled now.
async fn given_up(host: &Host) {
    let again = host.start(&host.engine(), &host.request("run"));
    again.control.cancel.cancel();
    assert_eq!(again.end().await.phase, Phase::Cancelled);
}

/// An engine that is gone right after it has taken back what was set aside.
async fn gone_when_taken_back(host: &Host, run: &str) {
    host.stopped(run, |passage| matches!(passage, Passage::RepositoryBefore(_))).await.abort().await;
}

async fn recover(host: &Host, named: &RepositoryRef) -> Recovered {
    host.engine().recover(&host.monitor(), &UUID.parse().unwrap(), named, false).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_calls_no_run_undone_that_waits_for_its_repository() {
    let host = Host::new(Pace::AtOnce);
    undecided(&host, false).await;
    gone_when_taken_back(&host, "run").await;
    let recovered = recover(&host, &host.named()).await;
    assert_eq!((recovered.found, recovered.run), (false, None));
    assert!(recovered.notes[0].contains("of run run was committed is not known"), "{:?}", recovered.notes);
    assert_eq!(recovered.notes.len(), 1);
    host.assert_clean(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_says_what_became_of_a_run_that_was_told_as_cancelled() {
    let host = Host::new(Pace::AtOnce);
    undecided(&host, false).await;
    given_up(&host).await;
    back(&host);
    gone_when_taken_back(&host, "next").await;
    let recovered = recover(&host, &host.named()).await;
    assert_eq!((recovered.found, recovered.run), (false, None));
    assert!(recovered.notes[0].starts_with("Run run had stored point "), "{:?}", recovered.notes);
    assert_eq!(host.assert_tidy(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_looks_into_a_repository_where_it_is_named() {
    let host = Host::new(Pace::Manual);
    cut_off(&host).await;
    fs::rename(host.path(), away(&host)).unwrap();
    assert_failed(&host.run("run").await, "FolderMissing");
    let moved = RepositoryRef { path: away(&host), ..host.named() };
    assert_eq!(recover(&host, &moved).await.notes, Vec::<String>::new());
    back(&host);
    assert_eq!(host.assert_tidy(), 0);
    let host = Host::new(Pace::AtOnce);
    undecided(&host, false).await;
    let moved = RepositoryRef { path: away(&host), ..host.named() };
    assert_complete(&recover(&host, &moved).await.run.unwrap());
    back(&host);
    assert_eq!(host.assert_tidy(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn partial_files_are_not_forgotten_because_a_copy_of_their_repository_has_none() {
    let host = Host::new(Pace::Manual);
    cut_off(&host).await;
    fs::rename(host.path(), away(&host)).unwrap();
    assert_failed(&host.run("run").await, "FolderMissing");
    let request = copied_before(&host, &away(&host));
    assert_complete(&backed_up(&host, &host.engine(), &request).await);
    back(&host);
    assert_complete(&host.run("next").await);
    assert_eq!(host.assert_tidy(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_cancelled_while_another_one_is_finished_keeps_that_word() {
    let host = Host::new(Pace::AtOnce);
    undecided(&host, false).await;
    host.qemu.set_pace(Pace::Manual);
    host.let_go(&elsewhere(&host, "other")).await;
    let going = host.start(&host.engine(), &host.request("run"));
    going.reach(|state| state.reason == "FinishingEarlierRun").await;
    going.control.cancel.cancel();
    let state = going.end().await;
    assert_eq!(state.phase, Phase::Cancelled, "{state:?}");
    assert!(state.message.contains("is not known until repository"), "{}", state.message);
    assert!(!host.engine().holds(&host.request("run")));
    back(&host);
    host.qemu.finish_jobs();
    host.qemu.set_pace(Pace::AtOnce);
    assert_complete(&host.run("next").await);
    assert_complete(&host.engine().finished("other").unwrap());
    assert_eq!(host.engine().finished("run"), Some(state), "what is found later changes no word");
    assert_eq!(host.assert_tidy(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_told_as_cancelled_is_begun_by_no_agent_again() {
    let host = Host::new(Pace::AtOnce);
    undecided(&host, false).await;
    given_up(&host).await;
    back(&host);
    gone_when_taken_back(&host, "next").await;
    assert_eq!(host.engine().unfinished().unwrap(), vec![]);
    assert_complete(&host.run("next").await);
    assert_eq!(host.engine().finished("run").unwrap().phase, Phase::Cancelled);
    assert_eq!(host.assert_tidy(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_hangs_when_it_is_looked_for_holds_up_neither_recovery_nor_run() {
    let host = Host::new(Pace::AtOnce);
    undecided(&host, false).await;
    let elsewhere = elsewhere(&host, "unused").repository;
    let engine = host.gated(Arc::new(|passage| passage != Passage::RepositoryBefore("open")));
    let recovery = async {
        let monitor = host.monitor();
        engine.recover(&monitor, &UUID.parse().unwrap(), &elsewhere, false).await.unwrap()
    };
    let recovered = tokio::time::timeout(Duration::from_secs(20), recovery).await.expect("it hangs");
    assert!(recovered.notes[0].contains("does not answer"), "{:?}", recovered.notes);
    assert_failed(&backed_up(&host, &engine, &host.request("next")).await, "RepositoryUnavailable");
    host.assert_clean(2);
    back(&host);
    assert_complete(&host.run("run").await);
    assert_eq!(host.assert_tidy(), 1);
}
