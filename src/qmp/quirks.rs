//! Commands that kill QEMU or destroy data, as one pure table that is asked before each send. A guest must never die
//! because of a backup: what stands here is refused on our side, whatever the caller believes.
//!
//! All of it was measured on QEMU 5.2.0, 7.2.22, 8.2.2 and 10.0.13. A version in between counts as the worse neighbour,
//! a newer one as the newest measured.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{block::BlockDevice, version::Version};

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
    ("block_resize", "a resize below a throttle filter aborts QEMU, and the size of a disk is not ours to change"),
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
                _ => Err("setting a device's drive to the node that it already has aborts QEMU"),
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
            "block-dirty-bitmap-enable" if grouped && !version.at_least(8, 2) => {
                return Err("enabling a bitmap in a grouped transaction crashes QEMU before 8.2");
            }
            // Asking before whether it is there would not help: somebody could remove it in between.
            "block-dirty-bitmap-enable" if !added.contains(&bitmap) => {
                return Err(
                    "enabling a bitmap that does not exist in a transaction crashes QEMU, and this one is not \
                            added by the same transaction",
                );
            }
            "blockdev-backup" if !copied.insert(text(data, "device")) => {
                return Err("two backup jobs of one node have aborted QEMU 7.2 under load");
            }
            _ => {}
        }
    }
    Ok(())
}

/// A drive id resolves to the top node, which is a filter while any job runs: bitmaps land on it and vanish, and a
/// transaction that meets the end of that job aborts QEMU from 7.2 on.
fn not_by_drive_id(data: &Value, known: &Known) -> Result<(), &'static str> {
    for key in ["node", "device"] {
        if text(data, key).is_some_and(|name| known.drive_ids.contains(name)) {
            return Err("it names a -drive id instead of a node: such a transaction aborts QEMU when another job ends");
        }
    }
    Ok(())
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

#[cfg(test)]
mod tests;
