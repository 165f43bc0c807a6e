//! What a scripted QEMU is made of - disks, nodes, bitmaps, jobs, descriptors - and how they change. Its words are
//! those of QEMU 7.2.22, captured.

mod bitmaps;
mod fleece;
mod jobs;
mod nodes;

use std::{collections::BTreeSet, fs::File, io, os::fd::OwnedFd, path::Path, path::PathBuf, sync::Arc};

use serde_json::{Value, json};

pub use self::jobs::FakeJob;
use self::jobs::Job;
pub(super) use self::nodes::Node;
use super::Setup;

/// A disk of a scripted QEMU. Its file holds the guest's bytes plainly, whatever format is shown, so that a test can
/// write and compare them without tools.
#[derive(Debug, Clone)]
pub struct FakeDisk {
    device: String,
    path: PathBuf,
    format: &'static str,
    drive_id: Option<String>,
    node: String,
    filters: Vec<(&'static str, String)>,
    bitmaps: Vec<FakeBitmap>,
}

impl FakeDisk {
    /// A virtio disk `device` on node `<device>-node`, shown as raw: bitmaps cannot be persistent.
    pub fn raw(device: &str, path: impl AsRef<Path>) -> FakeDisk {
        FakeDisk::new(device, path.as_ref(), "raw")
    }

    /// The same, shown as qcow2 v3.
    pub fn qcow2(device: &str, path: impl AsRef<Path>) -> FakeDisk {
        FakeDisk::new(device, path.as_ref(), "qcow2")
    }

    fn new(device: &str, path: &Path, format: &'static str) -> FakeDisk {
        FakeDisk {
            device: device.to_owned(),
            path: path.to_owned(),
            format,
            drive_id: None,
            node: format!("{device}-node"),
            filters: Vec::new(),
            bitmaps: Vec::new(),
        }
    }

    /// Under a node name of choice.
    pub fn node(mut self, node: &str) -> FakeDisk {
        node.clone_into(&mut self.node);
        self
    }

    /// As by `-drive id=ID`: the nodes get made-up names.
    pub fn by_drive(mut self, id: &str) -> FakeDisk {
        self.drive_id = Some(id.to_owned());
        self.node.clear();
        self
    }

    /// Below a filter of the user's, such as `throttle`; the last one is on top.
    pub fn under(mut self, driver: &'static str, node: &str) -> FakeDisk {
        self.filters.push((driver, node.to_owned()));
        self
    }

    /// With a bitmap from before.
    pub fn bitmap(mut self, bitmap: FakeBitmap) -> FakeDisk {
        self.bitmaps.push(bitmap);
        self
    }
}

/// A named bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeBitmap {
    /// Its name.
    pub name: String,
    /// Bytes of a granule.
    pub granularity: u64,
    /// False when it is frozen.
    pub recording: bool,
    /// True when it is stored at a clean end.
    pub persistent: bool,
    /// True after a crash.
    pub inconsistent: bool,
    /// True while a job uses it.
    pub busy: bool,
    /// The marked granules.
    pub granules: BTreeSet<u64>,
    /// What was written while it was busy; joined at the end of the job.
    pub(super) meanwhile: BTreeSet<u64>,
}

impl FakeBitmap {
    /// An empty one that records, of 64 KiB granules.
    pub fn new(name: &str) -> FakeBitmap {
        FakeBitmap {
            name: name.to_owned(),
            granularity: 65536,
            recording: true,
            persistent: false,
            inconsistent: false,
            busy: false,
            granules: BTreeSet::new(),
            meanwhile: BTreeSet::new(),
        }
    }

    /// Bytes that are marked.
    pub fn count(&self) -> u64 {
        self.granules.len() as u64 * self.granularity
    }
}

/// QEMU's refusal: class and words.
pub(super) type Refusal = (String, String);
/// Events that a command lets out, whether it is done or refused.
pub(super) type Events = Vec<(&'static str, Value)>;

/// What a command that was done leaves.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) value: Value,
    /// Jobs that it started.
    pub(super) started: Vec<String>,
    /// Jobs that it cancelled: they end behind the reply.
    pub(super) cancelled: Vec<String>,
}

impl From<Value> for Answer {
    fn from(value: Value) -> Answer {
        Answer { value, ..Answer::default() }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) version: (u32, u32, u32),
    pub(super) uuid: String,
    pub(super) name: Option<String>,
    pub(super) status: String,
    pub(super) migration: Option<String>,
    pub(super) hang_cancel: bool,
    pub(super) devices: Vec<Device>,
    pub(super) nodes: Vec<Node>,
    pub(super) jobs: Vec<Job>,
    pub(super) fdsets: Vec<FdSet>,
    made_up: u32,
}

#[derive(Debug, Clone)]
pub(super) struct Device {
    pub(super) id: String,
    pub(super) drive_id: String,
    /// What is on top now.
    pub(super) top: String,
    /// The node with the format and the bitmaps.
    pub(super) format: String,
    pub(super) io_status: String,
}

#[derive(Debug, Clone)]
pub(super) struct FdSet {
    pub(super) id: i64,
    pub(super) fds: Vec<(i64, Option<String>, Arc<File>)>,
}

pub(super) fn generic<T>(words: impl Into<String>) -> Result<T, Refusal> {
    Err(("GenericError".to_owned(), words.into()))
}

pub(super) fn text<'a>(arguments: &'a Value, key: &str) -> Result<&'a str, Refusal> {
    match arguments.get(key).and_then(Value::as_str) {
        Some(text) => Ok(text),
        None => generic(format!("Parameter '{key}' is missing")),
    }
}

impl Model {
    pub(super) fn new(setup: Setup) -> io::Result<Model> {
        let mut model = Model {
            version: setup.version,
            uuid: setup.uuid,
            name: setup.name,
            status: setup.status,
            migration: None,
            hang_cancel: false,
            devices: Vec::new(),
            nodes: Vec::new(),
            jobs: Vec::new(),
            fdsets: Vec::new(),
            made_up: 100,
        };
        for disk in setup.disks {
            model.plug(disk)?;
        }
        Ok(model)
    }

    fn plug(&mut self, disk: FakeDisk) -> io::Result<()> {
        let file = Arc::new(File::options().read(true).write(true).open(&disk.path)?);
        let size = file.metadata()?.len();
        let shown = disk.path.display().to_string();
        let protocol = self.made_up_name();
        let format = if disk.node.is_empty() { self.made_up_name() } else { disk.node };
        self.nodes.push(Node::new(&protocol, "file", &shown, size, Some(file.clone())));
        let mut node = Node::new(&format, disk.format, &shown, size, Some(file));
        node.children.push(("file", protocol));
        node.bitmaps = disk.bitmaps;
        self.nodes.push(node);
        let mut top = format.clone();
        for (driver, name) in disk.filters {
            let mut filter = Node::new(&name, driver, &shown, size, None);
            filter.children.push(("file", top));
            self.nodes.push(filter);
            top = name;
        }
        let drive_id = disk.drive_id.unwrap_or_default();
        self.devices.push(Device { id: disk.device, drive_id, top, format, io_status: "ok".to_owned() });
        Ok(())
    }

    pub(super) fn made_up_name(&mut self) -> String {
        self.made_up += 1;
        format!("#block{}", self.made_up)
    }

    /// Does a command.
    pub(super) fn execute(
        &mut self,
        command: &str,
        arguments: &Value,
        passed: &mut Option<OwnedFd>,
    ) -> (Events, Result<Answer, Refusal>) {
        let done = match command {
            "transaction" => return self.transaction(arguments),
            "blockdev-backup" => {
                return self.transaction(&json!({"actions": [{"type": command, "data": arguments}]}));
            }
            "job-dismiss" => return self.job_dismiss(arguments),
            "job-pause" => return self.job_pause(arguments),
            "job-resume" => return self.job_resume(arguments),
            "stop" | "cont" => return self.stop_or_cont(command == "stop"),
            "add-fd" => self.add_fd(arguments, passed.take()),
            "remove-fd" => self.remove_fd(arguments),
            "blockdev-add" => self.blockdev_add(arguments),
            "blockdev-del" => self.blockdev_del(arguments),
            "job-cancel" => {
                self.job_cancel(arguments).map(|cancelled| Answer { value: json!({}), cancelled, ..Answer::default() })
            }
            "block-job-set-speed" => self.set_speed(arguments),
            "qom-set" => self.qom_set(arguments),
            "block-set-write-threshold" => self.set_write_threshold(arguments),
            "human-monitor-command" => Ok(json!("").into()),
            "quit" => Ok(json!({}).into()),
            _ if command.starts_with("block-dirty-bitmap-") => self.bitmap_command(command, arguments),
            _ => self.query(command, arguments),
        };
        (Vec::new(), done)
    }

    fn stop_or_cont(&mut self, stop: bool) -> (Events, Result<Answer, Refusal>) {
        let wanted = if stop { "paused" } else { "running" };
        let events =
            if self.status == wanted { vec![] } else { vec![(if stop { "STOP" } else { "RESUME" }, Value::Null)] };
        wanted.clone_into(&mut self.status);
        (events, Ok(json!({}).into()))
    }

    fn add_fd(&mut self, arguments: &Value, passed: Option<OwnedFd>) -> Result<Answer, Refusal> {
        let Some(passed) = passed else { return generic("No file descriptor supplied via SCM_RIGHTS") };
        let free = (0..).find(|id| self.fdsets.iter().all(|set| set.id != *id)).unwrap_or(0);
        let id = arguments.get("fdset-id").and_then(Value::as_i64).unwrap_or(free);
        let opaque = arguments.get("opaque").and_then(Value::as_str).map(str::to_owned);
        let number = i64::from(std::os::fd::AsRawFd::as_raw_fd(&passed));
        let member = (number, opaque, Arc::new(File::from(passed)));
        match self.fdsets.iter_mut().find(|set| set.id == id) {
            Some(set) => set.fds.push(member),
            None => self.fdsets.push(FdSet { id, fds: vec![member] }),
        }
        Ok(json!({"fdset-id": id, "fd": number}).into())
    }

    fn remove_fd(&mut self, arguments: &Value) -> Result<Answer, Refusal> {
        let id = arguments.get("fdset-id").and_then(Value::as_i64).unwrap_or(-1);
        let closes = self.version >= (9, 1, 0) || self.status == "running";
        let Some(at) = self.fdsets.iter().position(|set| set.id == id) else {
            return generic(format!("File descriptor named 'fdset-id:{id}' not found"));
        };
        if closes {
            // Nodes hold their own duplicates.
            self.fdsets.remove(at);
        }
        Ok(json!({}).into())
    }

    /// QEMU 7.2 drops fd sets that no node uses when the client is gone, if the guest runs; 10.0 keeps them.
    pub(super) fn client_is_gone(&mut self) {
        if self.version.0 < 10 && self.status == "running" {
            let used: BTreeSet<&str> = self.nodes.iter().map(|node| node.shown_file.as_str()).collect();
            self.fdsets.retain(|set| used.contains(format!("/dev/fdset/{}", set.id).as_str()));
        }
    }

    pub(super) fn fdset_words(&self) -> Vec<(i64, Vec<String>)> {
        let words = |set: &FdSet| set.fds.iter().filter_map(|(_, opaque, _)| opaque.clone()).collect();
        self.fdsets.iter().map(|set| (set.id, words(set))).collect()
    }

    pub(super) fn set_io_status(&mut self, disk: &str, io_status: &str) {
        for device in self.devices.iter_mut().filter(|device| device.id == disk) {
            io_status.clone_into(&mut device.io_status);
        }
    }

    /// All that lived in memory is gone, files are closed.
    pub(super) fn lose_all(&mut self) {
        self.jobs.clear();
        self.nodes.clear();
        self.devices.clear();
        self.fdsets.clear();
    }
}
