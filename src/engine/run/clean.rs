//! After the end: step 9 after a commit, and the failure path. Nothing of ours stays in QEMU, in the repository or in
//! the journal; what QEMU does not give up in time stays in the journal, and every later run of the guest tries again.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{Done, Driven, EngineError, Halt, Run};
use crate::{
    chain::{graph::Graph, point::Point},
    engine::{
        error::{GUEST_HARMED, TARGET_STUCK},
        graph,
        journal::{Failure, Record, State},
        orphans,
        plan::{self, Undo},
        progress::CommittedPoint,
        recover::Qemu,
        request::BackupRequest,
    },
    ids::{BitmapRole, GuestId, PointId},
    qmp::{
        Client,
        block::{BlockNode, JobStatus, RunState},
        command::{BitmapRef, BlockDirtyBitmapRemove, Cont, JobCancel, JobDismiss, QueryStatus},
    },
    repo::{RepoError, Repository},
};

/// What is to be done in QEMU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Work {
    /// Step 9.
    Tidy,
    /// The failure path; `harmed`: the guest is continued where it stands in `io-error`.
    Undo { harmed: bool },
    /// The same without the bitmaps: the attempt may have been committed.
    LetGo,
}

/// What became of the part of an attempt that is in QEMU.
pub(super) enum Cleared {
    /// Nothing of it is there.
    All,
    /// Something stays, with the word for it and what to say about it.
    Stuck(&'static str, String),
}

impl Run<'_> {
    /// Step 9: the point is durable. Jobs are dismissed, bitmaps that nobody needs any more removed.
    pub(super) async fn clean_up(&mut self, record: &Record) -> Done<()> {
        let point = self.stored(&record.request, record.point.clone()).await?;
        let cleared = self.clear_within(record, self.engine.patience.clean_up, Work::Tidy).await?;
        if let Err(Halt::Failed(error)) = self.discard_staging(record).await {
            // The guest's next run removes it.
            tracing::warn!(error = %error.failure().message, "staged images that were committed stay");
        }
        self.completed(point);
        self.ended(record, &cleared).await
    }

    /// A point of the request's guest that is in the repository, and outlives a power cut: the run is told as complete for it.
    pub(super) async fn stored(&mut self, request: &BackupRequest, point: PointId) -> Done<CommittedPoint> {
        let guest = request.guest.uuid.clone();
        self.repository(request, "point", move |repository| {
            let found = repository.durable_point(&guest, &point)?;
            let stored = found.ok_or_else(|| RepoError::NoSuchPoint { guest: guest.clone(), point })?;
            let chain = chain_of(repository, &guest, &stored.manifest.point());
            Ok(CommittedPoint { manifest: stored.manifest, manifest_digest: stored.manifest_digest, chain })
        })
        .await
    }

    async fn clear(&self, client: &Client, record: &Record, work: Work) -> Done<()> {
        match work {
            Work::Tidy => self.tidy(client, record).await,
            Work::Undo { .. } | Work::LetGo => self.undo_in_qemu(client, record, work).await,
        }
    }

    /// What step 9 does in QEMU.
    async fn tidy(&self, client: &Client, record: &Record) -> Done<()> {
        self.close_nodes(client, &self.nodes(client).await?, record).await?;
        self.forget_fds(client, record).await?;
        self.end_jobs(client, record, false).await?;
        // The disk may have been unplugged meanwhile: then it is none of the guest's. That of a snapshot went with its node.
        for disk in record.disks.iter().filter(|disk| disk.base().is_some() && disk.scratch.is_none()) {
            let name = record.bitmap(disk, BitmapRole::Increment).to_string();
            let remove = BlockDirtyBitmapRemove(BitmapRef { node: disk.node.clone(), name });
            self.lenient(client, "Removing an increment's bitmap", &remove).await?;
        }
        // What later points build on is known to the guest's next run, which removes what nobody needs then.
        if record.late {
            return Ok(());
        }
        let disks = graph::disks(&self.look_again(client).await?);
        let kept = record
            .disks
            .iter()
            .flat_map(|disk| {
                let made = [BitmapRole::Checkpoint, BitmapRole::Sentinel].map(|role| record.bitmap(disk, role));
                let built_on = disk.base().map(|base| [base.checkpoint.clone(), base.sentinel.clone()]);
                made.into_iter().chain(built_on.into_iter().flatten())
            })
            .collect();
        let own = record.request.guest.uuid.clone();
        let in_flight = self.journal(move |journal| journal.in_flight(Some(&own))).await?;
        for bitmap in orphans::after_commit(&disks, &record.request.repository.id, &kept, &in_flight) {
            let act = format!("Removing bitmap {}", bitmap.name);
            self.try_to_remove(client, &act, &BlockDirtyBitmapRemove(bitmap)).await?;
        }
        Ok(())
    }

    /// The failure path, and the end of the run.
    pub(super) async fn end_failed(&mut self, record: &Record) -> Done<Driven> {
        let State::Failing(failure) = &record.state else { return Ok(Driven::Failed) };
        let harmed = failure.reason == GUEST_HARMED;
        let (cleared, left) = self.undo(record, harmed).await?;
        let mut failure = failure.clone();
        failure.message.extend(left.map(|what| format!("; {what}")));
        if let Cleared::Stuck(reason, what) = &cleared {
            failure = Failure {
                reason: (*reason).to_owned(),
                message: format!("{what}; the run had failed before: {}", failure.message),
                retriable: true,
                cancelled: false,
            };
        }
        let now = self.now();
        self.state.fail(&failure, now);
        self.ended(record, &cleared).await?;
        Ok(Driven::Failed)
    }

    /// Undoes an attempt that never began, so that a new one may. The journal stays until that one is written over it.
    pub(super) async fn start_over(&mut self, record: &mut Record) -> Done<()> {
        match self.undo(record, false).await?.0 {
            Cleared::All => {
                self.empty_scratches();
                self.fenced = 0;
                self.sent_on = None;
                Ok(())
            }
            Cleared::Stuck(reason, what) => {
                let (message, why) = (what.clone(), what);
                let failure = Failure { reason: reason.to_owned(), message, retriable: true, cancelled: false };
                self.fail(record, failure).await?;
                Err(EngineError::NotCleared { run: record.request.run_name.clone(), why }.into())
            }
        }
    }

    /// Keeps how the run ended; forgets the record if nothing of it is left.
    async fn ended(&mut self, record: &Record, cleared: &Cleared) -> Done<()> {
        let (ended, now) = (self.state.clone(), self.now());
        let guest = record.request.guest.uuid.clone();
        let forget = matches!(cleared, Cleared::All);
        if forget {
            self.empty_scratches();
        }
        if let Cleared::Stuck(_, what) = cleared {
            tracing::warn!(run = %record.request.run, "{what}; the guest's next run tries again");
            self.stays = Some(what.clone());
        }
        let told = record.told;
        let kept = self
            .journal(move |journal| {
                if !told {
                    journal.finish(&ended, now)?;
                }
                if forget { journal.remove(&guest) } else { Ok(()) }
            })
            .await;
        if let Err(Halt::Failed(error)) = kept {
            // The manifest, or its absence, is the truth; whoever asks again finds it there.
            tracing::error!(error = %error.failure().message, "how the run ended could not be kept");
        }
        self.publish();
        Ok(())
    }

    /// The plan undone, the last step first; and what is said of a repository in which its files stay: that holds up nothing.
    async fn undo(&mut self, record: &Record, harmed: bool) -> Done<(Cleared, Option<String>)> {
        let within = self.engine.patience.undo;
        let cleared = self.clear_within(record, within, Work::Undo { harmed }).await?;
        if matches!(cleared, Cleared::Stuck(..)) {
            // QEMU may still write to the files; the journal leads to them.
            return Ok((cleared, None));
        }
        let staged = self.discard_staging(record).await;
        let left = self.discard_or_leave(record).await?;
        match staged {
            Ok(()) => Ok((Cleared::All, left)),
            Err(Halt::Failed(error)) => {
                let what = format!("Partial files stay in the scratch folder ({})", error.failure().message);
                Ok((Cleared::Stuck(TARGET_STUCK, what), left))
            }
            Err(halt) => Err(halt),
        }
    }

    /// The part of the plan's undoing that is in QEMU. What is not there was not done, or is undone already.
    async fn undo_in_qemu(&self, client: &Client, record: &Record, work: Work) -> Done<()> {
        self.end_jobs(client, record, true).await?;
        let nodes = self.nodes(client).await?;
        for undo in plan::undo(record) {
            match undo {
                // All of them are ended above, because the first ones' targets may be needed by the last; the files go
                // once QEMU has let go of them; the descriptors below.
                Undo::EndJob { .. } | Undo::DiscardStaging | Undo::DiscardPoint | Undo::RemoveFds { .. } => {}
                Undo::RemoveBitmap { .. } if work == Work::LetGo => {}
                Undo::RemoveBitmap { name } => self.remove_bitmap(client, &nodes, &name).await?,
                Undo::SwitchBack { drive } => self.switch_back(client, &drive).await?,
                Undo::CloseNode { node } => self.close_node(client, &nodes, &node).await?,
            }
        }
        if work == (Work::Undo { harmed: true }) {
            let status = self.execute(client, "Asking QEMU for the guest's state", &QueryStatus {}).await?;
            if status.status == RunState::IoError {
                self.execute(client, "Continuing the guest", &Cont {}).await?;
            }
        }
        // A guest that stands keeps them.
        self.forget_fds(client, record).await
    }

    /// Removes a bitmap from whichever of `nodes` has it: its disk may have been unplugged meanwhile.
    async fn remove_bitmap(&self, client: &Client, nodes: &[BlockNode], name: &str) -> Done<()> {
        let has = |node: &&BlockNode| node.dirty_bitmaps.iter().any(|bitmap| bitmap.name.as_deref() == Some(name));
        // Below somebody's snapshot it cannot be removed: a later run does, once the layer is active again.
        for node in nodes.iter().filter(has).filter(|node| !node.ro) {
            let (act, node) = (format!("Removing bitmap {name}"), node.node_name.clone());
            let remove = BlockDirtyBitmapRemove(BitmapRef { node, name: name.to_owned() });
            self.try_to_remove(client, &act, &remove).await?;
        }
        Ok(())
    }

    /// A bitmap that nobody needs costs memory and nothing else, and its name is never used again: where QEMU refuses, such
    /// as while a migration takes it along, the next run tries again.
    pub(super) async fn try_to_remove(&self, client: &Client, act: &str, remove: &BlockDirtyBitmapRemove) -> Done<()> {
        match self.execute(client, act, remove).await {
            Err(Halt::Failed(error)) if !error.is_lost_connection() => {
                tracing::warn!(error = %error.failure().message, "a bitmap that nobody needs stays");
                Ok(())
            }
            done => done.map(drop),
        }
    }

    /// Dismisses the attempt's jobs; before that, with `cancel`, ends those that are not concluded.
    async fn end_jobs(&self, client: &Client, record: &Record, cancel: bool) -> Done<()> {
        let until = Instant::now() + self.engine.patience.undo;
        let mut asked = Vec::new();
        loop {
            let mut left = None;
            for job in self.jobs(client).await? {
                if !record.disks.iter().any(|disk| record.job(disk).to_string() == job.id) {
                    continue;
                }
                let id = job.id.clone();
                if job.status == JobStatus::Concluded {
                    self.lenient(client, "Dismissing a job", &JobDismiss { id }).await?;
                } else if cancel {
                    if !asked.contains(&job.id) {
                        self.lenient(client, "Cancelling a job", &JobCancel { id }).await?;
                        asked.push(job.id.clone());
                    }
                    left = Some(job.id);
                }
            }
            let Some(left) = left else { return Ok(()) };
            if Instant::now() > until {
                return Err(EngineError::JobStuck { job: left }.into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends a command whose refusal says that it is not needed any more.
    pub(super) async fn lenient<C: crate::qmp::Command>(&self, client: &Client, act: &str, command: &C) -> Done<()> {
        match self.execute(client, act, command).await {
            Err(Halt::Failed(error)) if !error.is_lost_connection() => {
                tracing::debug!(error = %error.failure().message, "not needed any more");
                Ok(())
            }
            done => done.map(drop),
        }
    }

    /// Does the work in the record's QEMU, again after a lost connection, for as long as `within`. A QEMU that is gone
    /// has nothing of ours.
    pub(super) async fn clear_within(&self, record: &Record, within: Duration, work: Work) -> Done<Cleared> {
        let until = Instant::now() + within;
        loop {
            let problem = match self.same_qemu(record).await {
                Err(Qemu::Gone) => return Ok(Cleared::All),
                Err(Qemu::Unreachable | Qemu::There(_)) => "QEMU does not answer".to_owned(),
                Ok(client) => match self.clear(&client, record, work).await {
                    Ok(()) => return Ok(Cleared::All),
                    Err(Halt::Failed(error)) if error.is_lost_connection() => error.failure().message,
                    Err(Halt::Failed(error @ EngineError::Journal(_))) => return Err(error.into()),
                    Err(Halt::Failed(error)) => {
                        let stays = matches!(error, EngineError::FilterStuck { .. } | EngineError::FilterUsed { .. });
                        let reason = if stays { error.reason() } else { TARGET_STUCK };
                        return Ok(Cleared::Stuck(reason, error.failure().message));
                    }
                    Err(halt) => return Err(halt),
                },
            };
            if Instant::now() > until {
                let what = format!("{problem}: what it holds of the run is removed when it does");
                return Ok(Cleared::Stuck(TARGET_STUCK, what));
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
                () = self.control.detach.cancelled() => return Err(Halt::Detached),
            }
        }
    }
}

/// A point and all that it builds on, where that is whole.
fn chain_of(repository: &Repository, guest: &GuestId, point: &Point) -> Vec<Point> {
    let mut found = vec![point.clone()];
    let mut looked = 0;
    while let Some(child) = found.get(looked).cloned() {
        looked += 1;
        for parent in child.disks.iter().filter_map(|disk| disk.parent.as_ref()) {
            if found.iter().all(|point| point.id != parent.point)
                && let Ok(Some(stored)) = repository.point(guest, &parent.point)
            {
                found.push(stored.manifest.point());
            }
        }
    }
    let graph = Graph::new(found);
    let chains = point.disks.iter().filter_map(|disk| graph.chain(&point.id, &disk.name).ok());
    let points: BTreeMap<_, _> = chains.flatten().map(|link| (link.point.sequence, link.point.clone())).collect();
    points.into_values().collect()
}
