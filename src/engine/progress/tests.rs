//! What is shown after each answer of QEMU.

use super::*;
use crate::engine::{
    course::HostWish,
    journal::{Failure, State, fixture},
};

fn running() -> (Record, RunState) {
    let mut record = fixture();
    record.state = State::Running { at: record.started };
    let mut state = RunState::waiting(&record.request, record.started);
    state.follow_record(&record);
    (record, state)
}

fn job(record: &Record, status: JobStatus, error: Option<&str>) -> JobInfo {
    JobInfo {
        id: record.job(&record.disks[0]).to_string(),
        kind: "backup".to_owned(),
        status,
        current_progress: 65536,
        total_progress: 131_072,
        error: error.map(str::to_owned),
    }
}

#[test]
fn a_record_gives_type_instant_and_a_line_for_each_disk() {
    let (record, state) = running();
    assert_eq!((state.kind, state.type_reason), (Some(BackupType::Full), Some(TypeReason::FirstBackup)));
    assert_eq!(state.checkpoint_time, Some(record.started));
    assert!(!state.staged && !state.fleeced);
    let lines: Vec<_> = state.disks.iter().map(|disk| (disk.name.as_str(), disk.total_bytes)).collect();
    assert_eq!(lines, vec![("disk0", 10_000_384), ("disk1", 10_000_384)]);
}

#[test]
fn the_newest_answers_are_shown_and_survive_the_next_state_of_the_journal() {
    let (mut record, mut state) = running();
    let block = BlockJobInfo {
        device: record.job(&record.disks[0]).to_string(),
        kind: "backup".to_owned(),
        len: 0,
        offset: 0,
        speed: 1000,
        busy: false,
        paused: true,
        ready: false,
        io_status: "nospace".to_owned(),
        status: JobStatus::Paused,
    };
    let jobs = [job(&record, JobStatus::Paused, Some("No space left on device"))];
    state.follow_jobs(&jobs, std::slice::from_ref(&block));
    assert_eq!((state.disks[0].job_status.as_str(), state.disks[0].paused), ("running", false), "QEMU's own pause");
    record.course = record.course.heard_host(HostWish::Suspend, record.started);
    state.follow_record(&record);
    state.follow_jobs(&jobs, &[block]);
    record.state = State::Copied { at: record.started };
    state.follow_record(&record);
    let disk = &state.disks[0];
    assert_eq!(
        (disk.job_status.as_str(), disk.io_status.as_str(), disk.paused, disk.speed),
        ("paused", "nospace", true, 1000)
    );
    assert_eq!((disk.done_bytes, disk.total_bytes, disk.error.as_str()), (65536, 131_072, "No space left on device"));
    assert_eq!(state.disks[1].job_status, "");
}

#[test]
fn a_new_attempt_starts_with_empty_lines() {
    let (mut record, mut state) = running();
    state.follow_jobs(&[job(&record, JobStatus::Running, None)], &[]);
    record.attempt = AttemptId::from_random(0xdef);
    record.attempts = 2;
    state.follow_record(&record);
    assert_eq!((state.attempts, state.disks[0].done_bytes, state.attempt()), (2, 0, Some(&record.attempt)));
}

#[test]
fn a_failure_is_final_and_says_whether_to_try_again() {
    let (record, mut state) = running();
    let failure = Failure { reason: "JobFailed".into(), message: "Why".into(), retriable: true, cancelled: false };
    state.fail(&failure, record.started);
    assert!(state.phase.is_final() && state.retriable);
    assert_eq!(
        (state.phase, state.reason.as_str(), state.completion_time),
        (Phase::Failed, "JobFailed", Some(record.started))
    );
    state.fail(&Failure { cancelled: true, ..failure }, record.started);
    assert_eq!(state.phase, Phase::Cancelled);
}

#[test]
fn a_run_is_incremental_if_a_disk_is_and_says_why_another_is_not() {
    let (mut record, mut state) = running();
    record.disks[0].choice.kind = BackupType::Incremental;
    record.disks[0].choice.reason = TypeReason::CheckpointFound;
    record.disks[1].choice.reason = TypeReason::BitmapMissing;
    state.follow_record(&record);
    assert_eq!((state.kind, state.type_reason), (Some(BackupType::Incremental), Some(TypeReason::BitmapMissing)));
    record.disks.pop();
    state.follow_record(&record);
    assert_eq!(state.type_reason, Some(TypeReason::CheckpointFound));
}

#[test]
fn the_state_is_camel_case_and_reads_back() {
    let (_, state) = running();
    let json = serde_json::to_value(&state).unwrap();
    assert!(
        json["disks"][0]["jobId"].is_string() && json["requestedType"] == "Full" && json["type"] == "Full",
        "{json}"
    );
    assert_eq!(serde_json::from_value::<RunState>(json).unwrap(), state);
}
