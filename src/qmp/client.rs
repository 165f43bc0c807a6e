//! One connection to one QEMU. Edge: async, owns the socket.
//!
//! A writer task sends whole lines; a reader task gives replies to whom they belong and events to whoever listens.
//! Ids are unique to the connection: replies to a dead client do reach the next client of a socket (measured: 34 and 51
//! of 250), and are dropped here. A caller that stops waiting harms nothing: the reply is dropped when it comes.

mod error;

use std::{
    collections::HashMap,
    os::fd::{BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::Value;
use tokio::{
    sync::{OwnedMutexGuard, broadcast, mpsc, oneshot, watch},
    task::AbortHandle,
    time::Instant,
};

pub use self::error::ExecuteError;
use super::{
    ErrorObserver,
    block::BlockDevice,
    command::Command,
    event::Event,
    process::{FileSystem, Process},
    quirks::{self, Known},
    schema::Schema,
    transport::{Reader, Writer},
    version::Version,
    wire::{self, Lines, Message, QemuError, WireError},
};

/// A connection to a QEMU that was greeted. Clones share it; it ends with the last one.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    outgoing: mpsc::Sender<Outgoing>,
    shared: Arc<Shared>,
    next: AtomicU64,
    /// One command with a descriptor at a time: QEMU keeps only the newest ones that came in, so a second one sent
    /// before the first command was executed would be taken for the first's.
    fd_turn: Arc<tokio::sync::Mutex<()>>,
    facts: Facts,
    observer: Option<ErrorObserver>,
    tasks: [AbortHandle; 2],
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("version", &self.facts.version).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// What is known of the other end since the connection was made.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) version: Version,
    pub(super) out_of_band: bool,
    pub(super) process: Option<Process>,
    pub(super) file_system: FileSystem,
    pub(super) schema: Arc<Schema>,
    pub(super) known: Arc<Mutex<Known>>,
}

/// What callers and tasks share.
struct Shared {
    /// Random, so that no other client's ids are ours.
    prefix: String,
    pending: Mutex<HashMap<u64, Pending>>,
    events: broadcast::Sender<Event>,
    closed: watch::Sender<bool>,
}

struct Pending {
    answer: oneshot::Sender<Vec<u8>>,
    /// Held until the reply comes, even when nobody waits for it any more.
    _fd_turn: Option<OwnedMutexGuard<()>>,
}

struct Outgoing {
    number: u64,
    line: Vec<u8>,
    fd: Option<OwnedFd>,
}

/// Events that a listener may lag behind before it misses some and is told so.
const EVENTS_KEPT: usize = 256;
/// Lines in a row that are no message before the connection is given up.
const NONSENSE_ALLOWED: u32 = 16;

impl Client {
    /// Takes over a socket on which the greeting was read; `lines` may hold what came behind it.
    pub(super) fn start(
        reader: Reader,
        writer: Writer,
        lines: Lines,
        facts: Facts,
        observer: Option<ErrorObserver>,
    ) -> Client {
        let (outgoing, queue) = mpsc::channel(8);
        let shared = Arc::new(Shared {
            prefix: format!("dl-{:016x}-", rand::random::<u64>()),
            pending: Mutex::default(),
            events: broadcast::channel(EVENTS_KEPT).0,
            closed: watch::channel(false).0,
        });
        let read = tokio::spawn(read_all(reader, lines, shared.clone()));
        let write = tokio::spawn(write_all(writer, queue, shared.clone()));
        Client(Arc::new(Inner {
            outgoing,
            shared,
            next: AtomicU64::new(1),
            fd_turn: Arc::default(),
            facts,
            observer,
            tasks: [read.abort_handle(), write.abort_handle()],
        }))
    }

    /// The same connection, knowing what this QEMU can do.
    pub(super) fn with_schema(mut self, schema: Arc<Schema>) -> Client {
        // Nobody else has it yet.
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            inner.facts.schema = schema;
        }
        self
    }

    /// Sends a command and waits for its answer, at most for `C::DEADLINE`.
    pub async fn execute<C: Command>(&self, command: &C) -> Result<C::Reply, ExecuteError> {
        self.observed(self.send(command, None).await)
    }

    /// The same with a descriptor beside it, for `add-fd`. The descriptor is duplicated; the caller's stays open.
    pub async fn execute_with_fd<C: Command>(&self, command: &C, fd: BorrowedFd<'_>) -> Result<C::Reply, ExecuteError> {
        let sent = match fd.try_clone_to_owned() {
            Ok(fd) => self.send(command, Some(fd)).await,
            Err(source) => Err(ExecuteError::Descriptor { command: C::NAME, source }),
        };
        self.observed(sent)
    }

    /// What QEMU says from now on. A listener that lags far behind is told so and goes on with the newest.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.0.shared.events.subscribe()
    }

    /// Waits until the connection is gone.
    pub async fn closed(&self) {
        let mut closed = self.0.shared.closed.subscribe();
        // The sender lives as long as `self`.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// True when the connection is gone.
    pub fn is_closed(&self) -> bool {
        *self.0.shared.closed.borrow()
    }

    /// The version of QEMU.
    pub fn version(&self) -> &Version {
        &self.0.facts.version
    }

    /// The process that listens on the socket; `None` where the kernel does not show it.
    pub fn process(&self) -> Option<&Process> {
        self.0.facts.process.as_ref()
    }

    /// Whose files QEMU's paths name: only where they are this host's may anything be opened by them.
    pub fn file_system(&self) -> FileSystem {
        self.0.facts.file_system
    }

    /// What this QEMU can do.
    pub fn schema(&self) -> &Schema {
        &self.0.facts.schema
    }

    /// Ends the connection, for all clones: the socket is free for another client.
    pub fn close(&self) {
        self.0.tasks.iter().for_each(AbortHandle::abort);
        self.0.shared.close();
    }

    fn observed<T>(&self, result: Result<T, ExecuteError>) -> Result<T, ExecuteError> {
        if let (Err(error), Some(observer)) = (&result, &self.0.observer) {
            observer.failed(error);
        }
        result
    }

    async fn send<C: Command>(&self, command: &C, fd: Option<OwnedFd>) -> Result<C::Reply, ExecuteError> {
        let name = C::NAME;
        let facts = &self.0.facts;
        let arguments =
            serde_json::to_value(command).map_err(|source| ExecuteError::Arguments { command: name, source })?;
        let checked = quirks::check(&facts.version, name, &arguments, &lock(&facts.known));
        checked.map_err(|why| ExecuteError::Endangers { command: name, why })?;
        let with_fd = fd.is_some();
        let exchange = self.exchange(name, &arguments, C::OUT_OF_BAND && facts.out_of_band, fd);
        let line = match tokio::time::timeout_at(Instant::now() + C::DEADLINE, exchange).await {
            Ok(Some(line)) => line,
            Ok(None) => return Err(ExecuteError::Disconnected { command: name }),
            Err(_) => {
                // Its descriptor may still lie in QEMU and be taken by the next command that expects one.
                if with_fd {
                    self.close();
                }
                return Err(ExecuteError::TimedOut { command: name, deadline: C::DEADLINE });
            }
        };
        if name == "query-block"
            && let Ok(Ok(devices)) = wire::read_answer::<Vec<BlockDevice>>(&line)
        {
            lock(&facts.known).learn(&devices);
        }
        match wire::read_answer(&line) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(QemuError { class, desc })) => Err(ExecuteError::Qemu { command: name, class, description: desc }),
            Err(source) => Err(ExecuteError::Malformed { command: name, source }),
        }
    }

    /// Sends a line and waits for the line that answers it; `None` when the connection ends first.
    async fn exchange(&self, name: &str, arguments: &Value, out_of_band: bool, fd: Option<OwnedFd>) -> Option<Vec<u8>> {
        let turn = match fd {
            Some(_) => Some(self.0.fd_turn.clone().lock_owned().await),
            None => None,
        };
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let line = wire::encode(name, arguments, &format!("{}{number}", self.0.shared.prefix), out_of_band);
        let (answer, answered) = oneshot::channel();
        if !self.0.shared.expect(number, Pending { answer, _fd_turn: turn }) {
            return None;
        }
        if self.0.outgoing.send(Outgoing { number, line, fd }).await.is_err() {
            return None;
        }
        answered.await.ok()
    }
}

impl Shared {
    /// False when the connection is gone already.
    fn expect(&self, number: u64, pending: Pending) -> bool {
        let mut waiting = lock(&self.pending);
        // Looked at under the lock: `close` empties the table under it.
        if *self.closed.borrow() {
            return false;
        }
        waiting.insert(number, pending);
        true
    }

    /// True when somebody still waits for the answer; forgets the command otherwise.
    fn is_wanted(&self, number: u64) -> bool {
        let mut waiting = lock(&self.pending);
        match waiting.get(&number) {
            Some(pending) if !pending.answer.is_closed() => true,
            _ => {
                waiting.remove(&number);
                false
            }
        }
    }

    fn take(&self, message: Message, line: Vec<u8>) {
        match message {
            // Nobody listening is no error.
            Message::Event(event) => drop(self.events.send(event)),
            Message::Greeting { .. } => tracing::debug!("QEMU greeted again"),
            Message::Reply { id } => {
                let number = id.as_ref().and_then(Value::as_str).and_then(|id| id.strip_prefix(&self.prefix));
                match number.and_then(|number| number.parse().ok()).and_then(|n: u64| lock(&self.pending).remove(&n)) {
                    // A caller that stopped waiting does not want it any more.
                    Some(pending) => drop(pending.answer.send(line)),
                    None => tracing::debug!(?id, "Dropped a reply that is not ours"),
                }
            }
        }
    }

    fn close(&self) {
        let mut waiting = lock(&self.pending);
        self.closed.send_replace(true);
        waiting.clear();
    }
}

async fn read_all(mut reader: Reader, mut lines: Lines, shared: Arc<Shared>) {
    let mut buffer = vec![0; 16 << 10];
    let mut nonsense = 0;
    loop {
        match take_lines(&mut lines, &shared, &mut nonsense) {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(%error, "Monitor speaks nonsense, connection given up");
                break;
            }
        }
        match reader.read(&mut buffer).await {
            Ok(0) => break,
            Ok(read) => lines.feed(&buffer[..read]),
            Err(error) => {
                tracing::debug!(%error, "Monitor could not be read");
                break;
            }
        }
    }
    shared.close();
}

fn take_lines(lines: &mut Lines, shared: &Shared, nonsense: &mut u32) -> Result<(), WireError> {
    while let Some(line) = lines.next_line()? {
        match wire::parse(&line) {
            Ok(message) => {
                *nonsense = 0;
                shared.take(message, line);
            }
            Err(error) if *nonsense < NONSENSE_ALLOWED => {
                // The rest of a dead client's reply may come first on a new connection.
                *nonsense += 1;
                tracing::debug!(%error, "Dropped a line");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn write_all(mut writer: Writer, mut queue: mpsc::Receiver<Outgoing>, shared: Arc<Shared>) {
    while let Some(Outgoing { number, line, fd }) = queue.recv().await {
        // What nobody waits for any more is better not done at all.
        if !shared.is_wanted(number) {
            continue;
        }
        if let Err(error) = writer.send(&line, fd).await {
            tracing::debug!(%error, "Monitor could not be written to");
            break;
        }
    }
    shared.close();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[cfg(feature = "fake")]
mod tests;
