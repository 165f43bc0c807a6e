//! Which machines there are (in): the files of `guests.d`, looked at every second. What cannot be read changes nothing
//! about the guests that are known; a guest is gone only when its file is.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::problem::Problem;
use crate::config::GuestFile;
use crate::sentence::sentence;

/// How often the folder is looked at. New, changed and vanished guests are to be noticed within 2 s.
const INTERVAL: Duration = Duration::from_secs(1);

/// `namespace/name`: what Kubernetes calls the guest.
pub type GuestKey = String;

/// The key of a file's guest.
pub fn key(file: &GuestFile) -> GuestKey {
    format!("{}/{}", file.namespace, file.name)
}

/// What the folder says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Whether the folder was looked at: before that nothing is known, which is not the same as nobody.
    pub scanned: bool,
    /// Each guest with its file and the file's content.
    pub guests: BTreeMap<GuestKey, (PathBuf, Arc<GuestFile>)>,
    /// Guests that several files name, with the files.
    pub doubled: BTreeMap<GuestKey, Vec<PathBuf>>,
    /// What cannot be used.
    pub problems: Vec<Problem>,
}

/// The folder and what its files said last.
pub struct Folder {
    path: PathBuf,
    known: BTreeMap<PathBuf, Known>,
}

struct Known {
    stamp: Stamp,
    /// The last content that was right.
    file: Option<Arc<GuestFile>>,
    problem: Option<Problem>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl Folder {
    /// The folder; nothing is read yet.
    pub fn new(path: PathBuf) -> Folder {
        Folder { path, known: BTreeMap::new() }
    }

    /// Reads what has changed. Blocks as long as the file system does.
    pub fn scan(&mut self) -> Found {
        let mut found = Found { scanned: true, ..Found::default() };
        match self.files() {
            Ok(present) => {
                self.known.retain(|path, _| present.contains_key(path));
                for (path, stamp) in present {
                    self.read(path, stamp);
                }
            }
            Err(error) => found.problems.push(Problem {
                subject: self.path.display().to_string(),
                reason: "GuestFolderUnreadable",
                message: format!(
                    "The folder of the guests' files {} cannot be read ({error}). Make it, or correct guests in the host configuration",
                    self.path.display()
                ),
            }),
        }
        found.problems.extend(self.known.values().filter_map(|known| known.problem.clone()));
        let mut by_key: BTreeMap<GuestKey, Vec<(&PathBuf, &Arc<GuestFile>)>> = BTreeMap::new();
        for (path, known) in &self.known {
            if let Some(file) = &known.file {
                by_key.entry(key(file)).or_default().push((path, file));
            }
        }
        for (key, files) in by_key {
            match files.as_slice() {
                [(path, file)] => {
                    found.guests.insert(key, ((*path).clone(), (*file).clone()));
                }
                several => {
                    found.doubled.insert(key, several.iter().map(|(path, _)| (*path).clone()).collect());
                }
            }
        }
        found
    }

    fn files(&self) -> io::Result<BTreeMap<PathBuf, Stamp>> {
        use std::os::unix::fs::MetadataExt;
        let mut present = BTreeMap::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if hidden || path.extension().is_none_or(|extension| extension != "toml") {
                continue;
            }
            // One that vanishes in between is gone; one that cannot be looked at is told by the attempt to read it.
            let meta = match fs::metadata(&path) {
                Ok(meta) => Some(meta),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(_) => None,
            };
            let stamp = Stamp {
                modified: meta.as_ref().and_then(|meta| meta.modified().ok()),
                length: meta.as_ref().map_or(0, std::fs::Metadata::len),
                inode: meta.as_ref().map_or(0, MetadataExt::ino),
            };
            present.insert(path, stamp);
        }
        Ok(present)
    }

    fn read(&mut self, path: PathBuf, stamp: Stamp) {
        if self.known.get(&path).is_some_and(|known| known.stamp == stamp && known.problem.is_none()) {
            return;
        }
        let before = self.known.remove(&path).and_then(|known| known.file);
        let (file, problem) = match GuestFile::load(&path) {
            Ok(file) => (Some(Arc::new(file)), None),
            Err(error) => {
                let message =
                    format!("{}. The machine stays as it was known before; correct the file", sentence(&error));
                (before, Some(Problem { subject: path.display().to_string(), reason: error.reason(), message }))
            }
        };
        self.known.insert(path, Known { stamp, file, problem });
    }
}

/// Looks at the folder every second until `end`, and says what it found whenever that changes. A file system that hangs
/// stops only the news.
pub async fn watch(path: &Path, found: watch::Sender<Found>, end: CancellationToken) {
    let mut folder = Folder::new(path.to_owned());
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! { _ = ticks.tick() => {} () = end.cancelled() => return }
        let scan = tokio::task::spawn_blocking(move || {
            let now = folder.scan();
            (folder, now)
        });
        let scanned = tokio::select! { scanned = scan => scanned, () = end.cancelled() => return };
        // A panic in there is a bug; the folder is read anew.
        let Ok((same, now)) = scanned else {
            folder = Folder::new(path.to_owned());
            continue;
        };
        folder = same;
        found.send_if_modified(|before| {
            let changed = *before != now;
            for problem in now.problems.iter().filter(|problem| !before.problems.contains(problem)) {
                tracing::error!(subject = problem.subject, reason = problem.reason, "{}", problem.message);
            }
            *before = now;
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &tempfile::TempDir, file: &str, name: &str) {
        let text = format!("name = {name:?}\nnamespace = \"team-a\"\nqmp = \"/run/{name}.qmp\"\n");
        fs::write(folder.path().join(file), text).unwrap();
    }

    /// What a look at an empty folder gives.
    fn nobody() -> Found {
        Found { scanned: true, ..Found::default() }
    }

    fn keys(found: &Found) -> Vec<&str> {
        found.guests.keys().map(String::as_str).collect()
    }

    #[test]
    fn new_changed_and_vanished_files_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::new(dir.path().to_owned());
        assert_eq!(folder.scan(), nobody());
        write(&dir, "a.toml", "a");
        fs::write(dir.path().join("readme.txt"), "no guest").unwrap();
        assert_eq!(keys(&folder.scan()), ["team-a/a"]);
        write(&dir, "a.toml", "renamed");
        assert_eq!(keys(&folder.scan()), ["team-a/renamed"]);
        fs::remove_file(dir.path().join("a.toml")).unwrap();
        assert_eq!(folder.scan(), nobody());
    }

    #[test]
    fn a_broken_file_is_named_and_harms_neither_its_own_guest_nor_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::new(dir.path().to_owned());
        write(&dir, "a.toml", "a");
        write(&dir, "b.toml", "b");
        folder.scan();
        fs::write(dir.path().join("a.toml"), "name = ").unwrap();
        let found = folder.scan();
        assert_eq!(keys(&found), ["team-a/a", "team-a/b"]);
        assert_eq!(found.problems[0].reason, "HostFileInvalid");
        assert!(found.problems[0].subject.ends_with("a.toml"));
        write(&dir, "a.toml", "a");
        assert!(folder.scan().problems.is_empty());
    }

    #[test]
    fn two_files_of_one_name_are_both_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::new(dir.path().to_owned());
        write(&dir, "a.toml", "a");
        write(&dir, "b.toml", "a");
        let found = folder.scan();
        assert!(found.guests.is_empty());
        assert_eq!(found.doubled["team-a/a"].len(), 2);
    }

    #[test]
    fn a_folder_that_cannot_be_read_loses_no_guest() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("guests.d");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("a.toml"), "name = \"a\"\nnamespace = \"t\"\nqmp = \"/q\"\n").unwrap();
        let mut folder = Folder::new(inner.clone());
        assert_eq!(keys(&folder.scan()), ["t/a"]);
        fs::rename(&inner, dir.path().join("elsewhere")).unwrap();
        let found = folder.scan();
        assert_eq!(keys(&found), ["t/a"]);
        assert_eq!(found.problems[0].reason, "GuestFolderUnreadable");
    }
}
