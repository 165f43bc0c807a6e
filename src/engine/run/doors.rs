//! The doors through which a run acts: the journal, the repository, QEMU. Everything passes the gate, blocking calls go to
//! threads for them, and the guest's lock is held until each has returned, even when nobody waits for it any more.

use std::sync::Arc;

use super::{Done, Run, Store};
use crate::{
    engine::{
        EngineError,
        gate::Passage,
        journal::{Journal, JournalError, Record},
        request::BackupRequest,
    },
    qmp::{Client, Command},
    repo::{RepoError, Repository},
};

impl Run<'_> {
    pub(super) async fn save(&self, record: &Record) -> Done<()> {
        let record = record.clone();
        self.journal(move |journal| journal.save(&record)).await
    }

    /// Calls the journal on a thread for blocking calls.
    pub(super) async fn journal<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Journal) -> Result<T, JournalError> + Send + 'static,
    ) -> Done<T> {
        self.engine.gates.pass(Passage::JournalBefore).await;
        let (engine, lock) = (Arc::clone(&self.engine), self.lock.clone());
        let done = tokio::task::spawn_blocking(move || {
            let _lock = lock;
            act(&engine.journal)
        })
        .await
        .map_err(|source| EngineError::Broken { act: "Writing the journal", source })?;
        self.engine.gates.pass(Passage::JournalAfter).await;
        Ok(done.map_err(EngineError::Journal)?)
    }

    /// Opens the repository and takes the guest's writer lease, once.
    pub(super) async fn store(&mut self, record: &BackupRequest) -> Done<Store> {
        if let Some(store) = &self.store {
            return Ok(store.clone());
        }
        let (engine, lock, request) = (Arc::clone(&self.engine), self.lock.clone(), record.clone());
        let opened = self
            .blocking("open", "Opening the repository", move || {
                let _lock = lock;
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

    /// Calls the repository of the record on a thread for blocking calls, with the lease held.
    pub(super) async fn repository<T: Send + 'static>(
        &mut self,
        record: &Record,
        name: &'static str,
        act: impl FnOnce(&Repository) -> Result<T, RepoError> + Send + 'static,
    ) -> Done<T> {
        let store = self.store(&record.request).await?;
        let lock = self.lock.clone();
        let says = match name {
            "point" => "Looking for the point's manifest",
            "create" => "Making the point's folder",
            "disk" => "Making a disk's file",
            "discard" => "Removing the files of the attempt",
            "commit" => "Committing the point",
            _ => "Reading the repository",
        };
        self.blocking(name, says, move || {
            let _lock = lock;
            act(&store.repository)
        })
        .await
    }

    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        name: &'static str,
        says: &'static str,
        act: impl FnOnce() -> Result<T, RepoError> + Send + 'static,
    ) -> Done<T> {
        self.engine.gates.pass(Passage::RepositoryBefore(name)).await;
        let done =
            tokio::task::spawn_blocking(act).await.map_err(|source| EngineError::Broken { act: says, source })?;
        self.engine.gates.pass(Passage::RepositoryAfter(name)).await;
        Ok(done.map_err(|source| EngineError::Repository { act: says, source: Box::new(source) })?)
    }

    /// Sends a command; `act` says what for, as the beginning of a sentence.
    pub(super) async fn execute<C: Command>(&self, client: &Client, act: &str, command: &C) -> Done<C::Reply> {
        self.engine.gates.pass(Passage::Sending(C::NAME)).await;
        let reply = ask(client, act, command).await;
        self.engine.gates.pass(Passage::Replied(C::NAME)).await;
        Ok(reply?)
    }

    pub(super) async fn client(&self) -> Done<Client> {
        Ok(self.monitor.client().await.map_err(|source| EngineError::Connect { source })?)
    }
}

/// Sends a command; `act` says what for, as the beginning of a sentence.
pub(super) async fn ask<C: Command>(client: &Client, act: &str, command: &C) -> Result<C::Reply, EngineError> {
    client.execute(command).await.map_err(|source| EngineError::Qemu { act: act.to_owned(), source })
}
