//! QEMU's answers put together: which disks a guest has, which node of each is copied and carries the bitmaps, what
//! stands between it and the device, and whether the disk can be backed up. Pure, but for `inspect`, which asks.
//!
//! A disk is resolved afresh at each run: device, its top node with the user's filters, and down by the edges of the
//! block graph to the format node. Node names are never remembered over a restart of QEMU, and a `-drive` id is never
//! used as an address: it resolves to whatever filter is on top, and bitmaps put there vanish (measured).

mod eligible;
#[cfg(test)]
pub(super) mod fixture;
mod inspect;
mod place;
mod view;

use std::collections::HashMap;

use serde::Serialize;

use self::view::View;
pub use self::{
    eligible::Ineligible,
    inspect::{Identity, identity, inspect},
    place::{Change, Place},
};
pub(super) use self::{inspect::look_again, place::change};
use crate::{
    ids::{BitmapName, DiskName, GuestId},
    qmp::{
        Version,
        block::{BlockDevice, BlockGraph, BlockNode, DirtyBitmap, RunState},
    },
};

/// What a running guest is, as far as backups are concerned.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestFacts {
    /// From `-uuid`; none where QEMU was started without one.
    pub uuid: Option<GuestId>,
    /// From `-name`.
    pub name: Option<String>,
    /// Whether it runs.
    pub power_state: PowerState,
    /// QEMU's version.
    pub version: Version,
    /// Its disks, in QEMU's order; those that cannot be backed up with the reason.
    pub disks: Vec<DiskFacts>,
    /// What this QEMU can do for a backup.
    pub capabilities: Vec<String>,
    /// What this QEMU must not be asked to do.
    pub quirks: Vec<String>,
}

/// Whether a guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum PowerState {
    /// Its processors run.
    Running,
    /// Stopped by somebody, or started with `-S` and never run. A backup works; it is never started by us.
    Paused,
    /// Shut down, with QEMU still there.
    Off,
    /// Stopped by an I/O error of a disk.
    IoError,
    /// A migration holds it: not ours to touch.
    Migrating,
}

impl PowerState {
    /// From the state and flag of `query-status`.
    pub fn new(state: &RunState, running: bool) -> Self {
        match state {
            RunState::Running => Self::Running,
            RunState::Inmigrate | RunState::FinishMigrate | RunState::Postmigrate => Self::Migrating,
            RunState::IoError => Self::IoError,
            RunState::Paused | RunState::Prelaunch => Self::Paused,
            RunState::Other(word) if word == "shutdown" => Self::Off,
            RunState::Other(_) => {
                if running {
                    Self::Running
                } else {
                    Self::Paused
                }
            }
        }
    }

    /// The word in statuses and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "Running",
            Self::Paused => "Paused",
            Self::Off => "Off",
            Self::IoError => "IoError",
            Self::Migrating => "Migrating",
        }
    }
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskFacts {
    /// The device's id as the guest's definition gives it, else the `-drive` id, else the QOM path.
    pub name: DiskName,
    /// The device's QOM path or id.
    pub qdev: String,
    /// The format node: it is copied and carries the bitmaps. Empty for an empty drive.
    pub node_name: String,
    /// The node that the device uses, with the user's filters.
    pub top_node: String,
    /// The drivers between the two, from the top.
    pub filters: Vec<String>,
    /// The format node's driver, such as `qcow2` or `raw`.
    pub driver: String,
    /// The image's format, as QEMU names it.
    pub format: String,
    /// The image's file, or the name of what serves it, without passwords.
    pub file: String,
    /// The size that the guest sees, in bytes.
    pub virtual_size: u64,
    /// Whether bitmaps survive a clean restart of QEMU: on qcow2 version 3.
    pub persistent_bitmaps: bool,
    /// Why it cannot be backed up; nothing when it can.
    pub ineligible: Option<Ineligible>,
    /// A job, or the filter of one, that somebody else has on it.
    pub foreign_job: Option<String>,
    /// The named bitmaps on the format node.
    pub bitmaps: Vec<BitmapFacts>,
    /// Bitmaps of ours on the layers below it: somebody took a snapshot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bitmaps_below: Vec<BitmapName>,
}

impl DiskFacts {
    /// Whether it can be backed up.
    pub fn eligible(&self) -> bool {
        self.ineligible.is_none()
    }

    /// Why it cannot be backed up, as a word; empty when it can.
    pub fn ineligible_reason(&self) -> &'static str {
        self.ineligible.map_or("", Ineligible::as_str)
    }
}

/// One named bitmap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BitmapFacts {
    /// Its name.
    pub name: String,
    /// Bytes that are marked.
    pub bytes: u64,
    /// Whether the name has our shape (of whatever repository).
    pub ours: bool,
    /// Whether it records.
    pub recording: bool,
    /// Whether a job or export uses it.
    pub busy: bool,
    /// Whether it is stored in the image.
    pub persistent: bool,
    /// Whether it is good for nothing but removal.
    pub inconsistent: bool,
}

impl BitmapFacts {
    fn new(bitmap: &DirtyBitmap) -> Option<Self> {
        let name = bitmap.name.clone()?;
        Some(Self {
            ours: name.parse::<BitmapName>().is_ok(),
            name,
            bytes: bitmap.count,
            recording: bitmap.recording,
            busy: bitmap.busy,
            persistent: bitmap.persistent,
            inconsistent: bitmap.inconsistent,
        })
    }
}

/// QEMU's answers about disks.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    /// `query-block`.
    pub devices: Vec<BlockDevice>,
    /// `query-named-block-nodes`, flat.
    pub nodes: Vec<BlockNode>,
    /// `x-debug-query-block-graph`.
    pub graph: Option<BlockGraph>,
    /// QOM types of the devices, such as `virtio-blk-device`, by `qdev`.
    pub types: HashMap<String, String>,
    /// QOM types of the devices under `/machine/peripheral` and `/machine/peripheral-anon`, by path: disks whose data
    /// never passes QEMU's block layer are seen only here.
    pub peripherals: Vec<(String, String)>,
}

/// The disks that the answers describe. A drive that no device uses is not the guest's and left out.
pub fn disks(answers: &Answers) -> Vec<DiskFacts> {
    let view = View::new(answers);
    let mut disks: Vec<_> = answers
        .devices
        .iter()
        .filter_map(|device| Some(view.disk(device, device.qdev.as_deref()?)))
        .chain(answers.peripherals.iter().filter_map(|(path, kind)| vhost_disk(path, kind)))
        .collect();
    let mut count = HashMap::new();
    for disk in &disks {
        *count.entry(disk.name.clone()).or_insert(0) += 1;
    }
    // Several units of one device share its id: each goes by its own path then.
    for disk in &mut disks {
        if count[&disk.name] > 1
            && let Ok(path) = disk.qdev.parse()
        {
            disk.name = path;
        }
    }
    disks
}

fn vhost_disk(path: &str, kind: &str) -> Option<DiskFacts> {
    if !eligible::is_vhost(kind) {
        return None;
    }
    let name = path.rsplit('/').next()?;
    Some(DiskFacts {
        name: if path.starts_with("/machine/peripheral/") { name.parse().ok()? } else { path.parse().ok()? },
        qdev: path.to_owned(),
        node_name: String::new(),
        top_node: String::new(),
        filters: Vec::new(),
        driver: kind.to_owned(),
        format: String::new(),
        file: String::new(),
        virtual_size: 0,
        persistent_bitmaps: false,
        ineligible: Some(Ineligible::VhostUser),
        foreign_job: None,
        bitmaps: Vec::new(),
        bitmaps_below: Vec::new(),
    })
}

#[cfg(test)]
mod tests;
