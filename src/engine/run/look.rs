//! What a run finds: the manifest in the repository, its jobs in QEMU, or a QEMU that is gone or silent; and the fence
//! against a transaction that may still be queued.

use std::time::{Duration, Instant};

use super::{Done, EngineError, Halt, Run, aside::hangs};
use crate::{
    engine::{
        journal::{Record, State},
        recover::{Found, Manifest, Qemu},
    },
    ids::NodeRole,
    qmp::{
        Client, ExecuteError,
        block::JobInfo,
        command::{BlockdevDel, QueryJobs},
    },
    repo::Repository,
};

impl Run<'_> {
    /// What there is beside the journal.
    pub(super) async fn look(&mut self, record: &Record) -> Done<Found> {
        // From `copied` on QEMU is not needed for the commit.
        let manifest = match &record.state {
            _ if !record.may_be_committed() => Manifest::Absent,
            State::Failing(_) => self.ask(record).await?,
            State::Intent | State::Sending { .. } | State::Running { .. } | State::Copied { .. } => {
                self.manifest(record).await?
            }
        };
        let qemu = match record.state {
            State::Copied { .. } | State::Failing(_) => Qemu::Unreachable,
            State::Intent | State::Sending { .. } | State::Running { .. } => self.qemu(record).await?,
        };
        let same_connection = self.sent_on.as_ref().is_some_and(|client| !client.is_closed());
        Ok(Found { manifest, qemu, fenced: self.fenced, same_connection })
    }

    /// The manifest of an attempt that is undone. Nothing is made meanwhile, so a repository that hangs is left, a while after
    /// that was said: it holds neither the guest nor a cancel.
    async fn ask(&mut self, record: &Record) -> Done<Manifest> {
        let hangs = || Manifest::Unknown(hangs(&record.request));
        self.asking = self.engine.asks.begin(&record.request.guest.uuid, record.repository());
        if self.asking.is_none() {
            return Ok(hangs());
        }
        let answer = tokio::time::timeout(2 * self.engine.patience.repository, self.manifest(record)).await;
        self.asking = None;
        answer.unwrap_or_else(|_| Ok(hangs()))
    }

    async fn manifest(&mut self, record: &Record) -> Done<Manifest> {
        match self.is_committed(record).await {
            Ok(true) => Ok(Manifest::There),
            Ok(false) => Ok(Manifest::Absent),
            Err(Halt::Failed(error)) => Ok(Manifest::Unknown(error.failure())),
            Err(halt) => Err(halt),
        }
    }

    /// Whether the point stands in the repository and outlives a power cut. An error: nobody knows.
    pub(super) async fn is_committed(&mut self, record: &Record) -> Done<bool> {
        let (guest, point) = (record.request.guest.uuid.clone(), record.point.clone());
        let look = move |repository: &Repository| repository.durable_point(&guest, &point);
        self.repository(&record.request, "point", look).await.map(|found| found.is_some())
    }

    pub(super) async fn qemu(&mut self, record: &Record) -> Done<Qemu> {
        Ok(match self.same_qemu(record).await {
            Ok(client) => match self.jobs(&client).await {
                Ok(jobs) => Qemu::There(jobs),
                Err(Halt::Failed(error)) if error.is_lost_connection() => Qemu::Unreachable,
                Err(halt) => return Err(halt),
            },
            Err(qemu) => qemu,
        })
    }

    /// A client of the very QEMU that the record is about; else whether that one is gone or only silent.
    pub(super) async fn same_qemu(&self, record: &Record) -> Result<Client, Qemu> {
        let client = self.monitor.client().await;
        let is_gone = || record.process.as_ref().is_some_and(|process| !process.is_alive());
        match client {
            Ok(client) => match (&record.process, client.process()) {
                (Some(then), Some(now)) if then != now => Err(if is_gone() { Qemu::Gone } else { Qemu::Unreachable }),
                _ => Ok(client),
            },
            Err(error) => {
                tracing::debug!(%error, "the guest's monitor cannot be used");
                Err(if is_gone() { Qemu::Gone } else { Qemu::Unreachable })
            }
        }
    }

    pub(super) async fn jobs(&self, client: &Client) -> Done<Vec<JobInfo>> {
        self.execute(client, "Asking QEMU for its jobs", &QueryJobs {}).await
    }

    /// Deletes the target nodes: a transaction that is still queued somewhere fails then. Nodes that a job uses refuse.
    pub(super) async fn fence(&self, record: &Record) -> Done<()> {
        let Ok(client) = self.same_qemu(record).await else { return Ok(()) };
        for index in 0..record.disks.len() {
            let node_name = record.node(index, NodeRole::Target);
            match self.execute(&client, "Closing a target", &BlockdevDel { node_name }).await {
                Ok(_) => {}
                Err(Halt::Failed(EngineError::Qemu { source, act })) => match source {
                    ExecuteError::Qemu { description, .. } => {
                        tracing::debug!(%description, "a target stays open");
                    }
                    source => return Err(EngineError::Qemu { act, source }.into()),
                },
                Err(halt) => return Err(halt),
            }
        }
        Ok(())
    }

    /// The process of the record's QEMU, where it lives and the monitor leads to another one.
    async fn other_machine(&self, record: &Record) -> Option<i32> {
        let then = record.process.as_ref().filter(|process| process.is_alive())?;
        let client = self.monitor.client().await.ok()?;
        client.process().filter(|now| *now != then).map(|_| then.pid)
    }

    pub(super) async fn await_qemu(&mut self, record: &Record) -> Done<()> {
        let since = *self.silent_since.get_or_insert_with(Instant::now);
        let other = self.other_machine(record).await;
        let patience = match (&record.state, &record.process) {
            // A QEMU that is replaced by another one may live for a moment beside it.
            _ if other.is_some() => Some(self.engine.patience.silent_start),
            (State::Intent, _) => Some(self.engine.patience.silent_start),
            (_, None) => Some(self.engine.patience.silent_unseen),
            // The process lives, and its jobs with it.
            (_, Some(_)) => None,
        };
        if patience.is_some_and(|patience| since.elapsed() > patience) {
            let address = self.monitor.address().to_string();
            return Err(match other {
                Some(pid) => EngineError::OtherMachine { run: record.request.run_name.clone(), pid, address },
                None => EngineError::Unanswered { address },
            }
            .into());
        }
        if since.elapsed() > Duration::from_secs(2) {
            self.say("MonitorUnanswered", "Waits for QEMU to answer; what it copies goes on meanwhile");
        }
        let pause = (since.elapsed() / 4).clamp(Duration::from_millis(100), Duration::from_secs(2));
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = self.control.detach.cancelled() => Err(Halt::Detached),
            () = self.control.cancel.cancelled() => Err(Halt::Cancelled),
        }
    }
}
