//! QEMU's block graph with its edges looked up by name: from a device's top node down to the format node, and which jobs
//! work on what is between and below. Pure.

use std::collections::{HashMap, HashSet};

use super::{Answers, BitmapFacts, DiskFacts, eligible};
use crate::{
    engine::definition::clean_name,
    ids::DiskName,
    qmp::block::{BlockDevice, BlockNode, GraphNodeKind},
};

/// The filters that somebody's job or fleecing puts on a disk.
const JOB_FILTERS: &[&str] = &["copy-before-write", "backup-top", "mirror_top", "commit_top", "snapshot-access"];

/// Drivers that show their child's content unchanged, with the child's role.
const FILTERS: &[&str] =
    &["throttle", "copy-on-read", "preallocate", "compress", "blkdebug", "blklogwrites", "blkreplay", "blkverify"];

/// QEMU's answers, with the block graph's edges looked up by name.
pub(super) struct View<'a> {
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
    pub(super) fn new(answers: &'a Answers) -> Self {
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

    pub(super) fn disk(&self, device: &BlockDevice, qdev: &str) -> DiskFacts {
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
        let (node, filters) = self.format_node(top);
        if let Some(filter) = filters.iter().find(|filter| JOB_FILTERS.contains(&filter.drv.as_str())) {
            disk.foreign_job = Some(self.job_at(&filter.node_name).unwrap_or(&filter.node_name).to_owned());
        }
        disk.filters = filters.iter().map(|filter| filter.drv.clone()).collect();
        let all = self.descendants(&top.node_name);
        if disk.foreign_job.is_none() {
            let job = all.iter().find_map(|name| self.job_at(name)).or_else(|| self.job_over(&node.node_name));
            disk.foreign_job = job.map(str::to_owned);
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

    /// The format node below a device's top node, and the filters between the two, from the top.
    pub(super) fn format_node(&self, top: &'a BlockNode) -> (&'a BlockNode, Vec<&'a BlockNode>) {
        let mut node = self.nodes.get(top.node_name.as_str()).copied().unwrap_or(top);
        let (mut seen, mut filters) = (HashSet::from([node.node_name.as_str()]), Vec::new());
        while FILTERS.contains(&node.drv.as_str()) || JOB_FILTERS.contains(&node.drv.as_str()) {
            filters.push(node);
            let Some(below) = self.below(&node.node_name).filter(|below| seen.insert(&below.node_name)) else { break };
            node = below;
        }
        (node, filters)
    }

    /// A job that works on a node through filters of its own, which `query-block` does not show, or writes to it.
    pub(super) fn job_over(&self, node: &str) -> Option<&'a str> {
        let mut jobs = self.jobs.iter();
        jobs.find(|(child, _)| self.descendants(child).contains(&node)).map(|(_, job)| *job)
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
