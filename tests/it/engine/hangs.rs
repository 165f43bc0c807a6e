//! A repository that hangs, and other waiting: a run says what it waits for, can be let go, and cancelled while nothing of it
//! can appear later.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        mpsc::{Receiver, channel},
    },
    time::Duration,
};

use driftline::{
    engine::{BackupRequest, Engine, Patience, Phase, RepositoryRef, RunControl, gate::Passage},
    qmp::fake::Pace,
    repo::{Act, Operation, QemuImg, Repository, Roots},
};

use super::{
    away::{cut_off, finished_copy, undecided},
    host::{Host, UUID, assert_complete},
};

/// Longer than any test lasts.
const LATER: Duration = Duration::from_secs(300);

/// What hangs in a repository, until it goes on.
#[derive(Clone, Default)]
pub(super) struct Hang(Arc<(Mutex<bool>, Condvar)>);

impl Hang {
    /// An engine whose repository hangs at the operations that are `held`; it is told when it does.
    pub(super) fn engine(
        &self,
        host: &Host,
        held: impl Fn(&Operation) -> bool + Send + Sync + 'static,
    ) -> (Engine, Receiver<()>) {
        let (tell, hung) = channel();
        let (hang, repository) = (self.0.clone(), host.path());
        let gate = move |operation: &Operation| {
            let mut gone_on = hang.0.lock().unwrap();
            while operation.path.starts_with(&repository) && held(operation) && !*gone_on {
                let _ = tell.send(());
                gone_on = hang.1.wait(gone_on).unwrap();
            }
            Ok(())
        };
        (host.failing(Arc::new(gate)), hung)
    }

    pub(super) fn go_on(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

impl Drop for Hang {
    /// A test that failed must not wait for the thread that hangs.
    fn drop(&mut self) {
        self.go_on();
    }
}

/// The guest's other repository.
fn other(host: &Host, request: BackupRequest) -> BackupRequest {
    let path = host.folder.path().join("other");
    std::fs::create_dir(&path).unwrap();
    let id = "11111111-9a51-4c7e-8f2b-0d9f2f6f3a10".parse().unwrap();
    Repository::initialise(&host.roots(), &path, &id, &QemuImg::new("qemu-img", None)).unwrap();
    BackupRequest { repository: RepositoryRef { path, id }, ..request }
}

/// Whether the operation makes a point's folder.
fn makes_a_point(operation: &Operation) -> bool {
    let guest = |folder: &Path| folder.ends_with(UUID);
    operation.act == Act::MakeFolder && operation.path.parent().is_some_and(guest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_repository_hangs_before_its_record_is_cancelled_at_once_and_holds_no_other_back() {
    let (host, hang) = (Host::new(Pace::AtOnce), Hang::default());
    let (engine, hung) = hang.engine(&host, |_| true);
    let first = host.start(&engine, &host.request("first"));
    tokio::task::block_in_place(|| hung.recv().unwrap());
    first.control.cancel.cancel();
    assert_eq!(first.end().await.phase, Phase::Cancelled);
    let second = other(&host, host.request("second"));
    assert_complete(&host.start(&host.engine(), &second).end().await);
    hang.go_on();
    assert_complete(&host.run("third").await);
    assert_eq!(host.assert_tidy(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_waits_until_another_one_is_finished_says_that_its_repository_hangs_and_can_be_cancelled() {
    let (host, hang) = (Host::new(Pace::Manual), Hang::default());
    host.let_go(&host.request("first")).await;
    host.qemu.finish_jobs();
    let (engine, _hung) = hang.engine(&host, |_| true);
    let second = host.start(&engine, &other(&host, host.request("second")));
    second.reach(|state| state.reason == "RepositoryNotResponding").await;
    second.control.cancel.cancel();
    assert_eq!(second.end().await.phase, Phase::Cancelled);
    hang.go_on();
    assert_complete(&host.run("first").await);
    assert_eq!(host.assert_tidy(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_looks_for_the_repository_of_another_one_can_be_let_go() {
    let host = Host::new(Pace::Manual);
    cut_off(&host).await;
    let request = other(&host, host.request("second"));
    let control = RunControl::new(&request, jiff::Timestamp::now());
    let detach = control.detach.clone();
    // The first one's is outside of them, which is known only once it was looked for.
    let roots = Roots::new(vec![request.repository.path.clone()]);
    let engine = host.engine_on(roots).with_gate(Arc::new(move |passage| {
        if passage == Passage::RepositoryBefore("open") {
            detach.cancel();
        }
        true
    }));
    let state = engine.backup(&host.monitor(), &request, &control).await;
    assert!(!state.phase.is_final(), "{}: {}", state.reason, state.message);
    assert_complete(&host.run("run").await);
    assert_eq!(host.assert_tidy(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_waits_until_another_one_is_finished_ends_when_it_is_cancelled() {
    let host = Host::new(Pace::Manual);
    host.let_go(&host.request("first")).await;
    let second = host.start(&host.engine(), &host.request("second"));
    second.reach(|state| state.reason == "FinishingEarlierRun").await;
    second.control.cancel.cancel();
    assert_eq!(second.end().await.phase, Phase::Cancelled);
    host.qemu.finish_jobs();
    assert_complete(&host.run("first").await);
    assert_eq!(host.assert_tidy(), 1);
}

/// Whether the operation is one of checking a disk's copy.
fn checks_a_copy(operation: &Operation) -> bool {
    operation.act == Act::Truncate
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_waits_for_another_ones_commit_says_that_it_hangs_and_ends_when_it_is_cancelled() {
    for says in [true, false] {
        let (host, hang) = (Host::new(Pace::AtOnce), Hang::default());
        finished_copy(&host).await;
        let (engine, hung) = hang.engine(&host, checks_a_copy);
        let second = host.start(&engine, &other(&host, host.request("second")));
        tokio::task::block_in_place(|| hung.recv().unwrap());
        if says {
            let said = second.reach(|state| state.reason == "RepositoryNotResponding").await;
            assert!(said.message.contains("Checking a disk's copy"), "{}", said.message);
        }
        second.control.cancel.cancel();
        assert_eq!(second.end().await.phase, Phase::Cancelled);
        hang.go_on();
        assert_complete(&host.run("run").await);
        assert_eq!(host.assert_tidy(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_waits_until_another_ones_commit_is_tried_again_ends_when_it_is_cancelled() {
    let host = Host::new(Pace::AtOnce);
    finished_copy(&host).await;
    let failing = host.failing(Arc::new(|operation| match operation.act {
        Act::Truncate => Err(std::io::Error::from_raw_os_error(5)),
        _ => Ok(()),
    }));
    let patient = Patience { commit: LATER, commit_pause: LATER, ..Patience::default() };
    let second = host.start(&failing.with_patience(patient), &other(&host, host.request("second")));
    second.reach(|state| state.reason == "FinishingEarlierRun").await;
    // It waits for a minute before the next try.
    tokio::time::sleep(Duration::from_secs(1)).await;
    second.control.cancel.cancel();
    assert_eq!(second.end().await.phase, Phase::Cancelled);
    assert_complete(&host.run("run").await);
    assert_eq!(host.assert_tidy(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_beside_a_run_says_only_that_the_guest_is_in_use() {
    let host = Host::new(Pace::AtOnce);
    undecided(&host, false).await;
    let going = host.stopped("run", |passage| matches!(passage, Passage::RepositoryBefore(_))).await;
    let config = host.folder.path().join("host.toml");
    let [state, locks, guests] = ["state", "locks", "none"].map(|name| host.folder.path().join(name));
    let roots = host.folder.path();
    let text = format!("state = {state:?}\nlocks = {locks:?}\nguests = {guests:?}\nrepositoryRoots = [{roots:?}]\n");
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_driftline"));
    let named = other(&host, host.request("unused")).repository.path;
    command.arg("recover").arg("--qmp").arg(host.qemu.socket()).arg("--repository").arg(named);
    command.env("DRIFTLINE_CONFIG", &config).stdin(Stdio::null());
    let output = tokio::task::block_in_place(|| command.output().unwrap());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("[GuestInUse]") && !said.contains("cut off"), "{said}");
    going.abort().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_says_that_its_repository_hangs_and_is_undone_once_it_answers() {
    let (host, hang) = (Host::new(Pace::AtOnce), Hang::default());
    let (engine, _hung) = hang.engine(&host, makes_a_point);
    let going = host.start(&engine, &host.request("run"));
    let said = going.reach(|state| state.reason == "RepositoryNotResponding").await;
    assert!(said.message.contains("Making the point's folder"), "{}", said.message);
    going.control.cancel.cancel();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(!going.task.is_finished(), "the undoing would be overtaken by what makes files");
    hang.go_on();
    let state = going.end().await;
    assert_eq!((state.phase, state.reason.as_str()), (Phase::Cancelled, "Cancelled"));
    assert_eq!(host.assert_tidy(), 0);
    host.assert_clean(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_repository_hangs_can_be_let_go_and_keeps_the_guest_until_it_answers() {
    let (host, hang) = (Host::new(Pace::AtOnce), Hang::default());
    let (engine, hung) = hang.engine(&host, makes_a_point);
    let going = host.start(&engine, &host.request("run"));
    tokio::task::block_in_place(|| hung.recv().unwrap());
    going.control.detach.cancel();
    assert!(!going.end().await.phase.is_final());
    let again = host.start(&host.engine(), &host.request("run"));
    let waiting = again.reach(|state| state.reason == "GuestInUse").await;
    assert!(waiting.message.contains("run run"), "{}", waiting.message);
    hang.go_on();
    assert_complete(&again.end().await);
    assert_eq!(host.assert_tidy(), 1);
    host.assert_clean(host.bitmaps());
}
