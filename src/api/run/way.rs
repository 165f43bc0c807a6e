//! How a run is done: what keeps the guest from its target, whether it is frozen, which way the data takes. Pure.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the guest is kept from the repository.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Fleecing {
    /// Auto (the default): from QEMU 8.2 on, where the node's host.toml has a `[scratch]` folder with room and the copy is not
    /// staged there anyhow; else the job writes to its target by itself. Always: or the run fails. Never: not at all. Example: `Always`.
    #[serde(default)]
    pub mode: FleecingMode,
}

/// When a run is fleeced.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FleecingMode {
    /// Where it can be done.
    #[default]
    Auto,
    /// Or the run fails.
    Always,
    /// Not at all.
    Never,
}

/// Whether the guest's file systems stand still at the instant.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Quiesce {
    /// Preferred: where the guest's file on its node names a guest agent and that does it; else the point shows the disks as after
    /// a power cut, and the condition `Quiesced` says why. Required: or the run fails. Never (the default): not at all. Example:
    /// `Preferred`.
    #[serde(default)]
    pub mode: QuiesceMode,
    /// How long the freeze may take, in which programs of the guest that write stand still. Default `10s`. Example: `30s`.
    #[serde(default = "default_freeze_timeout")]
    #[schemars(length(max = 28))]
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]?s$')").message("freezeTimeout is a number of seconds from 1s to 99s, such as 10s"))]
    pub freeze_timeout: String,
}

impl Default for Quiesce {
    fn default() -> Self {
        Self { mode: QuiesceMode::default(), freeze_timeout: default_freeze_timeout() }
    }
}

fn default_freeze_timeout() -> String {
    "10s".to_owned()
}

/// When a guest is frozen.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QuiesceMode {
    /// Or the run fails.
    Required,
    /// Where it can be done.
    Preferred,
    /// Not at all.
    #[default]
    Never,
}

/// How the data is carried.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Transfer {
    /// The most bytes per second that each disk's job copies by itself. What the guest overwrites before it was copied is
    /// copied at once, on top of that. It may be changed while the run goes. Without it: as fast as possible. Example: `100Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 28))]
    #[x_kube(
        validation = Rule::new(crate::api::quantity::RULE).message(crate::api::quantity::RULE_SAYS),
        validation = Rule::new(crate::api::quantity::RATE_RULE).message(crate::api::quantity::RATE_RULE_SAYS)
    )]
    pub bandwidth: Option<String>,
    /// Direct: QEMU writes the repository's files, which have to be on a local file system. Staged: it writes files in the
    /// `[scratch]` folder of the node's host.toml, with room for all of them, which are carried to the repository once they are
    /// whole; the guest has nothing to do with the repository then. Auto (the default): Direct where the repository is local,
    /// else Staged. Example: `Staged`.
    #[serde(default)]
    pub data_path: DataPath,
}

/// Which way the data takes.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataPath {
    /// The shortest one that is safe for the guest.
    #[default]
    Auto,
    /// Straight into the repository.
    Direct,
    /// By way of the scratch folder.
    Staged,
}
