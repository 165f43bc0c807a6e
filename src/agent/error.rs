//! Why an agent ended by itself.

use std::{io, net::SocketAddr};

use crate::{config::ConfigError, engine::EngineError, retry::Retry, rpc::server::ServeError};

/// Why an agent ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// An address cannot be listened on.
    #[error("Listening on {address} failed")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Signals cannot be heard.
    #[error("Installing the signal handlers failed")]
    Signals {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The journal cannot be used.
    #[error("Starting the engine failed")]
    Engine {
        /// Why.
        #[source]
        source: EngineError,
    },
    /// The host configuration names somebody who is not there.
    #[error("The host configuration cannot be used")]
    Config {
        /// Why.
        #[source]
        source: ConfigError,
    },
    /// The gRPC server failed.
    #[error("The agent's server ended")]
    Serve {
        /// Why.
        #[source]
        source: ServeError,
    },
}

impl AgentError {
    /// The word for logs.
    pub fn reason(&self) -> &'static str {
        match self {
            AgentError::Listen { .. } => "AddressNotUsable",
            AgentError::Signals { .. } => "SignalsNotUsable",
            AgentError::Engine { source } => source.reason(),
            AgentError::Config { source } => source.reason(),
            AgentError::Serve { source } => source.reason(),
        }
    }

    /// Whether a new start can help.
    pub fn retry(&self) -> Retry {
        match self {
            AgentError::Listen { .. } | AgentError::Signals { .. } => Retry::Backoff,
            AgentError::Engine { source } => source.retry(),
            AgentError::Config { source } => source.retry(),
            AgentError::Serve { source } => source.retry(),
        }
    }
}
