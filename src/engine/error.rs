//! What can go wrong in a run, one variant for each operation.

mod course;
mod reason;
mod words;

use std::{io, path::PathBuf};

pub use self::course::CourseError;
pub(super) use self::words::{GUEST_HARMED, TARGET_STUCK, cancelled, given_up};
pub use self::words::{NOTHING_LEFT, SUSPEND_NEEDS_FLEECING};

use super::{
    choose::Refusal, data_path::Unsafe, fleecing::Unfleeced, graph::Change, journal::Failure, journal::JournalError,
    journal::Record, lock::LockError,
};
use crate::{
    ids::{DiskName, GuestId},
    qmp::{ConnectError, ExecuteError, Monitor},
    repo::RepoError,
    retry::Retry,
    sentence::{bytes, sentence},
};

/// An operation of a run that failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The guest's monitor cannot be used.
    #[error("Connecting to the guest failed")]
    Connect {
        /// Why.
        #[source]
        source: ConnectError,
    },
    /// QEMU does not say what it is asked about the guest.
    #[error("Asking QEMU about the guest failed ({command})")]
    Inspect {
        /// The command.
        command: &'static str,
        /// Why.
        #[source]
        source: ExecuteError,
    },
    /// QEMU did not do something for the run.
    #[error("{act} failed")]
    Qemu {
        /// What was to be done, as the beginning of a sentence.
        act: String,
        /// Why.
        #[source]
        source: ExecuteError,
    },
    /// The guest cannot be backed up as it stands.
    #[error(transparent)]
    Refused(Refusal),
    /// The lock folder cannot be used.
    #[error(transparent)]
    Lock(LockError),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(JournalError),
    /// The repository did not do something.
    #[error("{act} failed")]
    Repository {
        /// What was to be done, as the beginning of a sentence.
        act: &'static str,
        /// Why.
        #[source]
        source: Box<RepoError>,
    },
    /// The repository's file system could hurt the guest.
    #[error("There is no way to repository {} that is safe for the guest: {why}", path.display())]
    TargetUnsafe {
        /// The repository.
        path: PathBuf,
        /// Why.
        why: Unsafe,
    },
    /// A staged image cannot be made, written or brought to the disk.
    #[error("Staging the copy in the scratch folder failed")]
    Staging {
        /// Why.
        #[source]
        source: Box<RepoError>,
    },
    /// The repository cannot be written.
    #[error("Repository {} cannot be written on this host", path.display())]
    ReadOnly {
        /// The repository.
        path: PathBuf,
    },
    /// There may not be room for the backup.
    #[error(
        "Repository {} has {} free; the backup can need {}, {} of it the host's reserve. Free {} or use another repository",
        path.display(), bytes(*available), bytes(*needed), bytes(*reserve), bytes(*missing)
    )]
    NoSpace {
        /// The repository.
        path: PathBuf,
        /// Bytes free.
        available: u64,
        /// Bytes that the run can need.
        needed: u64,
        /// What of that stays free beside the run, in bytes: `reserve` of host.toml.
        reserve: u64,
        /// The difference.
        missing: u64,
    },
    /// The source of the sentinel's bits cannot be made.
    #[error("Making the sentinel of disk {disk} failed")]
    Sentinel {
        /// The disk.
        disk: DiskName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file that QEMU closed cannot be brought to the disk.
    #[error("Syncing the copy of disk {disk} failed")]
    Sync {
        /// The disk.
        disk: DiskName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The stored file does not hold all that the job copied.
    #[error("The copy of disk {disk} has {found} clusters, its job copied {expected}; it is thrown away")]
    CopyIncomplete {
        /// The disk.
        disk: DiskName,
        /// Clusters in the file.
        found: u64,
        /// Clusters that the job copied.
        expected: u64,
    },
    /// What was copied is not where it was any more.
    #[error("The copied files of point {point} are gone")]
    CopyGone {
        /// The point.
        point: String,
    },
    /// The guest's own writes are failing.
    #[error("Disk {disk} of the guest reports a failed write ({detail}); the copy is ended for the guest's sake")]
    GuestHarmed {
        /// The disk, or the machine's state.
        disk: String,
        /// QEMU's words.
        detail: String,
    },
    /// A migration started while the run went on.
    #[error("A migration of the guest started (it is {status}), which cannot come to its end while the copy goes on")]
    MigrationStarted {
        /// QEMU's word.
        status: String,
    },
    /// The guest was stopped for the instant of the copy, and QEMU does not let it go on.
    #[error(
        "The guest stands still: run {run} stopped it for an instant, and QEMU refuses to let it go on ({why}). Once that is \
         mended, `driftline recover --qmp {address}` or the guest's next run lets it go on, and so does `cont` by hand"
    )]
    GuestStopped {
        /// The run.
        run: String,
        /// The guest's monitor.
        address: String,
        /// What QEMU says.
        why: String,
    },
    /// Every attempt was cut off before its instant.
    #[error("{attempts} attempts were cut off before the copy could start")]
    TooManyAttempts {
        /// How many.
        attempts: u32,
    },
    /// QEMU keeps descriptors of ended runs open, and each run of a guest that does not run adds some.
    #[error(
        "QEMU keeps {count} descriptors of ended runs open, as this version does while the guest does not run; continue the \
         guest once, then they are given up"
    )]
    DescriptorsKept {
        /// How many.
        count: usize,
    },
    /// A job does not end though it was cancelled.
    #[error("Job {job} does not end though it was cancelled; its target may hang")]
    JobStuck {
        /// The job.
        job: String,
    },
    /// A disk is not as it was looked at, just before or at the instant.
    #[error("Disk {disk} was changed while the copy was being begun: {change}; the next try looks at it anew")]
    DiskChanged {
        /// The disk.
        disk: DiskName,
        /// What became of it.
        change: Change,
    },
    /// Somebody took a snapshot of a disk while its run was fleeced.
    #[error(
        "Somebody took a snapshot of disk {disk} during the copy; overlay {overlay} is on the run's filter, which has to go"
    )]
    Overlaid {
        /// The disk.
        disk: DiskName,
        /// The overlay's node.
        overlay: String,
    },
    /// A filter of ours cannot be taken out from below somebody's overlay.
    #[error(
        "Filter {filter} cannot be taken out from below overlay {overlay} ({why}): no machine can be started from that \
         overlay until it is. Have `block-stream` done with device {overlay} and base-node {base}"
    )]
    FilterStuck {
        /// The filter's node.
        filter: String,
        /// The overlay's node.
        overlay: String,
        /// What is below the filter.
        base: String,
        /// What QEMU says.
        why: String,
    },
    /// Somebody has put a filter of his own on one of ours.
    #[error(
        "Filter {filter} of the run cannot go, because node {user} was put on it. Have `blockdev-reopen` done with node          {user} and file {base}, then `driftline recover`"
    )]
    FilterUsed {
        /// The filter's node.
        filter: String,
        /// The node above it.
        user: String,
        /// What is below the filter.
        base: String,
    },
    /// The run was to be fleeced, and cannot be.
    #[error("The guest cannot be kept from the target: {why}; or use fleecing Auto")]
    NotFleeced {
        /// Why.
        why: Unfleeced,
    },
    /// The guest was to be frozen, and cannot be.
    #[error("The guest's file systems cannot be frozen, and quiesce Required wants that: {message}")]
    NotQuiesced {
        /// The reason word.
        reason: &'static str,
        /// The same as a sentence.
        message: String,
    },
    /// The scratch folder cannot be used.
    #[error("Scratch folder {} cannot be used", path.display())]
    Scratch {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The disk was made smaller, and no bitmap tells what that has cost.
    #[error("Disk {disk} was made smaller since the point that was to be continued; its next backup is a full one")]
    DiskShrunk {
        /// The disk.
        disk: DiskName,
    },
    /// The course of a run is not what somebody wished.
    #[error(transparent)]
    Course(#[from] CourseError),
    /// What a person wants of a bitmap may not be done.
    #[error(transparent)]
    Bitmap(super::bitmaps::BitmapRefusal),
    /// Another process works on the guest.
    #[error("Guest {guest} is in use by {holder}")]
    GuestInUse {
        /// The guest.
        guest: GuestId,
        /// What it wrote about itself.
        holder: String,
    },
    /// What an earlier run left cannot be removed, so no new one may begin.
    #[error(
        "What run {run} left could not be removed yet: {why}; until it is, the guest gets no new run, and each one tries"
    )]
    NotCleared {
        /// The run.
        run: String,
        /// What it is, and why it stays.
        why: String,
    },
    /// The repository went away when a finished copy was being committed.
    #[error(
        "Whether point {point} of run {run} was committed is not known until repository {} is back ({}). The bitmaps that the \
         next backup needs if it was are kept. The guest's next run into that repository looks again, and so does \
         `driftline recover --qmp {address} --repository {}`", path.display(), why.message, path.display()
    )]
    CommitUnknown {
        /// The run.
        run: String,
        /// Its point.
        point: String,
        /// The repository.
        path: PathBuf,
        /// The guest's monitor.
        address: String,
        /// Why it cannot be read.
        why: Box<Failure>,
    },
    /// An earlier run has to be finished first, in a repository that this host may not touch.
    #[error(
        "Run {run} of the guest was cut off and has to be finished first, but its repository {} is outside of this host's roots: \
         it was left as it is. Let the roots of host.toml hold that repository, then \
         `driftline recover --qmp {address} --repository {}` finishes it", path.display(), path.display()
    )]
    EarlierOutsideRoots {
        /// The run.
        run: String,
        /// Its repository.
        path: PathBuf,
        /// The guest's monitor.
        address: String,
    },
    /// QEMU does not answer, and cannot be proven gone.
    #[error("QEMU does not answer on {address}; the run goes on from its journal when it does")]
    Unanswered {
        /// The monitor.
        address: String,
    },
    /// The monitor leads to another QEMU than the run's, which lives.
    #[error(
        "Run {run} works on another QEMU, process {pid}, than the one at {address}: two machines have one UUID. \
         Finish that run at its own monitor (`driftline recover`), and give one of them another UUID"
    )]
    OtherMachine {
        /// The run.
        run: String,
        /// The process that it works on.
        pid: i32,
        /// The monitor.
        address: String,
    },
    /// A part of the engine itself broke off.
    #[error("{act} was broken off inside of the engine")]
    Broken {
        /// What was to be done.
        act: &'static str,
        /// How.
        #[source]
        source: tokio::task::JoinError,
    },
}

impl EngineError {
    /// True when the connection was lost under way: what was done must be looked up.
    pub(super) fn is_lost_connection(&self) -> bool {
        match self {
            Self::Connect { source } => source.retry() != Retry::OnChange,
            Self::Inspect { source, .. } | Self::Qemu { source, .. } => matches!(
                source,
                ExecuteError::Disconnected { .. } | ExecuteError::TimedOut { .. } | ExecuteError::Malformed { .. }
            ),
            _ => false,
        }
    }

    /// That nobody knows whether a record's attempt was committed.
    pub(super) fn commit_unknown(record: &Record, monitor: &Monitor, why: Failure) -> Self {
        Self::CommitUnknown {
            run: record.request.run_name.clone(),
            point: record.point.to_string(),
            path: record.repository().clone(),
            address: monitor.address().to_string(),
            why: Box::new(why),
        }
    }

    /// The error as the journal and the run's state tell it: the whole chain in one sentence.
    pub fn failure(&self) -> Failure {
        Failure {
            reason: self.reason().to_owned(),
            message: sentence(self),
            retriable: self.retry() != Retry::OnChange,
            cancelled: false,
        }
    }
}
