//! The folders of the host outside of which nothing is ever read or written for a custom resource. A path is looked at
//! twice: as text (absolute, no `..`, beneath a root), and by the kernel, which opens it beneath the opened root
//! without following a symbolic link.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

use super::store::{Gate, open_beneath};
use crate::retry::Retry;

/// Folders that bound what may be reached. None: nothing may.
#[derive(Clone, Default)]
pub struct Roots {
    paths: Vec<PathBuf>,
    /// Whether no configuration bounds them: each is what a person has named.
    named: bool,
    pub(super) gate: Option<Gate>,
}

impl std::fmt::Debug for Roots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Roots").field(&self.paths).finish()
    }
}

/// Why a path is not reached.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// Not absolute, or with `..` or `.` in it.
    #[error("The path {path:?} must be absolute and without . and ..")]
    NotPlain {
        /// The path.
        path: PathBuf,
    },
    /// Beneath none of the roots.
    #[error("The path {path:?} is outside of the host's roots ({})", list(roots))]
    Outside {
        /// The path.
        path: PathBuf,
        /// The roots.
        roots: Vec<PathBuf>,
    },
    /// A symbolic link on the way, or a path that leads out.
    #[error("The path {path:?} leads through a symbolic link or out of its root")]
    Link {
        /// The path.
        path: PathBuf,
    },
    /// The folder is not there.
    #[error("There is no folder {path:?}")]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// It could not be opened.
    #[error("Cannot open the folder {path:?}")]
    Open {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn list(roots: &[PathBuf]) -> String {
    if roots.is_empty() {
        return "none are configured".into();
    }
    roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl RootsError {
    /// Reason word for conditions, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotPlain { .. } | Self::Outside { .. } | Self::Link { .. } => "OutsideRoots",
            Self::Missing { .. } => "FolderMissing",
            Self::Open { .. } => "FolderNotOpened",
        }
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::NotPlain { .. } | Self::Outside { .. } | Self::Link { .. } => Retry::OnChange,
            Self::Missing { .. } | Self::Open { .. } => Retry::Backoff,
        }
    }
}

impl Roots {
    /// The roots as the host's configuration names them. A root itself may be a symbolic link: it is the host's word.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, ..Self::default() }
    }

    /// Folders that a person has named, where no configuration bounds what may be named: each is its own root.
    pub fn named(paths: Vec<PathBuf>) -> Self {
        Self { paths, named: true, ..Self::default() }
    }

    /// The same and `path`, which a person has named before: where a configuration bounds them, that does. Not added is one
    /// that leads through a symbolic link by now, for it is not the folder that was named. Looks at the file system.
    #[must_use]
    pub fn and(&self, path: &Path) -> Self {
        let mut roots = self.clone();
        // One that is not there says so when it is opened.
        if self.named && path.canonicalize().map_or(true, |real| real == path) {
            roots.paths.push(path.to_owned());
        }
        roots
    }

    /// The same, with a gate that is asked before each operation that changes something.
    #[cfg(any(test, feature = "fake"))]
    #[must_use]
    pub fn with_gate(mut self, gate: Gate) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Opens the folder `path`, which must stand beneath a root or be one.
    ///
    /// # Errors
    /// When the path is outside of the roots, leads through a symbolic link, or cannot be opened.
    pub fn open(&self, path: &Path) -> Result<OwnedFd, RootsError> {
        let plain = |component| matches!(component, Component::Normal(_) | Component::RootDir);
        // The text is asked besides the components: those pass over "/./" silently.
        let dots = path.to_string_lossy().split('/').any(|part| part == "." || part == "..");
        if !path.is_absolute() || dots || !path.components().all(plain) {
            return Err(RootsError::NotPlain { path: path.to_owned() });
        }
        let root = self.paths.iter().find_map(|root| path.strip_prefix(root).ok().map(|rest| (root, rest)));
        let Some((root, rest)) = root else {
            return Err(RootsError::Outside { path: path.to_owned(), roots: self.paths.clone() });
        };
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let rest = if rest.as_os_str().is_empty() { Path::new(".") } else { rest };
        rustix::fs::open(root, flags | OFlags::PATH, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|root| open_beneath(root, rest, flags | OFlags::RDONLY, Mode::empty()))
            .map_err(|source| match rustix::io::Errno::from_io_error(&source) {
                Some(rustix::io::Errno::LOOP | rustix::io::Errno::XDEV) => RootsError::Link { path: path.to_owned() },
                Some(rustix::io::Errno::NOENT) => RootsError::Missing { path: path.to_owned() },
                _ => RootsError::Open { path: path.to_owned(), source },
            })
    }
}
