//! Step 8: everything is copied, flushed and synced. Is it all there, then check, digests, manifest. Needs no QEMU. A
//! repository that is full or does not answer is tried again for a while: what was copied is worth waiting for.

use std::{sync::Arc, time::Instant};

use super::{Done, EngineError, Halt, Run, headway::Headway};
use crate::{
    chain::next::BackupType,
    engine::{
        journal::{Record, RecordDisk},
        progress::Phase,
        quiesce::Quiesced,
        space::CLUSTER,
    },
    ids::DiskName,
    repo::{
        Manifest, PartialPoint, SealedDisk,
        manifest::{
            Consistency, Definition, DiskIdentity, FORMAT, GuestIdentity, Identity, PointType, PolicyIdentity, Storage,
            StoredDisk, StoredVariables, Versions,
        },
    },
    retry::Retry,
};

impl Run<'_> {
    /// Commits the point, or says why it cannot be.
    pub(super) async fn commit(&mut self, record: &mut Record) -> Done<()> {
        self.phase(Phase::Finishing);
        let (mut furthest, mut until) = (None, Instant::now());
        loop {
            let headway = Headway::default();
            let error = match self.try_commit(record, &headway).await {
                Err(Halt::Failed(error)) => error,
                done => return done,
            };
            let transient = matches!(error, EngineError::Repository { .. }) && error.retry() != Retry::OnChange;
            // From a failure on, and anew where a try has come further than all before it: carrying a large image may take hours,
            // and is no failure.
            if furthest < Some(headway.get()) {
                furthest = Some(headway.get());
                until = Instant::now() + self.engine.patience.commit;
            }
            if !transient || Instant::now() >= until {
                return Err(error.into());
            }
            let failure = error.failure();
            tracing::warn!(run = %record.request.run, error = %failure.message, "committing is tried again");
            self.say(&failure.reason, &format!("{}; it is tried again", failure.message));
            // Opened anew: the file system may have been mounted again. But the copy stands in the folder that was
            // opened, not in whatever has its name now.
            if failure.reason != "RepositoryReplaced" {
                self.release().await;
            }
            tokio::select! {
                () = tokio::time::sleep(self.engine.patience.commit_pause) => {}
                () = self.control.detach.cancelled() => return Err(Halt::Detached),
                // For its own run a cancel comes too late.
                () = self.control.cancel.cancelled(), if !self.own => return Err(Halt::Cancelled),
            }
        }
    }

    async fn try_commit(&mut self, record: &mut Record, headway: &Headway) -> Done<()> {
        // The try before may have failed after its rename.
        if record.committing && self.is_committed(record).await? {
            return Ok(());
        }
        let partial = self.open_partial(record).await?;
        headway.step();
        self.take_staged(record, &partial, headway).await?;
        let mut sealed = Vec::new();
        for disk in &record.disks {
            let found = self.seal(record, &partial, disk, headway).await?;
            let expected = disk.copied.unwrap_or(0).div_ceil(CLUSTER);
            if found.clusters() != expected {
                let found = found.clusters();
                return Err(EngineError::CopyIncomplete { disk: disk.name.clone(), found, expected }.into());
            }
            sealed.push(found);
        }
        let mut variables = Variables::default();
        for drive in &record.variables {
            let (partial, disk) = (Arc::clone(&partial), drive.disk.clone());
            match self.repository(&record.request, "seal", move |_| partial.variables(&disk)).await? {
                Some(stored) => variables.stored.push(stored),
                None => variables.left_out.push(drive.disk.clone()),
            }
        }
        headway.step();
        // Whoever finds the repository gone from here on does not know whether the manifest is in it.
        if !record.committing {
            self.update(record, |record| record.committing = true).await?;
        }
        let (record_there, engine) = (record.clone(), Arc::clone(&self.engine));
        self.repository(&record.request, "commit", move |repository| {
            repository.check_still_there(&engine.settings.roots)?;
            let sequence = repository.next_sequence(&record_there.request.guest.uuid)?;
            partial.commit(&manifest(&record_there, sequence, &sealed, variables))
        })
        .await?;
        Ok(())
    }

    async fn seal(
        &mut self,
        record: &Record,
        partial: &Arc<PartialPoint>,
        disk: &RecordDisk,
        headway: &Headway,
    ) -> Done<SealedDisk> {
        let (partial, name) = (Arc::clone(partial), disk.name.clone());
        let mut tell = headway.teller(self, record, &disk.name, "checked");
        let sealed = self.repository(&record.request, "seal", move |_| partial.seal_disk(&name, &mut tell)).await?;
        headway.step();
        Ok(sealed)
    }
}

/// What became of the firmware's variables.
#[derive(Default)]
struct Variables {
    stored: Vec<StoredVariables>,
    left_out: Vec<DiskName>,
}

/// The manifest of an attempt whose disks are sealed.
fn manifest(record: &Record, sequence: u64, sealed: &[SealedDisk], variables: Variables) -> Manifest {
    let request = &record.request;
    let other = serde_json::Map::new;
    let pairs = || record.disks.iter().zip(sealed);
    Manifest {
        format: FORMAT,
        identity: Identity {
            repository: request.repository.id.clone(),
            point: record.point.clone(),
            sequence,
            guest: GuestIdentity {
                uuid: request.guest.uuid.clone(),
                name: request.guest.name.clone(),
                namespace: request.guest.namespace.clone(),
                other: other(),
            },
            policy: request.policy.as_ref().map(|policy| PolicyIdentity {
                name: policy.name.clone(),
                uid: policy.uid.clone(),
                other: other(),
            }),
            run: request.run.clone(),
            attempt: record.attempt.to_string(),
            checkpoint_time: record.checkpoint_time().unwrap_or(record.started),
            consistency: match record.quiesced {
                Some(Quiesced::Frozen { .. }) => Consistency::Application,
                Some(Quiesced::NotFrozen { .. }) | None => Consistency::Crash,
            },
            requested_type: request.kind.as_str().to_owned(),
            kind: kind_of_all(&record.disks),
            disks: pairs()
                .map(|(disk, sealed)| DiskIdentity {
                    name: disk.name.clone(),
                    lineage: disk.lineage.clone(),
                    virtual_size: disk.virtual_size,
                    kind: kind(disk.choice.kind),
                    type_reason: disk.choice.reason.as_str().to_owned(),
                    table_digest: sealed.table_digest.clone(),
                    parent: disk.base().map(|base| base.parent.clone()),
                    other: other(),
                })
                .collect(),
            other: other(),
        },
        storage: Storage {
            disks: pairs()
                .map(|(disk, sealed)| StoredDisk {
                    name: disk.name.clone(),
                    file: sealed.file.clone(),
                    format: "qcow2".to_owned(),
                    bytes: sealed.bytes,
                    table: sealed.table.clone(),
                    generation: sealed.generation,
                    table_digest: sealed.table_digest.clone(),
                    parent: disk.base().map(|base| base.parent.clone()),
                    other: other(),
                })
                .collect(),
            other: other(),
        },
        definition: Definition {
            block_graph: Some(record.block_graph.clone()),
            command_line: record.command_line.clone(),
            variables: variables.stored,
            variables_left_out: variables.left_out,
            other: other(),
        },
        versions: Versions {
            driftline: env!("CARGO_PKG_VERSION").to_owned(),
            qemu: record.qemu.clone(),
            other: other(),
        },
        other: other(),
    }
}

/// Full only if every disk is, and a copy only if every disk is.
fn kind_of_all(disks: &[RecordDisk]) -> PointType {
    let mut kinds = disks.iter().map(|disk| kind(disk.choice.kind));
    let first = kinds.next().unwrap_or(PointType::Full);
    kinds.fold(first, |all, next| if all == next { all } else { PointType::Incremental })
}

fn kind(kind: BackupType) -> PointType {
    match kind {
        BackupType::Full => PointType::Full,
        BackupType::Incremental => PointType::Incremental,
        BackupType::Copy => PointType::Copy,
    }
}
