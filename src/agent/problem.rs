//! Why a guest cannot be backed up, or a file of the host not be used: a word and a sentence with the way out. Pure.

use std::path::Path;

use crate::{ids::GuestId, qmp::ConnectError, sentence::sentence};

/// Something that a person has to mend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What it is about: a file, or `namespace/name` of a guest.
    pub subject: String,
    /// PascalCase.
    pub reason: &'static str,
    /// Names the thing and says what to do.
    pub message: String,
}

impl Problem {
    /// A problem of a guest, told by what its monitor did.
    pub fn connect(guest: &str, socket: &Path, file: &Path, error: &ConnectError) -> Problem {
        let (socket, file) = (socket.display(), file.display());
        let (reason, message) = match error {
            ConnectError::NotThere { .. } | ConnectError::Refused { .. } => (
                UNREACHABLE,
                format!(
                    "No QEMU listens on {socket}: the machine is off, or its monitor is elsewhere. Start it, or correct qmp in {file}"
                ),
            ),
            ConnectError::NoSocket { .. } => (UNREACHABLE, format!("{}. Correct qmp in {file}", sentence(error))),
            ConnectError::Unreachable { source, .. } => (
                UNREACHABLE,
                format!("QMP socket {socket} cannot be opened ({source}). Correct its permissions, or qmp in {file}"),
            ),
            ConnectError::Linked { .. } => {
                ("MonitorLinked", format!("{}. Write a path without one as qmp into {file}", sentence(error)))
            }
            ConnectError::Busy { .. } => (
                BUSY,
                format!(
                    "QMP socket {socket} is held by another client; a monitor serves one at a time. End the other client, or start QEMU with a second -qmp socket for Driftline and name it in {file}"
                ),
            ),
            ConnectError::Closed { .. } | ConnectError::NotServing { .. } => (
                NOT_RESPONDING,
                format!(
                    "QEMU on {socket} took the connection and did not serve it ({}). Look at the machine: its QEMU hangs or is ending",
                    sentence(error)
                ),
            ),
            ConnectError::NotQmp { .. } => (
                NONSENSE,
                format!("What listens on {socket} does not speak QMP. Name the machine's QMP socket as qmp in {file}"),
            ),
            ConnectError::TooOld { version, .. } => (
                "QEMUTooOld",
                format!(
                    "QEMU {version} on {socket} is too old: 6.0 or newer is needed. Restart the machine with a newer QEMU"
                ),
            ),
        };
        Problem { subject: guest.to_owned(), reason, message }
    }

    /// A container keeps the folder that it was started with.
    pub fn folder_removed(folder: &Path) -> Problem {
        let folder = folder.display();
        let message = format!(
            "{folder} was removed on the node, and what was made anew in its place is not seen here. The agent's pod is started again within two minutes; elsewhere mount {folder} again, and restart the agent"
        );
        Problem { subject: folder.to_string(), reason: "HostFolderRemoved", message }
    }

    /// Connected, but QEMU does not answer.
    pub fn not_responding(guest: &str, socket: &Path, what: &str) -> Problem {
        let message =
            format!("QEMU on {} does not answer ({what}). Look at the machine: its QEMU hangs", socket.display());
        Problem { subject: guest.to_owned(), reason: NOT_RESPONDING, message }
    }

    /// QEMU was started without `-uuid`, and the file gives none.
    pub fn uuid_missing(guest: &str, file: &Path) -> Problem {
        let message = format!(
            "QEMU was started without -uuid, so that its backups would belong to nobody. Start it with -uuid, or write uuid = \"...\" into {}",
            file.display()
        );
        Problem { subject: guest.to_owned(), reason: "UUIDMissing", message }
    }

    /// QEMU's UUID and the file's are two.
    pub fn uuid_mismatch(guest: &str, file: &Path, qemu: &GuestId, written: &GuestId) -> Problem {
        let message = format!(
            "QEMU runs with UUID {qemu}, but {} says {written}. Correct qmp there, or remove uuid, which is for machines without one",
            file.display()
        );
        Problem { subject: guest.to_owned(), reason: "UUIDMismatch", message }
    }

    /// The name stood for another machine before.
    pub fn uuid_changed(guest: &str, before: &GuestId, now: &GuestId, known: &Path) -> Problem {
        let message = format!(
            "Guest {guest} had UUID {before} and now has {now}: another machine under one name. If that is right, remove {} on the node; the points of the former machine stay under its UUID",
            known.display()
        );
        Problem { subject: guest.to_owned(), reason: "UUIDChanged", message }
    }

    /// Several machines that run have one UUID.
    pub fn duplicate_uuid(guest: &str, uuid: &GuestId, others: &[&str]) -> Problem {
        let message = format!(
            "UUID {uuid} is also that of {}, which runs at the same time; backups of the two would be mixed. Start one of them with another -uuid",
            others.join(", ")
        );
        Problem { subject: guest.to_owned(), reason: "DuplicateUUID", message }
    }

    /// The agent has only just started, or read the file.
    pub fn not_seen_yet(guest: &str) -> Problem {
        let message = format!("Guest {guest} has not been looked at yet; this takes some seconds at most");
        Problem { subject: guest.to_owned(), reason: "NotSeenYet", message }
    }

    /// Several files name one guest.
    pub fn duplicate_name(guest: &str, files: &[&Path]) -> Problem {
        let files = files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
        let message = format!("Several files name guest {guest}: {files}. Remove or rename all but one");
        Problem { subject: guest.to_owned(), reason: "DuplicateName", message }
    }
}

const UNREACHABLE: &str = "QMPUnreachable";
const BUSY: &str = "QMPBusy";
const NOT_RESPONDING: &str = "QMPNotResponding";
const NONSENSE: &str = "QMPNonsense";
