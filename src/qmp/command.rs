//! The commands that are sent, one small type each, with the type of what they return. A command that is not here is
//! not sent. Fields that QEMU adds to its answers are ignored; fields that this build needs and does not find make
//! `ExecuteError::Malformed`.

mod block;
mod job;

use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

pub use self::{
    block::{
        Action, AddFd, AddedFd, BackupPerf, BitmapAdd, BitmapMerge, BitmapMode, BitmapRef, BlockDirtyBitmapAdd,
        BlockDirtyBitmapClear, BlockDirtyBitmapRemove, BlockSetWriteThreshold, BlockdevAdd, BlockdevBackup,
        BlockdevDel, QueryBlock, QueryBlockGraph, QueryFdsets, QueryNamedBlockNodes, RemoveFd, Sync, Transaction,
    },
    job::{
        BlockJobSetSpeed, BlockStream, JobCancel, JobDismiss, JobPause, JobResume, QueryBlockJobs, QueryJobs, Yank,
        YankInstance,
    },
};
use super::{
    block::{MigrationInfo, QomProperty, StatusInfo},
    schema::SchemaAnswer,
    version::Version,
};

/// Something that QEMU can be asked to do. The value itself is serialised as the arguments.
pub trait Command: Serialize + std::marker::Sync {
    /// The command's name, such as `query-block`.
    const NAME: &'static str;
    /// What it returns.
    type Reply: DeserializeOwned;
    /// How long the answer may take, sending included.
    const DEADLINE: Duration = Duration::from_secs(30);
    /// True for the few commands that QEMU answers while its main loop hangs.
    const OUT_OF_BAND: bool = false;
}

/// The return value `{}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Empty {}

/// Declares commands without arguments.
macro_rules! queries {
    ($($(#[$doc:meta])* $name:ident = $command:literal -> $reply:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, serde::Serialize)]
        pub struct $name {}
        impl $crate::qmp::Command for $name {
            const NAME: &'static str = $command;
            type Reply = $reply;
        }
    )*};
}
use queries;

queries! {
    /// QEMU's version, once more.
    QueryVersion = "query-version" -> Version;
    /// Whether the guest runs, and if not, why.
    QueryStatus = "query-status" -> StatusInfo;
    /// The machine's UUID; of zeros where QEMU was started without one.
    QueryUuid = "query-uuid" -> MachineUuid;
    /// The machine's name.
    QueryName = "query-name" -> MachineName;
    /// Whether a migration goes on.
    QueryMigrate = "query-migrate" -> MigrationInfo;
    /// What this QEMU can do, as data: some 200 KiB.
    QueryQmpSchema = "query-qmp-schema" -> SchemaAnswer;
}

/// The first command of a connection; nothing else is taken before it.
#[derive(Debug, Clone, Serialize)]
pub struct QmpCapabilities {
    /// Of those in the greeting, the ones to be used: `oob`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub enable: Vec<String>,
}

impl Command for QmpCapabilities {
    const NAME: &'static str = "qmp_capabilities";
    type Reply = Empty;
    // Part of the greeting's deadline: a QEMU that greets and hangs is found out soon.
    const DEADLINE: Duration = Duration::from_secs(5);
}

/// What `query-uuid` returns.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MachineUuid {
    /// Hyphenated, in lower case; of zeros without `-uuid`.
    #[serde(rename = "UUID")]
    pub uuid: String,
}

/// What `query-name` returns.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MachineName {
    /// From `-name`, where given.
    pub name: Option<String>,
}

/// Pauses the guest. Flushes all disks first: 0.93 s with 1.9 GiB of dirty host cache (measured).
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Stop {}

impl Command for Stop {
    const NAME: &'static str = "stop";
    type Reply = Empty;
    const DEADLINE: Duration = Duration::from_secs(120);
}

/// Lets the guest run. Starts one that never ran (`-S`) too.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Cont {}

impl Command for Cont {
    const NAME: &'static str = "cont";
    type Reply = Empty;
}

/// The properties of an object of QEMU's object model.
#[derive(Debug, Clone, Serialize)]
pub struct QomList {
    /// Such as `/machine/peripheral`.
    pub path: String,
}

impl Command for QomList {
    const NAME: &'static str = "qom-list";
    type Reply = Vec<QomProperty>;
}

/// One property of an object.
#[derive(Debug, Clone, Serialize)]
pub struct QomGet {
    /// The object, by its path or a unique end of it.
    pub path: String,
    /// The property's name.
    pub property: String,
}

impl Command for QomGet {
    const NAME: &'static str = "qom-get";
    type Reply = Value;
}

/// Changes a property of an object. A device's `drive` is changed from one node to another while the guest runs.
#[derive(Debug, Clone, Serialize)]
pub struct QomSet {
    /// The object, by its path.
    pub path: String,
    /// The property's name.
    pub property: String,
    /// Its new value.
    pub value: Value,
}

impl Command for QomSet {
    const NAME: &'static str = "qom-set";
    type Reply = Empty;
    // Requests in flight are drained first.
    const DEADLINE: Duration = Duration::from_secs(120);
}

/// A line of the human monitor. For tests, which write to disks with it: its answers are no stable interface.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HumanMonitorCommand {
    /// The line.
    pub command_line: String,
}

impl Command for HumanMonitorCommand {
    const NAME: &'static str = "human-monitor-command";
    type Reply = String;
}
