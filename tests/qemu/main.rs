//! Tests against a real QEMU with real disks.
#![allow(clippy::unwrap_used, missing_docs)]

mod qmp;
