//! QEMU's answers put together: which disks a guest has, which node of each is copied and carries the bitmaps, what
//! stands between it and the device, and whether the disk can be backed up. Pure, but for `inspect`, which asks.
//!
//! A disk is resolved afresh at each run: device, its top node with the user's filters, and down by the edges of the
//! block graph to the format node. Node names are never remembered over a restart of QEMU, and a `-drive` id is never
//! used as an address: it resolves to whatever filter is on top, and bitmaps put there vanish (measured).

mod eligible;
mod inspect;

use std::collections::{HashMap, HashSet};

use serde::Serialize;

pub use self::{
    eligible::Ineligible,
    inspect::{Identity, identity, inspect},
};
use super::definition::clean_name;
use crate::{
    ids::{BitmapName, DiskName, GuestId},
    qmp::{
        Version,
        block::{BlockDevice, BlockGraph, BlockNode, DirtyBitmap, GraphNodeKind, RunState},
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

/// The filters that somebody's job or fleecing puts on a disk.
const JOB_FILTERS: &[&str] = &["copy-before-write", "backup-top", "mirror_top", "commit_top", "snapshot-access"];

/// Drivers that show their child's content unchanged, with the child's role.
const FILTERS: &[&str] =
    &["throttle", "copy-on-read", "preallocate", "compress", "blkdebug", "blklogwrites", "blkreplay", "blkverify"];

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

struct View<'a> {
    answers: &'a Answers,
    nodes: HashMap<&'a str, &'a BlockNode>,
    /// Block nodes by name to the names and roles of what they use.
    children: HashMap<&'a str, Vec<(&'a str, &'a str)>>,
    /// Block nodes to the jobs that use them.
    jobs: HashMap<&'a str, &'a str>,
    /// Devices that let others write to their top node, by the backend's name.
    sharing: HashSet<&'a str>,
}

impl<'a> View<'a> {
    fn new(answers: &'a Answers) -> Self {
        let mut view = Self {
            answers,
            nodes: answers.nodes.iter().map(|node| (node.node_name.as_str(), node)).collect(),
            children: HashMap::new(),
            jobs: HashMap::new(),
            sharing: HashSet::new(),
        };
        let Some(graph) = &answers.graph else { return view };
        let by_id: HashMap<_, _> = graph.nodes.iter().map(|node| (node.id, node)).collect();
        for edge in &graph.edges {
            let (Some(parent), Some(child)) = (by_id.get(&edge.parent), by_id.get(&edge.child)) else { continue };
            match parent.kind {
                GraphNodeKind::BlockDriver => {
                    view.children.entry(&parent.name).or_default().push((&child.name, &edge.name));
                }
                GraphNodeKind::BlockJob => {
                    view.jobs.insert(&child.name, &parent.name);
                }
                GraphNodeKind::BlockBackend => {
                    if edge.shared_perm.iter().any(|perm| perm == "write") {
                        view.sharing.insert(&parent.name);
                    }
                }
                GraphNodeKind::Other(_) => {}
            }
        }
        view
    }

    fn disk(&self, device: &BlockDevice, qdev: &str) -> DiskFacts {
        let mut disk = DiskFacts {
            name: disk_name(device, qdev),
            qdev: qdev.to_owned(),
            node_name: String::new(),
            top_node: String::new(),
            filters: Vec::new(),
            driver: String::new(),
            format: String::new(),
            file: String::new(),
            virtual_size: 0,
            persistent_bitmaps: false,
            ineligible: None,
            foreign_job: None,
            bitmaps: Vec::new(),
            bitmaps_below: Vec::new(),
        };
        let kind = self.answers.types.get(qdev).map_or("", String::as_str);
        let Some(top) = &device.inserted else {
            disk.ineligible = Some(eligible::empty(kind));
            return disk;
        };
        disk.top_node.clone_from(&top.node_name);
        let mut node = self.nodes.get(top.node_name.as_str()).copied().unwrap_or(top);
        let mut seen = HashSet::from([node.node_name.as_str()]);
        while FILTERS.contains(&node.drv.as_str()) || JOB_FILTERS.contains(&node.drv.as_str()) {
            if JOB_FILTERS.contains(&node.drv.as_str()) {
                disk.foreign_job = Some(self.job_at(&node.node_name).unwrap_or(&node.node_name).to_owned());
            }
            disk.filters.push(node.drv.clone());
            let Some(below) = self.below(&node.node_name).filter(|below| seen.insert(&below.node_name)) else { break };
            node = below;
        }
        let all = self.descendants(&top.node_name);
        if disk.foreign_job.is_none() {
            disk.foreign_job = all.iter().find_map(|name| self.job_at(name)).map(str::to_owned);
        }
        disk.node_name.clone_from(&node.node_name);
        disk.driver.clone_from(&node.drv);
        disk.format.clone_from(&node.image.format);
        disk.file = clean_name(&node.file);
        disk.virtual_size = node.image.virtual_size;
        disk.persistent_bitmaps = eligible::keeps_bitmaps(node);
        disk.bitmaps = node.dirty_bitmaps.iter().filter_map(BitmapFacts::new).collect();
        let shared =
            self.sharing.contains(qdev) || (!device.device.is_empty() && self.sharing.contains(device.device.as_str()));
        let layers = self.descendants(&node.node_name);
        let layers = layers.iter().skip(1).filter_map(|name| self.nodes.get(name)).flat_map(|node| &node.dirty_bitmaps);
        disk.bitmaps_below = layers.filter_map(|bitmap| bitmap.name.as_ref()?.parse().ok()).collect();
        let below: Vec<_> = all.iter().filter_map(|name| self.nodes.get(name).copied()).collect();
        disk.ineligible = eligible::refusal(kind, top, node, &below, shared);
        disk
    }

    fn job_at(&self, node: &str) -> Option<&'a str> {
        self.jobs.get(node).copied()
    }

    /// What a filter filters.
    fn below(&self, node: &str) -> Option<&'a BlockNode> {
        let children = self.children.get(node)?;
        let role = |wanted| children.iter().find(|(_, role)| *role == wanted);
        let (name, _) = role("file").or_else(|| role("backing")).or_else(|| role("image"))?;
        self.nodes.get(name).copied()
    }

    /// The node and all that it rests on.
    fn descendants(&self, top: &'a str) -> Vec<&'a str> {
        let mut found = vec![top];
        let mut at = 0;
        while let Some(node) = found.get(at).copied() {
            for (child, role) in self.children.get(node).into_iter().flatten() {
                if *role != "target" && !found.contains(child) {
                    found.push(child);
                }
            }
            at += 1;
        }
        found
    }
}

fn disk_name(device: &BlockDevice, qdev: &str) -> DiskName {
    let named = match qdev.strip_prefix("/machine/peripheral/") {
        Some(rest) => rest.split('/').next(),
        None if !qdev.starts_with('/') => Some(qdev),
        None if !device.device.is_empty() => Some(device.device.as_str()),
        None => Some(qdev),
    };
    named.and_then(|name| name.parse().ok()).or_else(|| qdev.parse().ok()).unwrap_or_else(|| fallback_name(qdev))
}

/// QOM paths can be longer than a disk's name may be: their end tells them apart.
fn fallback_name(qdev: &str) -> DiskName {
    let digest = blake3::hash(qdev.as_bytes()).to_hex();
    let name = format!("device-{}", &digest[..16]);
    match name.parse() {
        Ok(name) => name,
        Err(_) => unreachable!("{name} is a disk's name"),
    }
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
