//! The answers of a scripted QEMU to questions, in the shape of QEMU 7.2.22.

use std::{os::unix::fs::MetadataExt, sync::LazyLock};

use serde_json::{Value, json};

use super::model::{Answer, Device, Model, Node, Refusal, generic, text};

/// Commands and arguments that the schema names.
const COMMANDS: &[(&str, &[&str])] = &[
    ("qmp_capabilities", &["enable"]),
    ("query-version", &[]),
    ("query-status", &[]),
    ("query-uuid", &[]),
    ("query-name", &[]),
    ("query-block", &[]),
    ("query-named-block-nodes", &["flat"]),
    ("x-debug-query-block-graph", &[]),
    ("query-jobs", &[]),
    ("query-block-jobs", &[]),
    ("query-fdsets", &[]),
    ("query-migrate", &[]),
    ("query-qmp-schema", &[]),
    ("add-fd", &["fdset-id", "opaque"]),
    ("remove-fd", &["fdset-id", "fd"]),
    ("blockdev-add", &["driver", "node-name"]),
    ("blockdev-del", &["node-name"]),
    ("block-set-write-threshold", &["node-name", "write-threshold"]),
    ("transaction", &["actions", "properties"]),
    (
        "blockdev-backup",
        &["job-id", "device", "sync", "speed", "bitmap", "bitmap-mode", "filter-node-name", "target", "x-perf"],
    ),
    ("block-dirty-bitmap-add", &["node", "name", "granularity", "persistent", "disabled"]),
    ("block-dirty-bitmap-remove", &["node", "name"]),
    ("block-dirty-bitmap-clear", &["node", "name"]),
    ("block-dirty-bitmap-enable", &["node", "name"]),
    ("block-dirty-bitmap-disable", &["node", "name"]),
    ("block-dirty-bitmap-merge", &["node", "target", "bitmaps"]),
    ("job-cancel", &["id"]),
    ("job-dismiss", &["id"]),
    ("job-pause", &["id"]),
    ("job-resume", &["id"]),
    ("block-job-set-speed", &["device", "speed"]),
    ("stop", &[]),
    ("cont", &[]),
    ("quit", &[]),
    ("qom-list", &["path"]),
    ("qom-get", &["path", "property"]),
    ("qom-set", &["path", "property", "value"]),
    ("human-monitor-command", &["command-line", "cpu-index"]),
];
const EVENTS: &[&str] = &[
    "BLOCK_IO_ERROR",
    "BLOCK_JOB_CANCELLED",
    "BLOCK_JOB_COMPLETED",
    "BLOCK_JOB_ERROR",
    "JOB_STATUS_CHANGE",
    "RESUME",
    "SHUTDOWN",
    "STOP",
];
/// Types of no meaning, so that the schema is as long as the real one: some 200 KiB.
const PADDING: usize = 1500;

impl Model {
    pub(super) fn version_answer(&self) -> Value {
        let (major, minor, micro) = self.version;
        json!({"qemu": {"micro": micro, "minor": minor, "major": major}, "package": "fake"})
    }

    pub(super) fn query(&self, command: &str, arguments: &Value) -> Result<Answer, Refusal> {
        let value = match command {
            "query-version" => self.version_answer(),
            "query-status" => {
                json!({"status": self.status, "singlestep": false, "running": self.status == "running"})
            }
            "query-uuid" => json!({"UUID": self.uuid}),
            "query-name" => self.name.as_ref().map_or(json!({}), |name| json!({"name": name})),
            "query-migrate" => self.migration.as_ref().map_or(json!({}), |status| json!({"status": status})),
            "query-block" => self.devices.iter().map(|device| self.device(device)).collect(),
            "query-named-block-nodes" => self.nodes.iter().rev().map(|node| self.shown(node)).collect(),
            "x-debug-query-block-graph" => self.graph(),
            "query-jobs" => self.job_list(),
            "query-block-jobs" => self.block_job_list(),
            "query-fdsets" => self.fdset_list(),
            "query-qmp-schema" => SCHEMA.clone(),
            "qom-list" => self.qom_list(text(arguments, "path")?)?,
            "qom-get" => self.qom_get(text(arguments, "path")?, text(arguments, "property")?)?,
            _ => return Err(("CommandNotFound".to_owned(), format!("The command {command} has not been found"))),
        };
        Ok(value.into())
    }

    fn device(&self, device: &Device) -> Value {
        let mut shown = json!({
            "io-status": device.io_status, "device": device.drive_id, "locked": false, "removable": false,
            "qdev": format!("/machine/peripheral/{}/virtio-backend", device.id), "type": "unknown",
        });
        if let Some(node) = self.nodes.iter().find(|node| node.name == device.top) {
            shown["inserted"] = self.shown(node);
        }
        shown
    }

    fn shown(&self, node: &Node) -> Value {
        let actual = node.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |m| m.blocks() * 512);
        let mut image = json!({
            "virtual-size": node.size, "filename": node.shown_file, "format": node.driver, "actual-size": actual,
            "dirty-flag": false,
        });
        if node.driver == "qcow2" {
            image["cluster-size"] = json!(65536);
            let data = json!({"compat": "1.1", "compression-type": "zlib", "lazy-refcounts": false,
                "refcount-bits": 16, "corrupt": false, "extended-l2": false});
            image["format-specific"] = json!({"type": "qcow2", "data": data});
        }
        let mut shown = json!({
            "iops_rd": 0, "detect_zeroes": node.detect_zeroes, "image": image, "iops_wr": 0, "ro": node.read_only,
            "node-name": node.name, "backing_file_depth": 0, "drv": node.driver, "iops": 0, "bps_wr": 0,
            "write_threshold": 0, "encrypted": false, "bps": 0, "bps_rd": 0,
            "cache": {"no-flush": false, "direct": false, "writeback": true}, "file": node.shown_file,
        });
        let mut bitmaps: Vec<Value> = Vec::new();
        // A running job has bitmaps of its own, without a name: one on what it copies, two on its filter.
        let running = self.jobs.iter().filter(|job| job.shown.status == "running");
        for job in running {
            let own = usize::from(job.shown.device == node.name) + 2 * usize::from(job.filter == node.name);
            let left = job.shown.total - job.shown.progress;
            bitmaps.extend((0..own).map(|_| {
                json!({"recording": false, "persistent": false, "busy": false, "granularity": 65536, "count": left})
            }));
        }
        for bitmap in &node.bitmaps {
            let mut shown = json!({
                "name": bitmap.name, "recording": bitmap.recording, "persistent": bitmap.persistent,
                "busy": bitmap.busy, "granularity": bitmap.granularity, "count": bitmap.count(),
            });
            if bitmap.inconsistent {
                shown["inconsistent"] = json!(true);
            }
            bitmaps.push(shown);
        }
        if !bitmaps.is_empty() {
            shown["dirty-bitmaps"] = Value::Array(bitmaps);
        }
        shown
    }

    fn graph(&self) -> Value {
        let running: Vec<_> = self.jobs.iter().filter(|job| job.shown.status == "running").collect();
        let (first_job, first_device) = (self.nodes.len() + 1, self.nodes.len() + running.len() + 1);
        let id_of = |name: &str| self.nodes.iter().position(|node| node.name == name).map(|at| at + 1);
        let mut nodes: Vec<Value> = Vec::new();
        let mut edges: Vec<Value> = Vec::new();
        let mut edge = |parent: usize, name: &str, child: &str| {
            if let Some(child) = id_of(child) {
                edges.push(json!({"name": name, "parent": parent, "child": child,
                    "shared-perm": ["write-unchanged", "consistent-read"], "perm": ["write", "consistent-read"]}));
            }
        };
        for (at, node) in self.nodes.iter().enumerate() {
            nodes.push(json!({"name": node.name, "type": "block-driver", "id": at + 1}));
            node.children.iter().for_each(|(name, child)| edge(at + 1, name, child));
        }
        for (at, job) in running.iter().enumerate() {
            nodes.push(json!({"name": job.shown.id, "type": "block-job", "id": first_job + at}));
            edge(first_job + at, "main node", &job.filter);
            edge(first_job + at, "target", &job.shown.target);
        }
        for (at, device) in self.devices.iter().enumerate() {
            let anonymous = format!("/machine/peripheral/{}/virtio-backend", device.id);
            let name = if device.drive_id.is_empty() { &anonymous } else { &device.drive_id };
            nodes.push(json!({"name": name, "type": "block-backend", "id": first_device + at}));
            edge(first_device + at, "root", &device.top);
        }
        json!({"edges": edges, "nodes": nodes})
    }

    fn job_list(&self) -> Value {
        let list = self.jobs.iter().map(|job| {
            let job = &job.shown;
            let mut shown = json!({"current-progress": job.progress, "status": job.status,
                "total-progress": job.total, "type": "backup", "id": job.id});
            if let Some(error) = &job.error {
                shown["error"] = json!(error);
            }
            shown
        });
        list.collect()
    }

    fn block_job_list(&self) -> Value {
        let list = self.jobs.iter().map(|job| {
            let (auto_dismiss, job) = (job.auto_dismiss, &job.shown);
            let mut shown = json!({"auto-finalize": true, "io-status": "ok", "device": job.id,
                "auto-dismiss": auto_dismiss, "busy": false, "len": job.total, "offset": job.progress,
                "status": job.status, "paused": job.status == "paused", "speed": job.speed, "ready": false, "type": "backup"});
            if let Some(error) = &job.error {
                shown["error"] = json!(error);
            }
            shown
        });
        list.collect()
    }

    fn fdset_list(&self) -> Value {
        let list = self.fdsets.iter().map(|set| {
            let fds = set.fds.iter().map(|(number, opaque, _)| match opaque {
                Some(opaque) => json!({"fd": number, "opaque": opaque}),
                None => json!({"fd": number}),
            });
            json!({"fdset-id": set.id, "fds": fds.collect::<Value>()})
        });
        list.collect()
    }

    fn qom_list(&self, path: &str) -> Result<Value, Refusal> {
        match path {
            "/machine/peripheral" => {
                let devices = self.devices.iter();
                let children = devices.map(|device| json!({"name": device.id, "type": "child<virtio-blk-pci>"}));
                Ok([json!({"name": "type", "type": "string"})].into_iter().chain(children).collect())
            }
            "/machine/peripheral-anon" => Ok(json!([{"name": "type", "type": "string"}])),
            _ => {
                let device = self.qom_device(path)?;
                let backend = json!({"name": "virtio-backend", "type": "child<virtio-blk-device>"});
                Ok(json!([{"name": "type", "type": "string"}, {"name": "drive", "type": "str"},
                    {"name": "share-rw", "type": "bool"}, backend, {"name": "id", "type": device.id}]))
            }
        }
    }

    fn qom_get(&self, path: &str, property: &str) -> Result<Value, Refusal> {
        let device = self.qom_device(path)?;
        match property {
            "type" => Ok(json!("virtio-blk-pci")),
            "drive" if device.drive_id.is_empty() => Ok(json!(device.top)),
            "drive" => Ok(json!(device.drive_id)),
            "share-rw" => Ok(json!(false)),
            _ => generic(format!("Property 'virtio-blk-pci.{property}' not found")),
        }
    }

    pub(super) fn qom_device(&self, path: &str) -> Result<&Device, Refusal> {
        let id = path.trim_start_matches("/machine/peripheral/").trim_end_matches("/virtio-backend");
        match self.devices.iter().find(|device| device.id == id) {
            Some(device) => Ok(device),
            None => Err(("DeviceNotFound".to_owned(), format!("Device '{path}' not found"))),
        }
    }
}

/// Built once: it is asked for by each connection.
static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let mut entities = Vec::new();
    for (at, (command, arguments)) in COMMANDS.iter().enumerate() {
        let members: Value = arguments.iter().map(|name| json!({"name": name, "type": "str"})).collect();
        let mut object = json!({"name": format!("a{at}"), "members": members, "meta-type": "object"});
        if *command == "blockdev-add" {
            let drivers = ["copy-before-write", "file", "qcow2", "raw", "snapshot-access", "throttle"];
            object["tag"] = json!("driver");
            object["variants"] = drivers.iter().map(|driver| json!({"case": driver, "type": "0"})).collect();
        }
        entities.push(json!({"name": command, "ret-type": "0", "meta-type": "command", "arg-type": format!("a{at}")}));
        entities.push(object);
    }
    entities.extend(EVENTS.iter().map(|event| json!({"name": event, "meta-type": "event", "arg-type": "0"})));
    entities.extend((0..PADDING).map(|at| {
        let members = json!([{"name": "path", "type": "str"}, {"name": "value", "default": null, "type": "int"}]);
        json!({"name": format!("p{at}"), "members": members, "meta-type": "object"})
    }));
    Value::Array(entities)
});
