//! Jobs and transactions of a scripted QEMU.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::{Value, json};

use super::{Answer, Events, Model, Node, Refusal, bitmaps::usable, generic, text};
use crate::qmp::fake::image::{self, CLUSTER};

/// A job as a test sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeJob {
    /// Its id.
    pub id: String,
    /// The node that it copies.
    pub device: String,
    /// The node that it writes.
    pub target: String,
    /// `running`, `paused` or `concluded`.
    pub status: &'static str,
    /// Why it failed.
    pub error: Option<String>,
    /// Bytes done.
    pub progress: u64,
    /// Bytes in all.
    pub total: u64,
    /// Bytes per second; 0 is no bound.
    pub speed: u64,
}

#[derive(Debug, Clone)]
pub(in crate::qmp::fake) struct Job {
    pub(in crate::qmp::fake) shown: FakeJob,
    pub(in crate::qmp::fake) filter: String,
    pub(in crate::qmp::fake) auto_dismiss: bool,
    copy: Arc<image::Copy>,
    bitmap: Option<String>,
}

fn status_event(id: &str, status: &str) -> (&'static str, Value) {
    ("JOB_STATUS_CHANGE", json!({"status": status, "id": id}))
}

impl Model {
    pub(in crate::qmp::fake) fn jobs(&self) -> Vec<FakeJob> {
        self.jobs.iter().map(|job| job.shown.clone()).collect()
    }

    pub(in crate::qmp::fake) fn running_jobs(&self) -> Vec<String> {
        self.jobs.iter().filter(|job| job.shown.status == "running").map(|job| job.shown.id.clone()).collect()
    }

    pub(in crate::qmp::fake) fn resume_jobs(&mut self) {
        for job in self.jobs.iter_mut().filter(|job| job.shown.status == "paused") {
            job.shown.status = "running";
        }
    }

    pub(in crate::qmp::fake) fn set_progress(&mut self, id: &str, bytes: u64) {
        for job in self.jobs.iter_mut().filter(|job| job.shown.id == id && job.shown.status != "paused") {
            job.shown.progress = bytes.min(job.shown.total);
        }
    }

    pub(super) fn is_used_by_job(&self, node: &str) -> bool {
        let uses = |job: &Job| job.shown.target == node || job.shown.device == node;
        self.jobs.iter().any(|job| job.shown.status != "concluded" && uses(job))
    }

    /// All of it or nothing; a refused one may have said something of jobs nevertheless, as the real one does.
    pub(super) fn transaction(&mut self, arguments: &Value) -> (Events, Result<Answer, Refusal>) {
        let mut next = self.clone();
        let mut started: Vec<String> = Vec::new();
        for action in arguments.get("actions").and_then(Value::as_array).into_iter().flatten() {
            let kind = action.get("type").and_then(Value::as_str).unwrap_or_default();
            let data = action.get("data").unwrap_or(&Value::Null);
            let done = match kind {
                "blockdev-backup" => next.backup(data).map(|id| started.push(id)),
                _ if kind.starts_with("block-dirty-bitmap-") => next.bitmap_command(kind, data).map(|_| ()),
                _ => generic(format!("Parameter 'type' does not accept value '{kind}'")),
            };
            if let Err(refusal) = done {
                let undone = |id: &String| ["created", "aborting", "concluded", "null"].map(|s| status_event(id, s));
                return (started.iter().flat_map(undone).collect(), Err(refusal));
            }
        }
        *self = next;
        let begun = |id: &String| ["created", "running", "paused", "running"].map(|s| status_event(id, s));
        let events = started.iter().flat_map(begun).collect();
        (events, Ok(Answer { value: json!({}), started, ..Answer::default() }))
    }

    fn backup(&mut self, data: &Value) -> Result<String, Refusal> {
        let device = self.resolve(text(data, "device")?)?;
        let target = self.resolve(text(data, "target")?)?;
        let id = data.get("job-id").and_then(Value::as_str).unwrap_or_default().to_owned();
        if id.is_empty() {
            return generic("Invalid job ID ''");
        }
        if self.jobs.iter().any(|job| job.shown.id == id) {
            return generic(format!("Job ID '{id}' already in use"));
        }
        if self.is_used_by_job(&target) {
            return generic(format!("Node '{target}' is busy: block device is in use by block job: backup"));
        }
        let (Some(source), Some(into)) = (self.node(&device).cloned(), self.node(&target)) else {
            return generic("Node is gone");
        };
        if source.size != into.size {
            return generic("Source and target image have different sizes");
        }
        let (granules, bitmap) = match text(data, "sync")? {
            "full" | "top" => (None, None),
            "bitmap" | "incremental" => {
                let name = text(data, "bitmap")?;
                let Some(bitmap) = source.bitmaps.iter().find(|bitmap| bitmap.name == name) else {
                    return generic(format!("Bitmap '{name}' could not be found"));
                };
                usable(bitmap, false)?;
                (Some((bitmap.granularity, bitmap.granules.clone())), Some(name.to_owned()))
            }
            sync => return generic(format!("Parameter 'sync' does not accept value '{sync}'")),
        };
        // Whole clusters, though the disk may end within the last one.
        let whole = source.size.next_multiple_of(CLUSTER);
        let total = granules.as_ref().map_or(whole, |(size, marked)| size * marked.len() as u64);
        let copy = match self.read_instant(&source, granules) {
            Ok(copy) => Arc::new(copy),
            Err(error) => return generic(error.to_string()),
        };
        let filter = match data.get("filter-node-name").and_then(Value::as_str) {
            Some(name) => name.to_owned(),
            None => self.made_up_name(),
        };
        let mut above = Node::new(&filter, "copy-before-write", &source.shown_file, source.size, None);
        above.children = vec![("file", device.clone()), ("target", target.clone())];
        self.put_in_place(&device, &filter);
        self.nodes.push(above);
        if let Some(name) = &bitmap {
            self.set_busy(&device, name, true);
        }
        let speed = data.get("speed").and_then(Value::as_u64).unwrap_or(0);
        let auto_dismiss = data.get("auto-dismiss").and_then(Value::as_bool).unwrap_or(true);
        let shown =
            FakeJob { id: id.clone(), device, target, status: "running", error: None, progress: 0, total, speed };
        self.jobs.push(Job { shown, filter, auto_dismiss, copy, bitmap });
        Ok(id)
    }

    /// The content of this instant, of all clusters or of those that are marked.
    fn read_instant(&self, source: &Node, granules: Option<(u64, BTreeSet<u64>)>) -> std::io::Result<image::Copy> {
        let bytes = self.bytes(source)?;
        let clusters: BTreeSet<u64> = match granules {
            None => (0..source.size.div_ceil(CLUSTER)).collect(),
            Some((size, marked)) => {
                marked.iter().flat_map(|g| g * size / CLUSTER..((g + 1) * size).div_ceil(CLUSTER)).collect()
            }
        };
        let mut copy = image::Copy::new();
        for cluster in clusters {
            let start = usize::try_from(cluster * CLUSTER).unwrap_or(usize::MAX).min(bytes.len());
            let end = usize::try_from((cluster + 1) * CLUSTER).unwrap_or(usize::MAX).min(bytes.len());
            let content = bytes[start..end].to_vec();
            copy.insert(cluster, content.iter().any(|byte| *byte != 0).then_some(content));
        }
        Ok(copy)
    }

    fn set_busy(&mut self, node: &str, name: &str, busy: bool) {
        let node = self.nodes.iter_mut().find(|n| n.name == node);
        if let Some(bitmap) = node.and_then(|node| node.bitmaps.iter_mut().find(|bitmap| bitmap.name == name)) {
            bitmap.busy = busy;
            if !busy {
                bitmap.granules.append(&mut bitmap.meanwhile);
            }
        }
    }

    /// Ends a job; the events are none when there is no such job. One that is paused can only fail.
    pub(in crate::qmp::fake) fn end_job(&mut self, id: &str, error: Option<&str>) -> Events {
        let can_end = |job: &Job| job.shown.status == "running" || (job.shown.status == "paused" && error.is_some());
        let Some(at) = self.jobs.iter().position(|job| job.shown.id == id && can_end(job)) else {
            return Vec::new();
        };
        let job = self.jobs[at].clone();
        let FakeJob { device, target, total, speed, .. } = &job.shown;
        self.put_in_place(&job.filter, device);
        self.nodes.retain(|node| node.name != job.filter);
        if let Some(bitmap) = &job.bitmap {
            self.set_busy(device, bitmap, false);
        }
        let shown = &mut self.jobs[at].shown;
        shown.status = "concluded";
        shown.error = error.map(str::to_owned);
        if error.is_none() {
            shown.progress = *total;
        }
        let mut data = json!({"device": id, "len": total, "offset": shown.progress, "speed": speed, "type": "backup"});
        let mut events = match error {
            None => vec![status_event(id, "waiting"), status_event(id, "pending")],
            Some(_) => vec![status_event(id, "aborting")],
        };
        let cancelled = error == Some("Operation canceled");
        if let (Some(error), false) = (error, cancelled) {
            data["error"] = json!(error);
        }
        events.push((if cancelled { "BLOCK_JOB_CANCELLED" } else { "BLOCK_JOB_COMPLETED" }, data));
        events.push(status_event(id, "concluded"));
        if error.is_none() {
            for node in self.nodes.iter_mut().filter(|node| node.name == *target) {
                node.unflushed = Some(job.copy.clone());
            }
        }
        if job.auto_dismiss {
            self.jobs.remove(at);
            events.push(status_event(id, "null"));
        }
        events
    }

    fn job(&mut self, id: &str, verb: &str, in_states: &[&str]) -> Result<&mut Job, Refusal> {
        match self.jobs.iter_mut().find(|job| job.shown.id == id) {
            None => generic("Job not found"),
            Some(job) if !in_states.contains(&job.shown.status) => {
                let status = job.shown.status;
                generic(format!("Job '{id}' in state '{status}' cannot accept command verb '{verb}'"))
            }
            Some(job) => Ok(job),
        }
    }

    /// The jobs that end behind the reply.
    pub(super) fn job_cancel(&mut self, arguments: &Value) -> Result<Vec<String>, Refusal> {
        let id = text(arguments, "id")?;
        self.job(id, "cancel", &["running", "paused"])?;
        Ok(if self.hang_cancel { Vec::new() } else { vec![id.to_owned()] })
    }

    /// Both refusals as measured on QEMU 7.2 and 10.0.
    pub(super) fn job_pause(&mut self, arguments: &Value) -> (Events, Result<Answer, Refusal>) {
        let paused = text(arguments, "id").and_then(|id| {
            let job = self.job(id, "pause", &["running", "paused"])?;
            if job.shown.status == "paused" {
                return generic("Job is already paused");
            }
            job.shown.status = "paused";
            Ok(vec![status_event(id, "paused")])
        });
        match paused {
            Ok(events) => (events, Ok(json!({}).into())),
            Err(refusal) => (Vec::new(), Err(refusal)),
        }
    }

    /// A job that ends by itself does so behind the reply.
    pub(super) fn job_resume(&mut self, arguments: &Value) -> (Events, Result<Answer, Refusal>) {
        let resumed = text(arguments, "id").and_then(|id| match self.jobs.iter_mut().find(|job| job.shown.id == id) {
            None => generic("Job not found"),
            Some(job) if job.shown.status != "paused" => generic("Can't resume a job that was not paused"),
            Some(job) => {
                job.shown.status = "running";
                Ok(id.to_owned())
            }
        });
        match resumed {
            Ok(id) => {
                let events = vec![status_event(&id, "running")];
                (events, Ok(Answer { value: json!({}), started: vec![id], ..Answer::default() }))
            }
            Err(refusal) => (Vec::new(), Err(refusal)),
        }
    }

    pub(super) fn job_dismiss(&mut self, arguments: &Value) -> (Events, Result<Answer, Refusal>) {
        let dismissed =
            text(arguments, "id").and_then(|id| self.job(id, "dismiss", &["concluded"]).map(|_| id.to_owned()));
        match dismissed {
            Err(refusal) => (Vec::new(), Err(refusal)),
            Ok(id) => {
                self.jobs.retain(|job| job.shown.id != id);
                (vec![status_event(&id, "null")], Ok(json!({}).into()))
            }
        }
    }

    pub(super) fn set_speed(&mut self, arguments: &Value) -> Result<Answer, Refusal> {
        let id = text(arguments, "device")?;
        let speed = arguments.get("speed").and_then(Value::as_u64).unwrap_or(0);
        match self.jobs.iter_mut().find(|job| job.shown.id == id) {
            Some(job) if job.shown.status == "concluded" => {
                return generic(format!("Job '{id}' in state 'concluded' cannot accept command verb 'set-speed'"));
            }
            Some(job) => job.shown.speed = speed,
            None => return Err(("DeviceNotActive".to_owned(), format!("Block job '{id}' not found"))),
        }
        Ok(json!({}).into())
    }
}
