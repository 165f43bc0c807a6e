//! The engine: one guest, one repository, one restore point, whatever dies on the way. It joins `qmp`, `repo` and
//! `chain`, and is the same for the agent and for the command on a plain host. It knows neither gRPC nor Kubernetes.
//!
//! Reading order: `request` (what is asked), `graph` (what QEMU has), `choose` (what is stored, pure),
//! `fleecing` and `data_path` (how the guest is kept from the target, pure), `plan` (what is
//! done, pure), `journal` (what is written down before), `recover` (what comes next, pure), `run` (does it), `course` (how it can be changed meanwhile, pure), `earlier`
//! (what earlier runs have left, before anything new),
//! `definition`, `orphans`, `space` and `sentinel` (pure helpers), `private` (files of one user), `progress` (what is shown).
//!
//! The one rule: nothing that the next backup needs is given up before the restore point is durable.

mod asks;
pub mod bitmaps;
pub mod choose;
pub mod course;
pub mod data_path;
pub mod definition;
mod earlier;
mod error;
pub mod fleecing;
pub mod gate;
pub mod graph;
pub mod jobs;
pub mod journal;
mod lock;
pub mod orphans;
pub mod plan;
mod private;
pub mod progress;
pub mod quiesce;
pub mod recover;
pub mod request;
pub mod restore;
mod run;
pub mod sentinel;
pub mod space;
mod wish;

use std::{path::PathBuf, sync::Arc, time::Duration};

use self::{
    asks::Asks,
    earlier::{Earlier, is_of},
    gate::Gates,
    journal::Journal,
    lock::{Attempted, GuestLock, try_lock},
    run::Run,
};
pub use self::{
    choose::Refusal,
    data_path::RequestedDataPath,
    earlier::Recovered,
    error::{CourseError, EngineError, NOTHING_LEFT, SUSPEND_NEEDS_FLEECING},
    fleecing::RequestedFleecing,
    graph::{DiskFacts, GuestFacts, PowerState, inspect},
    journal::JournalError,
    lock::LockError,
    progress::{CommittedPoint, DiskState, Phase, RunState},
    request::{BackupRequest, DiskSelection, GuestRef, PolicyRef, RepositoryRef, RunControl},
    wish::Followed,
};
pub use crate::chain::next::{BackupType, RequestedType, TypeReason};
use crate::{
    clock::Clock,
    ids::GuestId,
    qmp::{Client, Command, Monitor, command::QueryStatus},
    repo::{QemuImg, Roots},
};

/// How long a guest's lock that nobody should hold is waited for.
const LOCK_SOON: Duration = Duration::from_secs(1);

/// What an engine works with; one set per host, the same for the agent and the command.
#[derive(Clone)]
pub struct Settings {
    /// The folder of the journal, on a disk that survives a reboot.
    pub state: PathBuf,
    /// The folder of the guests' locks.
    pub locks: PathBuf,
    /// Outside of which no repository is touched.
    pub roots: Roots,
    /// Runs `qemu-img`.
    pub tool: QemuImg,
    /// The wall clock.
    pub clock: Clock,
    /// Bytes that stay free on a repository's file system beside what a run can need.
    pub reserve_bytes: u64,
    /// Where fleeced runs keep what the guest overwrites, and where copies are staged; none: neither is done.
    pub scratch: Option<Scratch>,
}

/// The scratch folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scratch {
    /// The folder.
    pub directory: PathBuf,
    /// The most bytes of it that all runs of the host together may take.
    pub budget: u64,
    /// Bytes that stay free on its file system.
    pub reserve: u64,
}

/// How long the engine waits for what may never come.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the lock, between two tries.
    pub lock_pause: Duration,
    /// For QEMU to answer before anything was started.
    pub silent_start: Duration,
    /// For QEMU to answer when its process cannot be seen, so that nothing proves it gone.
    pub silent_unseen: Duration,
    /// For jobs to end after a cancel.
    pub undo: Duration,
    /// For QEMU to answer after the commit: long enough for one reply that never comes, and the question again.
    pub clean_up: Duration,
    /// For a run to stand still, in all, before it is cancelled: what the guest overwrites meanwhile fills the scratch.
    pub suspended: Duration,
    /// For a call of the repository before the run says that it waits for it: longer than a dead holder's lease is watched.
    pub repository: Duration,
    /// For the repository to take a finished copy.
    pub commit: Duration,
    /// Between two tries of that.
    pub commit_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            lock_pause: Duration::from_millis(200),
            silent_start: Duration::from_secs(30),
            silent_unseen: Duration::from_secs(600),
            undo: Duration::from_secs(60),
            clean_up: Duration::from_secs(90),
            suspended: Duration::from_secs(3600),
            repository: Duration::from_secs(20),
            commit: Duration::from_secs(600),
            commit_pause: Duration::from_secs(5),
        }
    }
}

#[derive(Clone)]
struct Inner {
    settings: Settings,
    journal: Journal,
    patience: Patience,
    gates: Gates,
    asks: Asks,
}

/// The engine. Clones share everything.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

impl From<&crate::config::Scratch> for Scratch {
    fn from(configured: &crate::config::Scratch) -> Self {
        let crate::config::Scratch { directory, budget, reserve } = configured;
        Self { directory: directory.clone(), budget: budget.0, reserve: reserve.0 }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("state", &self.0.settings.state).finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine on these folders; the state folder is made where it is missing.
    ///
    /// # Errors
    /// When the state folder cannot be used.
    pub fn new(settings: Settings) -> Result<Self, EngineError> {
        let journal = Journal::open(&settings.state).map_err(EngineError::Journal)?;
        let (patience, gates, asks) = (Patience::default(), Gates::default(), Asks::default());
        Ok(Self(Arc::new(Inner { settings, journal, patience, gates, asks })))
    }

    /// The same engine with other waiting times.
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self(Arc::new(Inner { patience, ..Inner::clone(&self.0) }))
    }

    /// The same engine with a gate that each act passes.
    #[cfg(any(test, feature = "fake"))]
    #[must_use]
    pub fn with_gate(self, gate: gate::Gate) -> Self {
        Self(Arc::new(Inner { gates: Gates { gate: Some(gate) }, ..Inner::clone(&self.0) }))
    }

    /// Runs a backup to its end: waits for the guest's lock, finishes what an earlier process left, and then does this
    /// run, or goes on with it where it was left. The same run again answers how it ended.
    ///
    /// A run that is answered as failed while `holds` is still true for it has not ended: the journal keeps it, and
    /// asking again goes on with it. Such a failure is answered only, and not sent to who watches.
    pub async fn backup(&self, monitor: &Monitor, request: &BackupRequest, control: &RunControl) -> RunState {
        let mut state = RunState::waiting(request, self.now());
        control.state.send_replace(state.clone());
        let lock = match self.lock(request, control, &mut state).await {
            Ok(lock) => lock,
            Err(None) => return state,
            Err(Some(failure)) => {
                // Whoever has the lock may have finished it.
                return self.told(control, || {
                    state.fail(&failure, self.now());
                    state
                });
            }
        };
        let own = |state| Run::new(Arc::clone(&self.0), monitor, control, lock.clone(), state, true);
        let mut record = match self.held(&request.guest.uuid) {
            Ok(record) => record,
            Err(error) => return failed(state, error, self.now()),
        };
        if !record.as_ref().is_some_and(|record| is_of(record, request)) {
            if let Some(record) = &record {
                state.reason = "FinishingEarlierRun".to_owned();
                state.message = format!("Run {} was cut off; it is finished first", record.request.run_name);
                control.state.send_replace(state.clone());
            }
            record = match self.finish_earlier(monitor, control, &lock, request, record).await {
                Ok(Earlier::Finished(own)) => own.map(|record| *record),
                Ok(Earlier::Left) => return self.left(monitor, request, state, control),
                Err(error) => return failed(state, error, self.now()),
            };
            (state.reason, state.message) = (String::new(), String::new());
        }
        if record.is_none()
            && let Some(ended) = self.finished(&request.run)
        {
            control.state.send_replace(ended.clone());
            return ended;
        }
        own(state).finish(request, record).await
    }

    /// Gives up the descriptors that QEMU has kept of earlier runs of a guest. Returns how many it still keeps.
    ///
    /// # Errors
    /// When somebody works on the guest, the journal cannot be used, or QEMU does not answer.
    pub async fn give_up_kept(&self, monitor: &Monitor, guest: &GuestId) -> Result<usize, EngineError> {
        if self.0.journal.kept(guest).map_err(EngineError::Journal)?.is_empty() {
            return Ok(0);
        }
        let _lock = self.lock_soon(guest, "an agent that gives up descriptors").await?;
        let client = monitor.client().await.map_err(|source| EngineError::Connect { source })?;
        self.give_up_kept_by(&client, guest).await
    }

    async fn give_up_kept_by(&self, client: &Client, guest: &GuestId) -> Result<usize, EngineError> {
        let status = client.execute(&QueryStatus {}).await;
        let command = QueryStatus::NAME;
        let running = status.map_err(|source| EngineError::Inspect { command, source })?.running;
        run::give_up_kept(client, &self.0.journal, guest, running).await
    }

    /// The guest's lock for what does not wait for a run. A process that is just being started by this one holds the
    /// descriptor for some milliseconds, until its exec closes it: one look would call that somebody at work.
    async fn lock_soon(&self, guest: &GuestId, holder: &str) -> Result<GuestLock, EngineError> {
        let until = tokio::time::Instant::now() + LOCK_SOON;
        loop {
            match try_lock(&self.0.settings.locks, guest, holder).map_err(EngineError::Lock)? {
                Attempted::Locked(lock) => return Ok(lock),
                Attempted::HeldBy(holder) if tokio::time::Instant::now() >= until => {
                    return Err(EngineError::GuestInUse { guest: guest.clone(), holder });
                }
                Attempted::HeldBy(_) => tokio::time::sleep(self.0.patience.lock_pause).await,
            }
        }
    }

    /// The guest's lock; an error is how the run ends without it, none of that when the engine is to let go.
    async fn lock(
        &self,
        request: &BackupRequest,
        control: &RunControl,
        state: &mut RunState,
    ) -> Result<GuestLock, Option<journal::Failure>> {
        let guest = &request.guest.uuid;
        loop {
            match try_lock(&self.0.settings.locks, guest, &format!("run {}", request.run_name)) {
                Ok(Attempted::Locked(lock)) => {
                    (state.reason, state.message) = (String::new(), String::new());
                    return Ok(lock);
                }
                Ok(Attempted::HeldBy(holder)) => {
                    let message = format!("Waits for {holder}, which works on the guest");
                    if state.message != message {
                        (state.reason, state.message) = ("GuestInUse".to_owned(), message);
                        control.state.send_replace(state.clone());
                    }
                }
                Err(error) => return Err(Some(EngineError::Lock(error).failure())),
            }
            tokio::select! {
                () = tokio::time::sleep(self.0.patience.lock_pause) => {}
                () = control.detach.cancelled() => return Err(None),
                () = control.cancel.cancelled(), if !self.holds(request) => return Err(Some(error::cancelled())),
            }
        }
    }

    fn now(&self) -> jiff::Timestamp {
        (self.0.settings.clock)()
    }
}

/// A run that cannot begin or go on now. Whether it has failed for good is up to the caller, who asks `holds`.
fn failed(mut state: RunState, error: EngineError, now: jiff::Timestamp) -> RunState {
    state.fail(&error.failure(), now);
    state
}
