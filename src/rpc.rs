//! The contract between controller and agents on the wire: the generated protocol, the table of refusals, mutual TLS
//! and the controller's client. The agent's server side is `agent::service`; only the two of them name tonic.

pub mod client;
pub mod convert;
pub mod server;
pub mod status;
pub mod tls;

/// The generated types of `proto/driftline/agent/v1/agent.proto`.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("driftline.agent.v1");
}

/// Largest request that an agent reads, in bytes.
pub const MAX_REQUEST: usize = 1 << 20;

/// Largest answer that an agent sends and a controller reads, in bytes.
pub const MAX_ANSWER: usize = 4 << 20;
