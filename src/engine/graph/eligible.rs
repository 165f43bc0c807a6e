//! The one table of eligibility: which disks can be backed up, and a word for each refusal. Pure.

use serde::Serialize;

use crate::qmp::block::BlockNode;

/// Why a disk cannot be backed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Ineligible {
    /// A CD-ROM drive.
    Cdrom,
    /// A floppy drive.
    Floppy,
    /// A drive with nothing in it, or a disk of no bytes, such as one that is yet to be grown.
    Empty,
    /// Open for reading only: nothing of the guest's is in it.
    ReadOnly,
    /// Its data never passes QEMU's block layer.
    VhostUser,
    /// The guest talks to the device itself, past QEMU's block layer.
    PassThrough,
    /// Others may write to it too (`share-rw=on`): their writes would not be seen.
    SharedWritable,
    /// QEMU decrypts it: it would be stored in plain text.
    Encrypted,
    /// pflash that the guest only reads: its firmware.
    Firmware,
    /// pflash that the guest writes: the firmware's variables. Its file is stored beside the disks.
    FirmwareVariables,
    /// A folder shown as a disk (vvfat).
    Synthetic,
}

impl Ineligible {
    /// The word in statuses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cdrom => "Cdrom",
            Self::Floppy => "Floppy",
            Self::Empty => "Empty",
            Self::ReadOnly => "ReadOnly",
            Self::VhostUser => "VhostUser",
            Self::PassThrough => "PassThrough",
            Self::SharedWritable => "SharedWritable",
            Self::Encrypted => "Encrypted",
            Self::Firmware => "Firmware",
            Self::FirmwareVariables => "FirmwareVariables",
            Self::Synthetic => "Synthetic",
        }
    }
}

fn by_type(kind: &str) -> Option<Ineligible> {
    match kind {
        "ide-cd" | "scsi-cd" => Some(Ineligible::Cdrom),
        "floppy" => Some(Ineligible::Floppy),
        "scsi-block" | "scsi-generic" => Some(Ineligible::PassThrough),
        _ if kind.starts_with("cfi.pflash") => Some(Ineligible::Firmware),
        _ => None,
    }
}

/// The refusal of a drive of QOM type `kind` without a medium.
pub(super) fn empty(kind: &str) -> Ineligible {
    by_type(kind).unwrap_or(Ineligible::Empty)
}

/// The refusal of a disk, or nothing. `below` is the top node with all that it rests on.
pub(super) fn refusal(
    kind: &str,
    top: &BlockNode,
    format: &BlockNode,
    below: &[&BlockNode],
    shared: bool,
) -> Option<Ineligible> {
    match by_type(kind) {
        Some(Ineligible::Firmware) if !top.ro => return Some(Ineligible::FirmwareVariables),
        None => {}
        refusal => return refusal,
    }
    if below.iter().any(|node| node.drv == "host_cdrom") {
        return Some(Ineligible::Cdrom);
    }
    if below.iter().any(|node| node.drv == "vvfat") {
        return Some(Ineligible::Synthetic);
    }
    // QEMU takes no bitmap of such a node from an image (measured on 7.2 and 10.0).
    if format.image.virtual_size == 0 {
        return Some(Ineligible::Empty);
    }
    if top.ro || format.ro {
        return Some(Ineligible::ReadOnly);
    }
    if below.iter().any(|node| node.encrypted || node.drv == "luks") {
        return Some(Ineligible::Encrypted);
    }
    shared.then_some(Ineligible::SharedWritable)
}

/// Whether bitmaps on the node survive a clean restart: qcow2 version 3 only; `compat: 0.10` refuses them (measured).
/// A qcow2 whose data is in a file of its own is treated as if it could not, which costs a full after a restart.
pub(super) fn keeps_bitmaps(node: &BlockNode) -> bool {
    let data = node.image.format_specific.as_ref().map(|specific| &specific.data);
    node.drv == "qcow2" && data.is_some_and(|data| data["compat"] == "1.1" && data.get("data-file").is_none())
}

/// Whether a device of QOM type `kind` is a disk past QEMU's block layer.
pub(super) fn is_vhost(kind: &str) -> bool {
    ["vhost-user-blk", "vhost-user-scsi", "vhost-scsi"].iter().any(|prefix| kind.starts_with(prefix))
        && !kind.ends_with("-device")
}
