//! What a fleece takes: filters that keep what is overwritten, snapshots of the instant at which a device was given one.

use std::{os::unix::fs::FileExt, sync::Arc};

use serde_json::{Value, json};

use super::{Answer, Model, Node, Refusal, generic, text};
use crate::qmp::fake::ABORTED;

impl Model {
    pub(super) fn fleece_node(
        &self,
        name: &str,
        driver: &str,
        below: &Value,
        options: &Value,
    ) -> Result<Node, Refusal> {
        let child = |name: &str| match self.node(name) {
            Some(node) => Ok(node),
            None => generic(format!("Cannot find device='{name}' nor node-name='{name}'")),
        };
        let below = child(below.as_str().unwrap_or_default())?;
        let mut node = Node::new(name, driver, &below.shown_file, below.size, None);
        node.children.push(("file", below.name.clone()));
        if driver == "copy-before-write" {
            let target = child(text(options, "target")?)?;
            if target.size != below.size {
                return generic("Source and target image have different sizes");
            }
            node.children.push(("target", target.name.clone()));
        } else if below.driver != "copy-before-write" {
            return generic("Node does not support snapshot-access");
        }
        Ok(node)
    }

    /// Nothing fills a scratch here, so it never warns.
    pub(super) fn set_write_threshold(&self, arguments: &Value) -> Result<Answer, Refusal> {
        let name = text(arguments, "node-name")?;
        match self.node(name) {
            Some(_) => Ok(json!({}).into()),
            None => generic(format!("Device '{name}' not found")),
        }
    }

    /// `qom-set` of a device's drive. The filter's instant is that at which a device gets it.
    pub(super) fn qom_set(&mut self, arguments: &Value) -> Result<Answer, Refusal> {
        let device = self.qom_device(text(arguments, "path")?)?;
        let (id, top) = (device.id.clone(), device.top.clone());
        if text(arguments, "property")? != "drive" {
            return generic("Property is read-only");
        }
        let value = text(arguments, "value")?;
        let Some(node) = self.node(value).cloned() else {
            return generic(format!("Property 'virtio-blk-device.drive' can't find value '{value}'"));
        };
        if node.name == top {
            return Err((ABORTED.to_owned(), "Assertion `old_bs != new_bs' failed".to_owned()));
        }
        let reads = |other: &&Node| other.driver == "snapshot-access" && other.children[0].1 == top;
        if let Some(reader) = self.nodes.iter().find(reads) {
            let reader = &reader.children[0].1;
            return generic(format!("Permission conflict on node '{value}': unshared by node '{reader}'"));
        }
        if node.driver == "copy-before-write" {
            let bytes = Arc::new(self.bytes(&node).or_else(|error| generic(error.to_string()))?);
            if let Some(node) = self.node_mut(value) {
                node.instant = Some(bytes);
            }
        }
        for device in self.devices.iter_mut().filter(|device| device.id == id) {
            node.name.clone_into(&mut device.top);
        }
        Ok(json!({}).into())
    }

    /// What a reader of a node sees.
    pub(super) fn bytes(&self, node: &Node) -> std::io::Result<Vec<u8>> {
        let mut at = node;
        loop {
            if let (Some(instant), "snapshot-access") = (&at.instant, node.driver.as_str()) {
                return Ok(instant.as_ref().clone());
            }
            if let Some(file) = &at.file {
                let mut bytes = vec![0; usize::try_from(node.size).map_err(std::io::Error::other)?];
                file.read_exact_at(&mut bytes, 0)?;
                return Ok(bytes);
            }
            let below = at.children.first().and_then(|(_, child)| self.node(child));
            at = below.ok_or_else(|| std::io::Error::other("Node has no data below it"))?;
        }
    }
}
