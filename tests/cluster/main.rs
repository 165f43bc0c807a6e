//! Tests against a real kube-apiserver, with the chart's rights, the real controller and agents, and a real QEMU.
//! One control plane and one installation serve the whole binary; each test has a namespace of its own.
//!
//! `tests/runner` puts it into a network namespace of its own: see `tests/in-netns`.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../support/nodes.rs"]
mod bench;
#[path = "../support/controlplane.rs"]
mod controlplane;
#[path = "../support/guides.rs"]
mod guides;
#[path = "../support/installation.rs"]
mod installation;
#[path = "../support/lab.rs"]
mod lab;
#[path = "../support/objects.rs"]
mod objects;
#[path = "../support/release.rs"]
mod release;

mod certificates;
mod chart;
mod columns;
mod course;
mod deletion;
mod docs;
mod docs_pods;
mod guests;
mod increments;
mod kills;
mod kinds;
mod main_job;
mod metrics;
mod nodes;
mod plane;
mod pods;
mod quiesce;
mod rights;
mod targets;
mod tenancy;
