//! The verbs that a person has about a machine itself, by its monitor: the course of its run, jobs, bitmaps, events.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{
    Machine,
    values::{granularity, rate_or_none},
};
use crate::ids::DiskName;

/// A machine by its monitor alone.
#[derive(Debug, Clone, Args)]
pub struct AtMonitor {
    /// The machine's QMP socket.
    #[arg(long, value_name = "SOCKET")]
    pub qmp: PathBuf,
}

impl AtMonitor {
    /// The same where a UUID could be given.
    pub fn machine(&self) -> Machine {
        Machine { qmp: self.qmp.clone(), uuid: None }
    }
}

/// `driftline bandwidth`
#[derive(Debug, Args)]
pub struct Bandwidth {
    /// Which machine.
    #[command(flatten)]
    pub at: AtMonitor,
    /// Bytes per second of each disk, such as 50Mi; 0 for no limit.
    #[arg(value_name = "RATE", value_parser = rate_or_none)]
    pub rate: u64,
}

/// `driftline bitmaps`
#[derive(Debug, Subcommand)]
pub enum Bitmaps {
    /// All of them, with the bytes that are marked in each.
    List(AtMonitor),
    /// A new one, which records from now on.
    Add(BitmapAdd),
    /// Empties one: no byte is marked in it any more. Not one of Driftline's, which its next backup builds on.
    Clear(BitmapNamed),
    /// Removes one. Where it is one of Driftline's, the next backup of the disk is a full.
    Remove(BitmapNamed),
}

/// `driftline bitmaps add`
#[derive(Debug, Args)]
pub struct BitmapAdd {
    /// Which machine.
    #[command(flatten)]
    pub machine: Machine,
    /// The disk.
    #[arg(long, value_name = "DISK")]
    pub disk: DiskName,
    /// Store it in the disk's image when QEMU ends cleanly; only qcow2 can.
    #[arg(long)]
    pub persistent: bool,
    /// Bytes that one bit stands for, a power of two.
    #[arg(long, value_name = "BYTES", default_value = "64Ki", value_parser = granularity)]
    pub granularity: u32,
    /// Its name.
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// `driftline bitmaps clear` and `remove`
#[derive(Debug, Args)]
pub struct BitmapNamed {
    /// Which machine.
    #[command(flatten)]
    pub machine: Machine,
    /// The disk.
    #[arg(long, value_name = "DISK")]
    pub disk: DiskName,
    /// Also one that is not Driftline's: nothing else builds on it.
    #[arg(long)]
    pub foreign: bool,
    /// Its name.
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// `driftline events`
#[derive(Debug, Args)]
pub struct Events {
    /// Which machine.
    #[command(flatten)]
    pub at: AtMonitor,
    /// Only events of this name, such as BLOCK_JOB_COMPLETED, in any case.
    #[arg(long, value_name = "NAME")]
    pub event: Option<String>,
    /// Print the time of each, by QEMU's clock.
    #[arg(long)]
    pub timestamp: bool,
    /// Go on until Ctrl-C, instead of ending after the first.
    #[arg(long)]
    pub r#loop: bool,
}
