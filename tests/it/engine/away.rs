//! The repository goes away for longer than anybody waits for it, or for good: the checkpoint of a point that may have been
//! committed stays, the run is not told as ended, and the guest's other repositories have nothing to do with it.

#![allow(unreachable_pub, reason = "shared by the engine's tests")]

use std::{
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use driftline::{
    engine::{BackupRequest, BackupType, Engine, Phase, RepositoryRef, RequestedType, RunState, gate::Passage},
    qmp::fake::Pace,
    repo::{Act, QemuImg, Repository, Roots},
};

use super::{
    hangs::Hang,
    host::{Counter, Host, UUID, assert_complete, assert_failed, files},
    shape::{Shape, Way},
};

pub fn away(host: &Host) -> std::path::PathBuf {
    host.folder.path().join("away")
}

pub fn back(host: &Host) {
    fs::rename(away(host), host.path()).unwrap();
}

/// An engine whose repository goes away right before the manifest is renamed into place, or right after.
pub fn losing(host: &Host, before: bool) -> Engine {
    let (from, to, gone) = (host.path(), away(host), AtomicBool::new(false));
    let renamed = AtomicBool::new(false);
    host.failing(Arc::new(move |operation| {
        let commit = operation.act == Act::Rename && operation.path.ends_with("manifest.json");
        let now = if before { commit } else { renamed.load(Ordering::SeqCst) && operation.act == Act::SyncFolder };
        renamed.fetch_or(commit, Ordering::SeqCst);
        if now && !gone.swap(true, Ordering::SeqCst) {
            fs::rename(&from, &to).unwrap();
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(())
    }))
}

/// Another repository of the host, and a run into it.
pub fn elsewhere(host: &Host, run: &str) -> BackupRequest {
    let path = host.folder.path().join("other");
    let id = "11111111-9a51-4c7e-8f2b-0d9f2f6f3a10".parse().unwrap();
    if !path.exists() {
        fs::create_dir(&path).unwrap();
        Repository::initialise(&host.roots(), &path, &id, &QemuImg::new("qemu-img", None)).unwrap();
    }
    BackupRequest { repository: RepositoryRef { path, id }, ..host.request(run) }
}

pub async fn backed_up(host: &Host, engine: &Engine, request: &BackupRequest) -> RunState {
    host.start(engine, request).end().await
}

pub async fn incremental(host: &Host, run: &str) {
    let request = BackupRequest { kind: RequestedType::Auto, ..host.request(run) };
    let state = backed_up(host, &host.engine(), &request).await;
    assert_complete(&state);
    assert_eq!(state.kind, Some(BackupType::Incremental), "{:?}", state.type_reason);
}

/// A run whose repository goes away around its commit, and is still away.
pub async fn undecided(host: &Host, before: bool) {
    let engine = losing(host, before);
    let going = host.start(&engine, &host.request("run"));
    let control = going.control.clone();
    let state = going.end().await;
    assert_failed(&state, "RepositoryUnavailable");
    assert!(state.message.contains("driftline recover --qmp"), "{}", state.message);
    assert!(engine.holds(&host.request("run")), "it is gone on with");
    assert_eq!((engine.finished("run"), control.state.borrow().phase), (None, Phase::Finishing));
    assert_eq!(engine.unfinished().unwrap(), vec![host.request("run")]);
    host.assert_clean(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_checkpoint_of_a_point_that_was_committed_outlives_an_outage_right_after() {
    let host = Host::new(Pace::AtOnce);
    undecided(&host, false).await;
    assert_failed(&host.run("run").await, "RepositoryUnavailable");
    host.assert_clean(2);
    back(&host);
    assert_complete(&host.run("run").await);
    host.assert_clean(2);
    assert_eq!(host.assert_tidy(), 1);
    host.assert_next_is_exact().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_was_not_committed_is_undone_once_its_repository_tells() {
    let host = Host::new(Pace::AtOnce);
    undecided(&host, true).await;
    back(&host);
    let state = host.run("run").await;
    assert_eq!(state.phase, Phase::Failed, "{state:?}");
    assert_ne!(state.reason, "RepositoryUnavailable");
    assert_eq!(host.run("run").await, state);
    host.assert_clean(0);
    assert_eq!(host.assert_tidy(), 0);
    host.assert_next_is_exact().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_repository_is_away_the_guest_is_backed_up_into_another_one() {
    let host = Host::new(Pace::AtOnce);
    undecided(&host, false).await;
    for run in ["other-1", "other-2"] {
        assert_complete(&backed_up(&host, &host.engine(), &elsewhere(&host, run)).await);
    }
    // The newest set of the other repository's, and the one that waits.
    host.assert_clean(2 + 2);
    assert_failed(&host.run("next").await, "RepositoryUnavailable");
    let recovered = host.engine().recover(&host.monitor(), &UUID.parse().unwrap(), &host.named(), false).await.unwrap();
    assert!(recovered.notes.iter().any(|note| note.contains("run")), "{recovered:?}");
    host.assert_clean(2 + 2);
    back(&host);
    incremental(&host, "after").await;
    assert_complete(&host.engine().finished("run").unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_waits_for_its_repository_ends_when_it_is_cancelled_and_stays_ended() {
    let host = Host::new(Pace::AtOnce);
    undecided(&host, false).await;
    let again = host.start(&host.engine(), &host.request("run"));
    again.control.cancel.cancel();
    let state = again.end().await;
    assert_eq!((state.phase, state.reason.as_str()), (Phase::Cancelled, "Cancelled"));
    assert!(state.message.contains("is not known"), "{}", state.message);
    assert!(!host.engine().holds(&host.request("run")) && host.engine().unfinished().unwrap().is_empty());
    host.assert_clean(2);
    back(&host);
    incremental(&host, "next").await;
    assert_eq!(host.run("run").await, state, "how it ended does not change any more");
    assert_eq!(host.assert_tidy(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_waits_for_a_repository_which_hangs_holds_neither_the_guest_nor_a_cancel() {
    let (host, hang) = (Host::new(Pace::AtOnce), Hang::default());
    undecided(&host, false).await;
    back(&host);
    let (engine, _hung) = hang.engine(&host, |_| true);
    let again = async || backed_up(&host, &engine, &host.request("run")).await;
    for known in [false, true] {
        let asked = Instant::now();
        let state = again().await;
        assert_failed(&state, "RepositoryUnavailable");
        assert!(state.message.contains("does not answer"), "{}", state.message);
        // One question at a time, for each holds a thread.
        assert_eq!(asked.elapsed() < Duration::from_secs(2), known);
        assert_complete(&backed_up(&host, &host.engine(), &elsewhere(&host, &format!("other-{known}"))).await);
    }
    let going = host.start(&engine, &host.request("run"));
    going.control.cancel.cancel();
    assert_eq!(going.end().await.phase, Phase::Cancelled);
    hang.go_on();
    incremental(&host, "next").await;
    assert_eq!(host.assert_tidy(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_stopped_while_the_repository_is_away_loses_no_checkpoint() {
    for stop_at in 0.. {
        let host = Host::new(Pace::AtOnce);
        // Of the acts since then; how often the repository is looked at differs.
        let (counter, gone) = (Counter::new(stop_at), away(&host));
        let count = counter.gate();
        let engine = losing(&host, false).with_gate(Arc::new(move |passage| {
            let of_repository = matches!(passage, Passage::RepositoryBefore(_) | Passage::RepositoryAfter(_));
            of_repository || !gone.exists() || count(passage)
        }));
        let mut going = host.start(&engine, &host.request("run"));
        let stopped = tokio::select! {
            () = counter.stopped() => true,
            _ = &mut going.task => false,
        };
        if !stopped {
            assert!(stop_at > 8, "only {stop_at} acts");
            return;
        }
        going.task.abort();
        let _ = going.task.await;
        assert_failed(&host.run("run").await, "RepositoryUnavailable");
        back(&host);
        assert_complete(&host.run("run").await);
        assert_eq!(host.assert_tidy(), 1, "stopped at {stop_at}");
        incremental(&host, "next").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_never_committed_is_given_up_when_its_repository_stays_away() {
    for way in [Way::Direct, Way::Staged] {
        let host = Host::shaped(Shape { way, ..Shape::FIRST }, Pace::AtOnce);
        finished_copy(&host).await;
        fs::rename(host.path(), away(&host)).unwrap();
        let state = host.run("run").await;
        assert_failed(&state, "FolderMissing");
        host.assert_clean(0);
        // Nothing of the scratch folder's budget stays taken.
        assert_eq!(files(&host.folder.path().join("scratch")), Vec::<String>::new());
        assert_eq!(files(&host.folder.path().join("state/journal")), vec![format!("{UUID}.aside")]);
        assert_complete(&backed_up(&host, &host.engine(), &elsewhere(&host, "other")).await);
        back(&host);
        assert_complete(&host.run("next").await);
        assert_eq!(host.assert_tidy(), 1);
    }
}

/// A run whose engine is gone while it copies.
pub async fn cut_off(host: &Host) {
    host.let_go(&host.request("run")).await;
    host.qemu.set_pace(Pace::AtOnce);
    host.qemu.finish_jobs();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_destroyed_fails_its_run_and_no_other() {
    let host = Host::new(Pace::Manual);
    cut_off(&host).await;
    fs::rename(host.path(), away(&host)).unwrap();
    assert_complete(&backed_up(&host, &host.engine(), &elsewhere(&host, "other")).await);
    let state = host.run("run").await;
    assert_failed(&state, "FolderMissing");
    assert!(state.message.contains("partial files stay in repository"), "{}", state.message);
    host.assert_clean(2);
    assert_eq!(files(&host.folder.path().join("state/journal")), vec![format!("{UUID}.aside")]);
    let recover =
        async || host.engine().recover(&host.monitor(), &UUID.parse().unwrap(), &host.named(), false).await.unwrap();
    assert!(recover().await.notes[0].contains(host.path().to_str().unwrap()));
    // It is back all the same.
    back(&host);
    assert_eq!(recover().await.notes, Vec::<String>::new());
    assert_eq!(host.assert_tidy(), 0);
    assert_complete(&host.run("next").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_could_not_be_removed_are_by_the_next_run_into_their_repository() {
    let host = Host::new(Pace::Manual);
    cut_off(&host).await;
    fs::rename(host.path(), away(&host)).unwrap();
    assert_failed(&host.run("run").await, "FolderMissing");
    assert_failed(&host.run("next").await, "FolderMissing");
    back(&host);
    assert_complete(&host.run("after").await);
    assert_eq!(host.assert_tidy(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_repository_is_outside_of_the_roots_is_left_alone() {
    for finished in [false, true] {
        let host = Host::new(Pace::Manual);
        if finished {
            finished_copy(&host).await;
        } else {
            cut_off(&host).await;
        }
        let request = elsewhere(&host, "other");
        let bounded = host.engine_on(Roots::new(vec![request.repository.path.clone()]));
        for _ in 0..2 {
            let state = backed_up(&host, &bounded, &request).await;
            assert_failed(&state, "OutsideRoots");
            let way_out = format!(
                "driftline recover --qmp {} --repository {}",
                host.qemu.socket().display(),
                host.path().display()
            );
            assert!(state.message.contains(&way_out), "{}", state.message);
        }
        assert_complete(&host.run("run").await);
        assert_complete(&backed_up(&host, &bounded, &request).await);
        assert_eq!(host.assert_tidy(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_configuration_a_copy_for_another_repository_is_finished_first() {
    for finished in [false, true] {
        let host = Host::new(Pace::Manual);
        if finished {
            finished_copy(&host).await;
        } else {
            cut_off(&host).await;
        }
        let request = elsewhere(&host, "other");
        let named = host.engine_on(Roots::named(vec![request.repository.path.clone()]));
        assert_complete(&backed_up(&host, &named, &request).await);
        assert_complete(&host.engine().finished("run").unwrap());
        assert_eq!(host.assert_tidy(), 1);
    }
}

/// A run whose engine is gone when all is copied, and nothing is committed.
pub(super) async fn finished_copy(host: &Host) {
    host.qemu.set_pace(Pace::AtOnce);
    host.stopped("run", |passage| passage == Passage::RepositoryBefore("seal")).await.abort().await;
}
