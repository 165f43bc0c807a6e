//! A scripted QEMU on a unix socket, for tests and benches (feature `fake`): disks are real files, targets are real
//! qcow2 files, jobs go on until the test says otherwise, and replies, connections and the whole process fail on order.
//!
//! It proves only what its author believes. What it believes was captured from QEMU 7.2.22, and its behaviours have
//! twin tests against the real one in `tests/qemu/qmp.rs`: transactions are all or nothing, **a target is empty until
//! its node is deleted and is lost on a kill**, a second client gets silence, and the process behind the socket is a
//! process of its own, so that "QEMU is gone" can be proven of this one too.

mod answers;
mod image;
mod model;
mod process;
mod script;
mod server;

use std::{
    io,
    os::unix::{fs::FileExt, net::UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
};

use serde_json::{Value, json};

use self::{model::Model, process::Standin};
pub use self::{
    model::{FakeBitmap, FakeDisk, FakeJob},
    script::{Fault, Logged, Pace, Setup, When},
};

/// The error class of what makes the real QEMU abort: the scripted one is killed by it.
const ABORTED: &str = "Aborted";

/// A scripted QEMU. Dropping it kills it.
#[derive(Debug)]
pub struct FakeQemu {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// Woken when QEMU is gone.
    gone: Condvar,
    listener: std::os::unix::net::UnixListener,
}

#[derive(Debug)]
struct State {
    model: Model,
    connection: Option<Connection>,
    negotiated: bool,
    faults: Vec<(When, Fault)>,
    log: Vec<Logged>,
    pace: Pace,
    gone: bool,
    process: Standin,
}

/// The client that is served. Writing is a thread of its own, so that a test that says something to its own client
/// does not wait for itself.
#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    outgoing: mpsc::Sender<Vec<u8>>,
}

impl Connection {
    fn new(stream: UnixStream) -> io::Result<Connection> {
        let mut writing = stream.try_clone()?;
        let (outgoing, queue) = mpsc::channel::<Vec<u8>>();
        thread::Builder::new().name("fake-qemu-out".to_owned()).spawn(move || {
            // A client that is gone is noticed by the reading side.
            let _ = queue.iter().try_for_each(|message| io::Write::write_all(&mut writing, &message));
            // Whoever drops the sender ends the connection, behind what was said before.
            let _ = writing.shutdown(std::net::Shutdown::Both);
        })?;
        Ok(Connection { stream, outgoing })
    }
}

impl FakeQemu {
    fn start(setup: Setup) -> io::Result<FakeQemu> {
        let (listener, process) = process::listen(&setup.socket)?;
        let inner = Arc::new(Inner {
            listener: listener.try_clone()?,
            gone: Condvar::new(),
            state: Mutex::new(State {
                pace: setup.pace,
                model: Model::new(setup)?,
                connection: None,
                negotiated: false,
                faults: Vec::new(),
                log: Vec::new(),
                gone: false,
                process,
            }),
        });
        let serving = inner.clone();
        thread::Builder::new().name("fake-qemu".to_owned()).spawn(move || server::serve(&serving, &listener))?;
        Ok(FakeQemu { inner })
    }

    /// Lets something go wrong.
    pub fn fault(&self, when: When, fault: Fault) {
        self.inner.lock().faults.push((when, fault));
    }

    /// Nothing goes wrong from now on.
    pub fn clear_faults(&self) {
        self.inner.lock().faults.clear();
    }

    /// All commands that came in, oldest first.
    pub fn log(&self) -> Vec<Logged> {
        self.inner.lock().log.clone()
    }

    /// How often a command came in, done or not.
    pub fn count(&self, command: &str) -> usize {
        self.inner.lock().log.iter().filter(|logged| logged.command == command).count()
    }

    /// How many transactions came in, done or not.
    pub fn transactions(&self) -> usize {
        self.count("transaction")
    }

    /// The jobs that are listed.
    pub fn jobs(&self) -> Vec<FakeJob> {
        self.inner.lock().model.jobs()
    }

    /// The names of all nodes.
    pub fn nodes(&self) -> Vec<String> {
        self.inner.lock().model.node_names()
    }

    /// The fd sets by number, with the words they came with.
    pub fn fdsets(&self) -> Vec<(i64, Vec<String>)> {
        self.inner.lock().model.fdset_words()
    }

    /// The bitmaps on a disk's format node.
    pub fn bitmaps(&self, disk: &str) -> Vec<FakeBitmap> {
        self.inner.lock().model.bitmaps(disk)
    }

    /// The guest writes to a disk; recording bitmaps see it, jobs that run do not.
    pub fn write(&self, disk: &str, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.inner.lock();
        state.model.disk_file(disk)?.write_all_at(data, offset)?;
        state.model.mark_written(disk, offset, data.len() as u64);
        Ok(())
    }

    /// Somebody resizes a disk.
    pub fn resize(&self, disk: &str, size: u64) -> io::Result<()> {
        self.inner.lock().model.resize(disk, size)
    }

    /// A job gets this far.
    pub fn progress(&self, job: &str, bytes: u64) {
        self.inner.lock().model.set_progress(job, bytes);
    }

    /// A job ends well. False when no such job runs.
    pub fn finish_job(&self, job: &str) -> bool {
        self.inner.lock().end_job(job, None)
    }

    /// All jobs that run end well.
    pub fn finish_jobs(&self) {
        self.inner.lock().finish_jobs();
    }

    /// Somebody lets all paused jobs go on.
    pub fn resume_jobs(&self) {
        self.inner.lock().model.resume_jobs();
    }

    /// A job fails. False when no such job runs.
    pub fn fail_job(&self, job: &str, error: &str) -> bool {
        self.inner.lock().end_job(job, Some(error))
    }

    /// From now on `job-cancel` is accepted and does nothing, as with a hung target; or works again.
    pub fn hang_cancel(&self, hang: bool) {
        self.inner.lock().model.hang_cancel = hang;
    }

    /// How jobs end from now on.
    pub fn set_pace(&self, pace: Pace) {
        self.inner.lock().pace = pace;
    }

    /// The machine's state, as `query-status` tells it.
    pub fn set_status(&self, status: &str) {
        status.clone_into(&mut self.inner.lock().model.status);
    }

    /// The machine's state.
    pub fn status(&self) -> String {
        self.inner.lock().model.status.clone()
    }

    /// A migration's state, as `query-migrate` tells it.
    pub fn set_migration(&self, status: Option<&str>) {
        self.inner.lock().model.migration = status.map(str::to_owned);
    }

    /// A disk's `io-status`, such as `nospace`.
    pub fn set_io_status(&self, disk: &str, io_status: &str) {
        self.inner.lock().model.set_io_status(disk, io_status);
    }

    /// QEMU says something.
    pub fn emit(&self, event: &str, data: Value) {
        self.inner.lock().emit(event, data);
    }

    /// The connection ends, QEMU stays.
    pub fn cut(&self) {
        self.inner.lock().cut();
    }

    /// QEMU is killed: what was not flushed is lost, bitmaps are gone.
    pub fn kill(&self) {
        self.inner.kill(false);
    }

    /// QEMU ends cleanly: targets are flushed.
    pub fn quit(&self) {
        self.inner.kill(true);
    }

    /// The process that `Client::process` shows.
    pub fn pid(&self) -> u32 {
        self.inner.lock().process.pid()
    }

    /// The socket's path.
    pub fn socket(&self) -> PathBuf {
        let address = self.inner.listener.local_addr().ok();
        address.as_ref().and_then(|a| a.as_pathname()).map(Path::to_owned).unwrap_or_default()
    }
}

impl Drop for FakeQemu {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kill(&self, cleanly: bool) {
        let mut state = self.lock();
        if state.gone {
            return;
        }
        state.gone = true;
        if cleanly {
            state.emit("SHUTDOWN", json!({"guest": false, "reason": "host-signal"}));
            state.model.flush_all();
        }
        state.cut();
        state.model.lose_all();
        state.process.kill();
        // Nobody accepts any more, and connecting is refused: the socket's file stays, as after a real kill.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        self.gone.notify_all();
    }
}

impl State {
    fn emit(&mut self, event: &str, data: Value) {
        let now = jiff::Timestamp::now();
        let timestamp = json!({"seconds": now.as_second(), "microseconds": now.subsec_microsecond()});
        let mut message = json!({"timestamp": timestamp, "event": event});
        if !data.is_null() {
            message["data"] = data;
        }
        if self.negotiated {
            self.say(&message);
        }
    }

    fn emit_all(&mut self, events: Vec<(&'static str, Value)>) {
        for (event, data) in events {
            self.emit(event, data);
        }
    }

    fn say(&mut self, message: &Value) {
        if let Some(connection) = &self.connection {
            // Its thread ends when the client is gone.
            let _ = connection.outgoing.send(format!("{message}\r\n").into_bytes());
        }
    }

    /// The connection ends behind what was said; nothing more is read from it.
    fn cut(&mut self) {
        self.negotiated = false;
        if let Some(connection) = self.connection.take() {
            let _ = connection.stream.shutdown(std::net::Shutdown::Read);
        }
    }

    fn end_job(&mut self, job: &str, error: Option<&str>) -> bool {
        let events = self.model.end_job(job, error);
        let ended = !events.is_empty();
        self.emit_all(events);
        ended
    }

    fn finish_jobs(&mut self) {
        for job in self.model.running_jobs() {
            self.end_job(&job, None);
        }
    }

    /// The fault for the command that was logged last.
    fn fault(&mut self) -> Option<Fault> {
        let count = self.log.len();
        let name = self.log.last().map(|logged| logged.command.clone())?;
        let same = self.log.iter().filter(|logged| logged.command == name).count();
        let hit = self.faults.iter().position(|(when, _)| match when {
            When::Nth(n) => *n == count,
            When::NthOf(command, n) => *command == name && *n == same,
            When::Every(command) => *command == name,
        })?;
        match &self.faults[hit] {
            (When::Every(_), fault) => Some(fault.clone()),
            _ => Some(self.faults.remove(hit).1),
        }
    }
}
