//! Whether a disk still stands where its run has found it. Between the look at a machine and the instant somebody can take
//! a snapshot, start a job or plug: then the run would record on one node and copy another, or take a device past somebody's
//! filter (both measured on QEMU 7.2 and 10.0). Pure.

use std::fmt;

use super::{Answers, View};

/// Where a disk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// The device's QOM path or id.
    pub qdev: &'a str,
    /// The node that the device uses.
    pub top: &'a str,
    /// The format node.
    pub node: &'a str,
}

/// What became of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The device is gone, or is empty.
    Unplugged,
    /// Another format node is the active one.
    Layer(String),
    /// The device uses another node above the same format node.
    Filter(String),
    /// A job works on it.
    Job(String),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unplugged => write!(f, "it was unplugged"),
            Self::Layer(node) => write!(f, "its active layer is node {node} now"),
            Self::Filter(node) => write!(f, "its device uses node {node} now"),
            Self::Job(job) => write!(f, "job {job} works on it now"),
        }
    }
}

/// How a disk stands otherwise than at `place`, if it does.
pub(in crate::engine) fn change(answers: &Answers, place: Place<'_>) -> Option<Change> {
    let view = View::new(answers);
    let device = answers.devices.iter().find(|device| device.qdev.as_deref() == Some(place.qdev));
    let Some(top) = device.and_then(|device| device.inserted.as_ref()) else { return Some(Change::Unplugged) };
    let (node, _) = view.format_node(top);
    if node.node_name != place.node {
        return Some(Change::Layer(node.node_name.clone()));
    }
    if let Some(job) = view.job_over(place.node) {
        return Some(Change::Job(job.to_owned()));
    }
    (top.node_name != place.top).then(|| Change::Filter(top.node_name.clone()))
}
