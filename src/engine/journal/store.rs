//! The journal's files: reads, writes, exchanges, removes. Blocking calls.
//!
//! `journal/<guest>.json` and its spare `journal/<guest>.json.next`, both padded with blanks to one length that leaves
//! room to grow; `finished/<run>.json`, how a run ended, kept for 7 days for whoever asks late.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use jiff::{Timestamp, ToSpan};
use rustix::fs::{CWD, FallocateFlags, RenameFlags};
use serde::{Serialize, de::DeserializeOwned};

use super::Record;
use crate::{
    engine::{
        private::{own_folder, writing},
        progress::RunState,
    },
    ids::{GuestId, PointId},
    retry::Retry,
};

/// Room for a record to grow over its first form: totals, and the sentence of a failure.
const SLACK: usize = 16 << 10;

const KEPT_DAYS: i64 = 7;

/// The journal could not be read or written. Nothing more is done for a run whose journal cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Reading or listing failed.
    #[error("Reading the journal at {} failed", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The file holds no record.
    #[error("The journal at {} holds no record; look at it, and move it away once nothing of it is in QEMU", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: serde_json::Error,
    },
    /// Written by a newer version.
    #[error("The journal at {} has format {format}; this version knows up to {}", path.display(), Record::FORMAT)]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// Writing failed; the state before stands.
    #[error("Writing the journal at {} failed", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

impl JournalError {
    /// Reason word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } | Self::Malformed { .. } => "JournalUnreadable",
            Self::TooNew { .. } => "JournalTooNew",
            Self::Write { .. } => "JournalUnwritable",
        }
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Read { .. } | Self::Write { .. } => Retry::Backoff,
            Self::Malformed { .. } | Self::TooNew { .. } => Retry::OnChange,
        }
    }
}

/// The journal of a host.
#[derive(Debug, Clone)]
pub struct Journal {
    pub(super) running: PathBuf,
    finished: PathBuf,
}

impl Journal {
    /// The journal in the state folder, whose subfolders are made where they are missing.
    pub fn open(state: &Path) -> Result<Self, JournalError> {
        let journal = Self { running: state.join("journal"), finished: state.join("finished") };
        for path in [&journal.running, &journal.finished] {
            own_folder(path).map_err(|source| JournalError::Write { path: path.clone(), source })?;
        }
        Ok(journal)
    }

    fn path(&self, guest: &GuestId) -> PathBuf {
        self.running.join(format!("{guest}.json"))
    }

    /// The record of a guest; none when nothing is in flight.
    pub fn load(&self, guest: &GuestId) -> Result<Option<Record>, JournalError> {
        read(&self.path(guest))
    }

    /// The points of all records, but that of one guest, and of all that was set aside, that guest's too: as long as nobody
    /// knows whether a point was committed, its bitmaps stay, and nothing builds on them.
    pub fn in_flight(&self, but: Option<&GuestId>) -> Result<BTreeSet<PointId>, JournalError> {
        let records = self.all()?.into_iter().filter(|record| Some(&record.request.guest.uuid) != but);
        Ok(records.chain(self.all_unknown()?).map(|record| record.point).collect())
    }

    /// All records, of all guests.
    pub fn all(&self) -> Result<Vec<Record>, JournalError> {
        self.each("json", read::<Record>)
    }

    /// What `read` finds in the files of that ending.
    pub(super) fn each<T, I: IntoIterator<Item = T>>(
        &self,
        ending: &str,
        read: impl Fn(&Path) -> Result<I, JournalError>,
    ) -> Result<Vec<T>, JournalError> {
        let failed = |source| JournalError::Read { path: self.running.clone(), source };
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.running).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|end| end == ending) {
                match read(&path) {
                    Ok(found) => all.extend(found),
                    // One guest's damaged record does not stop the others.
                    Err(error) => tracing::error!(%error, "a record of the journal is left out"),
                }
            }
        }
        Ok(all)
    }

    /// Makes `record` what stands in the journal: durable when this returns, whatever dies next. When it fails, what
    /// stood there before still does.
    pub fn save(&self, record: &Record) -> Result<(), JournalError> {
        let path = self.path(&record.request.guest.uuid);
        let spare = path.with_extension("json.next");
        let write = || -> io::Result<()> {
            let mut text = serde_json::to_vec(record)?;
            match fs::metadata(&path) {
                Ok(old) => {
                    text.resize(text.len().max(usize::try_from(old.len()).unwrap_or(0)), b'\n');
                    write_synced(&spare, &text)?;
                    rustix::fs::renameat_with(CWD, &spare, CWD, &path, RenameFlags::EXCHANGE)?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    text.resize(text.len() + SLACK, b'\n');
                    let first = path.with_extension("json.first");
                    reserve(&spare, text.len())?;
                    reserve(&first, text.len())?;
                    write_synced(&first, &text)?;
                    fs::rename(&first, &path)?;
                }
                Err(error) => return Err(error),
            }
            sync_folder(&self.running)
        };
        write().map_err(|source| JournalError::Write { path: path.clone(), source })
    }

    /// Forgets a guest's record: nothing of it is left anywhere.
    pub fn remove(&self, guest: &GuestId) -> Result<(), JournalError> {
        let path = self.path(guest);
        let write = || -> io::Result<()> {
            for path in [&path, &path.with_extension("json.next"), &path.with_extension("json.first")] {
                match fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            sync_folder(&self.running)
        };
        write().map_err(|source| JournalError::Write { path: path.clone(), source })
    }

    fn finished_path(&self, run: &str) -> PathBuf {
        let name = percent_encoding::utf8_percent_encode(run, percent_encoding::NON_ALPHANUMERIC);
        self.finished.join(format!("{name}.json"))
    }

    /// How a run ended; none when it is not known (any more).
    pub fn finished(&self, run: &str) -> Option<RunState> {
        serde_json::from_slice(&fs::read(self.finished_path(run)).ok()?).ok()
    }

    /// Keeps how a run ended, and drops what is older than 7 days.
    pub fn finish(&self, state: &RunState, now: Timestamp) -> Result<(), JournalError> {
        let path = self.finished_path(&state.run);
        let write = || replace(&path, &serde_json::to_vec(state)?);
        write().map_err(|source| JournalError::Write { path: path.clone(), source })?;
        self.drop_old(now);
        Ok(())
    }

    /// What cannot be read or removed is left for the next time: nothing depends on it.
    fn drop_old(&self, now: Timestamp) {
        let Ok(oldest) = now.checked_sub((24 * KEPT_DAYS).hours()) else { return };
        for entry in fs::read_dir(&self.finished).into_iter().flatten().flatten() {
            let old = fs::read(entry.path())
                .ok()
                .and_then(|bytes| serde_json::from_slice::<RunState>(&bytes).ok())
                .and_then(|state| state.completion_time)
                .is_some_and(|time| time < oldest);
            if old && let Err(error) = fs::remove_file(entry.path()) {
                tracing::debug!(%error, path = %entry.path().display(), "an old record stays");
            }
        }
    }
}

/// What stands in a file of the journal, which names its format; none where there is no file.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, JournalError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(JournalError::Read { path: path.to_owned(), source }),
    };
    #[derive(serde::Deserialize)]
    struct Head {
        /// A file of what was set aside by an earlier version names none.
        #[serde(default)]
        format: u32,
    }
    let malformed = |source| JournalError::Malformed { path: path.to_owned(), source };
    let head: Head = serde_json::from_slice(&bytes).map_err(malformed)?;
    if head.format > Record::FORMAT {
        return Err(JournalError::TooNew { path: path.to_owned(), format: head.format });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(malformed)
}

/// A file of `length` bytes whose space is taken.
fn reserve(path: &Path, length: usize) -> io::Result<()> {
    let file = writing().truncate(true).open(path)?;
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, length as u64) {
        Ok(()) => Ok(()),
        // A file system without it: written blanks take the space as well.
        Err(rustix::io::Errno::OPNOTSUPP) => (&file).write_all(&vec![b'\n'; length]),
        Err(error) => Err(error.into()),
    }
}

/// Makes the names in a folder durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Gives a file another content, all of it at once: durable when this returns.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let spare = path.with_added_extension("next");
    write_synced(&spare, bytes)?;
    fs::rename(&spare, path)?;
    sync_folder(path.parent().unwrap_or(path))
}

/// Makes `content` what stands in a file, or removes the file where there is none: durable when this returns.
pub(super) fn replace_or_remove<T: Serialize>(path: &Path, content: Option<&T>) -> Result<(), JournalError> {
    let write = || -> io::Result<()> {
        if let Some(content) = content {
            return replace(path, &serde_json::to_vec(content)?);
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| sync_folder(path.parent().unwrap_or(path))),
        }
    };
    write().map_err(|source| JournalError::Write { path: path.to_owned(), source })
}

/// Writes over what is there, without giving back its space first.
fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = writing().truncate(false).open(path)?;
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)?;
    file.sync_all()
}

#[cfg(test)]
mod tests;
