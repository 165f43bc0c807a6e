//! What stands in the journal after each write.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use crate::engine::journal::{Failure, State, fixture};

fn journal() -> (tempfile::TempDir, Journal) {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    (folder, journal)
}

#[test]
fn the_last_state_that_was_saved_stands() {
    let (_folder, journal) = journal();
    let mut record = fixture();
    let guest = record.request.guest.uuid.clone();
    assert_eq!(journal.load(&guest).unwrap(), None);
    let at = record.started;
    let failure = Failure { reason: "JobFailed".into(), message: "x".repeat(5000), retriable: true, cancelled: false };
    for state in [State::Intent, State::Sending { at }, State::Running { at }, State::Failing(failure)] {
        record.state = state;
        journal.save(&record).unwrap();
        assert_eq!(journal.load(&guest).unwrap().as_ref(), Some(&record));
        assert_eq!(journal.all().unwrap(), vec![record.clone()]);
    }
    journal.remove(&guest).unwrap();
    assert_eq!(journal.all().unwrap(), vec![]);
}

#[test]
fn the_space_of_both_files_is_taken_from_the_first_state_on() {
    let (folder, journal) = journal();
    let record = fixture();
    journal.save(&record).unwrap();
    let files = || -> Vec<_> {
        let path = folder.path().join("journal").join(format!("{}.json", record.request.guest.uuid));
        [path.clone(), path.with_extension("json.next")]
            .iter()
            .map(|path| fs::metadata(path).map(|data| (data.len(), data.blocks() * 512 >= data.len())).unwrap())
            .collect()
    };
    let first = files();
    assert!(first[0].0 > SLACK as u64 && first.iter().all(|(_, taken)| *taken), "{first:?}");
    journal.save(&record).unwrap();
    assert_eq!(files(), first);
}

#[test]
fn a_record_of_a_newer_version_and_a_damaged_one_are_refused_and_do_not_hide_others() {
    let (folder, journal) = journal();
    let record = fixture();
    journal.save(&record).unwrap();
    let other: GuestId = "11111111-2222-3333-4444-666666666666".parse().unwrap();
    let path = folder.path().join("journal").join(format!("{other}.json"));
    fs::write(&path, r#"{"format":99}"#).unwrap();
    assert_eq!(journal.load(&other).unwrap_err().reason(), "JournalTooNew");
    fs::write(&path, "{").unwrap();
    assert_eq!(journal.load(&other).unwrap_err().reason(), "JournalUnreadable");
    assert_eq!(journal.all().unwrap(), vec![record]);
}

#[test]
fn what_is_in_the_journal_is_for_its_owner_alone_also_in_folders_of_an_earlier_version() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["journal", "finished"] {
        fs::create_dir(folder.path().join(name)).unwrap();
        fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let journal = Journal::open(folder.path()).unwrap();
    let record = fixture();
    journal.save(&record).unwrap();
    journal.save(&record).unwrap();
    let state = RunState::waiting(&record.request, record.started);
    journal.finish(&state, record.started).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for (name, files) in [("journal", 2), ("finished", 1)] {
        let path = folder.path().join(name);
        assert_eq!(mode(&path), 0o700, "{name}");
        let modes: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| mode(&entry.unwrap().path())).collect();
        assert_eq!(modes, vec![0o600; files], "{name}");
    }
}

#[test]
fn how_a_run_ended_is_kept_for_seven_days() {
    let (_folder, journal) = journal();
    let record = fixture();
    let mut state = RunState::waiting(&record.request, record.started);
    state.run = "../x/y".to_owned();
    state.completion_time = Some(record.started);
    journal.finish(&state, record.started).unwrap();
    assert_eq!(journal.finished("../x/y"), Some(state.clone()));
    let later = |hours: i64| record.started.checked_add(hours.hours()).unwrap();
    let mut other = state.clone();
    (other.run, other.completion_time) = ("other".to_owned(), Some(later(167)));
    journal.finish(&other, later(167)).unwrap();
    assert!(journal.finished("../x/y").is_some());
    other.run = "third".to_owned();
    journal.finish(&other, later(169)).unwrap();
    assert_eq!(journal.finished("../x/y"), None);
    assert!(journal.finished("other").is_some());
}

#[test]
fn a_journal_that_cannot_be_written_names_its_file_and_keeps_what_stood() {
    let (folder, journal) = journal();
    let mut record = fixture();
    journal.save(&record).unwrap();
    let spare = folder.path().join("journal").join(format!("{}.json.next", record.request.guest.uuid));
    fs::remove_file(&spare).unwrap();
    fs::create_dir(&spare).unwrap();
    let before = record.clone();
    record.state = State::Running { at: record.started };
    let error = journal.save(&record).unwrap_err();
    assert_eq!((error.reason(), error.retry()), ("JournalUnwritable", Retry::Backoff));
    assert!(error.to_string().contains(".json"), "{error}");
    assert_eq!(journal.load(&record.request.guest.uuid).unwrap(), Some(before));
}
