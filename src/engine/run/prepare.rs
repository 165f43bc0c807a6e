//! From `intent` to `running`: the plan's steps, one after the other. Each is written down before, and safe to be undone.

use std::{os::fd::AsFd, sync::Arc};

use super::{Done, EngineError, Run, begin::read_variables};
use crate::{
    engine::{
        fleecing,
        gate::Passage,
        journal::{Record, State},
        plan::{self, Step},
        sentinel,
    },
    ids::NodeRole,
    qmp::{
        Client, Command,
        command::{AddFd, AddedFd, BlockSetWriteThreshold, BlockdevAdd, BlockdevDel, Transaction},
    },
    repo::{PartialPoint, Repository},
};

impl Run<'_> {
    /// From `intent` to `running`: the plan's steps.
    pub(super) async fn prepare(&mut self, record: &mut Record) -> Done<()> {
        let mut partial = None;
        for step in plan::steps(record) {
            self.check()?;
            match step {
                Step::CreatePoint => {
                    let (guest, point) = (record.request.guest.uuid.clone(), record.point.clone());
                    let made = self
                        .repository(&record.request, "create", move |repository| {
                            repository.create_point(&guest, &point)
                        })
                        .await?;
                    partial = Some(Arc::new(made));
                }
                Step::CreateStaging => self.create_staging(record).await?,
                Step::CreateDisk { disk, virtual_size, bound, parent } => {
                    self.create_image(record, disk, virtual_size, bound, parent).await?;
                }
                Step::StoreVariables { disk, file } => {
                    let Some(bytes) = read_variables(record.process.as_ref(), file).await else {
                        tracing::warn!(%disk, "The firmware's variables cannot be read, and are not stored");
                        continue;
                    };
                    let partial = self.partial(record, &mut partial).await?;
                    self.repository(&record.request, "disk", move |_| partial.store_variables(&disk, &bytes)).await?;
                }
                Step::OpenTarget { disk, node, opaque } => {
                    let fd = self.open_image(record, disk.clone()).await?;
                    let client = self.client().await?;
                    let set = self.pass(&client, fd, opaque).await?;
                    let options = plan::target_options(&node, set.fdset_id);
                    let act = format!("Opening the target of disk {disk} in QEMU");
                    self.execute(&client, &act, &BlockdevAdd { options }).await?;
                }
                Step::OpenSentinelSource { disk, virtual_size, node, opaque } => {
                    let fd = sentinel::open_source(virtual_size)
                        .map_err(|source| EngineError::Sentinel { disk: disk.clone(), source })?;
                    let client = self.client().await?;
                    let set = self.pass(&client, fd, opaque).await?;
                    let options = plan::sentinel_options(&node, set.fdset_id);
                    let act = format!("Opening the sentinel of disk {disk} in QEMU");
                    self.execute(&client, &act, &BlockdevAdd { options }).await?;
                }
                Step::OpenScratch { disk, virtual_size, limit, node, file, opaque } => {
                    let fd = self.scratch_file(virtual_size, limit).await?;
                    self.scratches.extend(fd.try_clone());
                    let client = self.client().await?;
                    let set = self.pass(&client, fd, opaque).await?;
                    let options = plan::scratch_options(&node, &file, set.fdset_id, limit);
                    let act = format!("Opening the scratch of disk {disk} in QEMU");
                    self.execute(&client, &act, &BlockdevAdd { options }).await?;
                    let command =
                        BlockSetWriteThreshold { node_name: file, write_threshold: fleecing::low_water(limit) };
                    self.lenient(&client, "Asking for a warning by the scratch", &command).await?;
                }
                Step::OpenFilter { node, over, scratch } => {
                    let options = plan::filter_options(&node, &over, &scratch);
                    self.execute(&self.client().await?, "Opening a filter in QEMU", &BlockdevAdd { options }).await?;
                }
                Step::Record { actions } => {
                    let client = self.client().await?;
                    self.sent_on = Some(client.clone());
                    self.set_state(record, State::Sending { at: self.now() }).await?;
                    if !actions.is_empty() {
                        self.execute(&client, "Beginning to record", &Transaction { actions }).await?;
                    }
                }
                Step::Switch { drives } => {
                    let frozen = self.freeze(record).await?;
                    let switched = self.switch(record, &drives).await;
                    self.thaw(record, frozen, switched).await?;
                }
                Step::OpenSnapshot { node, filter } => {
                    let options = plan::snapshot_options(&node, &filter);
                    self.execute(&self.client().await?, "Opening a snapshot in QEMU", &BlockdevAdd { options }).await?;
                }
                Step::Send { actions } => {
                    let client = self.client().await?;
                    self.sent_on = Some(client.clone());
                    // Of a fleeced run the instant is over.
                    let at = record.checkpoint_time().unwrap_or_else(|| self.now());
                    if record.state == State::Intent {
                        self.set_state(record, State::Sending { at }).await?;
                    }
                    let transaction = Transaction { actions };
                    if record.is_fleeced() {
                        self.execute(&client, "Starting the copy", &transaction).await?;
                    } else {
                        let frozen = self.freeze(record).await?;
                        let sent = self.send(&client, record, &transaction).await;
                        self.thaw(record, frozen, sent).await?;
                        self.check_layers(&client, record).await?;
                    }
                    self.set_state(record, State::Running { at }).await?;
                    // Their bits are merged. A migration that takes bitmaps along fails where one is read-only (measured).
                    for (index, _) in record.disks.iter().enumerate().filter(|(_, disk)| disk.needs_sentinel()) {
                        let node_name = record.node(index, NodeRole::SentinelSource);
                        self.lenient(&client, "Closing a sentinel's source", &BlockdevDel { node_name }).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The transaction of a run that is not fleeced, which is its instant.
    async fn send(&self, client: &Client, record: &Record, transaction: &Transaction) -> Done<()> {
        self.check_places(client, record, |_, disk| disk.top.clone()).await?;
        self.execute(client, "Starting the copy", transaction).await.map(drop)
    }

    /// Passes a descriptor to QEMU, in a set of its own.
    async fn pass(&self, client: &Client, fd: impl AsFd, opaque: String) -> Done<AddedFd> {
        self.engine.gates.pass(Passage::Sending(AddFd::NAME)).await;
        let command = AddFd { fdset_id: None, opaque: Some(opaque) };
        let reply = client.execute_with_fd(&command, fd.as_fd()).await;
        self.engine.gates.pass(Passage::Replied(AddFd::NAME)).await;
        let act = "Passing a file to QEMU".to_owned();
        Ok(reply.map_err(|source| EngineError::Qemu { act, source })?)
    }

    async fn partial(&mut self, record: &Record, made: &mut Option<Arc<PartialPoint>>) -> Done<Arc<PartialPoint>> {
        if let Some(partial) = made {
            return Ok(Arc::clone(partial));
        }
        let opened = self.open_partial(record).await?;
        *made = Some(Arc::clone(&opened));
        Ok(opened)
    }

    /// The files of the attempt, which must be there.
    pub(super) async fn open_partial(&mut self, record: &Record) -> Done<Arc<PartialPoint>> {
        let (guest, point) = (record.request.guest.uuid.clone(), record.point.clone());
        let found = self
            .repository(&record.request, "partial", move |repository: &Repository| {
                repository.partial_point(&guest, &point)
            })
            .await?;
        Ok(Arc::new(found.ok_or_else(|| EngineError::CopyGone { point: record.point.to_string() })?))
    }
}
