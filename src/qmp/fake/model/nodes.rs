//! Nodes of a scripted QEMU.

use std::{fs::File, io, sync::Arc};

use serde_json::{Value, json};

use super::{Answer, FakeBitmap, Model, Refusal, generic, text};
use crate::qmp::fake::image;

#[derive(Debug, Clone)]
pub(in crate::qmp::fake) struct Node {
    pub(in crate::qmp::fake) name: String,
    pub(in crate::qmp::fake) driver: String,
    pub(in crate::qmp::fake) shown_file: String,
    pub(in crate::qmp::fake) size: u64,
    pub(in crate::qmp::fake) read_only: bool,
    pub(in crate::qmp::fake) detect_zeroes: String,
    /// Name of the edge and of the node below.
    pub(in crate::qmp::fake) children: Vec<(&'static str, String)>,
    pub(in crate::qmp::fake) bitmaps: Vec<FakeBitmap>,
    /// Where its bytes are; none for filters.
    pub(in crate::qmp::fake) file: Option<Arc<File>>,
    /// Made by `blockdev-add`.
    added: bool,
    /// Its child was made with it and goes with it.
    owns_child: bool,
    /// What a job left in memory, not in the file yet.
    pub(in crate::qmp::fake) unflushed: Option<Arc<image::Copy>>,
    /// Of a filter that a device was given: the disk's bytes at that instant.
    pub(super) instant: Option<Arc<Vec<u8>>>,
}

impl Node {
    pub(super) fn new(name: &str, driver: &str, shown_file: &str, size: u64, file: Option<Arc<File>>) -> Node {
        Node {
            name: name.to_owned(),
            driver: driver.to_owned(),
            shown_file: shown_file.to_owned(),
            size,
            read_only: false,
            detect_zeroes: "off".to_owned(),
            children: Vec::new(),
            bitmaps: Vec::new(),
            file,
            added: false,
            owns_child: false,
            unflushed: None,
            instant: None,
        }
    }
}

impl Model {
    pub(in crate::qmp::fake) fn node_names(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.name.clone()).collect()
    }

    pub(super) fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    pub(super) fn node_mut(&mut self, name: &str) -> Option<&mut Node> {
        self.nodes.iter_mut().find(|node| node.name == name)
    }

    /// A node by its name or by the drive id of the device it is on top of.
    pub(super) fn resolve(&self, name: &str) -> Result<String, Refusal> {
        let by_drive = self.devices.iter().find(|device| !name.is_empty() && device.drive_id == name);
        match by_drive.map(|device| &device.top).or_else(|| self.node(name).map(|node| &node.name)) {
            Some(node) => Ok(node.clone()),
            None => generic(format!("Cannot find device='{name}' nor node-name='{name}'")),
        }
    }

    pub(super) fn bitmap_node(&self, name: &str) -> Result<String, Refusal> {
        self.resolve(name).or_else(|_| generic(format!("Node '{name}' not found")))
    }

    /// Everybody above `old` is now above `new`, but `new` itself.
    pub(super) fn put_in_place(&mut self, old: &str, new: &str) {
        for device in self.devices.iter_mut().filter(|device| device.top == old) {
            new.clone_into(&mut device.top);
        }
        for node in self.nodes.iter_mut().filter(|node| node.name != new) {
            for (_, child) in node.children.iter_mut().filter(|(_, child)| child == old) {
                new.clone_into(child);
            }
        }
    }

    /// Opens a path, or a descriptor of a set that has the right mode.
    fn open(&self, filename: &str, read_only: bool) -> Result<Arc<File>, Refusal> {
        let Some(set) = filename.strip_prefix("/dev/fdset/") else {
            return match File::options().read(true).write(!read_only).open(filename) {
                Ok(file) => Ok(Arc::new(file)),
                Err(error) => generic(format!("Could not open '{filename}': {}", in_words(&error))),
            };
        };
        let flags = if read_only { 0 } else { 2 };
        let refuse = |why| generic(format!("Could not dup FD for {filename} flags {flags}: {why}"));
        let Some(set) = set.parse().ok().and_then(|id: i64| self.fdsets.iter().find(|set| set.id == id)) else {
            return refuse("No such file or directory");
        };
        let wanted = if read_only { rustix::fs::OFlags::RDONLY } else { rustix::fs::OFlags::RDWR };
        let fits = |file: &Arc<File>| {
            rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags & rustix::fs::OFlags::RWMODE == wanted)
        };
        match set.fds.iter().map(|(_, _, file)| file).find(|file| fits(file)) {
            Some(file) => Ok(file.clone()),
            None => refuse("Permission denied"),
        }
    }

    pub(super) fn blockdev_add(&mut self, options: &Value) -> Result<Answer, Refusal> {
        let name = text(options, "node-name")?.to_owned();
        self.add_node(&name, options)?;
        Ok(json!({}).into())
    }

    fn add_node(&mut self, name: &str, options: &Value) -> Result<(), Refusal> {
        if self.node(name).is_some() {
            return generic(format!("Duplicate nodes with node-name='{name}'"));
        }
        let read_only = options.get("read-only").and_then(Value::as_bool).unwrap_or(false);
        let driver = text(options, "driver")?;
        let mut node = match (driver, options.get("file")) {
            ("file", _) => {
                let filename = text(options, "filename")?;
                let file = self.open(filename, read_only)?;
                let size = file.metadata().map_or(0, |metadata| metadata.len());
                Node::new(name, driver, filename, size, Some(file))
            }
            ("copy-before-write" | "snapshot-access", Some(below)) => self.fleece_node(name, driver, below, options)?,
            ("qcow2" | "raw", Some(below)) => {
                let (child, owns_child) = match below.as_str() {
                    Some(child) => (child.to_owned(), false),
                    None => {
                        let child = match below.get("node-name").and_then(Value::as_str) {
                            Some(child) => child.to_owned(),
                            None => self.made_up_name(),
                        };
                        let mut below = below.clone();
                        if read_only {
                            below["read-only"] = json!(true);
                        }
                        self.add_node(&child, &below)?;
                        (child, true)
                    }
                };
                let Some(below) = self.node(&child) else {
                    return generic(format!("Cannot find device='' nor node-name='{child}'"));
                };
                let mut node = Node::new(name, driver, &below.shown_file, below.size, below.file.clone());
                if driver == "qcow2"
                    && let Err(error) = read_qcow2(&mut node)
                {
                    if owns_child {
                        self.close(&child);
                    }
                    return generic(error.to_string());
                }
                if let ("raw", Some(size)) = (driver, options.get("size").and_then(Value::as_u64)) {
                    node.size = size;
                }
                node.children.push(("file", child));
                node.owns_child = owns_child;
                node
            }
            _ => return generic(format!("Unknown driver '{driver}'")),
        };
        node.added = true;
        node.read_only = read_only;
        if let Some(detect) = options.get("detect-zeroes").and_then(Value::as_str) {
            detect.clone_into(&mut node.detect_zeroes);
        }
        self.nodes.push(node);
        Ok(())
    }

    pub(super) fn blockdev_del(&mut self, arguments: &Value) -> Result<Answer, Refusal> {
        let name = text(arguments, "node-name")?.to_owned();
        let Some(node) = self.node(&name).cloned() else {
            return generic(format!("Failed to find node with node-name='{name}'"));
        };
        if self.is_used_by_job(&name) {
            return generic(format!("Node '{name}' is busy: block device is in use by block job: backup"));
        }
        if !node.added {
            return generic(format!("Node {name} is not owned by the monitor"));
        }
        let above = |other: &Node| other.children.iter().any(|(_, child)| *child == name);
        if self.nodes.iter().any(above) || self.devices.iter().any(|device| device.top == name) {
            return generic(format!("Block device {name} is in use"));
        }
        if let Err(error) = flush(&node) {
            return generic(error.to_string());
        }
        self.close(&name);
        Ok(json!({}).into())
    }

    /// A node goes, and what was made with it.
    fn close(&mut self, name: &str) {
        let Some(at) = self.nodes.iter().position(|node| node.name == name) else { return };
        let node = self.nodes.remove(at);
        for (_, child) in node.children.iter().filter(|_| node.owns_child) {
            self.close(child);
        }
    }

    /// A clean end writes what jobs left.
    pub(in crate::qmp::fake) fn flush_all(&mut self) {
        for node in &self.nodes {
            // As QEMU: what cannot be written is lost.
            let _ = flush(node);
        }
    }

    pub(super) fn format_of(&self, disk: &str) -> Option<String> {
        self.devices.iter().find(|device| device.id == disk).map(|device| device.format.clone())
    }

    pub(in crate::qmp::fake) fn bitmaps(&self, disk: &str) -> Vec<FakeBitmap> {
        self.format_of(disk).and_then(|node| self.node(&node)).map(|node| node.bitmaps.clone()).unwrap_or_default()
    }

    pub(in crate::qmp::fake) fn disk_file(&self, disk: &str) -> io::Result<Arc<File>> {
        let file = self.format_of(disk).and_then(|node| self.node(&node)?.file.clone());
        file.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("Disk {disk} is not there")))
    }

    pub(in crate::qmp::fake) fn resize(&mut self, disk: &str, size: u64) -> io::Result<()> {
        let file = self.disk_file(disk)?;
        if self.nodes.iter().any(|node| node.driver == "copy-before-write") {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "Permission conflict: resize"));
        }
        let before = file.metadata()?.len();
        file.set_len(size)?;
        for node in self.nodes.iter_mut().filter(|node| node.file.as_ref().is_some_and(|f| Arc::ptr_eq(f, &file))) {
            node.size = size;
            for bitmap in &mut node.bitmaps {
                let end = size.div_ceil(bitmap.granularity);
                bitmap.granules.retain(|granule| *granule < end);
            }
        }
        self.mark_written(disk, before, size.saturating_sub(before));
        Ok(())
    }
}

fn read_qcow2(node: &mut Node) -> io::Result<()> {
    let file = node.file.as_ref().ok_or_else(|| io::Error::other("Node has no file"))?;
    node.size = image::header(file)?.virtual_size;
    for (name, granularity, granules) in image::bitmaps(file)? {
        let stored = FakeBitmap::new(&name);
        node.bitmaps.push(FakeBitmap { granularity: u64::from(granularity), persistent: true, granules, ..stored });
    }
    Ok(())
}

fn flush(node: &Node) -> io::Result<()> {
    match (&node.unflushed, &node.file) {
        (Some(copy), Some(file)) if node.driver == "qcow2" => image::fill(file, copy),
        _ => Ok(()),
    }
}

fn in_words(error: &io::Error) -> String {
    let words = error.to_string();
    words.split(" (os error").next().unwrap_or_default().to_owned()
}
