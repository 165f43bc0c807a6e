//! Whether the guest's file systems stand still at the instant, by its guest agent. Pure.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{guest_agent::GuestAgentError, sentence::sentence};

/// What is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum QuiesceMode {
    /// Or the run fails.
    Required,
    /// Where it can be done.
    Preferred,
    /// Not at all.
    #[default]
    Never,
}

/// How a run quiesces its guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quiesce {
    /// What is asked for.
    pub mode: QuiesceMode,
    /// How many seconds the freeze may take.
    pub freeze_timeout: u32,
    /// The guest agent's socket on this host; none where nobody has named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_agent: Option<PathBuf>,
}

/// Seconds that a freeze may take where nobody says.
pub const FREEZE_TIMEOUT: u32 = 10;

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all_fields = "camelCase")]
pub enum Quiesced {
    /// The point shows file systems that stood still.
    Frozen {
        /// For how long they did, in milliseconds.
        frozen_for: u64,
    },
    /// It shows them as after a power cut.
    NotFrozen {
        /// The reason word.
        reason: String,
        /// The same as a sentence.
        message: String,
    },
}

/// That the guest is not frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfrozen {
    /// The reason word.
    pub reason: &'static str,
    /// The same as a sentence.
    pub message: String,
}

impl From<NotFrozen> for Unfrozen {
    fn from(why: NotFrozen) -> Self {
        Self { reason: why.reason(), message: why.to_string() }
    }
}

impl From<&GuestAgentError> for Unfrozen {
    fn from(error: &GuestAgentError) -> Self {
        Self { reason: error.reason(), message: sentence(error) }
    }
}

impl From<Unfrozen> for Quiesced {
    fn from(Unfrozen { reason, message }: Unfrozen) -> Self {
        Self::NotFrozen { reason: reason.to_owned(), message }
    }
}

/// Why the guest is not frozen, where its agent was not even asked, or did not do what it said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotFrozen {
    /// Nobody has named the socket.
    #[error("No guest agent's socket is known: name it as guestAgent in the guest's file, or with --guest-agent")]
    NoSocket,
    /// Its agent would not answer, and a freeze that is queued comes after it goes on.
    #[error("The guest does not run")]
    NotRunning,
    /// It is somebody else's to thaw.
    #[error("The guest was frozen already, by somebody else: `guest-fsfreeze-thaw` lets it write again")]
    FoundFrozen,
    /// The freeze ended by itself or by somebody's hand.
    #[error("The guest was thawed before the instant was over")]
    ThawedEarly,
}

impl NotFrozen {
    /// The reason word.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NoSocket => "GuestAgentUnknown",
            Self::NotRunning => "GuestNotRunning",
            Self::FoundFrozen => "FoundFrozen",
            Self::ThawedEarly => "ThawedEarly",
        }
    }
}
