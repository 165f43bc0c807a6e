//! While QEMU copies: events wake, `query-jobs` decides, each second is looked anyway. Then, with every job ended
//! without error, the flush: each target is closed, and the reply to that is what makes its data whole (a QEMU that is
//! killed before leaves a file that is empty inside and that `qemu-img check` calls clean; measured).

use std::time::Duration;

use super::{Done, EngineError, Halt, Run, overlay};
use crate::{
    chain::next,
    engine::{
        course::Course,
        fleecing,
        journal::{Record, RecordDisk, State},
        progress::Phase,
        recover::{self, Found, Manifest, Next, Qemu},
        space,
    },
    ids::NodeRole,
    qmp::{
        Client, Event, ExecuteError,
        block::{BlockDevice, BlockNode, JobInfo, MigrationInfo, RunState},
        command::{
            BlockdevDel, QueryBlock, QueryBlockGraph, QueryBlockJobs, QueryMigrate, QueryNamedBlockNodes, QueryStatus,
        },
    },
};

/// The pause between two looks when nothing wakes.
const POLL: Duration = Duration::from_secs(1);

impl Run<'_> {
    /// Follows the jobs until the table says something else than `Follow`.
    pub(super) async fn follow(&mut self, record: &mut Record) -> Done<()> {
        self.phase(Phase::Copying);
        let client = self.client().await?;
        let mut events = client.events();
        if record.disks.iter().any(|disk| disk.base().is_some()) {
            check_sentinels(&self.nodes(&client).await?, record)?;
        }
        let (mut allocated, mut migration) = (false, None);
        // What was wished before the jobs were there, or before they were adopted, is not known to have reached them.
        let (mut steered, mut owner) = (Course::default(), self.control.owner.subscribe());
        loop {
            owner.mark_unchanged();
            if !self.hear(record).await? {
                return Ok(());
            }
            self.check_suspended(record)?;
            // One whose agent did not answer at the instant.
            self.thaw_guest(record).await?;
            let jobs = self.jobs(&client).await?;
            self.steer(&client, record, &jobs, &mut steered).await?;
            let block_jobs = self.execute(&client, "Asking QEMU for its jobs", &QueryBlockJobs {}).await?;
            if self.own {
                self.state.follow_jobs(&jobs, &block_jobs);
                self.publish();
            }
            if !allocated {
                self.allocate_the_rest(record, &jobs).await?;
                allocated = true;
            }
            let found = Found { manifest: Manifest::Absent, qemu: Qemu::There(jobs), fenced: 0, same_connection: true };
            if recover::next(record, &found) != Next::Follow {
                return Ok(());
            }
            self.check_harm(&client, record).await?;
            migration = Some(self.check_migration(&client, migration.as_ref()).await?);
            let deadline = tokio::time::Instant::now() + POLL;
            loop {
                tokio::select! {
                    event = events.recv() => match event {
                        Ok(event) => {
                            if let Some(error) = harm(&event, record) {
                                return Err(error.into());
                            }
                            if let Some(disk) = scratch_low(&event, record) {
                                self.say("ScratchLow", &scratch_is_low(disk));
                            }
                            if wakes(&event) {
                                break;
                            }
                        }
                        // Missed some, or the connection is gone: look.
                        Err(_) => break,
                    },
                    () = tokio::time::sleep_until(deadline) => break,
                    // Its sender lives as long as the run.
                    Ok(()) = owner.changed() => break,
                    () = client.closed() => return Ok(()),
                    () = self.control.detach.cancelled() => return Err(Halt::Detached),
                    () = self.control.cancel.cancelled() => return Err(Halt::Cancelled),
                }
            }
        }
    }

    /// A migration that starts would fail at its very end because of the job. One that takes bitmaps along has failed at once
    /// because of the run's own: the next one is not to (both measured).
    async fn check_migration(&self, client: &Client, before: Option<&MigrationInfo>) -> Done<MigrationInfo> {
        let migration = self.execute(client, "Asking QEMU for a migration", &QueryMigrate {}).await?;
        let status = migration.status.clone().unwrap_or_default();
        let failed = status == "failed" && before.is_some_and(|before| *before != migration);
        if failed || is_migrating(&status) {
            return Err(EngineError::MigrationStarted { status }.into());
        }
        Ok(migration)
    }

    /// A copy without fleecing can make the guest's own writes fail, while its job goes on as `running` without an
    /// error (measured).
    async fn check_harm(&self, client: &Client, record: &Record) -> Done<()> {
        let status = self.execute(client, "Asking QEMU for the guest's state", &QueryStatus {}).await?;
        match status.status {
            RunState::IoError if record.guest_was_well => {
                // Another disk's error is none of ours: its run must neither end nor continue the guest.
                let devices = self.execute(client, "Asking QEMU for the guest's disks", &QueryBlock {}).await?;
                if let Some((disk, status)) = devices.iter().find_map(|device| harmed(device, record)) {
                    let detail = format!("the guest was stopped by it ({status})");
                    return Err(EngineError::GuestHarmed { disk: disk.name.to_string(), detail }.into());
                }
            }
            RunState::FinishMigrate | RunState::Postmigrate | RunState::Inmigrate => {
                return Err(EngineError::MigrationStarted { status: format!("{:?}", status.status) }.into());
            }
            _ => {}
        }
        if record.is_fleeced() {
            // QEMU sends no event for a snapshot.
            let graph = self.execute(client, "Asking QEMU for its block graph", &QueryBlockGraph {}).await?;
            for (index, disk) in record.disks.iter().enumerate() {
                if let Some(overlay) = overlay::overlay_on(&graph, &record.node(index, NodeRole::Filter)) {
                    let (disk, overlay) = (disk.name.clone(), overlay.to_owned());
                    return Err(EngineError::Overlaid { disk, overlay }.into());
                }
            }
        }
        Ok(())
    }

    /// Allocates what the guest has written between the look at the bitmaps and the instant. Where that fails, the run does
    /// before the guest could notice.
    async fn allocate_the_rest(&mut self, record: &Record, jobs: &[JobInfo]) -> Done<()> {
        for disk in record.disks.iter().filter(|disk| disk.base().is_some()) {
            let id = record.job(disk).to_string();
            let Some(job) = jobs.iter().find(|job| job.id == id) else { continue };
            let needed = space::bound_of(disk.virtual_size, job.total_progress);
            if needed > disk.bound {
                self.reserve_image(record, disk.name.clone(), needed).await?;
            }
        }
        Ok(())
    }

    /// Step 7: closes the targets, gives up the descriptors, syncs the files, and only then `copied`.
    pub(super) async fn flush(&mut self, record: &mut Record) -> Done<()> {
        let client = self.client().await?;
        let jobs = self.jobs(&client).await?;
        if self.own {
            self.state.follow_jobs(&jobs, &[]);
        }
        let mut copied = record.clone();
        for disk in &mut copied.disks {
            let id = record.job(disk).to_string();
            let Some(job) = jobs.iter().find(|job| job.id == id) else { return Ok(()) };
            disk.copied = Some(job.total_progress);
        }
        let nodes = self.nodes(&client).await?;
        check_sentinels(&nodes, record)?;
        self.close_nodes(&client, &nodes, record).await?;
        self.give_up_fds(&client, record).await?;
        self.phase(Phase::Finishing);
        for disk in &record.disks {
            self.sync_image(record, disk.name.clone()).await?;
        }
        if let State::Running { at } = record.state {
            self.set_state(&mut copied, State::Copied { at }).await?;
            *record = copied;
        }
        Ok(())
    }

    /// Closes those of `nodes` that are the attempt's, its fleece first, then the targets.
    pub(super) async fn close_nodes(&self, client: &Client, nodes: &[BlockNode], record: &Record) -> Done<()> {
        self.tear_down(client, nodes, record).await?;
        for role in [NodeRole::Target, NodeRole::SentinelSource] {
            for index in 0..record.disks.len() {
                self.close_node(client, nodes, &record.node(index, role)).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn nodes(&self, client: &Client) -> Done<Vec<BlockNode>> {
        self.execute(client, "Asking QEMU for its nodes", &QueryNamedBlockNodes { flat: true }).await
    }

    /// Closes a node, if it is among `nodes`. One that is gone already was closed: QEMU takes it off its list and
    /// closes it without answering anybody in between.
    pub(super) async fn close_node(&self, client: &Client, nodes: &[BlockNode], name: &str) -> Done<()> {
        if !nodes.iter().any(|node| node.node_name == name) {
            return Ok(());
        }
        let (act, node_name) = (format!("Closing node {name}"), name.to_owned());
        match self.execute(client, &act, &BlockdevDel { node_name }).await {
            Err(Halt::Failed(EngineError::Qemu { source, .. })) if is_unknown(&source) => Ok(()),
            done => done.map(drop),
        }
    }
}

/// Whether no disk was shrunk between the choice of its type and the instant; from then on QEMU refuses to.
fn check_sentinels(nodes: &[BlockNode], record: &Record) -> Result<(), EngineError> {
    for disk in &record.disks {
        let Some(sentinel) = disk.base().map(|base| base.sentinel.to_string()) else { continue };
        let bitmaps = nodes.iter().filter(|node| node.node_name == disk.node).flat_map(|node| &node.dirty_bitmaps);
        let mut found = bitmaps.filter(|bitmap| bitmap.name.as_ref() == Some(&sentinel));
        if !found.any(|bitmap| next::is_whole(bitmap.count)) {
            return Err(EngineError::DiskShrunk { disk: disk.name.clone() });
        }
    }
    Ok(())
}

/// Whether QEMU refused because there is no such node.
fn is_unknown(error: &ExecuteError) -> bool {
    error.is_qemu("Failed to find node") || error.is_qemu("Cannot find device")
}

pub(super) fn is_migrating(status: &str) -> bool {
    !matches!(status, "" | "none" | "completed" | "failed" | "cancelled")
}

/// Events after which it is worth to look at once.
fn wakes(event: &Event) -> bool {
    event.name.starts_with("JOB_")
        || event.name.starts_with("BLOCK_JOB_")
        || event.name == "STOP"
        || event.name == "MIGRATION"
}

/// A failed write of the guest to a disk of the run.
fn harm(event: &Event, record: &Record) -> Option<EngineError> {
    if event.name != "BLOCK_IO_ERROR" || event.text("operation") != Some("write") {
        return None;
    }
    let node = event.text("node-name")?;
    let disk = disk_of(record, node)?;
    let detail = event.text("reason").unwrap_or("no reason given").to_owned();
    Some(EngineError::GuestHarmed { disk: disk.name.to_string(), detail })
}

/// The disk whose scratch has warned.
fn scratch_low<'a>(event: &Event, record: &'a Record) -> Option<&'a RecordDisk> {
    let node = event.text("node-name").filter(|_| event.name == "BLOCK_WRITE_THRESHOLD")?;
    let mut disks = record.disks.iter().enumerate();
    disks.find(|(index, _)| node == record.node(*index, NodeRole::ScratchFile)).map(|(_, disk)| disk)
}

fn scratch_is_low(disk: &RecordDisk) -> String {
    let limit = disk.scratch.unwrap_or(0);
    format!(
        "The guest overwrites disk {} faster than it is copied: {} of the {limit} bytes of its scratch are used. The run \
         fails when all are; the guest goes on. Raise the budget of [scratch], or the bandwidth of the run",
        disk.name,
        fleecing::low_water(limit)
    )
}

/// The disk of the run that a device holds whose last request failed, and how.
fn harmed<'a>(device: &'a BlockDevice, record: &'a Record) -> Option<(&'a RecordDisk, &'a str)> {
    let status = device.io_status.as_deref().filter(|status| *status != "ok")?;
    Some((disk_of(record, &device.inserted.as_ref()?.node_name)?, status))
}

/// The disk of the run that is behind a node: its own, the one that the device uses, or the job's filter.
fn disk_of<'a>(record: &'a Record, node: &str) -> Option<&'a RecordDisk> {
    let mut disks = record.disks.iter().enumerate();
    let of_ours = |index, name: &str| name == record.filter(index) || name == record.node(index, NodeRole::Filter);
    let found = disks.find(|(index, disk)| node == disk.node || node == disk.top || of_ours(*index, node));
    found.map(|(_, disk)| disk)
}
