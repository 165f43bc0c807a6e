//! The fleece of a run: scratch files, filters above the disks, the instant at which they take effect, and how all of it is
//! taken away again. The reverse order always; each act is safe to do when it was never done.

use std::time::{Duration, Instant};

use super::{Done, EngineError, Halt, Run, overlay};
use crate::{
    engine::{
        gate::Passage,
        graph::{self, Change, GuestFacts, Place},
        journal::{Record, RecordDisk, State},
        plan::Drive,
    },
    ids::NodeRole,
    qmp::{
        Client, Command, ExecuteError,
        block::{BlockDevice, BlockGraph, BlockNode, RunState, qom_path},
        command::{BlockStream, Cont, QomSet, QueryBlock, QueryBlockGraph, QueryStatus, Stop},
    },
};

/// What a fleeced run takes of QEMU, as `query-qmp-schema` names it.
const DRIVERS: [&str; 2] = ["copy-before-write", "snapshot-access"];

/// How often the disks are looked at while jobs end: each does once.
const LOOKS: usize = 100;

impl Run<'_> {
    /// Whether QEMU has the nodes of a fleece.
    pub(super) fn can_fleece(client: &Client) -> bool {
        DRIVERS.iter().all(|driver| client.schema().has_driver(driver)) && client.schema().has_command("qom-set")
    }

    /// The instant: every device gets its filter. With several disks, or the guest would write between the first and the
    /// last, a guest that runs stands still meanwhile, and the journal says so before.
    pub(super) async fn switch(&mut self, record: &mut Record, drives: &[Drive]) -> Done<()> {
        let client = self.client().await?;
        let status = self.execute(&client, "Asking QEMU for the guest's state", &QueryStatus {}).await?;
        let stops = drives.len() > 1 && status.status == RunState::Running;
        let at = self.now();
        self.update(record, |record| (record.stopping, record.state) = (stops, State::Sending { at })).await?;
        if !stops {
            return self.switch_all(&client, record, drives).await;
        }
        let switched = match self.execute(&client, "Stopping the guest for an instant", &Stop {}).await {
            Ok(_) => self.switch_all(&client, record, drives).await,
            Err(halt) => Err(halt),
        };
        self.let_run(&client, record).await?;
        // At once: a recovery would continue a guest that a person has paused since.
        self.update(record, |record| record.stopping = false).await?;
        switched
    }

    /// Continues the guest where an attempt of ours has stopped it: before anything else.
    pub(super) async fn continue_guest(&mut self, record: &mut Record) -> Done<()> {
        if !record.stopping {
            return Ok(());
        }
        // A QEMU that is gone or silent is looked at by whoever comes next.
        let Ok(client) = self.same_qemu(record).await else { return Ok(()) };
        self.let_run(&client, record).await?;
        // On another monitor a dead client's `stop` may still be done after our first reply (measured).
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.let_run(&client, record).await?;
        self.update(record, |record| record.stopping = false).await
    }

    /// Continues a guest that stands still. Where QEMU refuses, it is asked again for a while: nothing is more urgent.
    async fn let_run(&mut self, client: &Client, record: &Record) -> Done<()> {
        let until = Instant::now() + self.engine.patience.undo;
        loop {
            let status = self.execute(client, "Asking QEMU for the guest's state", &QueryStatus {}).await?;
            if status.status != RunState::Paused {
                return Ok(());
            }
            let why = match self.execute(client, "Continuing the guest", &Cont {}).await {
                Err(Halt::Failed(EngineError::Qemu { source: why @ ExecuteError::Qemu { .. }, .. })) => why.to_string(),
                done => return done.map(drop),
            };
            let (run, address) = (record.request.run_name.clone(), self.monitor.address().to_string());
            let error = EngineError::GuestStopped { run, address, why };
            tracing::error!(run = %record.request.run, "{error}");
            self.say(error.reason(), &error.to_string());
            if Instant::now() >= until || self.control.detach.is_cancelled() {
                return Err(error.into());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Before, or a device would be taken past what somebody has put under it. After, or the snapshot would be of another
    /// layer than the one that records: QEMU moves a filter that nobody uses yet above somebody's overlay (measured).
    async fn switch_all(&self, client: &Client, record: &Record, drives: &[Drive]) -> Done<()> {
        self.check_places(client, record, |_, disk| disk.top.clone()).await?;
        for drive in drives {
            self.set_drive(client, &drive.qdev, &drive.node).await?;
        }
        self.check_places(client, record, |index, _| record.node(index, NodeRole::Filter)).await
    }

    /// Whether each disk's format node is the active one still, no job works on it, and its device uses `top`.
    pub(super) async fn check_places(
        &self,
        client: &Client,
        record: &Record,
        top: impl Fn(usize, &RecordDisk) -> String,
    ) -> Done<()> {
        let answers = self.look_again(client).await?;
        for (index, disk) in record.disks.iter().enumerate() {
            let place = Place { qdev: &disk.qdev, top: &top(index, disk), node: &disk.node };
            if let Some(change) = graph::change(&answers, place) {
                return Err(EngineError::DiskChanged { disk: disk.name.clone(), change }.into());
            }
        }
        Ok(())
    }

    /// Whether somebody's snapshot came between the last look at the disks and the transaction: then what is copied is not of
    /// one instant.
    pub(super) async fn check_layers(&self, client: &Client, record: &Record) -> Done<()> {
        for look in 1.. {
            let answers = self.look_again(client).await?;
            let mut ended = false;
            for disk in &record.disks {
                let place = Place { qdev: &disk.qdev, top: &disk.top, node: &disk.node };
                match graph::change(&answers, place) {
                    // The job's filter, which has gone with the job between one answer and the next.
                    Some(Change::Layer(node)) if record.owns_node(&node) && look < LOOKS => ended = true,
                    Some(change @ Change::Layer(_)) => {
                        return Err(EngineError::DiskChanged { disk: disk.name.clone(), change }.into());
                    }
                    Some(Change::Unplugged | Change::Filter(_) | Change::Job(_)) | None => {}
                }
            }
            if !ended {
                break;
            }
        }
        Ok(())
    }

    async fn set_drive(&self, client: &Client, qdev: &str, node: &str) -> Done<()> {
        self.execute(client, &format!("Giving device {qdev} the node {node}"), &set_drive(qdev, node)).await.map(drop)
    }

    /// Takes a filter away from between a device, or an overlay that somebody has put on it, and what is below it now. A
    /// device that has another node by now, or is gone, is left alone.
    pub(super) async fn switch_back(&self, client: &Client, drive: &Drive) -> Done<()> {
        let devices = self.execute(client, "Asking QEMU for the guest's disks", &QueryBlock {}).await?;
        let has = |device: &&BlockDevice| {
            device.qdev.as_deref() == Some(&drive.qdev)
                && device.inserted.as_ref().is_some_and(|node| node.node_name == drive.node)
        };
        if devices.iter().find(has).is_none() {
            self.check_unused(client, &drive.node).await?;
            self.engine.gates.pass(Passage::Sending(BlockStream::NAME)).await;
            let freed = overlay::free(client, &drive.node).await;
            self.engine.gates.pass(Passage::Replied(BlockStream::NAME)).await;
            return Ok(freed?);
        }
        let graph = self.execute(client, "Asking QEMU for its block graph", &QueryBlockGraph {}).await?;
        match below(&graph, &drive.node) {
            Some(below) => self.set_drive(client, &drive.qdev, below).await,
            None => Ok(()),
        }
    }

    /// Somebody's filter on one of ours cannot be given another child without all of its options.
    async fn check_unused(&self, client: &Client, filter: &str) -> Done<()> {
        let graph = self.execute(client, "Asking QEMU for its block graph", &QueryBlockGraph {}).await?;
        let (Some(user), Some(base)) = (graph.parent(filter, "file"), below(&graph, filter)) else { return Ok(()) };
        let (filter, user, base) = (filter.to_owned(), user.to_owned(), base.to_owned());
        Err(EngineError::FilterUsed { filter, user, base }.into())
    }

    /// Takes the fleece away, if the run has one: snapshots, filters, scratch files. Its jobs have ended.
    pub(super) async fn tear_down(&self, client: &Client, nodes: &[BlockNode], record: &Record) -> Done<()> {
        if !record.is_fleeced() {
            return Ok(());
        }
        let each = || 0..record.disks.len();
        for index in each() {
            self.close_node(client, nodes, &record.node(index, NodeRole::Snapshot)).await?;
        }
        for (index, disk) in record.disks.iter().enumerate() {
            let node = record.node(index, NodeRole::Filter);
            self.switch_back(client, &Drive { qdev: disk.qdev.clone(), node: node.clone() }).await?;
            self.close_node(client, nodes, &node).await?;
        }
        for index in each() {
            self.close_node(client, nodes, &record.node(index, NodeRole::Scratch)).await?;
        }
        Ok(())
    }
}

/// Gives a device another node.
pub(super) fn set_drive(qdev: &str, node: &str) -> QomSet {
    QomSet { path: qom_path(qdev), property: "drive".to_owned(), value: node.into() }
}

/// The node that a filter stands above.
pub(super) fn below<'a>(graph: &'a BlockGraph, filter: &str) -> Option<&'a str> {
    graph.child(filter, "file")
}

/// The device of a disk, by which its node is changed.
pub(super) fn device_of(guest: &GuestFacts, node: &str) -> String {
    guest.disks.iter().find(|disk| disk.node_name == node).map(|disk| disk.qdev.clone()).unwrap_or_default()
}
