//! QEMU's monitor protocol, spoken by a client of our own: what the engine and the agent know of a running QEMU
//! comes through here. It knows nothing of Kubernetes, of repositories or of gRPC.
//!
//! Reading order: `wire` (lines and messages, pure), `command` (what can be sent), `block` (what comes back, pure),
//! `quirks` (what must never be sent, pure), `schema` (what this QEMU can do), `transport` (the socket), `client`
//! (one connection), `monitor` (one guest: connects when asked). `fake` is a scripted QEMU for tests and benches.
//!
//! A reply lost is not a command undone: after `Disconnected` and `TimedOut` the state must be read again, by job ids
//! and bitmap names (measured: commands sent just before a disconnect are dropped on QEMU 7.2, executed on 10.0).

pub mod block;
pub mod client;
pub mod command;
pub mod event;
#[cfg(feature = "fake")]
pub mod fake;
pub mod monitor;
pub mod process;
pub mod quirks;
pub mod schema;
pub mod transport;
pub mod version;
pub mod wire;

pub use client::{Client, ExecuteError};
pub use command::Command;
pub use event::Event;
pub use monitor::{ConnectError, ErrorObserver, Monitor, MonitorOptions};
pub use process::Process;
pub use schema::{Schema, Schemas};
pub use transport::Address;
pub use version::Version;
