//! One task per guest (edge to QEMU): it holds the connection to the monitor, looks at the machine when something
//! happens and every now and then, and says what it saw. A socket that refuses, hangs, belongs to another client or
//! speaks nonsense is that guest's problem and nobody else's.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::{
    discover::{Found, GuestKey},
    inventory::{Listing, Seen, listing},
    known::{Known, Verdict},
    problem::Problem,
};
use crate::{
    config::GuestFile,
    engine::graph::{GuestFacts, PowerState, inspect},
    metrics::{AgentMetrics, GuestLabels, Reason},
    qmp::{Address, Client, ConnectError, ErrorObserver, Event, Monitor, MonitorOptions, Schemas},
    sentence::sentence,
};

/// How long a monitor may take to be ready, greeting and schema together.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the answers about a machine may take before it counts as hung.
const LOOK: Duration = Duration::from_secs(10);
/// How long the first look at the folder of the guests' files may take before the agent answers without it.
const SCAN: Duration = Duration::from_secs(10);
/// Between two attempts to connect.
const RETRY: Duration = Duration::from_secs(1);
/// How often a machine is looked at when it says nothing.
const REFRESH: Duration = Duration::from_secs(15);
/// Events come in bursts; one look serves the burst.
const SETTLE: Duration = Duration::from_millis(200);

/// A monitor and the right to start runs on it, in the order of asking.
pub struct Socket {
    /// The monitor.
    pub monitor: Monitor,
    /// Held by the run that works.
    pub turn: Arc<tokio::sync::Mutex<()>>,
}

/// All guests of the node.
#[derive(Clone)]
pub struct Guests(Arc<Shared>);

struct Shared {
    known: Known,
    schemas: Schemas,
    metrics: AgentMetrics,
    board: Mutex<Board>,
    listing: watch::Sender<Arc<Listing>>,
    scanned: watch::Sender<bool>,
}

#[derive(Default)]
struct Board {
    found: Found,
    seen: BTreeMap<GuestKey, Seen>,
    tasks: HashMap<GuestKey, Task>,
    /// By path, so that two files of one socket, or a file that comes back, share the one connection that QEMU serves.
    sockets: HashMap<PathBuf, Arc<Socket>>,
    /// What else a person should know.
    notes: Vec<Problem>,
}

struct Task {
    path: PathBuf,
    file: Arc<GuestFile>,
    socket: Arc<Socket>,
    look: Arc<Notify>,
    end: CancellationToken,
}

impl Guests {
    /// Nobody yet.
    pub fn new(known: Known, schemas: Schemas, metrics: AgentMetrics) -> Guests {
        let (listing, _) = watch::channel(Arc::default());
        let (scanned, _) = watch::channel(false);
        Guests(Arc::new(Shared { known, schemas, metrics, board: Mutex::default(), listing, scanned }))
    }

    /// The guests as they are, and as they become.
    pub fn listing(&self) -> watch::Receiver<Arc<Listing>> {
        self.0.listing.subscribe()
    }

    /// Waits until the folder was looked at, so that an agent that has just started does not deny its guests. A folder
    /// that hangs is waited for no longer than the controller waits for an answer.
    pub async fn scanned(&self) {
        let mut scanned = self.0.scanned.subscribe();
        let _ = tokio::time::timeout(SCAN, scanned.wait_for(|scanned| *scanned)).await;
    }

    /// The socket of a guest that a file names.
    pub fn socket(&self, key: &str) -> Option<Arc<Socket>> {
        self.board().tasks.get(key).map(|task| task.socket.clone())
    }

    /// Looks at a guest soon: something about it has changed.
    pub fn look(&self, key: &str) {
        if let Some(task) = self.board().tasks.get(key) {
            task.look.notify_one();
        }
    }

    /// Problems of the agent itself, shown beside those of the guests' files.
    pub fn note(&self, notes: Vec<Problem>) {
        self.board().notes = notes;
        self.publish();
    }

    /// Follows what the folder says until `end`.
    pub async fn follow(&self, mut found: watch::Receiver<Found>, end: CancellationToken) {
        loop {
            let now = found.borrow_and_update().clone();
            self.apply(now, &end);
            tokio::select! {
                changed = found.changed() => if changed.is_err() { return },
                () = end.cancelled() => return,
            }
        }
    }

    fn apply(&self, found: Found, end: &CancellationToken) {
        let mut board = self.board();
        board.tasks.retain(|key, task| {
            let stays = found.guests.get(key).is_some_and(|(path, file)| *path == task.path && *file == task.file);
            if !stays {
                task.end.cancel();
            }
            stays
        });
        for (key, (path, file)) in &found.guests {
            if board.tasks.contains_key(key) {
                continue;
            }
            let socket = board.sockets.entry(file.qmp.clone()).or_insert_with(|| self.socket_at(&file.qmp)).clone();
            let task = Task {
                path: path.clone(),
                file: file.clone(),
                socket: socket.clone(),
                look: Arc::default(),
                end: end.child_token(),
            };
            let watcher = Watcher {
                key: key.clone(),
                path: path.clone(),
                file: file.clone(),
                socket,
                guests: self.clone(),
                end: task.end.clone(),
            };
            let (look, guests) = (task.look.clone(), self.clone());
            tokio::spawn(async move {
                watcher.run(look).await;
                guests.let_go();
            });
            board.tasks.insert(key.clone(), task);
        }
        let gone: Vec<GuestKey> = board.seen.keys().filter(|key| !found.guests.contains_key(*key)).cloned().collect();
        for key in gone {
            board.seen.remove(&key);
            self.0.metrics.guest_connected.remove(&labels(&key));
        }
        let scanned = found.scanned;
        board.found = found;
        drop(board);
        self.publish();
        self.0.scanned.send_replace(scanned);
    }

    /// Gives up the sockets that have neither a file nor a run any more: QEMU serves one client at a time, and a person may
    /// want to be that.
    pub fn let_go(&self) {
        self.board().sockets.retain(|_, socket| Arc::strong_count(socket) > 1);
    }

    fn socket_at(&self, path: &Path) -> Arc<Socket> {
        let errors = self.0.metrics.qmp_errors.clone();
        let observer = ErrorObserver::new(move |error| {
            errors.get_or_create(&Reason { reason: error.reason().to_owned() }).inc();
        });
        let options = MonitorOptions { observer: Some(observer), schemas: Some(self.0.schemas.clone()) };
        let monitor = Monitor::with(Address::Unix(path.to_owned()), options);
        Arc::new(Socket { monitor, turn: Arc::default() })
    }

    fn report(&self, key: &str, seen: Seen, end: &CancellationToken) {
        let mut board = self.board();
        // A task that was told to end has nothing to say about its successor.
        if end.is_cancelled() {
            return;
        }
        let connected = seen.facts.is_some() && seen.problem.as_ref().is_none_or(|p| !p.reason.starts_with("QMP"));
        self.0.metrics.guest_connected.get_or_create(&labels(key)).set(i64::from(connected));
        let before = board.seen.insert(key.to_owned(), seen.clone());
        drop(board);
        if let Some(problem) = seen.problem.filter(|now| before.and_then(|b| b.problem).as_ref() != Some(now)) {
            tracing::warn!(guest = key, reason = problem.reason, "{}", problem.message);
        }
        self.publish();
    }

    fn publish(&self) {
        let board = self.board();
        let mut now = listing(&board.found, &board.seen);
        now.problems.extend(board.notes.iter().cloned());
        self.0.listing.send_if_modified(|before| {
            let changed = **before != now;
            if changed {
                *before = Arc::new(now);
            }
            changed
        });
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.0.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn labels(key: &str) -> GuestLabels {
    let (namespace, guest) = key.split_once('/').unwrap_or(("", key));
    GuestLabels { namespace: namespace.to_owned(), guest: guest.to_owned() }
}

/// The task of one guest.
struct Watcher {
    key: GuestKey,
    path: PathBuf,
    file: Arc<GuestFile>,
    socket: Arc<Socket>,
    guests: Guests,
    end: CancellationToken,
}

impl Watcher {
    async fn run(self, look: Arc<Notify>) {
        let end = self.end.clone();
        let work = async {
            let mut last = None;
            loop {
                match tokio::time::timeout(CONNECT, self.socket.monitor.client()).await {
                    Ok(Ok(client)) => last = self.attend(&client, &look).await,
                    Ok(Err(error)) => self.not_connected(&error, last.take()),
                    Err(_) => {
                        let what = format!("no greeting and schema within {} s", CONNECT.as_secs());
                        self.count("MonitorHangs");
                        self.show(last.take(), Some(self.not_responding(&what)), false);
                    }
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::select! { () = work => {} () = end.cancelled() => {} }
    }

    /// Looks at the machine until the connection ends; returns what was seen last.
    async fn attend(&self, client: &Client, look: &Notify) -> Option<Arc<GuestFacts>> {
        let mut events = client.events();
        let mut last = None;
        loop {
            match tokio::time::timeout(LOOK, inspect(client)).await {
                Ok(Ok(facts)) => {
                    let facts = Arc::new(facts);
                    self.identify(facts.clone()).await;
                    last = Some(facts);
                }
                Ok(Err(_)) if client.is_closed() => return last,
                Ok(Err(error)) => self.show(last.clone(), Some(self.not_responding(&sentence(&error))), false),
                Err(_) => {
                    let what = format!("no answer within {} s", LOOK.as_secs());
                    self.show(last.clone(), Some(self.not_responding(&what)), false);
                }
            }
            tokio::select! {
                () = client.closed() => return last,
                () = tokio::time::sleep(REFRESH) => {}
                () = look.notified() => {}
                () = told(&mut events) => tokio::time::sleep(SETTLE).await,
            }
        }
    }

    /// Who answers, and whether that is who the name stands for.
    async fn identify(&self, facts: Arc<GuestFacts>) {
        let problem = match (&facts.uuid, &self.file.uuid) {
            (None, None) => Some(Problem::uuid_missing(&self.key, &self.path)),
            (Some(qemu), Some(written)) if qemu != written => {
                Some(Problem::uuid_mismatch(&self.key, &self.path, qemu, written))
            }
            (Some(uuid), _) | (None, Some(uuid)) => {
                let (known, uuid) = (self.guests.0.known.clone(), uuid.clone());
                let file = self.file.clone();
                let check = move || known.check(&file.namespace, &file.name, &uuid);
                match tokio::task::spawn_blocking(check).await {
                    Ok(Ok(Verdict::Same)) => None,
                    Ok(Ok(Verdict::Changed { before, file })) => {
                        let now = facts.uuid.as_ref().or(self.file.uuid.as_ref());
                        now.map(|now| Problem::uuid_changed(&self.key, &before, now, &file))
                    }
                    Ok(Err(error)) => {
                        Some(Problem { subject: self.key.clone(), reason: error.reason(), message: sentence(&error) })
                    }
                    Err(_) => None,
                }
            }
        };
        self.show(Some(facts), problem, false);
    }

    fn not_connected(&self, error: &ConnectError, last: Option<Arc<GuestFacts>>) {
        self.count(error.reason());
        let off = matches!(
            error,
            ConnectError::NotThere { .. } | ConnectError::NoSocket { .. } | ConnectError::Refused { .. }
        );
        let problem = Problem::connect(&self.key, &self.file.qmp, &self.path, error);
        self.show(last.filter(|_| !off), Some(problem), off);
    }

    fn not_responding(&self, what: &str) -> Problem {
        Problem::not_responding(&self.key, &self.file.qmp, what)
    }

    fn show(&self, facts: Option<Arc<GuestFacts>>, problem: Option<Problem>, off: bool) {
        let uuid = facts.as_ref().and_then(|facts| facts.uuid.clone()).or_else(|| self.file.uuid.clone());
        let off = off || facts.as_ref().is_some_and(|facts| facts.power_state == PowerState::Off);
        self.guests.report(&self.key, Seen { uuid, facts, problem, off }, &self.end);
    }

    fn count(&self, reason: &str) {
        self.guests.0.metrics.qmp_errors.get_or_create(&Reason { reason: reason.to_owned() }).inc();
    }
}

/// Returns at an event after which the machine may look different.
async fn told(events: &mut broadcast::Receiver<Event>) {
    loop {
        match events.recv().await {
            Ok(event) if matters(&event.name) => return,
            Ok(_) => {}
            // Some were lost: one of them may have mattered.
            Err(broadcast::error::RecvError::Lagged(_)) => return,
            // The connection is ending; `closed` says so.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

fn matters(event: &str) -> bool {
    let whole =
        ["STOP", "RESUME", "SHUTDOWN", "RESET", "SUSPEND", "WAKEUP", "MIGRATION", "DEVICE_DELETED", "BLOCK_IO_ERROR"];
    whole.contains(&event) || event.starts_with("BLOCK_JOB_") || event == "DEVICE_TRAY_MOVED"
}
