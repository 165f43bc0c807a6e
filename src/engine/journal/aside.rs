//! What attempts at a guest have left in repositories that could not be reached: `journal/<guest>.aside`. It waits there for
//! its repository, which may never come back, and holds up nothing else of the guest. Blocking calls; the guest's lock is
//! held by whoever changes it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    Journal, JournalError, Record,
    store::{read, replace_or_remove},
};
use crate::{
    engine::request::BackupRequest,
    ids::{AttemptId, GuestId, PointId},
};

/// What waits for a repository.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Aside {
    /// Folders of points that were never committed, to be removed.
    pub folders: Vec<Left>,
    /// Attempts that may have been committed. QEMU has nothing of them any more but their bitmaps.
    pub unknown: Vec<Record>,
}

/// The file: `Record::FORMAT` counts for the requests and records in it, too.
#[derive(Serialize)]
struct Written<'a> {
    format: u32,
    #[serde(flatten)]
    aside: &'a Aside,
}

/// The folder of a point that was never committed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Left {
    /// The run that has made it: of which guest, in which repository.
    pub request: BackupRequest,
    /// The point.
    pub point: PointId,
}

impl Aside {
    fn without(mut self, attempt: &AttemptId) -> Self {
        self.unknown.retain(|record| record.attempt != *attempt);
        self
    }

    fn is_empty(&self) -> bool {
        self.folders.is_empty() && self.unknown.is_empty()
    }
}

impl Journal {
    fn aside_path(&self, guest: &GuestId) -> PathBuf {
        self.running.join(format!("{guest}.aside"))
    }

    /// What was set aside of a guest.
    ///
    /// # Errors
    /// When the file cannot be read: it may name bitmaps that the next backup needs.
    pub fn aside(&self, guest: &GuestId) -> Result<Aside, JournalError> {
        Ok(read(&self.aside_path(guest))?.unwrap_or_default())
    }

    /// The attempts of all guests of which nobody knows whether they were committed.
    ///
    /// # Errors
    /// When the journal's folder cannot be read. A file that cannot be is logged and left out.
    pub fn all_unknown(&self) -> Result<Vec<Record>, JournalError> {
        self.each("aside", |path| Ok(read::<Aside>(path)?.unwrap_or_default().unknown))
    }

    /// Sets a guest's record aside, which stands in the journal no more. A crash in between leaves it in both places.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub fn set_aside(&self, record: Record) -> Result<(), JournalError> {
        let guest = record.request.guest.uuid.clone();
        let mut aside = self.aside(&guest)?.without(&record.attempt);
        aside.unknown.push(record);
        self.set_all_aside(&guest, &aside)?;
        self.remove(&guest)
    }

    /// Keeps of a record that was set aside that its run was told as ended.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub fn tell_aside(&self, record: &Record) -> Result<(), JournalError> {
        let guest = &record.request.guest.uuid;
        let mut aside = self.aside(guest)?;
        let of_it = |other: &&mut Record| other.attempt == record.attempt;
        aside.unknown.iter_mut().filter(of_it).for_each(|record| record.told = true);
        self.set_all_aside(guest, &aside)
    }

    /// Makes what was set aside the guest's record again, of which there is none now: a late one.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub fn take_back(&self, record: &mut Record) -> Result<(), JournalError> {
        record.late = true;
        self.save(record)?;
        self.forget_aside(record)
    }

    /// Forgets what a crash between the two places has left in this one.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub fn forget_aside(&self, record: &Record) -> Result<(), JournalError> {
        let guest = &record.request.guest.uuid;
        let before = self.aside(guest)?;
        let after = before.clone().without(&record.attempt);
        if after == before { Ok(()) } else { self.set_all_aside(guest, &after) }
    }

    /// Writes down a folder that cannot be removed now.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub fn leave_folder(&self, left: Left) -> Result<(), JournalError> {
        let guest = left.request.guest.uuid.clone();
        let mut aside = self.aside(&guest)?;
        if !aside.folders.contains(&left) {
            aside.folders.push(left);
            self.set_all_aside(&guest, &aside)?;
        }
        Ok(())
    }

    /// Forgets a folder that was removed.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub fn forget_folder(&self, left: &Left) -> Result<(), JournalError> {
        let guest = &left.request.guest.uuid;
        let mut aside = self.aside(guest)?;
        aside.folders.retain(|known| known != left);
        self.set_all_aside(guest, &aside)
    }

    fn set_all_aside(&self, guest: &GuestId, aside: &Aside) -> Result<(), JournalError> {
        let written = Written { format: Record::FORMAT, aside };
        replace_or_remove(&self.aside_path(guest), (!aside.is_empty()).then_some(&written))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::fixture::fixture, *};

    #[test]
    fn what_is_set_aside_is_in_flight_until_it_is_taken_back_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let mut record = fixture();
        let guest = &record.request.guest.uuid.clone();
        journal.save(&record).unwrap();
        for _ in 0..2 {
            journal.set_aside(record.clone()).unwrap();
            assert_eq!(journal.load(guest).unwrap(), None);
            assert_eq!(journal.aside(guest).unwrap().unknown, vec![record.clone()]);
            let in_flight = journal.in_flight(Some(guest)).unwrap();
            assert!(in_flight.contains(&record.point), "it may be the next backup's base");
            journal.take_back(&mut record).unwrap();
            assert!(record.late, "other runs may have been committed meanwhile");
            assert_eq!(journal.load(guest).unwrap(), Some(record.clone()));
            assert_eq!(journal.aside(guest).unwrap(), Aside::default());
        }
        // What a crash between the two places leaves.
        journal.set_aside(record.clone()).unwrap();
        journal.save(&record).unwrap();
        journal.forget_aside(&record).unwrap();
        journal.remove(guest).unwrap();
        assert_eq!(fs::read_dir(folder.path().join("journal")).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_is_left_is_written_down_once_and_is_not_in_flight() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let record = fixture();
        let guest = &record.request.guest.uuid;
        let left = Left { request: record.request.clone(), point: record.point.clone() };
        for _ in 0..2 {
            journal.leave_folder(left.clone()).unwrap();
            assert_eq!(journal.aside(guest).unwrap().folders, vec![left.clone()]);
        }
        assert!(journal.in_flight(None).unwrap().is_empty());
        journal.forget_folder(&left).unwrap();
        assert_eq!(fs::read_dir(folder.path().join("journal")).unwrap().count(), 0);
    }

    #[test]
    fn what_a_newer_version_set_aside_is_refused_and_what_an_earlier_one_did_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let record = fixture();
        let guest = &record.request.guest.uuid;
        journal.set_aside(record.clone()).unwrap();
        let path = journal.aside_path(guest);
        let mut file: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(file["format"], Record::FORMAT);
        let mut written = |format: Option<u32>| {
            file.as_object_mut().unwrap().remove("format");
            if let Some(format) = format {
                file["format"] = format.into();
            }
            fs::write(&path, file.to_string()).unwrap();
        };
        written(Some(Record::FORMAT + 1));
        assert_eq!(journal.aside(guest).unwrap_err().reason(), "JournalTooNew");
        assert_eq!(journal.set_aside(record.clone()).unwrap_err().reason(), "JournalTooNew", "it is not written over");
        written(None);
        assert_eq!(journal.aside(guest).unwrap().unknown, [record]);
    }

    #[test]
    fn a_file_that_cannot_be_understood_stops_its_guest_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let guest = fixture().request.guest.uuid;
        fs::write(journal.aside_path(&guest), "{").unwrap();
        assert_eq!(journal.aside(&guest).unwrap_err().reason(), "JournalUnreadable");
        assert!(journal.in_flight(None).unwrap().is_empty());
    }
}
