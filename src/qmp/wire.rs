//! Lines and messages of QMP. Pure: bytes in, messages out, and the other way round.
//!
//! QEMU sends one JSON object per line. A line is bounded, so that no peer can take our memory, and a line that is no
//! message of QMP is an error of that line alone: what follows it is read as usual.

use serde::{Deserialize, Deserializer, Serialize, de::IgnoredAny};
use serde_json::Value;

use super::{event::Event, event::WireTime, version::Version};

/// The longest line that is taken, in bytes. The largest answer seen is `query-qmp-schema` with 200 KiB; that of
/// `query-named-block-nodes` grows by some 2 KiB for each node.
pub const MAX_LINE: usize = 16 << 20;

/// A message from QEMU.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The first line of a connection.
    Greeting {
        /// The version of QEMU.
        version: Version,
        /// Such as `oob`.
        capabilities: Vec<String>,
    },
    /// An answer to a command; its content is read by who sent it (`read_answer`).
    Reply {
        /// The id of the command, as it was sent: any JSON.
        id: Option<Value>,
    },
    /// Said unasked.
    Event(Event),
}

/// A line that is no message of QMP.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// It is not a JSON object.
    #[error("Line is not a JSON object: {excerpt:?}")]
    NotJson {
        /// Its beginning.
        excerpt: String,
    },
    /// It is JSON, but neither greeting, reply nor event.
    #[error("Line is JSON but no message of QMP: {excerpt:?}")]
    NotQmp {
        /// Its beginning.
        excerpt: String,
    },
    /// It has no end within the bound. What follows cannot be understood any more.
    #[error("Line is longer than {limit} bytes")]
    TooLong {
        /// The bound.
        limit: usize,
    },
}

/// Puts together lines from pieces of any size.
#[derive(Debug)]
pub struct Lines {
    buffer: Vec<u8>,
    /// What was looked through for an end of line already.
    searched: usize,
    limit: usize,
}

impl Lines {
    /// No line yet; lines of at most `limit` bytes without their end.
    pub fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), searched: 0, limit }
    }

    /// Takes what was read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line without its end, blank ones left out; `None` when more must be read first.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, WireError> {
        loop {
            let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
                self.searched = self.buffer.len();
                if self.buffer.len() > self.limit {
                    return Err(WireError::TooLong { limit: self.limit });
                }
                return Ok(None);
            };
            let end = self.searched + end;
            if end > self.limit {
                return Err(WireError::TooLong { limit: self.limit });
            }
            let rest = self.buffer.split_off(end + 1);
            let mut line = std::mem::replace(&mut self.buffer, rest);
            self.searched = 0;
            line.truncate(line.trim_ascii_end().len());
            if !line.is_empty() {
                return Ok(Some(line));
            }
        }
    }
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(rename = "QMP")]
    greeting: Option<GreetingBody>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    timestamp: Option<WireTime>,
    id: Option<Value>,
    #[serde(rename = "return", default, deserialize_with = "is_there")]
    has_return: bool,
    #[serde(rename = "error", default, deserialize_with = "is_there")]
    has_error: bool,
}

#[derive(Deserialize)]
struct GreetingBody {
    version: Version,
    #[serde(default)]
    capabilities: Vec<Value>,
}

fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer)?;
    Ok(true)
}

/// What a line says.
pub fn parse(line: &[u8]) -> Result<Message, WireError> {
    let envelope: Envelope = serde_json::from_slice(line).map_err(|_| {
        let is_object = serde_json::from_slice::<serde_json::Map<String, Value>>(line).is_ok();
        let excerpt = excerpt(line);
        if is_object { WireError::NotQmp { excerpt } } else { WireError::NotJson { excerpt } }
    })?;
    if let Some(GreetingBody { version, capabilities }) = envelope.greeting {
        let capabilities = capabilities.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        return Ok(Message::Greeting { version, capabilities });
    }
    if envelope.has_return || envelope.has_error {
        return Ok(Message::Reply { id: envelope.id });
    }
    match envelope.event {
        Some(name) => Ok(Message::Event(Event {
            name,
            data: envelope.data,
            timestamp: envelope.timestamp.and_then(WireTime::timestamp),
        })),
        None => Err(WireError::NotQmp { excerpt: excerpt(line) }),
    }
}

/// The beginning of a line, fit to be shown.
pub fn excerpt(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned()
}

/// What QEMU answers when it refuses a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuError {
    /// Such as `GenericError`, `CommandNotFound`, `DeviceNotFound`.
    pub class: String,
    /// QEMU's own words.
    pub desc: String,
}

#[derive(Deserialize)]
struct Answer<T> {
    #[serde(rename = "return")]
    value: Option<T>,
    error: Option<QemuError>,
}

/// The content of a reply's line: what the command returns, or QEMU's refusal.
pub fn read_answer<T: serde::de::DeserializeOwned>(line: &[u8]) -> serde_json::Result<Result<T, QemuError>> {
    let answer: Answer<T> = serde_json::from_slice(line)?;
    match (answer.error, answer.value) {
        (Some(error), _) => Ok(Err(error)),
        (None, Some(value)) => Ok(Ok(value)),
        // A command that returns `null` fits only a type that takes it.
        (None, None) => serde_json::from_value(Value::Null).map(Ok),
    }
}

#[derive(Serialize)]
struct Request<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    execute: Option<&'a str>,
    #[serde(rename = "exec-oob", skip_serializing_if = "Option::is_none")]
    exec_oob: Option<&'a str>,
    #[serde(skip_serializing_if = "is_empty")]
    arguments: &'a Value,
    id: &'a str,
}

fn is_empty(arguments: &&Value) -> bool {
    arguments.is_null() || arguments.as_object().is_some_and(serde_json::Map::is_empty)
}

/// A command as a line, with its end. `out_of_band` overtakes what QEMU's main loop is busy with; it needs the
/// capability `oob`.
pub fn encode(command: &str, arguments: &Value, id: &str, out_of_band: bool) -> Vec<u8> {
    let (execute, exec_oob) = if out_of_band { (None, Some(command)) } else { (Some(command), None) };
    let request = Request { execute, exec_oob, arguments, id };
    // Texts, numbers and maps with text keys always have a JSON form.
    let mut line = serde_json::to_vec(&request).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests;
