//! The lock on a guest: a `flock` per UUID in the host's locks folder, held for the whole run by whoever works on the
//! guest, agent or command. QEMU does not serialise for us: it accepts two backups of one node (measured on 7.2 and
//! 10.0), so this lock does. The kernel drops it with the process that held it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{FlockOperation, flock};

use crate::ids::GuestId;

/// The lock could not be asked for. A lock that another holds is no error.
#[derive(Debug, thiserror::Error)]
#[error("Locking guest {guest} at {} failed", path.display())]
pub struct LockError {
    /// The guest.
    pub guest: GuestId,
    /// The lock's file.
    pub path: PathBuf,
    /// What went wrong.
    #[source]
    pub source: io::Error,
}

impl LockError {
    /// Reason word.
    pub fn reason(&self) -> &'static str {
        "LockUnavailable"
    }

    /// The locks folder must be mended first.
    pub fn retry(&self) -> crate::retry::Retry {
        crate::retry::Retry::OnChange
    }
}

/// What asking for the lock gave.
#[derive(Debug)]
pub(super) enum Attempted {
    /// It is ours.
    Locked(GuestLock),
    /// Another holds it: what it wrote about itself, as far as it did.
    HeldBy(String),
}

/// The lock of one guest, freed when the last clone is dropped.
#[derive(Debug, Clone)]
pub(super) struct GuestLock {
    _file: Arc<File>,
}

/// Tries to lock `guest` for `holder` (a run's name, shown to whoever waits); never waits.
pub(super) fn try_lock(folder: &Path, guest: &GuestId, holder: &str) -> Result<Attempted, LockError> {
    let path = folder.join(format!("{guest}.lock"));
    let attempt = || -> io::Result<Attempted> {
        fs::create_dir_all(folder)?;
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                file.set_len(0)?;
                file.rewind()?;
                file.write_all(holder.as_bytes())?;
                Ok(Attempted::Locked(GuestLock { _file: Arc::new(file) }))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                (&mut file).take(256).read_to_string(&mut text)?;
                Ok(Attempted::HeldBy(text))
            }
            Err(error) => Err(error.into()),
        }
    };
    attempt().map_err(|source| LockError { guest: guest.clone(), path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> GuestId {
        "11111111-2222-3333-4444-555555555555".parse().unwrap()
    }

    #[test]
    fn the_second_is_told_who_holds_the_lock_and_gets_it_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let Attempted::Locked(first) = try_lock(dir.path(), &guest(), "run one").unwrap() else { panic!("not locked") };
        let Attempted::HeldBy(who) = try_lock(dir.path(), &guest(), "run two").unwrap() else { panic!("locked twice") };
        assert_eq!(who, "run one");
        let other = first.clone();
        drop(first);
        assert!(matches!(try_lock(dir.path(), &guest(), "two").unwrap(), Attempted::HeldBy(_)), "a clone holds it too");
        drop(other);
        assert!(matches!(try_lock(dir.path(), &guest(), "two").unwrap(), Attempted::Locked(_)));
    }

    #[test]
    fn guests_do_not_wait_for_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let other = "11111111-2222-3333-4444-666666666666".parse().unwrap();
        let _one = try_lock(dir.path(), &guest(), "one").unwrap();
        assert!(matches!(try_lock(dir.path(), &other, "two").unwrap(), Attempted::Locked(_)));
    }

    #[test]
    fn a_locks_folder_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = try_lock(&file, &guest(), "one").unwrap_err();
        assert!(error.to_string().contains("file/"), "{error}");
    }
}
