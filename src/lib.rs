//! Driftline: exact, incremental backups of running QEMU/KVM machines.
//!
//! The library behind the one binary. Read it in the order of the data flow: `api` (what a person asks for),
//! `controller` (who turns it into requests), `rpc` (the contract), `agent` (who takes them on a node), `engine` (the
//! commit protocol), `qmp` (how QEMU is spoken to), `repo` and `qcow2` (what is stored). `ids` names things, `chain`
//! decides about points; both are pure. Layer rules stand in ARCHITECTURE.md and are checked by a test.

pub mod admin;
pub mod agent;
pub mod api;
pub mod certs;
pub mod chain;
pub mod cli;
pub mod clock;
pub mod config;
pub mod controller;
pub mod engine;
pub mod guest_agent;
pub mod ids;
pub mod metrics;
pub mod qcow2;
pub mod qmp;
pub mod repo;
pub mod retry;
pub mod rpc;
pub mod sentence;
pub mod shutdown;
pub mod telemetry;
