//! The controller's arguments (pure).

use std::{net::SocketAddr, time::Duration};

use super::authority::{Terms, keep::Place};
use crate::api;

/// The controller's arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The headless Service by whose EndpointSlices the agents are found.
    #[arg(long, default_value = "driftline-agents", env = "DRIFTLINE_AGENTS_SERVICE")]
    pub agents_service: String,
    /// The namespace of that Service.
    #[arg(long, default_value = "driftline", env = "POD_NAMESPACE")]
    pub namespace: String,
    /// The ServiceAccount of the agents' pods, in that namespace: whoever shows its token is given an agent's certificate.
    #[arg(long, default_value = "driftline-agent")]
    pub agents_account: String,
    /// The Secret of that namespace with the authority that signs the certificates of controller and agents.
    #[arg(long, default_value = "driftline-authority")]
    pub authority_secret: String,
    /// The ConfigMap of that namespace in which the agents find whom to trust.
    #[arg(long, default_value = "driftline-authority")]
    pub authority_config_map: String,
    /// Somebody else puts the authority into the Secret, such as cert-manager: it is never written.
    #[arg(long)]
    pub given_authority: bool,
    /// How long an authority is valid, such as 3650d; a successor is made when a quarter of it is left.
    #[arg(long, default_value = "3650d", value_parser = api::duration::parse)]
    pub authority_lifetime: Duration,
    /// How long the certificates of controller and agents are valid, such as 30d; they are made anew when a third of it is
    /// left.
    #[arg(long, default_value = "30d", value_parser = api::duration::parse)]
    pub certificate_lifetime: Duration,
    /// How long a Guest stays whose node is gone from the cluster and that no other node has, such as 1d. Then its object is
    /// deleted; its restore points stay.
    #[arg(long, default_value = "1d", value_parser = api::duration::parse)]
    pub forget_guests_after: Duration,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, default_value = "[::]:8081", env = "DRIFTLINE_ADMIN_LISTEN")]
    pub admin_listen: SocketAddr,
}

impl Args {
    /// Where the authority is.
    pub fn place(&self) -> Place {
        Place {
            namespace: self.namespace.clone(),
            secret: self.authority_secret.clone(),
            config_map: self.authority_config_map.clone(),
        }
    }

    /// How long it signs for, and whose it is.
    pub fn terms(&self) -> Terms {
        Terms {
            authority: self.authority_lifetime,
            certificate: self.certificate_lifetime,
            given: self.given_authority,
        }
    }
}
