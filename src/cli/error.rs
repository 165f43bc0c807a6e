//! Why a verb ended without its result: the thing, the reason, and the way out. The chain of causes is put together
//! once, here, at the edge.

use std::{io, path::PathBuf};

use super::Exit;
use crate::{
    config::ConfigError,
    engine::{EngineError, restore::RestoreError},
    ids::GuestId,
    qmp::ConnectError,
    repo::RepoError,
    retry::Retry,
};

/// Why a verb ended without its result.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The host's own files.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No connection to the machine.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepoError),
    /// The engine, before a run began.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A restore.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A folder or file that was named is not there.
    #[error("Cannot use {}", path.display())]
    Path {
        /// As it was given.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The folder of the machines' files.
    #[error("Cannot read the folder of the machines' files {}", path.display())]
    GuestFolder {
        /// As it was given.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The result could not be told.
    #[error("Cannot write the result to stdout")]
    Result {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The machine has no identity.
    #[error("The machine at {} has no UUID", socket.display())]
    NoUuid {
        /// Its monitor.
        socket: PathBuf,
    },
    /// Two identities for one machine.
    #[error("The machine at {} has UUID {found}, not {given}", socket.display())]
    OtherUuid {
        /// Its monitor.
        socket: PathBuf,
        /// What QEMU says.
        found: GuestId,
        /// What was given.
        given: GuestId,
    },
    /// No such guest in the repository.
    #[error("Repository {} has no guest {guest:?}: it has {known}", path.display())]
    NoSuchGuest {
        /// The repository.
        path: PathBuf,
        /// What was asked for.
        guest: String,
        /// What there is.
        known: String,
    },
    /// `latest` of which guest, or one name for several guests.
    #[error("Several guests of repository {} could be meant: {known}", path.display())]
    AmbiguousGuest {
        /// The repository.
        path: PathBuf,
        /// The candidates.
        known: String,
    },
    /// No such point.
    #[error("Repository {} has no point {point}", path.display())]
    NoSuchPoint {
        /// The repository.
        path: PathBuf,
        /// What was asked for.
        point: String,
    },
    /// No such disk.
    #[error("Point {point} has no disk {disk}: it has {known}")]
    NoSuchDisk {
        /// The point.
        point: String,
        /// What was asked for.
        disk: String,
        /// What there is.
        known: String,
    },
    /// The run failed.
    #[error("Backup of {guest} failed: {message}")]
    Run {
        /// The machine.
        guest: String,
        /// The run's reason word.
        reason: String,
        /// The run's own message.
        message: String,
        /// Whether trying again can help.
        retriable: bool,
    },
    /// Ended by Ctrl-C or SIGTERM, and tidied up.
    #[error("{what} was interrupted; nothing of it is left")]
    Interrupted {
        /// What was going on.
        what: String,
    },
    /// Ended by Ctrl-C or SIGTERM, and not all of it is gone, or known.
    #[error("{what} was interrupted. {left}")]
    InterruptedLate {
        /// What was going on.
        what: String,
        /// What is left of it, as a sentence.
        left: String,
    },
    /// What was wished of a run came after its end.
    #[error("It came too late. {how}")]
    CameTooLate {
        /// How the run has ended, as a sentence.
        how: String,
    },
    /// Signals cannot be waited for.
    #[error("Cannot listen to signals")]
    Signals {
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl CliError {
    /// The word for scripts.
    pub fn reason(&self) -> &str {
        match self {
            Self::Config(error) => error.reason(),
            Self::Connect(error) => error.reason(),
            Self::Repository(error) => error.reason(),
            Self::Engine(error) => error.reason(),
            Self::Restore(error) => error.reason(),
            Self::Path { .. } => "PathUnusable",
            Self::GuestFolder { .. } => "GuestFolderUnreadable",
            Self::Result { .. } => "ResultNotWritten",
            Self::NoUuid { .. } => "GuestHasNoUUID",
            Self::OtherUuid { .. } => "GuestUUIDMismatch",
            Self::NoSuchGuest { .. } => "GuestNotFound",
            Self::AmbiguousGuest { .. } => "GuestAmbiguous",
            Self::NoSuchPoint { .. } => "PointNotFound",
            Self::NoSuchDisk { .. } => "DiskNotFound",
            Self::Run { reason, .. } => reason,
            Self::Interrupted { .. } | Self::InterruptedLate { .. } => "Interrupted",
            Self::CameTooLate { .. } => "TooLate",
            Self::Signals { .. } => "SignalsUnavailable",
        }
    }

    /// Whether the same command may help later.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Config(error) => error.retry(),
            Self::Connect(error) => error.retry(),
            Self::Repository(error) => error.retry(),
            Self::Engine(error) => error.retry(),
            Self::Restore(error) => error.retry(),
            Self::Run { retriable: true, .. } => Retry::Backoff,
            Self::Interrupted { .. } | Self::InterruptedLate { .. } => Retry::Now,
            _ => Retry::OnChange,
        }
    }

    /// The exit status. What a person has to write differently is wrong usage.
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Interrupted { .. } | Self::InterruptedLate { .. } => Exit::Interrupted,
            // Known only once the machine was looked at, but a wrong word all the same.
            Self::Run { reason, .. } if reason == "DiskNotFound" => Exit::Usage,
            Self::Restore(error) if error.reason() == "RestoreInvalid" => Exit::Usage,
            Self::Engine(EngineError::Bitmap(_)) => Exit::Usage,
            Self::NoSuchGuest { .. }
            | Self::AmbiguousGuest { .. }
            | Self::NoSuchPoint { .. }
            | Self::NoSuchDisk { .. }
            | Self::OtherUuid { .. }
            | Self::NoUuid { .. } => Exit::Usage,
            _ => Exit::Failed,
        }
    }

    /// What to do about it, where that is not in the message.
    pub(super) fn way_out(&self) -> Option<&'static str> {
        match self {
            Self::NoSuchDisk { .. } => Some(DISKS_OF_A_POINT),
            // Also the folder of the machines' files and of the host's: what is there may not be read.
            Self::Path { source, .. }
            | Self::GuestFolder { source, .. }
            | Self::Config(ConfigError::Read { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some(AS_ROOT)
            }
            _ => way_out(self.reason()),
        }
    }
}

const DISKS_OF_A_POINT: &str = "`driftline points show ID --repository DIR` lists the point's disks";
const AS_ROOT: &str = "run it as root, or as a user who may use it";

/// The way out, by reason.
fn way_out(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "MonitorNotThere" | "MonitorRefused" => {
            "start QEMU with -qmp unix:SOCKET,server=on,wait=off and give that socket"
        }
        "MonitorBusy" => "give QEMU a second -qmp socket for backups, or end the other client (an agent on this host?)",
        "MonitorLinked" => "give the path that the link leads to, if it is yours",
        "MonitorUnreachable" => "run it as root or as the user of QEMU",
        "QEMUTooOld" => "restart the machine with QEMU 6.0 or newer",
        "GuestHasNoUUID" => "start QEMU with -uuid, or give --uuid",
        "GuestUUIDMismatch" => "leave --uuid out, or look whether the socket is the right one",
        "RepositoryNotMounted" => {
            "mount the repository's file system; a new repository is begun in an empty folder by `driftline backup` alone"
        }
        "FolderMissing" => "mount its file system, or make the folder where that is really what is missing",
        "FolderNotOpened" => "name a folder that may be read, or run it as root",
        "GuestFolderUnreadable" => "name a folder that is there, or look at one machine: driftline guests --qmp SOCKET",
        "HostFileUnreadable" => "make the file, or have DRIFTLINE_CONFIG name the right one",
        "HostFileInvalid" => "correct that place of the file: what it does not know is never passed over",
        "GuestGone" => "start the machine, and back it up again",
        "ResultNotWritten" => {
            "what the command did stays done; make room where its output goes (`driftline points` lists what is stored)"
        }
        "PathUnusable" => "name a folder that is there and that you may use, or make it first",
        // That of a backup: a restore's is another variant.
        "DiskNotFound" => "`driftline guests --qmp SOCKET` lists the machine's disks",
        "DiskNotInPoint" => DISKS_OF_A_POINT,
        "ParentMissing" | "ParentChanged" | "ParentGone" | "LineageChanged" | "ChainCircular" => {
            "`driftline verify` says what is missing or damaged; restore another point"
        }
        "DiskIneligible" => "leave that disk out: `driftline guests --qmp SOCKET` says why it cannot be backed up",
        "NoEligibleDisk" => "`driftline guests --qmp SOCKET` says of each disk why it cannot be backed up",
        "RepositoryNotEmpty" => "name the repository's own folder, or an empty one to begin a new repository",
        "PathNotUTF8" => "give the folder a name in UTF-8",
        "RepositoryTooNew" => "use the version of driftline that wrote it, or a newer one",
        "OutsideRoots" => {
            "name a folder beneath the host's roots, or change host.toml (/etc/driftline/host.toml, or where DRIFTLINE_CONFIG says)"
        }
        "RepositoryFull" => "free some space in the repository's file system, or use another one",
        "GuestBelongsToAnotherNamespace" => "give the machine a file in /etc/driftline/guests.d with that namespace",
        "GuestInUse" => "wait until the other one has ended; `driftline recover` tidies up after a killed one",
        "RepositoryReadOnly" => "mount the repository's file system for writing",
        "RepositoryAccessDenied" | "TargetAccessDenied" => "run it as root or as the folder's owner",
        "TargetFolderMissing" => "make the folder of the new image first",
        "TargetInRepository" => "name a path outside of the repository",
        "TargetFull" => "free some space where the image is to be written, or name another place",
        "TargetInUse" => "shut down the machine that uses the image, or name another file",
        "FilterStuck" => "end what holds that overlay, then `driftline recover` tries again",
        "TargetStuck" => "look at the machine, and at the scratch folder; `driftline recover` tries again",
        "QemuImgNotStarted" => "install qemu-img (Debian: qemu-utils)",
        "DigestMismatch" => "`driftline verify` tells what is damaged; restore another point",
        "MonitorClosed" | "NotQMP" => "look whether it is the machine's QMP socket, and not its human monitor",
        "RestoreInvalid" => {
            "name each disk once, with a file of its own for it: --to disk0=/var/lib/machines/disk0.qcow2"
        }
        "TargetExists" => {
            "name another file, or give --overwrite Always, or IfSameGuest, which replaces only what a restore of this guest \
             has made"
        }
        "GuestNotFound" => "`driftline points --repository DIR` lists what there is",
        "GuestAmbiguous" => "give one guest's name or UUID with --guest, its UUID where several have that name",
        "PointNotFound" => "`driftline points --repository DIR` lists what there is",
        "LockUnavailable" | "JournalUnwritable" => {
            "run it as root, or set DRIFTLINE_CONFIG to a host.toml with `state` and `locks` that can be written"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_not_there_is_looked_for_where_it_was_asked_for() {
        let run = CliError::Run {
            guest: "db-1".into(),
            reason: "DiskNotFound".into(),
            message: "Guest has no disk x".into(),
            retriable: false,
        };
        let restore = CliError::NoSuchDisk { point: "p".into(), disk: "x".into(), known: "disk0".into() };
        assert_eq!(run.reason(), restore.reason());
        assert!(run.way_out().unwrap().contains("guests --qmp"), "{run}");
        assert!(restore.way_out().unwrap().contains("points show"), "{restore}");
    }

    #[test]
    fn who_may_not_use_a_folder_is_told_to_be_root_and_who_names_none_to_make_it() {
        let path = |kind: io::ErrorKind| CliError::Path { path: "/srv/backup".into(), source: kind.into() };
        assert!(path(io::ErrorKind::PermissionDenied).way_out().unwrap().contains("root"));
        assert!(path(io::ErrorKind::NotFound).way_out().unwrap().contains("make it first"));
    }

    #[test]
    fn what_a_person_can_mend_has_a_way_out() {
        for reason in [
            "FolderNotOpened",
            "RestoreInvalid",
            "HostFileUnreadable",
            "HostFileInvalid",
            "GuestGone",
            "GuestFolderUnreadable",
            "ParentMissing",
            "ParentChanged",
            "LineageChanged",
            "ChainCircular",
            "DiskNotInPoint",
        ] {
            assert!(way_out(reason).is_some(), "{reason}");
        }
        assert!(!way_out("RepositoryNotMounted").unwrap().contains("to begin a new one"));
        assert!(way_out("GuestAmbiguous").unwrap().contains("name or UUID"));
    }
}
