//! The host's own files (in): `host.toml` bounds what the agent and the command may reach, `guests.d/*.toml` says which
//! machines there are. Unknown keys are errors that name them, because a misspelt bound must not be no bound.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{ids::GuestId, retry::Retry};

mod check;

pub use check::Size;

/// Where the host configuration is looked for.
pub const DEFAULT_PATH: &str = "/etc/driftline/host.toml";
/// The environment variable that names another place.
pub const PATH_VARIABLE: &str = "DRIFTLINE_CONFIG";
/// A guest's file is a few lines; more than this is not one (bytes).
const MAX_FILE: u64 = 64 << 10;

/// A host's file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there or cannot be read.
    #[error("Reading {} failed", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML of the expected keys.
    #[error("{}{} {why}", path.display(), at(place))]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line and column, from 1, where the parser says where.
        place: Option<(usize, usize)>,
        /// What is wrong there.
        why: String,
    },
    /// A value breaks a rule.
    #[error("{}: {key} = {value:?} is not {expected}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What stands there.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
}

impl ConfigError {
    /// The word for Events, conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            ConfigError::Read { .. } => "HostFileUnreadable",
            ConfigError::Parse { .. } | ConfigError::Value { .. } => "HostFileInvalid",
        }
    }

    /// A person has to change the file.
    pub fn retry(&self) -> Retry {
        Retry::OnChange
    }
}

/// `/etc/driftline/host.toml`. Every key has a default, but none that opens a path: no roots, no repositories and no restores.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HostConfig {
    /// The journal's folder; on a disk that survives a reboot.
    pub state: PathBuf,
    /// The lock folder, one per host for agent and command.
    pub locks: PathBuf,
    /// The folder of the guests' files.
    pub guests: PathBuf,
    /// Owns repository files and runs `qemu-img`; none: whoever runs the agent.
    pub user: Option<String>,
    /// Nothing outside of these folders is ever a repository.
    pub repository_roots: Vec<PathBuf>,
    /// By namespace: nothing outside of these folders is ever written by a restore.
    pub restore_roots: BTreeMap<String, Vec<PathBuf>>,
    /// Stays free on a repository's file system beyond what a backup can need at most.
    pub reserve: Size,
    /// Where copies are staged beside the guest.
    pub scratch: Option<Scratch>,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            state: "/var/lib/driftline".into(),
            locks: "/run/driftline/locks".into(),
            guests: "/etc/driftline/guests.d".into(),
            user: None,
            repository_roots: Vec::new(),
            restore_roots: BTreeMap::new(),
            reserve: Size(256 << 20),
            scratch: None,
        }
    }
}

/// The `[scratch]` section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scratch {
    /// The folder.
    pub directory: PathBuf,
    /// How much of it may be used.
    pub budget: Size,
    /// Stays free on that file system.
    #[serde(default)]
    pub reserve: Size,
}

impl HostConfig {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// When it is not there, not TOML, has an unknown key or a path that is not absolute.
    pub fn load(path: &Path) -> Result<HostConfig, ConfigError> {
        let config: HostConfig = parse(path, &read(path)?)?;
        check::host(path, &config)?;
        Ok(config)
    }

    /// User and group of `user`: its entry in /etc/passwd, or numbers such as `998:998`.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn owner(&self, path: &Path) -> Result<Option<(u32, u32)>, ConfigError> {
        let Some(user) = &self.user else { return Ok(None) };
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        match check::user(user, &passwd) {
            Some(owner) => Ok(Some(owner)),
            None => Err(ConfigError::Value {
                path: path.to_owned(),
                key: "user".to_owned(),
                value: user.clone(),
                expected: "a user of /etc/passwd or numbers such as 998:998",
            }),
        }
    }

    /// The file that `DRIFTLINE_CONFIG` names, or the usual one.
    pub fn path() -> PathBuf {
        std::env::var_os(PATH_VARIABLE).map_or_else(|| DEFAULT_PATH.into(), PathBuf::from)
    }
}

/// One machine: a file of `guests.d`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GuestFile {
    /// The Guest's name.
    pub name: String,
    /// The Guest's namespace.
    pub namespace: String,
    /// The QMP socket.
    pub qmp: PathBuf,
    /// The guest agent's socket.
    pub guest_agent: Option<PathBuf>,
    /// Only where QEMU was started without one.
    pub uuid: Option<GuestId>,
    /// Labels of the Guest.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

impl GuestFile {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// When it cannot be read, is not TOML of these keys, or a name is none that Kubernetes accepts.
    pub fn load(path: &Path) -> Result<GuestFile, ConfigError> {
        let file: GuestFile = parse(path, &read(path)?)?;
        check::guest(path, &file)?;
        Ok(file)
    }
}

/// Whether a guest may have this name: one that Kubernetes accepts.
pub fn is_guest_name(text: &str) -> bool {
    check::is_dns_name(text)
}

/// The text of a regular file of at most 64 KiB.
///
/// # Errors
/// When it is none, or cannot be read.
pub fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let meta = fs::metadata(path).map_err(failed)?;
    // A FIFO would block for ever and a device would never end.
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "not a regular file of at most 64 KiB")));
    }
    fs::read_to_string(path).map_err(failed)
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        // The parser's own text is a drawing of several lines.
        let place = error.span().map(|span| place(text, span.start));
        ConfigError::Parse { path: path.to_owned(), place, why: error.message().replace('\n', ", ") }
    })
}

/// Line and column of a byte of the text.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

fn at(place: &Option<(usize, usize)>) -> String {
    place.map_or(":".to_owned(), |(line, column)| format!(", line {line}, column {column}:"))
}
