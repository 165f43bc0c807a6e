//! Reason words that are asked for elsewhere too, and the failure of a run that was cancelled.

use crate::engine::journal::Failure;

/// The reason after which the guest is continued if it still stands in `io-error`.
pub(in crate::engine) const GUEST_HARMED: &str = "GuestHarmed";

/// What a run has left cannot be removed yet.
pub(in crate::engine) const TARGET_STUCK: &str = "TargetStuck";

/// The failure of a run that somebody cancelled.
pub(in crate::engine) fn cancelled() -> Failure {
    Failure {
        reason: "Cancelled".to_owned(),
        message: "The run was cancelled; nothing of it is left".to_owned(),
        retriable: false,
        cancelled: true,
    }
}
