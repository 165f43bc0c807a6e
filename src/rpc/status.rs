//! The one table of refusals and gRPC codes (edge). An agent's refusal carries its reason and what it says about trying
//! again in the trailers, so that a controller's condition has the same word as the agent's log.

use tonic::{Code, Status, metadata::MetadataValue};

use crate::retry::Retry;

/// The trailer with the PascalCase reason.
const REASON: &str = "driftline-reason";
/// The trailer with what is said about trying again: `now`, `backoff` or `on-change`.
const RETRY: &str = "driftline-retry";

/// The kinds of refusal that the contract knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request itself is wrong, whatever the state of the world.
    Invalid,
    /// What the request names is not here.
    NotFound,
    /// The name is taken by something else.
    Conflict,
    /// The world is not as the request needs it.
    Precondition,
    /// Too much at once.
    Busy,
    /// The agent is about to go or has just come.
    Unavailable,
    /// Something below did not answer in time: a hung file system, as a rule.
    Deadline,
    /// The agent itself failed.
    Internal,
}

/// Kind, code on the wire, and the retry that is assumed when a peer says none.
const TABLE: [(Kind, Code, Retry); 8] = [
    (Kind::Invalid, Code::InvalidArgument, Retry::OnChange),
    (Kind::NotFound, Code::NotFound, Retry::OnChange),
    (Kind::Conflict, Code::AlreadyExists, Retry::OnChange),
    (Kind::Precondition, Code::FailedPrecondition, Retry::OnChange),
    (Kind::Busy, Code::ResourceExhausted, Retry::Backoff),
    (Kind::Unavailable, Code::Unavailable, Retry::Backoff),
    (Kind::Deadline, Code::DeadlineExceeded, Retry::Backoff),
    (Kind::Internal, Code::Internal, Retry::Backoff),
];

/// A request that an agent refused or could not fulfil.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of refusal it is.
    pub kind: Kind,
    /// PascalCase: condition reason, Event reason, metric label.
    pub reason: String,
    /// A sentence that names the operation, the subject and the way out.
    pub message: String,
    /// Whether trying again can help.
    pub retry: Retry,
}

impl Refusal {
    /// A refusal of a kind, with the retry that the table gives for it.
    pub fn new(kind: Kind, reason: &str, message: impl Into<String>) -> Self {
        Self { kind, reason: reason.to_owned(), message: message.into(), retry: row(kind).2 }
    }

    /// The same with another word about trying again.
    pub fn retry(self, retry: Retry) -> Self {
        Self { retry, ..self }
    }
}

fn row(kind: Kind) -> (Kind, Code, Retry) {
    TABLE.into_iter().find(|row| row.0 == kind).unwrap_or((Kind::Internal, Code::Internal, Retry::Backoff))
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        let mut status = Status::new(row(refusal.kind).1, refusal.message);
        let retry = match refusal.retry {
            Retry::Now => "now",
            Retry::Backoff => "backoff",
            Retry::OnChange => "on-change",
        };
        status.metadata_mut().insert(RETRY, MetadataValue::from_static(retry));
        if let Ok(reason) = MetadataValue::try_from(refusal.reason) {
            status.metadata_mut().insert(REASON, reason);
        }
        status
    }
}

/// Reads a refusal back. None: the status does not come from an agent's code but from the transport below it.
pub fn refusal(status: &Status) -> Option<Refusal> {
    let reason = status.metadata().get(REASON)?.to_str().ok()?;
    if reason.is_empty() || reason.len() > 64 || !reason.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    let (kind, _, assumed) = TABLE.into_iter().find(|row| row.1 == status.code())?;
    let retry = match status.metadata().get(RETRY).and_then(|value| value.to_str().ok()) {
        Some("now") => Retry::Now,
        Some("backoff") => Retry::Backoff,
        Some("on-change") => Retry::OnChange,
        _ => assumed,
    };
    Some(Refusal { kind, reason: reason.to_owned(), message: status.message().to_owned(), retry })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_refusal_reads_back_as_it_was_sent() {
        for (kind, ..) in TABLE {
            for retry in [Retry::Now, Retry::Backoff, Retry::OnChange] {
                let sent = Refusal::new(kind, "GuestNotFound", "Guest team-a/db-1 is not on this node").retry(retry);
                assert_eq!(refusal(&Status::from(sent.clone())), Some(sent));
            }
        }
    }

    #[test]
    fn no_two_kinds_share_a_code() {
        let codes: std::collections::BTreeSet<i32> = TABLE.iter().map(|row| row.1 as i32).collect();
        assert_eq!(codes.len(), TABLE.len());
    }

    #[test]
    fn a_status_of_the_transport_is_no_refusal() {
        assert_eq!(refusal(&Status::unavailable("connection reset")), None);
        let mut odd = Status::not_found("x");
        odd.metadata_mut().insert(REASON, MetadataValue::from_static("not a reason"));
        assert_eq!(refusal(&odd), None);
    }
}
