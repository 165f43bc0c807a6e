//! Bitmaps of a scripted QEMU.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Answer, FakeBitmap, Model, Refusal, generic, text};

impl Model {
    /// A bitmap command, outside of a transaction or in one.
    pub(super) fn bitmap_command(&mut self, command: &str, data: &Value) -> Result<Answer, Refusal> {
        let node = self.bitmap_node(text(data, "node")?)?;
        let act = command.trim_start_matches("block-dirty-bitmap-");
        if act == "merge" {
            return self.merge(&node, data);
        }
        let name = text(data, "name")?;
        let Some(node) = self.node_mut(&node) else { return generic("Node is gone") };
        let at = node.bitmaps.iter().position(|bitmap| bitmap.name == name);
        let flag = |key: &str| data.get(key).and_then(Value::as_bool).unwrap_or(false);
        match (act, at) {
            ("add", Some(_)) => return generic(format!("Bitmap already exists: {name}")),
            ("add", None) => {
                if flag("persistent") && node.driver != "qcow2" {
                    let node = &node.name;
                    return generic(format!("Can't store persistent bitmaps to {node}: Operation not supported"));
                }
                let granularity = data.get("granularity").and_then(Value::as_u64).unwrap_or(65536);
                let mut bitmap = FakeBitmap { granularity, persistent: flag("persistent"), ..FakeBitmap::new(name) };
                bitmap.recording = !flag("disabled");
                node.bitmaps.push(bitmap);
            }
            (_, None) => return generic(format!("Dirty bitmap '{name}' not found")),
            (_, Some(at)) => {
                let bitmap = &mut node.bitmaps[at];
                usable(bitmap, act == "remove")?;
                match act {
                    "remove" => drop(node.bitmaps.remove(at)),
                    "clear" => bitmap.granules.clear(),
                    "enable" => bitmap.recording = true,
                    "disable" => bitmap.recording = false,
                    _ => return generic(format!("The command {command} has not been found")),
                }
            }
        }
        Ok(json!({}).into())
    }

    fn merge(&mut self, node: &str, data: &Value) -> Result<Answer, Refusal> {
        let target = text(data, "target")?;
        let mut gained = BTreeSet::new();
        let (granularity, size) = match self.node(node).map(|n| (n.bitmaps.iter().find(|b| b.name == target), n.size)) {
            Some((Some(bitmap), size)) => {
                usable(bitmap, false)?;
                (bitmap.granularity, size)
            }
            _ => return generic(format!("Dirty bitmap '{target}' not found")),
        };
        for source in data.get("bitmaps").and_then(Value::as_array).into_iter().flatten() {
            let (from, name) = match source.as_str() {
                Some(name) => (node.to_owned(), name),
                None => (self.bitmap_node(text(source, "node")?)?, text(source, "name")?),
            };
            let Some(from) = self.node(&from) else { return generic("Node is gone") };
            let Some(bitmap) = from.bitmaps.iter().find(|bitmap| bitmap.name == name) else {
                return generic(format!("Dirty bitmap '{name}' not found"));
            };
            usable(bitmap, false)?;
            if from.size != size {
                return generic(format!(
                    "Bitmaps are of different sizes (destination size is {size}, source size is {}) and can't be merged",
                    from.size
                ));
            }
            for granule in &bitmap.granules {
                let (start, end) = (granule * bitmap.granularity, (granule + 1) * bitmap.granularity);
                gained.extend(start / granularity..end.div_ceil(granularity));
            }
        }
        let bitmap = self.node_mut(node).and_then(|n| n.bitmaps.iter_mut().find(|b| b.name == target));
        if let Some(bitmap) = bitmap {
            bitmap.granules.extend(gained);
        }
        Ok(json!({}).into())
    }

    pub(in crate::qmp::fake) fn mark_written(&mut self, disk: &str, offset: u64, length: u64) {
        let Some(node) = self.format_of(disk) else { return };
        let Some(node) = self.node_mut(&node) else { return };
        for bitmap in node.bitmaps.iter_mut().filter(|bitmap| bitmap.recording && length > 0) {
            let granules = offset / bitmap.granularity..(offset + length).div_ceil(bitmap.granularity);
            let into = if bitmap.busy { &mut bitmap.meanwhile } else { &mut bitmap.granules };
            into.extend(granules);
        }
    }
}

/// Whether a bitmap can be used; an inconsistent one only be removed.
pub(super) fn usable(bitmap: &FakeBitmap, removal: bool) -> Result<(), Refusal> {
    let name = &bitmap.name;
    if bitmap.busy {
        return generic(format!("Bitmap '{name}' is currently in use by another operation and cannot be used"));
    }
    if bitmap.inconsistent && !removal {
        return generic(format!("Bitmap '{name}' is inconsistent and cannot be used"));
    }
    Ok(())
}
