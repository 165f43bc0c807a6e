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
    config::{self, GuestFile, HostConfig},
    engine::{Engine, Settings},
    ids::RepositoryId,
    qmp::{Address, Monitor, MonitorOptions, Schemas},
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
        let owner = config.owner(&path)?.map(|(uid, gid)| FileOwner { uid, gid });
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
            scratch: self.config.scratch.as_ref().map(crate::engine::Scratch::from),
        })?)
    }

    /// The monitor at a socket.
    pub(super) fn monitor(&self, socket: &Path) -> Monitor {
        let schemas = Some(Schemas::new(&self.config.state));
        Monitor::with(Address::Unix(socket.to_owned()), MonitorOptions { observer: None, schemas })
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
        let wanted = canonical(socket);
        for path in self.guest_files()? {
            let file = match GuestFile::load(&path) {
                Ok(file) => file,
                // Its machine would be backed up under another name and namespace than the file means.
                Err(error) if is_about(&path, &wanted) => return Err(error.into()),
                // A wrong file of another machine is not this command's business.
                Err(_) => continue,
            };
            if canonical(&file.qmp) == wanted {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    /// The guests' files of this host. No folder: no files.
    pub(super) fn guest_files(&self) -> Result<Vec<PathBuf>, CliError> {
        match guest_files(&self.config.guests) {
            Err(CliError::GuestFolder { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            files => files,
        }
    }

    fn repository_roots(&self, path: &Path) -> Roots {
        if self.configured {
            Roots::new(self.config.repository_roots.clone())
        } else {
            Roots::named(vec![path.to_owned()])
        }
    }
}

/// The guests' files of a folder, by name.
pub(super) fn guest_files(folder: &Path) -> Result<Vec<PathBuf>, CliError> {
    let failed = |source| CliError::GuestFolder { path: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a file that cannot be used is about the machine at `socket`, which is canonical.
fn is_about(file: &Path, socket: &Path) -> bool {
    let Ok(text) = config::read(file) else { return false };
    let Ok(table) = toml::from_str::<toml::Table>(&text) else {
        // No TOML at all: what stands in quotes is looked at.
        return text.split(['"', '\'']).any(|part| canonical(Path::new(part)) == socket);
    };
    table.get("qmp").and_then(toml::Value::as_str).is_some_and(|qmp| canonical(Path::new(qmp)) == socket)
}

fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
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
        let named_before = tempfile::tempdir().unwrap();
        let before = named_before.path().canonicalize().unwrap();
        assert!(host(false).repository_roots(&path).open(&before).is_err());
        host(false).repository_roots(&path).and(&before).open(&before).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&before, &link).unwrap();
        let other = before.join("other");
        assert!(host(false).repository_roots(&other).and(&link).open(&link).is_err(), "it is another folder by now");
        assert_eq!(bound(&host(false), "team-a"), r#"Roots(["/images"])"#);
    }

    #[test]
    fn a_configuration_bounds_repositories_and_each_namespaces_restores() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        host(true).repository_roots(&path).open(&path).unwrap_err();
        host(true).repository_roots(&path).and(&path).open(&path).unwrap_err();
        assert_eq!(bound(&host(true), "team-a"), r#"Roots(["/a"])"#);
        assert_eq!(bound(&host(true), "team-c"), "Roots([])");
        assert_eq!(bound(&host(true), ""), r#"Roots(["/a", "/b"])"#);
    }

    #[test]
    fn a_folder_of_guests_that_a_person_names_must_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("nosuch");
        let error = guest_files(&missing).unwrap_err();
        assert_eq!(error.reason(), "GuestFolderUnreadable");
        assert!(error.to_string().contains("nosuch"), "{error}");
        assert_eq!(guest_files(folder.path()).unwrap(), Vec::<PathBuf>::new());
        let mut host = host(true);
        host.config.guests = missing;
        assert_eq!(host.guest_files().unwrap(), Vec::<PathBuf>::new(), "the usual one need not be");
    }

    #[test]
    fn a_wrong_file_is_that_of_the_machine_whose_socket_it_names() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.toml"), "name = \"a\"\nnamespace = \"Team\"\nqmp = \"/run/a.qmp\"\n")
            .unwrap();
        let mut host = host(true);
        host.config.guests = folder.path().to_owned();
        let refused = host.guest_file(Path::new("/run/a.qmp")).unwrap_err().to_string();
        assert!(refused.contains("a.toml"), "{refused}");
        assert_eq!(host.guest_file(Path::new("/run/b.qmp")).unwrap(), None);
        assert_eq!(host.guest_file(Path::new("/run/a")).unwrap(), None);
        std::fs::write(folder.path().join("b.toml"), "name = \nqmp = '/run/b.qmp'\n").unwrap();
        assert!(host.guest_file(Path::new("/run/b.qmp")).is_err());
    }
}
