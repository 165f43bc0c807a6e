//! A person at the host changes the course of a run, whoever drives it: an agent, another command, or nobody at the moment. The
//! wish is written down; whoever drives the run takes it into the record and follows it. Where nobody does, this does.

use std::{path::Path, sync::Arc, time::Duration};

use super::{
    CourseError, Engine, EngineError,
    course::{Course, HostWish},
    journal::{Record, State},
    lock::{Attempted, GuestLock, try_lock},
    progress::RunState,
    request::{BackupRequest, RunControl},
    run::{self, Run},
};
use crate::{
    ids::GuestId,
    qmp::{Address, Monitor},
};

/// How long whoever drives the run may take to hear a wish; it looks each second.
const HEARD: Duration = Duration::from_secs(30);

/// What became of a wish.
#[derive(Debug, Clone, PartialEq)]
pub enum Followed {
    /// It stands in the journal.
    Course {
        /// The run's name.
        run: String,
        /// What stands there.
        course: Course,
    },
    /// The run has ended; the state says how.
    Ended(Box<RunState>),
}

impl Engine {
    /// Changes the course of a guest's run, and waits until the change is durable; with a cancel, until the run has ended.
    ///
    /// # Errors
    /// When no run goes on, it can not be changed, or nobody follows.
    pub async fn wish(&self, monitor: &Monitor, guest: &GuestId, wish: HostWish) -> Result<Followed, EngineError> {
        let record = self.record_of(guest)?.ok_or_else(|| CourseError::NoRun { guest: guest.clone() })?;
        check(&record, wish)?;
        let (journal, run) = (&self.0.journal, &record.request.run);
        let path = journal.wish(guest, run, wish, self.now()).map_err(EngineError::Journal)?;
        let until = tokio::time::Instant::now() + HEARD;
        loop {
            if let Some(ended) = self.finished(run) {
                journal.forget_wish(&path).map_err(EngineError::Journal)?;
                return Ok(Followed::Ended(Box::new(ended)));
            }
            // Before the record is read: the wish stands in there by then.
            let heard = !path.exists();
            let now = self.record_of(guest)?.filter(|now| now.request.run == *run);
            if let Some(now) = now.filter(|_| wish != HostWish::Cancel) {
                if heard {
                    return Ok(Followed::Course { run: now.request.run_name, course: now.course });
                }
                if let Err(error) = check(&now, wish) {
                    journal.forget_wish(&path).map_err(EngineError::Journal)?;
                    return Err(error.into());
                }
            }
            match try_lock(&self.0.settings.locks, guest, "driftline").map_err(EngineError::Lock)? {
                Attempted::Locked(lock) => {
                    let held = self.held(guest)?.filter(|held| held.request.run == *run);
                    match held {
                        Some(held) => self.drive_wish(monitor, &lock, held, wish).await?,
                        None if self.finished(run).is_some() => {}
                        None => {
                            journal.forget_wish(&path).map_err(EngineError::Journal)?;
                            return Err(CourseError::NoRun { guest: guest.clone() }.into());
                        }
                    }
                }
                Attempted::HeldBy(holder) if wish != HostWish::Cancel && tokio::time::Instant::now() >= until => {
                    return Err(CourseError::NotHeard { run: record.request.run_name, holder }.into());
                }
                Attempted::HeldBy(_) => {}
            }
            tokio::time::sleep(self.0.patience.lock_pause).await;
        }
    }

    /// The run that was begun by way of that monitor, as far as the journal knows. QEMU is not asked, which serves one client at a
    /// time: whoever drives the run.
    ///
    /// # Errors
    /// When the journal's folder cannot be read.
    pub fn run_at(&self, monitor: &Monitor) -> Result<Option<BackupRequest>, EngineError> {
        let records = self.0.journal.all().map_err(EngineError::Journal)?;
        let Address::Unix(wanted) = monitor.address();
        let canonical = |path: &Path| path.canonicalize().ok();
        let of = |record: &Record| canonical(&record.monitor).is_some_and(|path| Some(path) == canonical(wanted));
        Ok(records.into_iter().find(of).map(|record| record.request))
    }

    fn record_of(&self, guest: &GuestId) -> Result<Option<Record>, EngineError> {
        self.0.journal.load(guest).map_err(EngineError::Journal)
    }

    /// Nobody drives the run: what is wished is done here, and the copy goes its way.
    async fn drive_wish(
        &self,
        monitor: &Monitor,
        lock: &GuestLock,
        mut record: Record,
        wish: HostWish,
    ) -> Result<(), EngineError> {
        let control = RunControl::new(&record.request, record.started);
        if wish == HostWish::Cancel {
            return self.finish_other(monitor, &control, lock, record).await.map(drop);
        }
        let state = RunState::waiting(&record.request, record.started);
        let mut run = Run::new(Arc::clone(&self.0), monitor, &control, lock.clone(), state, false);
        match run.steer_once(&mut record).await {
            Ok(()) | Err(run::Halt::Detached | run::Halt::Cancelled) => Ok(()),
            Err(run::Halt::Failed(error)) => Err(error),
        }
    }
}

/// Whether a run can be changed that way.
fn check(record: &Record, wish: HostWish) -> Result<(), CourseError> {
    let run = record.request.run_name.clone();
    match record.state {
        State::Copied { .. } | State::Failing(_) => Err(CourseError::TooLate { run }),
        _ if wish == HostWish::Suspend && !record.is_fleeced() => Err(CourseError::SuspendNeedsFleecing { run }),
        _ => Ok(()),
    }
}
