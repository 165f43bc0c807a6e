//! Why a manifest is none.

use super::FORMAT;
use crate::retry::Retry;

/// Why a manifest is none.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or a key is missing or of another type.
    #[error("The manifest cannot be read")]
    Malformed {
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// Written by a newer Driftline.
    #[error("The manifest has format {format}, this version reads up to {FORMAT}")]
    TooNew {
        /// Its format.
        format: u64,
    },
    /// Two parts of it disagree.
    #[error("The manifest contradicts itself: {why}")]
    Contradiction {
        /// How.
        why: String,
    },
}

impl ManifestError {
    /// Reason word for conditions, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed { .. } | Self::Contradiction { .. } => "ManifestUnreadable",
            Self::TooNew { .. } => "RepositoryTooNew",
        }
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        Retry::OnChange
    }
}
