//! What people at the host wish of a run that somebody else drives: `journal/<guest>.<when>.wish`, one file each, until whoever
//! drives the run has written it into the record. Blocking calls.

use std::{fs, io, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Journal, JournalError, Record,
    store::{read, replace_or_remove},
};
use crate::{engine::course::HostWish, ids::GuestId};

/// A wish that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Its file.
    pub path: PathBuf,
    /// What is wished.
    pub wish: HostWish,
}

#[derive(Debug, Serialize, Deserialize)]
struct Written {
    format: u32,
    /// The uid of the run: a later one of the guest is another.
    run: String,
    wish: HostWish,
}

impl Journal {
    /// Writes down a wish: durable when this returns. Gives its file, which is gone once the wish stands in the record.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn wish(&self, guest: &GuestId, run: &str, wish: HostWish, now: Timestamp) -> Result<PathBuf, JournalError> {
        let name = format!("{guest}.{:020}-{}.wish", now.as_nanosecond(), std::process::id());
        let path = self.running.join(name);
        let written = Written { format: Record::FORMAT, run: run.to_owned(), wish };
        replace_or_remove(&path, Some(&written))?;
        Ok(path)
    }

    /// The wishes about a run, the oldest first. Those about other runs of the guest, which have ended, are removed.
    ///
    /// # Errors
    /// When the folder cannot be read, or a file not removed.
    pub fn wishes(&self, guest: &GuestId, run: &str) -> Result<Vec<Waiting>, JournalError> {
        let failed = |source| JournalError::Read { path: self.running.clone(), source };
        let (prefix, mut found) = (format!("{guest}."), Vec::new());
        for entry in fs::read_dir(&self.running).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !name.starts_with(&prefix) || !name.ends_with(".wish") {
                continue;
            }
            match read::<Written>(&path) {
                Ok(Some(written)) if written.run == run => found.push(Waiting { wish: written.wish, path }),
                Ok(Some(_)) => self.forget_wish(&path)?,
                Ok(None) => {}
                Err(error @ JournalError::Malformed { .. }) => {
                    tracing::warn!(%error, "what is no wish is removed");
                    self.forget_wish(&path)?;
                }
                // Whoever wished it is told that it is not heard.
                Err(error) => tracing::warn!(%error, "a wish cannot be read now"),
            }
        }
        found.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(found)
    }

    /// Removes the file of a wish, once that stands in the record.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn forget_wish(&self, path: &std::path::Path) -> Result<(), JournalError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|source| JournalError::Write { path: path.to_owned(), source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_come_in_order_and_only_to_their_own_run() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let guest: GuestId = "11111111-2222-3333-4444-555555555555".parse().unwrap();
        let other: GuestId = "11111111-2222-3333-4444-555555555556".parse().unwrap();
        let at = |second| Timestamp::from_second(second).unwrap();
        journal.wish(&guest, "run", HostWish::Bandwidth(9), at(20)).unwrap();
        journal.wish(&guest, "run", HostWish::Suspend, at(3)).unwrap();
        let ended = journal.wish(&guest, "earlier", HostWish::Cancel, at(1)).unwrap();
        let elsewhere = journal.wish(&other, "earlier", HostWish::Cancel, at(1)).unwrap();
        let broken = folder.path().join(format!("journal/{guest}.1.wish"));
        fs::write(&broken, "{").unwrap();
        let found = journal.wishes(&guest, "run").unwrap();
        assert_eq!(
            found.iter().map(|found| found.wish).collect::<Vec<_>>(),
            [HostWish::Suspend, HostWish::Bandwidth(9)]
        );
        assert!(!ended.exists() && !broken.exists() && elsewhere.exists());
        for waiting in &found {
            journal.forget_wish(&waiting.path).unwrap();
            journal.forget_wish(&waiting.path).unwrap();
        }
        assert_eq!(journal.wishes(&guest, "run").unwrap(), []);
        assert_eq!(journal.all().unwrap(), vec![]);
    }
}
