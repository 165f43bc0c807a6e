//! Tests against a real QEMU with real disks.
#![allow(clippy::unwrap_used, missing_docs)]

mod cli;
mod docs;
mod engine;
#[path = "../support/guides.rs"]
mod guides;
#[path = "../support/lab.rs"]
mod lab;
mod lab_smoke;
mod qmp;
mod restore;
mod torture;
