//! How a command can fail, and what that says of its having been done.

use std::time::Duration;

use crate::retry::Retry;

/// A command that did not do what it was sent for.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// The connection ended. Whether the command was done must be found out by reading the state again.
    #[error("Connection to QEMU ended before the answer to {command}")]
    Disconnected {
        /// The command.
        command: &'static str,
    },
    /// No answer in time. Whether the command was or will be done must be found out by reading the state again.
    #[error("QEMU did not answer {command} within {seconds} s", seconds = deadline.as_secs())]
    TimedOut {
        /// The command.
        command: &'static str,
        /// How long was waited.
        deadline: Duration,
    },
    /// QEMU refused it; nothing was done.
    #[error("QEMU refused {command}: {description} ({class})")]
    Qemu {
        /// The command.
        command: &'static str,
        /// QEMU's error class.
        class: String,
        /// QEMU's words.
        description: String,
    },
    /// QEMU did it, but its answer lacks what this build needs.
    #[error("Answer of QEMU to {command} is not understood")]
    Malformed {
        /// The command.
        command: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The command's arguments have no JSON form; nothing was sent.
    #[error("Arguments of {command} cannot be written as JSON")]
    Arguments {
        /// The command.
        command: &'static str,
        /// What is wrong with them.
        #[source]
        source: serde_json::Error,
    },
    /// The descriptor could not be duplicated for sending; nothing was sent.
    #[error("Descriptor for {command} could not be duplicated")]
    Descriptor {
        /// The command.
        command: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// It was not sent, because it could kill the guest or destroy data.
    #[error("Refused to send {command}: {why}")]
    Endangers {
        /// The command.
        command: &'static str,
        /// What it does.
        why: &'static str,
    },
}

impl ExecuteError {
    /// One word for conditions, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Disconnected { .. } => "MonitorDisconnected",
            Self::TimedOut { .. } => "MonitorTimedOut",
            Self::Qemu { .. } => "RefusedByQEMU",
            Self::Malformed { .. } => "AnswerNotUnderstood",
            Self::Arguments { .. } => "ArgumentsNotWritable",
            Self::Descriptor { .. } => "DescriptorNotSent",
            Self::Endangers { .. } => "EndangersGuest",
        }
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Disconnected { .. } | Self::TimedOut { .. } | Self::Descriptor { .. } => Retry::Backoff,
            Self::Qemu { .. } | Self::Malformed { .. } | Self::Arguments { .. } | Self::Endangers { .. } => {
                Retry::OnChange
            }
        }
    }

    /// The command that failed.
    pub fn command(&self) -> &'static str {
        match self {
            Self::Disconnected { command }
            | Self::TimedOut { command, .. }
            | Self::Qemu { command, .. }
            | Self::Malformed { command, .. }
            | Self::Arguments { command, .. }
            | Self::Descriptor { command, .. }
            | Self::Endangers { command, .. } => command,
        }
    }

    /// True when QEMU refused it with this error class, or with these words among others.
    pub fn is_qemu(&self, words: &str) -> bool {
        matches!(self, Self::Qemu { class, description, .. } if class == words || description.contains(words))
    }
}
