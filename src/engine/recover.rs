//! The recovery table of the commit protocol: what the journal says and what is found decide what happens next. Pure
//! and total. It is not only for crashes: a run asks it before each of its steps, so that the way after a crash is the
//! way of every run, and walked by every test.

use serde::Serialize;

use super::journal::{Failure, Record, State};
use crate::qmp::block::{JobInfo, JobStatus};

/// What is found beside the journal.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Whether the point's manifest is in the repository.
    pub manifest: Manifest,
    /// What there is of QEMU.
    pub qemu: Qemu,
    /// How often the target nodes were deleted and the jobs looked at since: the fence of `sending`.
    pub fenced: u8,
    /// Whether QEMU is still spoken to on the connection that the transaction was sent on. On another one a dead
    /// client's command may run after our first reply (measured).
    pub same_connection: bool,
}

/// What is known about the point's manifest, which is the commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    /// It is in the repository, and its rename on the disk.
    There,
    /// It is not: the repository was read, or the attempt cannot have come so far.
    Absent,
    /// The repository cannot be read now, or what is there not be brought to the disk, and why.
    Unknown(Failure),
}

/// What there is of the record's QEMU.
#[derive(Debug, Clone, PartialEq)]
pub enum Qemu {
    /// The process of the record has ended, for certain.
    Gone,
    /// It lives, or may live, and does not answer.
    Unreachable,
    /// It answers; these are its jobs.
    There(Vec<JobInfo>),
}

/// What happens next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Next {
    /// Step 9: the point is committed; tidy up, and the run is complete.
    CleanUp,
    /// Step 8: check, digests, manifest.
    Commit,
    /// The failure path, from the beginning: nothing of it does harm twice.
    Undo,
    /// Undo what the attempt left, and begin a new one.
    StartOver,
    /// Delete the target nodes, so that a transaction that is still queued somewhere cannot start any more, and look.
    Fence,
    /// Look once more, a second later.
    LookAgain,
    /// The jobs are there: `running`.
    Adopt,
    /// The jobs copy: wait for them.
    Follow,
    /// Step 7: every job ended without error; close the targets, sync, `copied`.
    Flush,
    /// Write down why, then the failure path.
    Fail(Failure),
    /// Nothing can be known until QEMU answers or its process ends.
    AwaitQemu,
    /// Whether the point was committed cannot be known until the repository is back, and why: nothing of the attempt stays in
    /// QEMU but its bitmaps, which the next backup needs if it was.
    AwaitRepository(Failure),
}

/// The first row of the table that fits.
pub fn next(record: &Record, found: &Found) -> Next {
    if found.manifest == Manifest::There {
        return Next::CleanUp;
    }
    match (&record.state, &found.qemu) {
        // It looks again.
        (State::Copied { .. }, _) => Next::Commit,
        (State::Failing(_), _) => match &found.manifest {
            Manifest::Unknown(why) if record.may_be_committed() => Next::AwaitRepository(why.clone()),
            Manifest::There | Manifest::Absent | Manifest::Unknown(_) => Next::Undo,
        },
        (_, Qemu::Unreachable) => Next::AwaitQemu,
        (State::Intent, Qemu::Gone | Qemu::There(_)) => Next::StartOver,
        (State::Sending { .. } | State::Running { .. }, Qemu::Gone) => Next::Fail(guest_gone()),
        (State::Sending { .. }, Qemu::There(jobs)) => after_sending(record, found, jobs),
        (State::Running { .. }, Qemu::There(jobs)) => while_running(record, jobs),
    }
}

fn after_sending(record: &Record, found: &Found, jobs: &[JobInfo]) -> Next {
    if found.fenced == 0 {
        return Next::Fence;
    }
    let listed = ours(record, jobs).filter(Option::is_some).count();
    if listed == record.disks.len() {
        Next::Adopt
    } else if listed > 0 {
        Next::Fail(Failure {
            reason: "JobLost".to_owned(),
            message: format!("Only {listed} of {} jobs are in QEMU; somebody dismissed the others", record.disks.len()),
            retriable: true,
            cancelled: false,
        })
    } else if found.same_connection || found.fenced >= 2 {
        Next::StartOver
    } else {
        Next::LookAgain
    }
}

fn while_running(record: &Record, jobs: &[JobInfo]) -> Next {
    let mut concluded = true;
    for (disk, job) in record.disks.iter().zip(ours(record, jobs)) {
        let Some(job) = job else {
            return Next::Fail(Failure {
                reason: "JobLost".to_owned(),
                message: format!("The job of disk {} is not in QEMU any more, and its outcome is not known", disk.name),
                retriable: true,
                cancelled: false,
            });
        };
        // What the scratch could not take, or not soon, has broken the snapshot (measured on 8.2 and 10.0).
        if job.error.as_deref() == Some("Permission denied") && disk.scratch.is_some() {
            return Next::Fail(Failure {
                reason: "SnapshotBroken".to_owned(),
                message: format!(
                    "The guest overwrote more of disk {} than its scratch could take, or faster; nothing of it was harmed",
                    disk.name
                ),
                retriable: true,
                cancelled: false,
            });
        }
        if let Some(error) = &job.error {
            return Next::Fail(Failure {
                reason: "JobFailed".to_owned(),
                message: format!("The copy of disk {} failed: {error}", disk.name),
                retriable: true,
                cancelled: false,
            });
        }
        concluded &= job.status == JobStatus::Concluded;
    }
    if concluded { Next::Flush } else { Next::Follow }
}

/// The job of each disk, where it is listed.
fn ours<'a>(record: &'a Record, jobs: &'a [JobInfo]) -> impl Iterator<Item = Option<&'a JobInfo>> {
    record.disks.iter().map(move |disk| {
        let id = record.job(disk).to_string();
        jobs.iter().find(|job| job.id == id && job.status != JobStatus::Null)
    })
}

fn guest_gone() -> Failure {
    Failure {
        reason: "GuestGone".to_owned(),
        message: "QEMU ended before all was copied; the earlier points stay. The next backup starts from what its images kept, \
                  or is a full where QEMU was killed"
            .to_owned(),
        retriable: true,
        cancelled: false,
    }
}

#[cfg(test)]
mod tests;
