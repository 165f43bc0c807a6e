//! Why the course of a run is not what somebody wished.

use super::SUSPEND_NEEDS_FLEECING;
use crate::ids::GuestId;

/// A run that goes another way than was wished.
#[derive(Debug, thiserror::Error)]
pub enum CourseError {
    /// A run was suspended and nobody resumed it.
    #[error(
        "The run was suspended for {minutes} minutes, and what the guest overwrites meanwhile fills the scratch: it was cancelled. \
         Resume the next one sooner, or lower its bandwidth instead"
    )]
    SuspendedTooLong {
        /// How long it may be.
        minutes: u64,
    },
    /// There is nothing whose course could be changed.
    #[error(
        "No backup of guest {guest} is going on that this host's journal knows; `driftline jobs` shows what QEMU does"
    )]
    NoRun {
        /// The guest.
        guest: GuestId,
    },
    /// A run cannot be changed any more.
    #[error("Run {run} has copied everything, or is being undone: its course cannot be changed any more")]
    TooLate {
        /// The run.
        run: String,
    },
    /// Whoever drives a run does not hear what is wished.
    #[error(
        "Run {run} is worked on by {holder}, which has not followed for half a minute. What you wished stands in the journal, and \
         is followed as soon as it looks"
    )]
    NotHeard {
        /// The run.
        run: String,
        /// Who drives it.
        holder: String,
    },
    /// A run that is not fleeced cannot stand still.
    #[error(
        "Run {run} is not fleeced: what the guest writes goes to its target before it is copied, however long the copy stands \
         still. `driftline bandwidth` slows it down, `driftline cancel` ends it"
    )]
    SuspendNeedsFleecing {
        /// The run.
        run: String,
    },
}

impl CourseError {
    /// The reason word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::SuspendedTooLong { .. } => "SuspendedTooLong",
            Self::NoRun { .. } => "NoRun",
            Self::TooLate { .. } => "TooLate",
            Self::NotHeard { .. } => "NotHeard",
            Self::SuspendNeedsFleecing { .. } => SUSPEND_NEEDS_FLEECING,
        }
    }
}
