//! What can fail in a reconcile, with the word for metrics and what trying again can do.

use crate::{retry::Retry, rpc::client::RpcError};

/// A step of a reconcile that failed. The object is tried again; a plan that cannot go on is no error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not take a status.
    #[error("Writing the status of {kind} {name} failed")]
    WriteStatus {
        /// The kind.
        kind: String,
        /// Namespace and name.
        name: String,
        /// What the client says.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server did not make an object.
    #[error("Writing {kind} {name} failed")]
    WriteObject {
        /// The kind.
        kind: String,
        /// Namespace and name.
        name: String,
        /// What the client says.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server did not set or take the finalizer.
    #[error("Changing the finalizer of {kind} {name} failed")]
    Finalizer {
        /// The kind.
        kind: String,
        /// Namespace and name.
        name: String,
        /// What the client says.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server did not delete an object.
    #[error("Deleting {kind} {name} failed")]
    Delete {
        /// The kind.
        kind: String,
        /// Namespace and name.
        name: String,
        /// What the client says.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server did not say whether a node is there.
    #[error("Looking up node {node} failed")]
    LookUpNode {
        /// The node.
        node: String,
        /// What the client says.
        #[source]
        source: Box<kube::Error>,
    },
    /// An agent did not answer.
    #[error("An agent did not answer about {subject}")]
    Agent {
        /// What was asked about.
        subject: String,
        /// What the call failed with.
        #[source]
        source: RpcError,
    },
    /// A computed name is taken by an object that is not ours.
    #[error("{kind} {name} is there and was not made by the controller")]
    Foreign {
        /// The kind.
        kind: &'static str,
        /// Namespace and name.
        name: String,
    },
}

impl Error {
    /// The word for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Error::WriteStatus { .. } => "WriteStatusFailed",
            Error::WriteObject { .. } => "WriteObjectFailed",
            Error::Finalizer { .. } => "FinalizerFailed",
            Error::Delete { .. } => "DeleteFailed",
            Error::LookUpNode { .. } => "LookUpFailed",
            Error::Agent { .. } => "AgentUnavailable",
            Error::Foreign { .. } => "ForeignObject",
        }
    }

    /// Whether the API server understood and said no, which it will say again.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            Error::WriteObject { source, .. } => [403, 404, 409, 422].iter().any(|code| is_code(source, *code)),
            Error::WriteStatus { .. }
            | Error::Finalizer { .. }
            | Error::Delete { .. }
            | Error::LookUpNode { .. }
            | Error::Agent { .. }
            | Error::Foreign { .. } => false,
        }
    }

    /// What the API server says about a field that another manager holds; None where that is not what went wrong.
    pub(super) fn field_conflict(&self) -> Option<&str> {
        let (Error::WriteStatus { source, .. } | Error::WriteObject { source, .. }) = self else { return None };
        let kube::Error::Api(status) = source.as_ref() else { return None };
        let causes = status.details.iter().flat_map(|details| &details.causes);
        (status.code == 409 && causes.into_iter().any(|cause| cause.reason == "FieldManagerConflict"))
            .then_some(status.message.as_str())
    }

    /// What trying again can do.
    pub fn retry(&self) -> Retry {
        match self {
            Error::Finalizer { source, .. } if is_code(source, 409) => Retry::Now,
            Error::WriteStatus { .. }
            | Error::WriteObject { .. }
            | Error::Finalizer { .. }
            | Error::Delete { .. }
            | Error::LookUpNode { .. } => Retry::Backoff,
            Error::Agent { source, .. } => source.retry(),
            Error::Foreign { .. } => Retry::OnChange,
        }
    }
}

/// Whether the API server answered with this HTTP status.
pub(crate) fn is_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}
