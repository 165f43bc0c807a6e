//! Why there is no authority to sign with.

use crate::{
    certs::authority::{AuthorityError, Validity},
    retry::Retry,
    rpc::tls::TlsError,
};

/// Why there is no authority to sign with.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The API server did not give or take an object.
    #[error("{verb} {kind} {name} failed")]
    Api {
        /// `Reading` or `Writing`.
        verb: &'static str,
        /// Its kind.
        kind: &'static str,
        /// Its namespace and name.
        name: String,
        /// What the client says.
        #[source]
        source: Box<kube::Error>,
    },
    /// Somebody else has to put an authority into the Secret.
    #[error(
        "Secret {secret} has no tls.crt and tls.key: an authority is waited for, such as a cert-manager Certificate \
             with isCA: true writes it"
    )]
    Missing {
        /// Its namespace and name.
        secret: String,
    },
    /// What is in the Secret cannot be used.
    #[error("tls.crt and tls.key of Secret {secret} cannot be used as an authority")]
    Unusable {
        /// Its namespace and name.
        secret: String,
        /// Why.
        #[source]
        source: AuthorityError,
    },
    /// It has ended, or begins later: it or this host's clock is wrong.
    #[error(
        "The authority in Secret {secret} is valid from {} until {}, and here it is {}: put another one there, or set the \
         clock right",
        moment(validity.from), moment(validity.until), moment(*now)
    )]
    NotNow {
        /// Its namespace and name.
        secret: String,
        /// When it is valid.
        validity: Validity,
        /// The time here, in seconds since 1970.
        now: u64,
    },
    /// The controller's own certificate cannot be used.
    #[error("The controller's own certificate cannot be used")]
    Own {
        /// Why.
        #[source]
        source: TlsError,
    },
}

impl KeepError {
    /// The word for logs and the readiness probe.
    pub fn reason(&self) -> &'static str {
        match self {
            KeepError::Api { .. } => "AuthorityUnavailable",
            KeepError::Missing { .. } => "AuthorityMissing",
            KeepError::NotNow { .. } => "AuthorityNotValid",
            KeepError::Unusable { source, .. } => source.reason(),
            KeepError::Own { source } => source.reason(),
        }
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            KeepError::Api { .. } => Retry::Backoff,
            KeepError::Missing { .. } | KeepError::Unusable { .. } | KeepError::NotNow { .. } => Retry::OnChange,
            KeepError::Own { source } => source.retry(),
        }
    }
}

fn moment(second: u64) -> String {
    let second = i64::try_from(second).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(second).map_or_else(|_| second.to_string(), |moment| moment.to_string())
}
