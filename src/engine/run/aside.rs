//! A repository that cannot be reached when a run is to end. What may be in it is written down and waits for it, and the
//! guest's other runs do not.

use std::sync::Arc;

use super::{
    Done, Driven, EngineError, Halt, Run,
    clean::{Cleared, Work},
};
use crate::{
    engine::{
        Inner,
        error::given_up,
        journal::{Failure, Left, Record},
        progress::Phase,
        request::BackupRequest,
    },
    ids::PointId,
};

/// Why nobody knows what a repository holds that hangs.
pub(super) fn hangs(request: &BackupRequest) -> Failure {
    Failure {
        reason: "RepositoryNotResponding".to_owned(),
        message: format!("The file system of repository {} does not answer", request.repository.path.display()),
        retriable: true,
        cancelled: false,
    }
}

impl Run<'_> {
    /// Nobody knows whether the attempt was committed. Nothing of it stays in QEMU but its bitmaps, which the next backup
    /// needs if it was, and the run does not end before its repository tells; unless somebody cancels it.
    pub(super) async fn await_repository(&mut self, record: &Record, why: Failure) -> Done<Driven> {
        let cleared = self.clear_within(record, self.engine.patience.undo, Work::LetGo).await?;
        if let Cleared::Stuck(_, why) = cleared {
            return Err(EngineError::NotCleared { run: record.request.run_name.clone(), why }.into());
        }
        if let Err(Halt::Failed(error)) = self.discard_staging(record).await {
            // The guest's next run removes it.
            tracing::warn!(error = %error.failure().message, "staged images of an attempt that has failed stay");
        }
        self.empty_scratches();
        let error = EngineError::commit_unknown(record, self.monitor, why);
        tracing::warn!(run = %record.request.run, "{}", error.failure().message);
        let cancelled = self.own && self.control.cancel.is_cancelled();
        let aside = Record { told: record.told || cancelled, ..record.clone() };
        if !cancelled {
            self.journal(move |journal| journal.set_aside(aside)).await?;
            self.phase(Phase::Finishing);
            return Ok(Driven::SetAside(error));
        }
        let now = self.now();
        self.state.fail(&given_up(&error), now);
        let ended = self.state.clone();
        self.journal(move |journal| {
            journal.finish(&ended, now)?;
            journal.set_aside(aside)
        })
        .await?;
        self.publish();
        Ok(Driven::Failed)
    }

    /// The same where the repository hangs.
    pub(in crate::engine) async fn set_aside(&mut self, record: &Record) -> Driven {
        match self.await_repository(record, hangs(&record.request)).await {
            Ok(driven) => driven,
            Err(Halt::Failed(error)) => Driven::Broken(error),
            Err(Halt::Detached | Halt::Cancelled) => Driven::Detached,
        }
    }

    /// Removes the attempt's files in the repository; where that cannot be now, they are written down, and why is said.
    pub(super) async fn discard_or_leave(&mut self, record: &Record) -> Done<Option<String>> {
        let error = match self.discard(&record.request, record.point.clone()).await {
            Err(Halt::Failed(error)) => error,
            done => return done.map(|_| None),
        };
        let left = Left { request: record.request.clone(), point: record.point.clone() };
        self.journal(move |journal| journal.leave_folder(left)).await?;
        let (path, why) = (record.repository().display(), error.failure().message);
        let what = format!("its partial files stay in repository {path} until that can be written again ({why})");
        tracing::warn!(run = %record.request.run, "{what}");
        Ok(Some(what))
    }

    /// Lets the run reach the repository of an earlier one: where no configuration bounds a person's words, the journal holds
    /// one of them. Whether this host may touch it.
    pub(in crate::engine) async fn reach(&mut self, request: &BackupRequest) -> Done<bool> {
        let (roots, path) = (self.engine.settings.roots.clone(), request.repository.path.clone());
        let look = move || {
            let roots = roots.and(&path);
            let within = !matches!(roots.open(&path), Err(error) if error.reason() == "OutsideRoots");
            Ok((roots, within))
        };
        let (roots, within) = self.blocking("open", "Looking for the repository", look).await?;
        let mut inner = Inner::clone(&self.engine);
        inner.settings.roots = roots;
        self.engine = Arc::new(inner);
        Ok(within)
    }

    /// The same; none where the repository hangs, which is left a while after that was said.
    pub(in crate::engine) async fn reach_soon(&mut self, request: &BackupRequest) -> Done<Option<bool>> {
        self.asking = self.engine.asks.begin(&request.guest.uuid, &request.repository.path);
        if self.asking.is_none() {
            return Ok(None);
        }
        let reached = tokio::time::timeout(2 * self.engine.patience.repository, self.reach(request)).await;
        self.asking = None;
        reached.map_or(Ok(None), |reached| reached.map(Some))
    }

    /// Whether the repository of `request` has a point, or its folder without a manifest.
    pub(in crate::engine) async fn has(&mut self, request: &BackupRequest, point: PointId) -> Done<bool> {
        let guest = request.guest.uuid.clone();
        self.repository(request, "point", move |repository| {
            Ok(repository.partial_point(&guest, &point)?.is_some() || repository.point(&guest, &point)?.is_some())
        })
        .await
    }

    /// Removes what earlier attempts at the guest have left in the repository of `request`, which could not be reached then.
    /// At another path than theirs a copy of it may stand: what is not there may be in the original.
    pub(in crate::engine) async fn discard_left(&mut self, request: &BackupRequest) -> Done<()> {
        let guest = request.guest.uuid.clone();
        let aside = self.journal(move |journal| journal.aside(&guest)).await?;
        for left in aside.folders.into_iter().filter(|left| left.request.repository.id == request.repository.id) {
            match self.discard(request, left.point.clone()).await {
                Ok(found) if found || left.request.repository == request.repository => {
                    self.journal(move |journal| journal.forget_folder(&left)).await?;
                }
                Ok(_) => {}
                Err(Halt::Failed(error)) => {
                    tracing::warn!(point = %left.point, error = %error.failure().message, "partial files still stay");
                }
                Err(halt) => return Err(halt),
            }
        }
        Ok(())
    }

    /// Removes a point's files, if there are any; whether there were.
    async fn discard(&mut self, request: &BackupRequest, point: PointId) -> Done<bool> {
        let guest = request.guest.uuid.clone();
        self.repository(request, "discard", move |repository| match repository.partial_point(&guest, &point)? {
            Some(partial) => partial.discard().map(|()| true),
            None => Ok(false),
        })
        .await
    }
}
