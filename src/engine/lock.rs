//! The lock on a guest: a `flock` per UUID in the host's locks folder, held for the whole run by whoever works on the
//! guest, agent or command. QEMU does not serialise for us: it accepts two backups of one node (measured on 7.2 and
//! 10.0), so this lock does. The kernel drops it with the process that held it. The files are one user's alone: anybody who may
//! open one may lock it. The folder need not be, as long as nobody else can take a file away.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{FlockOperation, OFlags, flock},
    io::Errno,
};

use super::private::{make_folder, own_file, writing};
use crate::ids::GuestId;

/// How much of what a holder has written about itself is read, in bytes.
const READ: u64 = 256;

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
    _held: Arc<Held>,
}

/// A file that is locked.
#[derive(Debug)]
struct Held(File);

impl Drop for Held {
    /// The name goes before the lock does: whoever locks the file next may write none, and would be taken for this holder.
    fn drop(&mut self) {
        if let Err(error) = self.0.set_len(0) {
            tracing::debug!(%error, "the name of a lock's last holder stays in it");
        }
    }
}

/// Tries to lock `guest` for `holder` (a run's name, shown to whoever waits); never waits.
pub(super) fn try_lock(folder: &Path, guest: &GuestId, holder: &str) -> Result<Attempted, LockError> {
    let path = folder.join(format!("{guest}.lock"));
    let attempt = || -> io::Result<Attempted> {
        make_folder(folder)?;
        let mut file = open(folder, &path)?;
        own_file(&file)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                file.set_len(0)?;
                file.rewind()?;
                file.write_all(holder.as_bytes())?;
                Ok(Attempted::Locked(GuestLock { _held: Arc::new(Held(file)) }))
            }
            Err(Errno::WOULDBLOCK) => {
                let mut name = Vec::new();
                file.take(READ).read_to_end(&mut name)?;
                Ok(Attempted::HeldBy(shown(&name)))
            }
            Err(error) => Err(error.into()),
        }
    };
    attempt().map_err(|source| LockError { guest: guest.clone(), path: path.clone(), source })
}

/// Opens the lock's file, made where it is not there. Where others may make files too, anything can stand in its place: it is
/// written to and shut only if it is ours, and has no other name.
fn open(folder: &Path, path: &Path) -> io::Result<File> {
    let around = fs::metadata(folder)?;
    if around.mode() & 0o1002 == 0o002 {
        let why = "everybody may remove what is in its folder; take that right away (chmod o-w), or set the sticky bit";
        return Err(io::Error::other(why));
    }
    let foreign = || io::Error::other("what stands there is no lock of ours; look whose it is, and remove it");
    let file = writing()
        .read(true)
        .truncate(false)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
        .map_err(|error| if Errno::from_io_error(&error) == Some(Errno::LOOP) { foreign() } else { error })?;
    let found = file.metadata()?;
    // Whoever owns the folder can exchange its files anyway.
    let is_ours = found.uid() == rustix::process::geteuid().as_raw() || found.uid() == around.uid();
    if is_ours && found.is_file() && found.nlink() == 1 { Ok(file) } else { Err(foreign()) }
}

/// The name for people. It may be cut off inside of a character, and a holder that is none of ours writes none.
fn shown(name: &[u8]) -> String {
    match String::from_utf8_lossy(name).trim_end_matches(char::REPLACEMENT_CHARACTER) {
        "" => "somebody who does not say who it is".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

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

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_lock_is_this_user_s_alone_also_one_of_an_earlier_version() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run/locks");
        let file = folder.join(format!("{}.lock", guest()));
        let _new = try_lock(&folder, &guest(), "one").unwrap();
        assert_eq!((mode(&folder), mode(&file)), (0o700, 0o600));
        set_mode(&file, 0o644);
        assert!(matches!(try_lock(&folder, &guest(), "two").unwrap(), Attempted::HeldBy(_)));
        assert_eq!(mode(&file), 0o600);
    }

    #[test]
    fn a_folder_that_was_there_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        for there in [0o755, 0o1777, 0o775] {
            set_mode(dir.path(), there);
            assert!(matches!(try_lock(dir.path(), &guest(), "one").unwrap(), Attempted::Locked(_)));
            assert_eq!(mode(dir.path()), there);
        }
        // Whoever takes the file away locks the next one.
        set_mode(dir.path(), 0o777);
        let error = try_lock(dir.path(), &guest(), "one").unwrap_err();
        assert!(error.source.to_string().contains("chmod o-w"), "{error:?}");
    }

    #[test]
    fn what_stands_in_a_lock_s_place_is_neither_written_to_nor_shut() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, victim) = (dir.path().join("locks"), dir.path().join("victim"));
        let lock = folder.join(format!("{}.lock", guest()));
        fs::create_dir(&folder).unwrap();
        let places: [fn(&Path, &Path); 3] = [
            |victim, lock| symlink(victim, lock).unwrap(),
            |victim, lock| fs::hard_link(victim, lock).unwrap(),
            // Only root can give a file to somebody else.
            |victim, lock| match chown(victim, Some(65534), None) {
                Ok(()) => fs::rename(victim, lock).unwrap(),
                Err(_) => symlink(victim, lock).unwrap(),
            },
        ];
        for place in places {
            fs::write(&victim, "precious").unwrap();
            set_mode(&victim, 0o644);
            place(&victim, &lock);
            let error = try_lock(&folder, &guest(), "one").unwrap_err();
            assert!(error.source.to_string().contains("no lock of ours"), "{error:?}");
            assert_eq!((fs::read_to_string(&lock).unwrap().as_str(), mode(&lock)), ("precious", 0o644));
            fs::remove_file(&lock).unwrap();
        }
    }

    #[test]
    fn a_name_that_is_cut_inside_of_a_character_is_shown_up_to_there() {
        let dir = tempfile::tempdir().unwrap();
        let _one = try_lock(dir.path(), &guest(), &format!("x{}", "é".repeat(150))).unwrap();
        let Attempted::HeldBy(who) = try_lock(dir.path(), &guest(), "two").unwrap() else { panic!("locked twice") };
        assert_eq!(who, format!("x{}", "é".repeat(127)));
    }

    #[test]
    fn a_holder_that_is_none_of_ours_is_not_taken_for_the_last_one() {
        let dir = tempfile::tempdir().unwrap();
        drop(try_lock(dir.path(), &guest(), "run one").unwrap());
        let foreign = File::open(dir.path().join(format!("{}.lock", guest()))).unwrap();
        flock(&foreign, FlockOperation::LockExclusive).unwrap();
        let Attempted::HeldBy(who) = try_lock(dir.path(), &guest(), "two").unwrap() else { panic!("locked twice") };
        assert!(who.starts_with("somebody"), "{who}");
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
