//! Each row of the table.

use super::*;
use crate::engine::journal::fixture;

fn job(record: &Record, index: usize, status: JobStatus, error: Option<&str>) -> JobInfo {
    JobInfo {
        id: record.job(&record.disks[index]).to_string(),
        kind: "backup".to_owned(),
        status,
        current_progress: 1,
        total_progress: 2,
        error: error.map(str::to_owned),
    }
}

/// `jobs` is a letter for each disk: `r`unning, `c`oncluded, `f`ailed, `n`ull, `-` not listed; `gone`, `silent`.
fn decide(state: &str, manifest: bool, qemu: &str, fenced: u8, same_connection: bool) -> String {
    let mut record = fixture();
    let at = record.started;
    record.state = match state {
        "intent" => State::Intent,
        "sending" => State::Sending { at },
        "running" => State::Running { at },
        "copied" => State::Copied { at },
        _ => State::Failing(guest_gone()),
    };
    let qemu = match qemu {
        "gone" => Qemu::Gone,
        "silent" => Qemu::Unreachable,
        jobs => Qemu::There(
            jobs.chars()
                .enumerate()
                .filter_map(|(index, letter)| {
                    Some(match letter {
                        'r' => job(&record, index, JobStatus::Running, None),
                        'c' => job(&record, index, JobStatus::Concluded, None),
                        'f' => job(&record, index, JobStatus::Concluded, Some("No space left on device")),
                        'a' => job(&record, index, JobStatus::Aborting, Some("Input/output error")),
                        'n' => job(&record, index, JobStatus::Null, None),
                        _ => return None,
                    })
                })
                .collect(),
        ),
    };
    let manifest = if manifest { Manifest::There } else { Manifest::Absent };
    match next(&record, &Found { manifest, qemu, fenced, same_connection }) {
        Next::Fail(failure) => format!("Fail({})", failure.reason),
        next => format!("{next:?}"),
    }
}

#[test]
fn every_row_of_the_table_says_what_comes_next() {
    for (state, manifest, qemu, fenced, same_connection, expected) in [
        // The manifest is the commit, whatever else is found.
        ("copied", true, "gone", 0, false, "CleanUp"),
        ("failing", true, "--", 0, false, "CleanUp"),
        ("running", true, "rr", 0, false, "CleanUp"),
        // Copied: with or without QEMU.
        ("copied", false, "gone", 0, false, "Commit"),
        ("copied", false, "silent", 0, false, "Commit"),
        ("copied", false, "--", 0, false, "Commit"),
        ("failing", false, "gone", 0, false, "Undo"),
        ("failing", false, "silent", 0, false, "Undo"),
        ("failing", false, "cr", 0, false, "Undo"),
        ("intent", false, "--", 0, false, "StartOver"),
        ("intent", false, "gone", 0, false, "StartOver"),
        ("intent", false, "silent", 0, false, "AwaitQemu"),
        // Sending: the fence comes before the look, whatever the first look shows.
        ("sending", false, "--", 0, false, "Fence"),
        ("sending", false, "rr", 0, true, "Fence"),
        ("sending", false, "rr", 1, false, "Adopt"),
        ("sending", false, "cc", 1, false, "Adopt"),
        ("sending", false, "cf", 1, false, "Adopt"),
        ("sending", false, "--", 1, false, "LookAgain"),
        ("sending", false, "nn", 1, false, "LookAgain"),
        ("sending", false, "--", 2, false, "StartOver"),
        ("sending", false, "--", 1, true, "StartOver"),
        ("sending", false, "r-", 1, false, "Fail(JobLost)"),
        ("sending", false, "gone", 0, false, "Fail(GuestGone)"),
        ("sending", false, "silent", 0, false, "AwaitQemu"),
        ("running", false, "rr", 0, false, "Follow"),
        ("running", false, "cr", 0, false, "Follow"),
        ("running", false, "cc", 0, false, "Flush"),
        ("running", false, "c-", 0, false, "Fail(JobLost)"),
        ("running", false, "cn", 0, false, "Fail(JobLost)"),
        ("running", false, "rf", 0, false, "Fail(JobFailed)"),
        ("running", false, "ra", 0, false, "Fail(JobFailed)"),
        ("running", false, "gone", 0, false, "Fail(GuestGone)"),
        ("running", false, "silent", 0, false, "AwaitQemu"),
    ] {
        let decided = decide(state, manifest, qemu, fenced, same_connection);
        assert_eq!(decided, expected, "{state}, manifest {manifest}, {qemu}, fenced {fenced}, same {same_connection}");
    }
}

#[test]
fn jobs_of_another_attempt_are_not_ours() {
    let mut record = fixture();
    record.state = State::Running { at: record.started };
    let mut jobs: Vec<_> = (0..2).map(|index| job(&record, index, JobStatus::Concluded, None)).collect();
    jobs[1].id = "driftline.ffffffff.00000002".to_owned();
    let found = Found { manifest: Manifest::Absent, qemu: Qemu::There(jobs), fenced: 0, same_connection: true };
    assert!(matches!(next(&record, &found), Next::Fail(failure) if failure.reason == "JobLost"));
}

#[test]
fn what_may_have_been_committed_is_not_undone_before_its_repository_tells() {
    let away = Failure { reason: "FolderMissing".to_owned(), ..guest_gone() };
    let unknown =
        Found { manifest: Manifest::Unknown(away.clone()), qemu: Qemu::Unreachable, fenced: 0, same_connection: false };
    let mut record = fixture();
    record.state = State::Failing(guest_gone());
    for disk in &mut record.disks {
        disk.copied = Some(65536);
    }
    assert_eq!(next(&record, &unknown), Next::Undo, "it had not come to a manifest");
    record.committing = true;
    assert_eq!(next(&record, &unknown), Next::AwaitRepository(away));
    assert_eq!(next(&record, &Found { manifest: Manifest::Absent, ..unknown.clone() }), Next::Undo);
    assert_eq!(next(&record, &Found { manifest: Manifest::There, ..unknown.clone() }), Next::CleanUp);
    record.state = State::Copied { at: record.started };
    assert_eq!(next(&record, &unknown), Next::Commit, "which waits for a while, and looks again");
}

#[test]
fn a_record_of_an_earlier_version_may_have_been_committed_from_copied_on() {
    let mut text = serde_json::to_value(fixture()).unwrap();
    assert!(text.as_object_mut().unwrap().remove("committing").is_some());
    let mut record: Record = serde_json::from_value(text).unwrap();
    assert!(!record.may_be_committed(), "it was not copied");
    for disk in &mut record.disks {
        disk.copied = Some(0);
    }
    assert!(record.may_be_committed());
}
