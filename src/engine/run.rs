//! One run, from whatever the journal holds to its end. It asks the recovery table what comes next, does that, and asks
//! again: the way after a crash is the way of every run. The acts stand in the files beneath, this one holds the loop.

mod adopt;
mod aside;
mod begin;
mod clean;
mod commit;
mod descriptors;
mod doors;
mod ended;
mod fleece;
mod follow;
mod headway;
mod images;
mod look;
mod overlay;
mod prepare;
mod quiesce;
mod scratch;
mod steer;

use std::{
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use self::begin::Begun;
pub(super) use self::{
    adopt::{adopt, remove_useless_bitmaps},
    descriptors::give_up_kept,
};
use super::{
    EngineError, Inner,
    asks::Ask,
    course::Course,
    error::cancelled,
    journal::{Failure, Record, State},
    lock::GuestLock,
    progress::{CommittedPoint, Phase, RunState},
    recover::{Next, next},
    request::{BackupRequest, RunControl},
};
use crate::{
    qmp::{Client, Monitor},
    repo::{Lease, Repository},
};

/// Attempts that may be cut off before their instant; each costs nothing but time.
const ATTEMPTS: u32 = 5;

/// Why a step did not come to its end.
#[derive(Debug)]
pub(super) enum Halt {
    /// The engine was told to let go.
    Detached,
    /// Somebody cancelled the run.
    Cancelled,
    /// Something failed.
    Failed(EngineError),
}

impl From<EngineError> for Halt {
    fn from(error: EngineError) -> Self {
        Self::Failed(error)
    }
}

/// How long giving back the writer lease is waited for.
const RELEASE: Duration = Duration::from_secs(5);

type Done<T> = Result<T, Halt>;

/// How driving a record ended.
#[derive(Debug)]
pub(super) enum Driven {
    /// The point is durable, and all is tidy.
    Complete,
    /// It was undone.
    Failed,
    /// It was undone, because nothing had happened yet: a new attempt may begin.
    StartOver,
    /// Left as it is, to be gone on with from the journal.
    Detached,
    /// It waits for its repository, which alone knows whether it was committed. The guest's other runs go on.
    SetAside(EngineError),
    /// The engine cannot go on; the journal stands.
    Broken(EngineError),
}

/// What the attempts before have left to the next one.
struct Before {
    attempts: u32,
    started: jiff::Timestamp,
    course: Course,
}

/// A repository with the right to write to the guest's folder.
#[derive(Clone)]
struct Store {
    repository: Repository,
    /// Given back when the run has ended.
    _lease: Arc<Lease>,
}

/// One run.
pub(super) struct Run<'a> {
    pub(super) engine: Arc<Inner>,
    pub(super) monitor: &'a Monitor,
    pub(super) control: &'a RunControl,
    /// False while the run that another process left is finished on the way.
    pub(super) own: bool,
    pub(super) lock: GuestLock,
    pub(super) state: RunState,
    store: Option<Store>,
    /// The attempt is not written down, and nothing of it is anywhere.
    unwritten: bool,
    /// The connection that the transaction was sent on.
    sent_on: Option<Client>,
    fenced: u8,
    /// The record was made by this process a moment ago, and nothing of it was done yet.
    fresh: bool,
    /// Since when QEMU does not answer.
    silent_since: Option<Instant>,
    /// What is asked of the repository now, where that may be left behind.
    asking: Option<Ask>,
    /// The scratch files that this process has made for the attempt.
    scratches: Vec<OwnedFd>,
    /// What stays of the record in QEMU or in the scratch folder, and why.
    pub(super) stays: Option<String>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        engine: Arc<Inner>,
        monitor: &'a Monitor,
        control: &'a RunControl,
        lock: GuestLock,
        state: RunState,
        own: bool,
    ) -> Self {
        Self {
            engine,
            monitor,
            control,
            own,
            lock,
            state,
            store: None,
            unwritten: false,
            sent_on: None,
            fenced: 0,
            fresh: false,
            silent_since: None,
            asking: None,
            scratches: Vec::new(),
            stays: None,
        }
    }

    /// Takes the run to its end, from `record` where the journal holds one.
    pub(super) async fn finish(mut self, request: &BackupRequest, record: Option<Record>) -> RunState {
        self.go_through(request, record).await;
        self.release().await;
        self.state.clone()
    }

    /// Gives the writer lease back: file operations and a thread that is waited for, so not on this one. A repository that
    /// hangs does not hold the guest: its lease is given back when it answers, or expires.
    pub(super) async fn release(&mut self) {
        let Some(store) = self.store.take() else { return };
        let given_back = tokio::time::timeout(RELEASE, tokio::task::spawn_blocking(move || drop(store))).await;
        if !matches!(given_back, Ok(Ok(()))) {
            tracing::warn!("the writer lease is not given back yet; it expires");
        }
    }

    async fn go_through(&mut self, request: &BackupRequest, record: Option<Record>) {
        let mut before = Before { attempts: 0, started: self.state.start_time, course: Course::default() };
        let mut current = record;
        loop {
            let mut record = match current.take() {
                Some(record) => record,
                None => {
                    self.unwritten = true;
                    let begun = self.begin(request, &before).await;
                    self.unwritten = false;
                    match begun {
                        Ok(Begun::Now(record)) => {
                            self.fresh = true;
                            *record
                        }
                        Ok(Begun::Before(point)) => return self.done_before(request, point).await,
                        Err(halt) => return self.not_begun(request, halt).await,
                    }
                }
            };
            match self.drive(&mut record).await {
                Driven::StartOver if record.attempts >= ATTEMPTS => {
                    let error = EngineError::TooManyAttempts { attempts: record.attempts };
                    return self.not_begun(request, Halt::Failed(error)).await;
                }
                Driven::StartOver => {
                    before = Before { attempts: record.attempts, started: record.started, course: record.course };
                }
                Driven::Broken(error) | Driven::SetAside(error) => {
                    // Not published: the journal keeps the run, which may still become a point.
                    self.state.fail(&error.failure(), self.now());
                    return;
                }
                Driven::Complete | Driven::Failed | Driven::Detached => return,
            }
        }
    }

    /// Takes one record to its end.
    pub(super) async fn drive(&mut self, record: &mut Record) -> Driven {
        loop {
            let error = match self.advance(record).await {
                Ok(None) => continue,
                Ok(Some(driven)) => return driven,
                Err(Halt::Detached) => return Driven::Detached,
                Err(Halt::Cancelled) if !self.own => return Driven::Detached,
                Err(Halt::Cancelled) => match self.fail(record, cancelled()).await {
                    Ok(()) => continue,
                    Err(Halt::Failed(error)) => error,
                    Err(_) => return Driven::Detached,
                },
                Err(Halt::Failed(error)) => error,
            };
            // A person is told by the state; the log says which step it was.
            tracing::info!(run = %record.request.run, error = %error.failure().message, "a step of the run failed");
            match error {
                EngineError::Journal(_)
                | EngineError::Unanswered { .. }
                | EngineError::OtherMachine { .. }
                | EngineError::NotCleared { .. }
                | EngineError::GuestStopped { .. }
                | EngineError::Broken { .. } => {
                    return Driven::Broken(error);
                }
                error if error.is_lost_connection() => {
                    // What was done is looked up; a moment for QEMU's process to be seen gone, if it is.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                error => match self.fail(record, error.failure()).await {
                    Ok(()) => {}
                    Err(Halt::Failed(error)) => return Driven::Broken(error),
                    Err(_) => return Driven::Detached,
                },
            }
        }
    }

    /// One step: looks, asks the table, does what it says.
    async fn advance(&mut self, record: &mut Record) -> Done<Option<Driven>> {
        // Before anything else, letting go included: nobody may come for a while, and the guest stands still until then.
        let freed = self.free_guest(record).await;
        let can_change = matches!(record.state, State::Intent | State::Sending { .. } | State::Running { .. });
        if can_change {
            self.check()?;
        }
        freed?;
        if can_change && !self.hear(record).await? {
            return Ok(None);
        }
        if self.own {
            self.state.follow_record(record);
        }
        if self.fresh && record.state == State::Intent {
            self.fresh = false;
            self.phase(Phase::Preparing);
            self.prepare(record).await?;
            return Ok(None);
        }
        let found = self.look(record).await?;
        let next = next(record, &found);
        tracing::debug!(run = %record.request.run, attempt = %record.attempt, ?next, "next step");
        if next != Next::AwaitQemu {
            self.silent_since = None;
        }
        match next {
            Next::CleanUp => {
                self.clean_up(record).await?;
                return Ok(Some(Driven::Complete));
            }
            Next::Commit => self.commit(record).await?,
            Next::AwaitRepository(why) => return self.await_repository(record, why).await.map(Some),
            Next::Undo => return self.end_failed(record).await.map(Some),
            Next::StartOver => return self.start_over(record).await.map(|()| Some(Driven::StartOver)),
            Next::Fence => {
                self.fence(record).await?;
                self.fenced = 1;
            }
            Next::LookAgain => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                self.fenced += 1;
            }
            Next::Adopt => {
                if let State::Sending { at } = record.state {
                    self.set_state(record, State::Running { at }).await?;
                }
            }
            Next::Follow => self.follow(record).await?,
            Next::Flush => self.flush(record).await?,
            Next::Fail(failure) => self.fail(record, failure).await?,
            Next::AwaitQemu => self.await_qemu(record).await?,
        }
        Ok(None)
    }

    /// Lets a guest go on that an attempt of ours may have left standing or frozen.
    async fn free_guest(&mut self, record: &mut Record) -> Done<()> {
        let continued = self.continue_guest(record).await;
        let thawed = self.thaw_guest(record).await;
        continued.and(thawed)
    }

    /// Whether somebody wants the run to stop.
    fn check(&self) -> Done<()> {
        if self.control.detach.is_cancelled() {
            return Err(Halt::Detached);
        }
        if self.control.cancel.is_cancelled() {
            return Err(Halt::Cancelled);
        }
        Ok(())
    }

    /// Writes down why the attempt is undone, as the first thing of every failure.
    async fn fail(&mut self, record: &mut Record, failure: Failure) -> Done<()> {
        self.set_state(record, State::Failing(failure)).await
    }

    /// Makes `state` durable; only then it holds.
    async fn set_state(&mut self, record: &mut Record, state: State) -> Done<()> {
        self.update(record, |record| record.state = state).await?;
        if self.own {
            self.state.follow_record(record);
            self.publish();
        }
        Ok(())
    }

    fn now(&self) -> jiff::Timestamp {
        (self.engine.settings.clock)()
    }

    fn phase(&mut self, phase: Phase) {
        if self.own {
            self.state.phase = phase;
            self.say("", "");
        }
    }

    /// Says something about a run that goes on.
    fn say(&mut self, reason: &str, message: &str) {
        if self.own {
            self.state.reason = reason.to_owned();
            self.state.message = message.to_owned();
            self.publish();
        }
    }

    fn publish(&mut self) {
        if self.own {
            self.state.heard = *self.control.owner.borrow();
            self.control.state.send_if_modified(|shown| {
                let changed = *shown != self.state;
                if changed {
                    shown.clone_from(&self.state);
                }
                changed
            });
        }
    }

    /// Ends the run with its point.
    fn completed(&mut self, point: CommittedPoint) {
        let now = self.now();
        self.state.complete(point, now);
    }
}

impl Drop for Run<'_> {
    /// A run that is given up in its middle: nobody waits, and the thread that drops it must not either.
    fn drop(&mut self) {
        let (store, lock) = (self.store.take(), self.lock.clone());
        if store.is_some()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn_blocking(move || (drop(store), drop(lock)));
        }
    }
}
