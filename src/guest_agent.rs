//! The guest agent (edge): freezes and thaws the guest's file systems. `qemu-ga` speaks JSON lines over a socket of QEMU that
//! takes one client at a time; nobody answers where the guest is not up. Each command has a deadline, and one that was not
//! answered may still be done later: whoever freezes thaws, whatever the answer was.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::retry::Retry;

/// How long a command but the freeze may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Comes before an answer to `guest-sync-delimited`, and ends what a client before us left in the agent's parser.
const DELIMITER: u8 = 0xff;
/// No answer that is waited for here is longer.
const LONGEST: usize = 64 << 10;

/// What the agent did not do.
#[derive(Debug, thiserror::Error)]
pub enum GuestAgentError {
    /// There is no socket, or nobody listens.
    #[error("Guest agent at {} cannot be reached", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The agent does not run in the guest, another client holds it, or it hangs.
    #[error("Guest agent did not answer {command} within {} s", deadline.as_secs())]
    Silent {
        /// The command.
        command: &'static str,
        /// How long was waited.
        deadline: Duration,
    },
    /// The connection ended.
    #[error("Connection to the guest agent ended before the answer to {command}")]
    Disconnected {
        /// The command.
        command: &'static str,
    },
    /// The agent refused.
    #[error("Guest agent refused {command}: {description} ({class})")]
    Refused {
        /// The command.
        command: &'static str,
        /// Its error class.
        class: String,
        /// Its words.
        description: String,
    },
    /// The answer is no answer.
    #[error("Answer of the guest agent to {command} is not understood")]
    Malformed {
        /// The command.
        command: &'static str,
    },
}

impl GuestAgentError {
    /// The reason word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } | Self::Disconnected { .. } => "GuestAgentUnreachable",
            Self::Silent { .. } => "GuestAgentSilent",
            Self::Refused { .. } => "GuestAgentRefused",
            Self::Malformed { .. } => "GuestAgentNotUnderstood",
        }
    }

    /// What trying again can do.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Refused { class, .. } if class == "CommandNotFound" => Retry::OnChange,
            _ => Retry::Backoff,
        }
    }
}

/// Whether the guest's file systems take writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FreezeStatus {
    /// They do.
    Thawed,
    /// They do not.
    Frozen,
}

/// A connection to the agent of one guest.
#[derive(Debug)]
pub struct GuestAgent {
    stream: UnixStream,
    /// What was read behind the last answer.
    read: Vec<u8>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    class: String,
    #[serde(rename = "desc")]
    description: String,
}

impl GuestAgent {
    /// Connects, and waits until the agent answers to this client and to no one before it.
    ///
    /// # Errors
    /// When there is no socket, or no agent answers within 5 s.
    pub async fn connect(path: &Path) -> Result<Self, GuestAgentError> {
        let unreachable = |source| GuestAgentError::Unreachable { path: path.to_owned(), source };
        let connected = tokio::time::timeout(DEADLINE, UnixStream::connect(path)).await;
        let stream = connected
            .map_err(|_| GuestAgentError::Silent { command: "connect", deadline: DEADLINE })?
            .map_err(unreachable)?;
        let mut agent = Self { stream, read: Vec::new() };
        agent.sync().await?;
        Ok(agent)
    }

    /// Throws away what was answered to others, or too late.
    ///
    /// # Errors
    /// When the agent does not answer within 5 s.
    pub async fn sync(&mut self) -> Result<(), GuestAgentError> {
        const COMMAND: &str = "guest-sync-delimited";
        let id = rand::random::<u32>();
        let synced = async {
            self.send(COMMAND, &json!({ "id": id }), true).await?;
            loop {
                self.skip_to_delimiter(COMMAND).await?;
                if matches!(self.answer(COMMAND).await, Ok(value) if value == id) {
                    return Ok(());
                }
            }
        };
        within(COMMAND, DEADLINE, synced).await
    }

    /// Whether the guest is frozen.
    ///
    /// # Errors
    /// When the agent does not say.
    pub async fn status(&mut self) -> Result<FreezeStatus, GuestAgentError> {
        const COMMAND: &str = "guest-fsfreeze-status";
        let value = self.ask(COMMAND, DEADLINE).await?;
        serde_json::from_value(value).map_err(|_| GuestAgentError::Malformed { command: COMMAND })
    }

    /// Freezes all file systems that the agent knows; says how many. No answer in time: it may still be done, even much later.
    ///
    /// # Errors
    /// When the agent refuses (so it does while the guest is frozen) or does not answer.
    pub async fn freeze(&mut self, deadline: Duration) -> Result<u64, GuestAgentError> {
        self.count("guest-fsfreeze-freeze", deadline).await
    }

    /// Thaws them; says how many were frozen. Harmless where none is.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub async fn thaw(&mut self) -> Result<u64, GuestAgentError> {
        self.count("guest-fsfreeze-thaw", DEADLINE).await
    }

    async fn count(&mut self, command: &'static str, deadline: Duration) -> Result<u64, GuestAgentError> {
        self.ask(command, deadline).await?.as_u64().ok_or(GuestAgentError::Malformed { command })
    }

    async fn ask(&mut self, command: &'static str, deadline: Duration) -> Result<Value, GuestAgentError> {
        let asked = async {
            self.send(command, &Value::Null, false).await?;
            self.answer(command).await
        };
        within(command, deadline, asked).await
    }

    async fn send(&mut self, command: &'static str, arguments: &Value, delimited: bool) -> Result<(), GuestAgentError> {
        let mut message = json!({ "execute": command });
        if !arguments.is_null() {
            message["arguments"] = arguments.clone();
        }
        let mut bytes = if delimited { vec![DELIMITER] } else { Vec::new() };
        bytes.extend(message.to_string().into_bytes());
        bytes.push(b'\n');
        self.stream.write_all(&bytes).await.map_err(|_| GuestAgentError::Disconnected { command })
    }

    async fn skip_to_delimiter(&mut self, command: &'static str) -> Result<(), GuestAgentError> {
        loop {
            if let Some(at) = self.read.iter().position(|byte| *byte == DELIMITER) {
                self.read.drain(..=at);
                return Ok(());
            }
            self.read.clear();
            self.more(command).await?;
        }
    }

    async fn answer(&mut self, command: &'static str) -> Result<Value, GuestAgentError> {
        let malformed = || GuestAgentError::Malformed { command };
        let line = loop {
            if let Some(at) = self.read.iter().position(|byte| *byte == b'\n') {
                break self.read.drain(..=at).collect::<Vec<_>>();
            }
            if self.read.len() > LONGEST {
                return Err(malformed());
            }
            self.more(command).await?;
        };
        let answer: Answer = serde_json::from_slice(&line).map_err(|_| malformed())?;
        match (answer.value, answer.error) {
            (_, Some(Refusal { class, description })) => Err(GuestAgentError::Refused { command, class, description }),
            (Some(value), None) => Ok(value),
            (None, None) => Err(malformed()),
        }
    }

    async fn more(&mut self, command: &'static str) -> Result<(), GuestAgentError> {
        match self.stream.read_buf(&mut self.read).await {
            Ok(0) | Err(_) => Err(GuestAgentError::Disconnected { command }),
            Ok(_) => Ok(()),
        }
    }
}

async fn within<T>(
    command: &'static str,
    deadline: Duration,
    asked: impl Future<Output = Result<T, GuestAgentError>>,
) -> Result<T, GuestAgentError> {
    tokio::time::timeout(deadline, asked).await.unwrap_or(Err(GuestAgentError::Silent { command, deadline }))
}

#[cfg(test)]
mod tests;
