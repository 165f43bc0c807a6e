//! Commands that kill QEMU or destroy data, as one pure table that is asked before each send. A guest must never die
//! because of a backup: what stands here is refused on our side, whatever the caller believes.
//!
//! All of it was measured on QEMU 5.2.0, 7.2.22, 8.2.2 and 10.0.13. A version in between counts as the worse neighbour,
//! a newer one as the newest measured.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{block::BlockDevice, version::Version};

/// What a QEMU does to its guest, or to what is stored of it, at something that others do without a thought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Danger {
    /// The word that a Guest's status has for it.
    pub word: &'static str,
    /// The first version that is measured not to do it; none: the newest measured one does.
    pub mended_in: Option<(u32, u32)>,
    /// What happens, as a clause.
    pub what: &'static str,
}

impl Danger {
    /// Whether a QEMU of that version does it.
    pub fn is_in(&self, version: &Version) -> bool {
        self.mended_in.is_none_or(|(major, minor)| !version.at_least(major, minor))
    }
}

/// A snapshot's block status is that of the disk after a zero write of the guest, so that a job stores zeros.
pub const FLEECING: Danger = Danger {
    word: "FleecingUnsafe",
    mended_in: Some((8, 2)),
    what: "a snapshot of a disk shows zeros where the guest has written zeros since, and a backup of it stores them",
};
const ENABLE: Danger = Danger {
    word: "EnableCrashes",
    mended_in: None,
    what: "enabling a bitmap that does not exist in a transaction crashes QEMU",
};
const GROUPED_ENABLE: Danger = Danger {
    word: "GroupedEnableCrashes",
    mended_in: Some((8, 2)),
    what: "enabling a bitmap in a grouped transaction crashes QEMU",
};
/// A drive id resolves to the top node, which is a filter while any job runs: bitmaps land on it and vanish, and a
/// transaction that meets the end of that job aborts QEMU from 7.2 on.
const DRIVE_ID: Danger = Danger {
    word: "DriveIdAborts",
    mended_in: None,
    what: "a transaction that names a -drive id instead of a node aborts QEMU when another job ends",
};
const SAME_DRIVE: Danger = Danger {
    word: "SameDriveAborts",
    mended_in: None,
    what: "setting a device's drive to the node that it already has aborts QEMU",
};
const TWO_JOBS: Danger = Danger {
    word: "TwoJobsAbort",
    mended_in: Some((10, 0)),
    what: "two backup jobs of one node have aborted QEMU under load",
};
const RESIZE: Danger =
    Danger { word: "ResizeBelowThrottleAborts", mended_in: None, what: "a resize below a throttle filter aborts QEMU" };

/// `remove-fd` only marks a set unless the guest runs; another one closes it once the guest does. `engine` writes such sets
/// down, so no command is refused for it.
const PAUSED_KEEPS: Danger = Danger {
    word: "PausedKeepsDescriptors",
    mended_in: Some((10, 0)),
    what: "descriptors that are given up while the guest does not run stay open until it has run again",
};

/// All of them. `check` refuses the commands.
pub const DANGERS: [Danger; 8] =
    [FLEECING, ENABLE, GROUPED_ENABLE, DRIVE_ID, SAME_DRIVE, TWO_JOBS, RESIZE, PAUSED_KEEPS];

/// What the connection knows about the guest, for the rules that need it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// The `-drive` ids, from the newest answer of `query-block`.
    pub drive_ids: BTreeSet<String>,
    /// The node that each device has, by the device's path or id, from the same answer.
    pub drives: BTreeMap<String, String>,
}

impl Known {
    /// Takes the drive ids from an answer of `query-block`.
    pub(super) fn learn(&mut self, devices: &[BlockDevice]) {
        let has = |device: &BlockDevice| {
            Some((
                device.qdev.clone()?,
                device.inserted.as_ref().map(|node| node.node_name.clone()).unwrap_or_default(),
            ))
        };
        self.drives = devices.iter().filter_map(has).collect();
        self.drive_ids = devices.iter().filter(|d| !d.device.is_empty()).map(|d| d.device.clone()).collect();
    }
}

/// Commands that are never sent, in no form.
const NEVER: &[(&str, &str)] = &[
    ("drive-backup", "it truncates an existing target, and addressed by a drive id in a transaction it aborts QEMU"),
    ("blockdev-create", "it truncates an existing file"),
    ("blockdev-snapshot-sync", "it truncates an existing file"),
    ("block_resize", RESIZE.what),
];

/// Why a command must not be sent; `Ok` when nothing is known against it.
pub fn check(version: &Version, command: &str, arguments: &Value, known: &Known) -> Result<(), &'static str> {
    if let Some((_, why)) = NEVER.iter().find(|(name, _)| *name == command) {
        return Err(why);
    }
    match command {
        "transaction" => check_transaction(version, arguments, known),
        "qom-set" if text(arguments, "property") == Some("drive") => {
            let path = text(arguments, "path").unwrap_or_default();
            let id = path.strip_prefix("/machine/peripheral/").unwrap_or(path);
            match known.drives.get(path).or_else(|| known.drives.get(id)) {
                Some(has) if text(arguments, "value").is_some_and(|node| node != has) => Ok(()),
                _ => Err(SAME_DRIVE.what),
            }
        }
        "blockdev-backup" => not_by_drive_id(arguments, known),
        _ if command.starts_with("block-dirty-bitmap-") => not_by_drive_id(arguments, known),
        _ => Ok(()),
    }
}

fn check_transaction(version: &Version, arguments: &Value, known: &Known) -> Result<(), &'static str> {
    let actions = arguments.get("actions").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let grouped = arguments.pointer("/properties/completion-mode").and_then(Value::as_str) == Some("grouped");
    let mut added = BTreeSet::new();
    let mut copied = BTreeSet::new();
    for action in actions {
        let kind = text(action, "type").unwrap_or_default();
        let data = action.get("data").unwrap_or(&Value::Null);
        if let Some((_, why)) = NEVER.iter().find(|(name, _)| *name == kind) {
            return Err(why);
        }
        not_by_drive_id(data, known)?;
        let bitmap = (text(data, "node"), text(data, "name"));
        match kind {
            "block-dirty-bitmap-add" => {
                added.insert(bitmap);
            }
            "block-dirty-bitmap-enable" if grouped && GROUPED_ENABLE.is_in(version) => {
                return Err(GROUPED_ENABLE.what);
            }
            // Asking before whether it is there would not help: somebody could remove it in between.
            "block-dirty-bitmap-enable" if !added.contains(&bitmap) => {
                return Err(ENABLE.what);
            }
            "blockdev-backup" if !copied.insert(text(data, "device")) => {
                return Err(TWO_JOBS.what);
            }
            _ => {}
        }
    }
    Ok(())
}

fn not_by_drive_id(data: &Value, known: &Known) -> Result<(), &'static str> {
    for key in ["node", "device"] {
        if text(data, key).is_some_and(|name| known.drive_ids.contains(name)) {
            return Err(DRIVE_ID.what);
        }
    }
    Ok(())
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

#[cfg(test)]
mod tests;
