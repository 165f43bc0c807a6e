//! The doors through which a run acts: the journal, the repository, QEMU. Everything passes the gate, and blocking calls go to
//! threads for them. Whatever writes holds the guest's lock until it has returned, even when nobody waits for it any more: no
//! other run of the guest begins meanwhile, in any process.
//!
//! A repository may hang for as long as it likes. A run that is to let go leaves the call that hangs behind, whatever it is. A
//! cancelled run does before its record is written: nothing of it can appear later. From then on it waits, and says so, for
//! the undoing of files must not be overtaken by what makes them. A run that waits to learn whether it was committed makes none:
//! it is set aside again where its repository hangs.

use std::{sync::Arc, time::Instant};

use tokio::task::{JoinError, JoinHandle};

use super::{Done, Halt, Run, Store};
use crate::{
    engine::{
        EngineError,
        gate::Passage,
        graph::{self, Answers},
        journal::{Journal, JournalError, Record},
        request::BackupRequest,
    },
    qmp::{Client, Command, command::QueryBlock},
    repo::{RepoError, Repository},
};

impl Run<'_> {
    pub(super) async fn save(&self, record: &Record) -> Done<()> {
        let record = record.clone();
        self.journal(move |journal| journal.save(&record)).await
    }

    /// Makes a change of the record durable; only then it holds.
    pub(super) async fn update(&self, record: &mut Record, change: impl FnOnce(&mut Record)) -> Done<()> {
        let mut new = record.clone();
        change(&mut new);
        self.save(&new).await?;
        *record = new;
        Ok(())
    }

    /// Calls the journal on a thread for blocking calls.
    pub(super) async fn journal<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Journal) -> Result<T, JournalError> + Send + 'static,
    ) -> Done<T> {
        self.engine.gates.pass(Passage::JournalBefore).await;
        let (engine, lock) = (Arc::clone(&self.engine), self.lock.clone());
        let begin = Instant::now();
        let done = tokio::task::spawn_blocking(move || {
            let _lock = lock;
            act(&engine.journal)
        })
        .await
        .map_err(|source| EngineError::Broken { act: "Writing the journal", source })?;
        tracing::trace!(took = ?begin.elapsed(), "the journal was asked");
        self.engine.gates.pass(Passage::JournalAfter).await;
        Ok(done.map_err(EngineError::Journal)?)
    }

    /// Opens the repository and takes the guest's writer lease, once.
    pub(super) async fn store(&mut self, request: &BackupRequest) -> Done<Store> {
        if let Some(store) = &self.store {
            return Ok(store.clone());
        }
        let (engine, request) = (Arc::clone(&self.engine), request.clone());
        let opened = self
            .blocking("open", "Opening the repository", move || {
                let settings = &engine.settings;
                let address = &request.repository;
                let repository = Repository::open(&settings.roots, &address.path, Some(&address.id), &settings.tool)?;
                let lease = repository.writer_lease(&request.guest.uuid, &format!("run {}", request.run))?;
                Ok(Store { repository, _lease: Arc::new(lease) })
            })
            .await?;
        self.store = Some(opened.clone());
        Ok(opened)
    }

    /// Calls the repository of the request on a thread for blocking calls, with the lease held.
    pub(super) async fn repository<T: Send + 'static>(
        &mut self,
        request: &BackupRequest,
        name: &'static str,
        act: impl FnOnce(&Repository) -> Result<T, RepoError> + Send + 'static,
    ) -> Done<T> {
        let Store { repository, _lease: lease } = self.store(request).await?;
        let says = match name {
            "point" => "Reading the point's manifest",
            "create" => "Making the point's folder",
            "disk" => "Making a disk's file",
            "allocate" => "Allocating space for a disk's file",
            "sync" => "Bringing a disk's file to the disk",
            "take" => "Carrying a disk's copy to the repository",
            "seal" => "Checking a disk's copy",
            "discard" => "Removing the files of the attempt",
            "commit" => "Committing the point",
            _ => "Reading the repository",
        };
        // A call that reads and is left behind holds nobody up.
        let lease = (remains(name) == Remains::Files).then_some(lease);
        self.blocking(name, says, move || {
            let _lease = lease;
            act(&repository)
        })
        .await
    }

    /// Calls the repository on a thread for blocking calls, which holds the guest's lock where it writes.
    ///
    /// # Errors
    /// Its own, or that the run was told to let go or cancelled, where it may be left behind.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        name: &'static str,
        says: &'static str,
        act: impl FnOnce() -> Result<T, RepoError> + Send + 'static,
    ) -> Done<T> {
        self.engine.gates.pass(Passage::RepositoryBefore(name)).await;
        if self.control.detach.is_cancelled() {
            return Err(Halt::Detached);
        }
        let held = ((remains(name) == Remains::Files).then(|| self.lock.clone()), self.asking.clone());
        let act = move || {
            let _held = held;
            act()
        };
        let begin = Instant::now();
        let called = self.wait(name, says, tokio::task::spawn_blocking(act)).await?;
        tracing::trace!(name, took = ?begin.elapsed(), "the repository was asked");
        let done = called.map_err(|source| EngineError::Broken { act: says, source })?;
        self.engine.gates.pass(Passage::RepositoryAfter(name)).await;
        Ok(done.map_err(|source| EngineError::Repository { act: says, source: Box::new(source) })?)
    }

    /// Waits for a call, and says so when that lasts and the call does not tell how far it is.
    async fn wait<T>(&self, name: &str, says: &str, mut call: JoinHandle<T>) -> Done<Result<T, JoinError>> {
        let patience = self.engine.patience.repository;
        // These last as long as a disk is large.
        let long = matches!(name, "take" | "seal");
        let before = self.shown();
        let (mut last, mut silent) = (before.clone(), false);
        let done = loop {
            // Whoever waits only until the run of somebody else is finished need not wait for what does not answer, nor for hours.
            let leaves = self.unwritten || (!self.own && (silent || long));
            tokio::select! {
                biased;
                done = &mut call => break done,
                () = self.control.detach.cancelled() => return Err(Halt::Detached),
                () = self.control.cancel.cancelled(), if leaves => return Err(Halt::Cancelled),
                () = tokio::time::sleep(patience) => {}
            }
            let (_, message) = self.shown();
            if message != last.1 {
                self.show(before.0.clone(), message);
                silent = false;
            } else if !silent {
                let lasted = patience.as_secs();
                let message =
                    format!("{says} lasts longer than {lasted} s: the run waits for the repository to answer");
                tracing::warn!("{message}");
                self.show("RepositoryNotResponding".to_owned(), message);
                silent = true;
            }
            last = self.shown();
        };
        if silent {
            self.show(before.0, before.1);
        }
        Ok(done)
    }

    /// The reason and the message that are shown, by whichever run waits.
    fn shown(&self) -> (String, String) {
        let state = self.control.state.borrow();
        (state.reason.clone(), state.message.clone())
    }

    fn show(&self, reason: String, message: String) {
        self.control.state.send_modify(|state| (state.reason, state.message) = (reason, message));
    }

    /// Sends a command; `act` says what for, as the beginning of a sentence.
    pub(super) async fn execute<C: Command>(&self, client: &Client, act: &str, command: &C) -> Done<C::Reply> {
        self.engine.gates.pass(Passage::Sending(C::NAME)).await;
        let begin = Instant::now();
        let reply = ask(client, act, command).await;
        tracing::trace!(command = C::NAME, took = ?begin.elapsed(), "QEMU was asked");
        self.engine.gates.pass(Passage::Replied(C::NAME)).await;
        Ok(reply?)
    }

    /// How the disks stand now.
    pub(super) async fn look_again(&self, client: &Client) -> Done<Answers> {
        self.engine.gates.pass(Passage::Sending(QueryBlock::NAME)).await;
        let answers = graph::look_again(client).await;
        self.engine.gates.pass(Passage::Replied(QueryBlock::NAME)).await;
        Ok(answers?)
    }

    pub(super) async fn client(&self) -> Done<Client> {
        Ok(self.monitor.client().await.map_err(|source| EngineError::Connect { source })?)
    }
}

/// What a call of the repository can still make when nobody waits for it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remains {
    /// Nothing: it reads, or brings to the disk what is there, or its end takes back what it made, as opening does with the
    /// writer lease.
    Nothing,
    /// It makes, changes or removes files.
    Files,
}

fn remains(name: &str) -> Remains {
    match name {
        "open" | "scan" | "point" | "partial" => Remains::Nothing,
        _ => Remains::Files,
    }
}

/// Sends a command; `act` says what for, as the beginning of a sentence.
pub(super) async fn ask<C: Command>(client: &Client, act: &str, command: &C) -> Result<C::Reply, EngineError> {
    client.execute(command).await.map_err(|source| EngineError::Qemu { act: act.to_owned(), source })
}
