//! Attempts that have ended and whose descriptors QEMU keeps open: `journal/<guest>.kept`. Blocking calls.

use std::{collections::BTreeSet, fs, io, path::PathBuf};

use super::{Journal, JournalError, store::replace_or_remove};
use crate::ids::{AttemptId, GuestId};

impl Journal {
    fn kept_path(&self, guest: &GuestId) -> PathBuf {
        self.running.join(format!("{guest}.kept"))
    }

    /// Attempts at a guest whose descriptors QEMU has kept. A file that holds something else costs those that it named, and
    /// no backup.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn kept(&self, guest: &GuestId) -> Result<BTreeSet<AttemptId>, JournalError> {
        let path = self.kept_path(guest);
        match fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(%error, path = %path.display(), "the descriptors that QEMU keeps are not known any more");
                BTreeSet::new()
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(source) => Err(JournalError::Read { path, source }),
        }
    }

    /// Writes down all of them: durable when this returns.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_kept(&self, guest: &GuestId, attempts: &BTreeSet<AttemptId>) -> Result<(), JournalError> {
        replace_or_remove(&self.kept_path(guest), (!attempts.is_empty()).then_some(attempts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_stands_until_nothing_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let guest: GuestId = "11111111-2222-3333-4444-555555555555".parse().unwrap();
        assert_eq!(journal.kept(&guest).unwrap(), BTreeSet::new());
        let attempts = BTreeSet::from([AttemptId::from_random(1), AttemptId::from_random(2)]);
        journal.set_kept(&guest, &attempts).unwrap();
        assert_eq!(journal.kept(&guest).unwrap(), attempts);
        assert_eq!(journal.all().unwrap(), vec![]);
        for _ in 0..2 {
            journal.set_kept(&guest, &BTreeSet::new()).unwrap();
            assert_eq!(fs::read_dir(folder.path().join("journal")).unwrap().count(), 0);
        }
        fs::write(folder.path().join(format!("journal/{guest}.kept")), "{").unwrap();
        assert_eq!(journal.kept(&guest).unwrap(), BTreeSet::new());
    }
}
