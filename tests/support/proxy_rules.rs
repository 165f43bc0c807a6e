//! What a test and its monitor proxy say to each other on the proxy's control socket: one JSON document a line.

use serde::{Deserialize, Serialize};

/// What the proxy does to one command. Each rule acts once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rule {
    /// The command; `None`: any.
    pub command: Option<String>,
    /// Which one of them, counted from 1 from the moment the rule is set.
    pub nth: u32,
    /// What happens to it.
    pub action: Action,
}

/// The fates of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Not forwarded until the test releases it; lost when its sender hangs up meanwhile. What follows waits too.
    Hold,
    /// QEMU does it at once; the reply, and all that follows it, waits until the test releases it.
    HoldReply,
    /// QEMU does it; the reply never arrives. The connection stays.
    DropReply,
    /// QEMU does it; the reply comes after so many milliseconds.
    DelayReply(u64),
    /// The connection is cut and QEMU never sees the command.
    CutBefore,
    /// QEMU does it; instead of the reply the connection is cut.
    CutReply,
}

/// From the test to the proxy.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Adds a rule.
    Rule(Rule),
    /// Forgets all rules.
    Clear,
    /// Lets what is held go on.
    Release,
    /// Only asks.
    State,
}

/// From the proxy to the test, after each request.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct State {
    /// Whether something is held.
    pub held: bool,
    /// How many rules have acted.
    pub fired: u32,
    /// Connections accepted.
    pub connections: u32,
    /// All commands that QEMU got, in their order.
    pub commands: Vec<Sent>,
}

/// A command that was forwarded.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sent {
    /// The connection, counted from 1.
    pub connection: u32,
    /// The command.
    pub command: String,
    /// Its arguments.
    #[serde(default)]
    pub arguments: serde_json::Value,
}
