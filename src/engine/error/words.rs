//! Reason words that are asked for elsewhere too, and the failure of a run that was cancelled.

use super::EngineError;
use crate::engine::journal::Failure;

/// The reason after which the guest is continued if it still stands in `io-error`.
pub(in crate::engine) const GUEST_HARMED: &str = "GuestHarmed";

/// What a run has left cannot be removed yet.
pub(in crate::engine) const TARGET_STUCK: &str = "TargetStuck";

/// A run that is not fleeced cannot stand still.
pub const SUSPEND_NEEDS_FLEECING: &str = "SuspendNeedsFleecing";

/// What is said of a cancelled run where nothing else is to be said.
pub const NOTHING_LEFT: &str = "The run was cancelled; nothing of it is left";

/// The failure of a run that somebody cancelled.
pub(in crate::engine) fn cancelled() -> Failure {
    Failure { reason: "Cancelled".to_owned(), message: NOTHING_LEFT.to_owned(), retriable: false, cancelled: true }
}

/// The failure of one of which nobody knows whether it was committed.
pub(in crate::engine) fn given_up(unknown: &EngineError) -> Failure {
    Failure { message: format!("The run was cancelled. {}", unknown.failure().message), ..cancelled() }
}
