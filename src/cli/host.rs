//! This host as a verb sees it: its configuration where it has one, and what a person names on the command line. Without
//! a configuration the folder that is named is its own root; with one, its roots bound the command as they bound the
//! agent.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{CliError, blocking};
use crate::{
    clock,
    config::{GuestFile, HostConfig},
    engine::{Engine, Settings},
    ids::RepositoryId,
    qmp::{Address, Monitor},
    repo::{FileOwner, QemuImg, RepoError, Repository, Roots},
};

/// The host's configuration, or the defaults where there is none.
pub(super) struct Host {
    /// The configuration.
    pub(super) config: HostConfig,
    configured: bool,
    tool: QemuImg,
}

impl Host {
    /// Reads the host's configuration. None at the usual place is fine; one that `DRIFTLINE_CONFIG` names must be there.
    pub(super) fn load() -> Result<Self, CliError> {
        let path = HostConfig::path();
        let named = std::env::var_os(crate::config::PATH_VARIABLE).is_some();
        let configured = named || path.exists();
        let config = if configured { HostConfig::load(&path)? } else { HostConfig::default() };
        let owner = config.user.as_deref().map(owner).transpose()?;
        Ok(Self { config, configured, tool: QemuImg::new("qemu-img", owner) })
    }

    /// The engine of this host, for a repository at `path`.
    pub(super) fn engine(&self, repository: &Path) -> Result<Engine, CliError> {
        Ok(Engine::new(Settings {
            state: self.config.state.clone(),
            locks: self.config.locks.clone(),
            roots: self.repository_roots(repository),
            tool: self.tool.clone(),
            clock: clock::system(),
            reserve_bytes: self.config.reserve.0,
        })?)
    }

    /// The path as the roots expect it: absolute; without a configuration also without links.
    pub(super) fn folder(&self, given: &Path) -> Result<PathBuf, CliError> {
        let resolved = if self.configured { std::path::absolute(given) } else { given.canonicalize() };
        resolved.map_err(|source| CliError::Path { path: given.to_owned(), source })
    }

    /// Opens the repository of a person's words.
    pub(super) async fn open(&self, given: &Path) -> Result<Repository, CliError> {
        let path = self.folder(given)?;
        let (roots, tool) = (self.repository_roots(&path), self.tool.clone());
        Ok(blocking(move || Repository::open(&roots, &path, None, &tool)).await?)
    }

    /// Opens the repository, or makes an empty folder into one; then true.
    pub(super) async fn open_or_initialise(&self, given: &Path) -> Result<(Repository, bool), CliError> {
        match self.open(given).await {
            Err(CliError::Repository(RepoError::NotMounted { .. })) => {}
            opened => return Ok((opened?, false)),
        }
        let path = self.folder(given)?;
        let (roots, tool) = (self.repository_roots(&path), self.tool.clone());
        let id = RepositoryId::from(uuid::Uuid::new_v4());
        Ok((blocking(move || Repository::initialise(&roots, &path, &id, &tool)).await?, true))
    }

    /// The roots that bound restores of a guest of that namespace to these files. A guest of no namespace belongs to the
    /// host itself: any of its roots will do.
    pub(super) fn restore_roots(&self, namespace: &str, targets: &[PathBuf]) -> Roots {
        let by_namespace = &self.config.restore_roots;
        Roots::new(match (self.configured, namespace) {
            (false, _) => targets.iter().filter_map(|target| target.parent()).map(Path::to_owned).collect(),
            (true, "") => by_namespace.values().flatten().cloned().collect(),
            (true, namespace) => by_namespace.get(namespace).cloned().unwrap_or_default(),
        })
    }

    /// The file that this host has about the machine at a monitor socket.
    pub(super) fn guest_file(&self, socket: &Path) -> Result<Option<GuestFile>, CliError> {
        let wanted = socket.canonicalize().unwrap_or_else(|_| socket.to_owned());
        for path in guest_files(&self.config.guests)? {
            // A wrong file of another machine is not this command's business.
            let Ok(file) = GuestFile::load(&path) else { continue };
            if file.qmp.canonicalize().unwrap_or_else(|_| file.qmp.clone()) == wanted {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    fn repository_roots(&self, path: &Path) -> Roots {
        Roots::new(if self.configured { self.config.repository_roots.clone() } else { vec![path.to_owned()] })
    }
}

/// The guests' files of a folder, by name. No folder: no files.
pub(super) fn guest_files(folder: &Path) -> Result<Vec<PathBuf>, CliError> {
    let failed = |source| CliError::Path { path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The user of the host's configuration, by the host's own file of users.
fn owner(user: &str) -> Result<FileOwner, CliError> {
    let wrong = |source| CliError::User { user: user.to_owned(), source };
    let users = std::fs::read_to_string("/etc/passwd").map_err(wrong)?;
    let numbers = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _password, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        (name == user).then(|| Some(FileOwner { uid: uid.parse().ok()?, gid: gid.parse().ok()? }))?
    });
    numbers.ok_or_else(|| wrong(io::Error::new(io::ErrorKind::NotFound, "there is no such user in /etc/passwd")))
}

/// The monitor at a socket.
pub(super) fn monitor(socket: &Path) -> Monitor {
    Monitor::new(Address::Unix(socket.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(configured: bool) -> Host {
        let mut config = HostConfig::default();
        config.restore_roots.insert("team-a".into(), vec!["/a".into()]);
        config.restore_roots.insert("team-b".into(), vec!["/b".into()]);
        Host { config, configured, tool: QemuImg::new("qemu-img", None) }
    }

    fn bound(host: &Host, namespace: &str) -> String {
        format!("{:?}", host.restore_roots(namespace, &["/images/disk0.raw".into()]))
    }

    #[test]
    fn without_a_configuration_what_a_person_names_is_its_own_root() {
        let folder = tempfile::tempdir().unwrap();
        let path = host(false).folder(folder.path()).unwrap();
        host(false).repository_roots(&path).open(&path).unwrap();
        assert_eq!(bound(&host(false), "team-a"), r#"Roots(["/images"])"#);
    }

    #[test]
    fn a_configuration_bounds_repositories_and_each_namespaces_restores() {
        let folder = tempfile::tempdir().unwrap();
        host(true).repository_roots(folder.path()).open(folder.path()).unwrap_err();
        assert_eq!(bound(&host(true), "team-a"), r#"Roots(["/a"])"#);
        assert_eq!(bound(&host(true), "team-c"), "Roots([])");
        assert_eq!(bound(&host(true), ""), r#"Roots(["/a", "/b"])"#);
    }

    #[test]
    fn a_user_that_this_host_does_not_have_is_refused_by_name() {
        assert_eq!(owner("root").unwrap(), FileOwner { uid: 0, gid: 0 });
        assert!(owner("no-such-user").unwrap_err().to_string().contains("no-such-user"));
    }
}
