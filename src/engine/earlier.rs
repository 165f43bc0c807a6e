//! What earlier runs of a guest have left: finished or undone before anything new begins on it, or by a recovery. What only a
//! repository can tell that is not there holds up nothing but runs into that repository.

use std::{collections::BTreeSet, sync::Arc};

use serde::Serialize;

use super::{
    Engine, EngineError, error,
    journal::{Failure, Left, Record, State},
    lock::GuestLock,
    progress::RunState,
    request::{BackupRequest, RepositoryRef, RunControl},
    run::{self, Driven, Run},
};
use crate::{ids::GuestId, qmp::Monitor, retry::Retry};

/// What a recovery found and did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Recovered {
    /// How the run ended that was finished or undone; none when there was none, or one that had not begun.
    pub run: Option<RunState>,
    /// Whether a run was finished or undone. What waits on for its repository is in the notes.
    pub found: bool,
    /// What of unknown attempts was removed from QEMU: jobs, nodes and descriptors.
    pub adopted: Vec<String>,
    /// Bitmaps that nobody can use any more, removed from QEMU.
    pub removed: Vec<String>,
    /// What waits for a repository that could not be reached, and what became of attempts whose runs were told as ended while
    /// they did; sentences.
    pub notes: Vec<String>,
}

/// What became of the earlier runs.
pub(super) enum Earlier {
    /// Nothing of them is in the way. The record is the run's own, where one waited for its repository.
    Finished(Option<Box<Record>>),
    /// One goes on, and nobody waits for it any more.
    Left,
}

/// Whether the record is the run's to go on with. One that was told as ended is finished like another's.
pub(super) fn is_of(record: &Record, request: &BackupRequest) -> bool {
    record.request.run == request.run && !record.told
}

impl Engine {
    /// The record of a guest whose lock is held.
    pub(super) fn held(&self, guest: &GuestId) -> Result<Option<Record>, EngineError> {
        let record = self.0.journal.load(guest).map_err(EngineError::Journal)?;
        if let Some(record) = &record {
            self.0.journal.forget_aside(record).map_err(EngineError::Journal)?;
        }
        Ok(record)
    }

    /// Finishes what earlier runs have left: the record, and what waits for the repository of the request, which may be
    /// back. A run of that name that has ended meanwhile has no record.
    pub(super) async fn finish_earlier(
        &self,
        monitor: &Monitor,
        control: &RunControl,
        lock: &GuestLock,
        request: &BackupRequest,
        record: Option<Record>,
    ) -> Result<Earlier, EngineError> {
        if let Some(record) = record
            && let Driven::Detached = self.finish_other(monitor, control, lock, record).await?
        {
            return Ok(Earlier::Left);
        }
        if self.finished(&request.run).is_some() {
            return Ok(Earlier::Finished(None));
        }
        let aside = self.0.journal.aside(&request.guest.uuid).map_err(EngineError::Journal)?;
        for mut record in aside.unknown {
            if is_of(&record, request) {
                self.0.journal.take_back(&mut record).map_err(EngineError::Journal)?;
                return Ok(Earlier::Finished(Some(Box::new(record))));
            }
            if record.request.repository.id != request.repository.id {
                continue;
            }
            match self.stands_at(monitor, control, lock, &record, &request.repository).await {
                Ok(true) => record.request.repository.clone_from(&request.repository),
                Ok(false) => continue,
                Err(run::Halt::Failed(error)) if error.retry() != Retry::OnChange => return Err(error),
                Err(run::Halt::Failed(_)) => continue,
                Err(run::Halt::Detached | run::Halt::Cancelled) => return Ok(Earlier::Left),
            }
            match self.settle(monitor, control, lock, record).await? {
                Driven::Detached => return Ok(Earlier::Left),
                // It may tell in a moment. What it can never tell must not end the guest's backups.
                Driven::SetAside(error) if matches!(&error, EngineError::CommitUnknown { why, .. } if why.retriable) => {
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(Earlier::Finished(None))
    }

    /// A run that was let go, or cancelled, while an earlier one was to be finished. Where it waits for its repository itself, what
    /// is found there later changes no word of it.
    pub(super) fn left(
        &self,
        monitor: &Monitor,
        request: &BackupRequest,
        mut state: RunState,
        control: &RunControl,
    ) -> RunState {
        if !control.cancel.is_cancelled() || control.detach.is_cancelled() {
            return state;
        }
        let (journal, now) = (&self.0.journal, self.now());
        let given_up = journal.aside(&request.guest.uuid).and_then(|aside| {
            let Some(record) = aside.unknown.into_iter().find(|record| is_of(record, request)) else { return Ok(None) };
            let why = Failure { message: "nobody has asked it since".to_owned(), ..error::cancelled() };
            let error = EngineError::commit_unknown(&record, monitor, why);
            state.fail(&error::given_up(&error), now);
            journal.finish(&state, now)?;
            journal.tell_aside(&record)?;
            Ok(Some(state.clone()))
        });
        match given_up {
            Ok(Some(state)) => {
                control.state.send_replace(state.clone());
                state
            }
            Ok(None) => self.told(control, || {
                state.fail(&error::cancelled(), now);
                state
            }),
            Err(error) => super::failed(state, EngineError::Journal(error), now),
        }
    }

    /// How the run has ended, where another one or a recovery has finished it meanwhile; otherwise `end`.
    pub(super) fn told(&self, control: &RunControl, end: impl FnOnce() -> RunState) -> RunState {
        let ended = self.finished(&control.state.borrow().run).unwrap_or_else(end);
        control.state.send_replace(ended.clone());
        ended
    }

    /// Whether what was set aside can be settled at `named`. The repository may have another path by now; but what has its id
    /// elsewhere may be a copy of it as well, which does not know what was committed since it was made: that tells of a point
    /// only where it has something of it.
    async fn stands_at(
        &self,
        monitor: &Monitor,
        control: &RunControl,
        lock: &GuestLock,
        record: &Record,
        named: &RepositoryRef,
    ) -> Result<bool, run::Halt> {
        if record.request.repository == *named {
            return Ok(true);
        }
        let request = BackupRequest { repository: named.clone(), ..record.request.clone() };
        let state = RunState::waiting(&request, record.started);
        let mut run = Run::new(Arc::clone(&self.0), monitor, control, lock.clone(), state, false);
        let has = run.has(&request, record.point.clone()).await;
        run.release().await;
        has
    }

    /// Goes on with what was set aside: its repository may tell now.
    async fn settle(
        &self,
        monitor: &Monitor,
        control: &RunControl,
        lock: &GuestLock,
        mut record: Record,
    ) -> Result<Driven, EngineError> {
        self.0.journal.take_back(&mut record).map_err(EngineError::Journal)?;
        self.finish_other(monitor, control, lock, record).await
    }

    /// Finishes the run that another process left. One that had not begun is undone: whoever wants it asks again.
    pub(super) async fn finish_other(
        &self,
        monitor: &Monitor,
        control: &RunControl,
        lock: &GuestLock,
        mut record: Record,
    ) -> Result<Driven, EngineError> {
        let mut state = RunState::waiting(&record.request, record.started);
        state.follow_record(&record);
        let mut run = Run::new(Arc::clone(&self.0), monitor, control, lock.clone(), state, false);
        let undone = matches!(record.state, State::Failing(_));
        let asks_only = undone && record.may_be_committed();
        let reached =
            if asks_only { run.reach_soon(&record.request).await } else { run.reach(&record.request).await.map(Some) };
        let driven = match reached {
            // What is undone already loses nothing by it.
            Ok(Some(within)) if within || undone => run.drive(&mut record).await,
            Ok(Some(_)) => {
                return Err(EngineError::EarlierOutsideRoots {
                    run: record.request.run_name,
                    path: record.request.repository.path,
                    address: monitor.address().to_string(),
                });
            }
            Ok(None) => run.set_aside(&record).await,
            Err(run::Halt::Failed(error)) => return Err(error),
            Err(run::Halt::Detached | run::Halt::Cancelled) => return Ok(Driven::Detached),
        };
        run.release().await;
        let stays = run.stays.take();
        match driven {
            Driven::Broken(error) => return Err(error),
            Driven::StartOver => {
                self.0.journal.remove(&record.request.guest.uuid).map_err(EngineError::Journal)?;
            }
            Driven::Complete | Driven::Failed | Driven::SetAside(_) | Driven::Detached => {}
        }
        // What stays in QEMU stays in the journal, and no new run of the guest begins.
        match self.0.journal.load(&record.request.guest.uuid).map_err(EngineError::Journal)? {
            Some(_) if !matches!(driven, Driven::Detached) => Err(EngineError::NotCleared {
                run: record.request.run_name,
                why: stays.unwrap_or_else(|| "its record cannot be removed".to_owned()),
            }),
            _ => Ok(driven),
        }
    }

    /// Finishes or undoes what the journal holds for a guest, and removes bitmaps of the repository that nobody can use any
    /// more. With `adopt`, jobs, nodes and descriptors of our shape that no journal knows are removed from QEMU too: a
    /// person says that nobody else is at work.
    ///
    /// # Errors
    /// When the guest is locked, its journal cannot be used, or QEMU does not answer.
    pub async fn recover(
        &self,
        monitor: &Monitor,
        guest: &GuestId,
        repository: &RepositoryRef,
        adopt: bool,
    ) -> Result<Recovered, EngineError> {
        let lock = self.lock_soon(guest, "recover").await?;
        let mut recovered = Recovered::default();
        if let Some(record) = self.held(guest)? {
            let control = RunControl::new(&record.request, record.started);
            let driven = self.finish_other(monitor, &control, &lock, record.clone()).await?;
            // One that is set aside is looked after with the others.
            if !matches!(driven, Driven::SetAside(_)) {
                self.tell(&record, &driven, &mut recovered);
            }
        }
        self.settle_all(monitor, guest, &lock, repository, &mut recovered).await?;
        if adopt {
            recovered.adopted = run::adopt(monitor, &self.0.journal, guest).await?;
        }
        let client = monitor.client().await.map_err(|source| EngineError::Connect { source })?;
        self.give_up_kept_by(&client, guest).await?;
        recovered.removed = run::remove_useless_bitmaps(monitor, &self.0.journal, &repository.id).await?;
        Ok(recovered)
    }

    /// Says what became of a run. One that was told as ended before keeps that word; what was found is said beside it.
    fn tell(&self, record: &Record, driven: &Driven, recovered: &mut Recovered) {
        let (name, point) = (&record.request.run_name, &record.point);
        match driven {
            Driven::SetAside(error) => recovered.notes.push(error.failure().message),
            Driven::Complete if record.told => recovered.notes.push(format!("Run {name} had stored point {point}")),
            Driven::Failed if record.told => {
                recovered.notes.push(format!("Run {name} had not stored point {point}; it is undone"));
            }
            Driven::Complete | Driven::Failed => {
                (recovered.found, recovered.run) = (true, self.finished(&record.request.run));
            }
            Driven::StartOver => recovered.found = true,
            Driven::Detached | Driven::Broken(_) => {}
        }
    }

    /// Settles all that waits for a repository which is there, and says what still waits. The one that a person has `named`
    /// may have had another path.
    async fn settle_all(
        &self,
        monitor: &Monitor,
        guest: &GuestId,
        lock: &GuestLock,
        named: &RepositoryRef,
        recovered: &mut Recovered,
    ) -> Result<(), EngineError> {
        let aside = self.0.journal.aside(guest).map_err(EngineError::Journal)?;
        for mut record in aside.unknown {
            let control = RunControl::new(&record.request, record.started);
            if record.request.repository.id == named.id
                && let Ok(true) = self.stands_at(monitor, &control, lock, &record, named).await
            {
                record.request.repository.clone_from(named);
            }
            let driven = self.settle(monitor, &control, lock, record.clone()).await?;
            self.tell(&record, &driven, recovered);
        }
        let mut looked = BTreeSet::new();
        for request in &requests_of(&aside.folders, named) {
            if !looked.insert((&request.repository.id, &request.repository.path)) {
                continue;
            }
            let (control, state) = (RunControl::new(request, self.now()), RunState::waiting(request, self.now()));
            let mut run = Run::new(Arc::clone(&self.0), monitor, &control, lock.clone(), state, false);
            let discarded = match run.reach_soon(request).await {
                Ok(Some(_)) => run.discard_left(request).await,
                Ok(None) => Ok(()),
                Err(halt) => Err(halt),
            };
            run.release().await;
            if let Err(run::Halt::Failed(error)) = discarded {
                return Err(error);
            }
        }
        for left in self.0.journal.aside(guest).map_err(EngineError::Journal)?.folders {
            let (point, path) = (left.point, left.request.repository.path);
            let what = format!("The partial files of point {point} stay until repository {} is there", path.display());
            recovered.notes.push(what);
        }
        Ok(())
    }

    /// The runs that the journal holds, to be gone on with when a process starts.
    ///
    /// # Errors
    /// When the journal's folder cannot be read. A record that cannot be read is logged and left out.
    pub fn unfinished(&self) -> Result<Vec<BackupRequest>, EngineError> {
        let mut records = self.0.journal.all().map_err(EngineError::Journal)?;
        records.extend(self.0.journal.all_unknown().map_err(EngineError::Journal)?);
        // What was told as ended is finished by the guest's next run, or a recovery.
        Ok(records.into_iter().filter(|record| !record.told).map(|record| record.request).collect())
    }

    /// How a run ended; none when it has not, or longer than 7 days ago.
    pub fn finished(&self, run: &str) -> Option<RunState> {
        self.0.journal.finished(run)
    }

    /// Whether the journal holds the run. A cancel then goes its way under the lock: the copy may be complete already.
    pub fn holds(&self, request: &BackupRequest) -> bool {
        let guest = &request.guest.uuid;
        let (Ok(record), Ok(aside)) = (self.0.journal.load(guest), self.0.journal.aside(guest)) else { return true };
        record.iter().chain(&aside.unknown).any(|record| is_of(record, request))
    }
}

/// Requests by which folders that were left are reached: where they were made, and where a person has named their repository.
fn requests_of(left: &[Left], named: &RepositoryRef) -> Vec<BackupRequest> {
    let own = left.iter().map(|left| left.request.clone());
    let moved = own.clone().filter(|request| request.repository.id == named.id);
    own.chain(moved.map(|request| BackupRequest { repository: named.clone(), ..request })).collect()
}
