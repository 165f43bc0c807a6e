//! The restores that this agent works on: started once per UID, a few at once, watched by anybody. How one ended is
//! kept in the state folder, so that an agent that restarts does not write an image twice.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    engine::RepositoryRef,
    engine::restore::{RestoreProgress, RestoreRequest, RestoreRoots, Restored, Stage, flatten},
    metrics::{AgentMetrics, Outcome},
    repo::{QemuImg, Repository, Roots},
    retry::Retry,
    rpc::status::{Kind, Refusal},
    sentence::sentence,
};

/// Restores at once: each reads and writes as fast as it can.
const AT_ONCE: usize = 4;
/// How long it is known how a restore ended.
const REMEMBER: Duration = Duration::from_secs(7 * 86_400);

/// Where a restore stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestorePhase {
    /// Waits for its turn, and looks at what is asked for.
    Preparing,
    /// Images are being written.
    Copying,
    /// Images are being compared with the digests.
    Verifying,
    /// All images have their names.
    Complete,
    /// No image has got its name, but for the case that the message tells.
    Failed,
    /// Ended as somebody wished.
    Cancelled,
}

impl RestorePhase {
    /// Whether it never changes any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Complete | Self::Failed | Self::Cancelled)
    }
}

/// One restore's state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreState {
    /// The run's uid.
    pub run: String,
    /// Where it stands.
    pub phase: RestorePhase,
    /// Why it failed or was cancelled.
    pub reason: String,
    /// The same as a sentence.
    pub message: String,
    /// When it was asked for.
    pub start_time: jiff::Timestamp,
    /// When it ended.
    pub completion_time: Option<jiff::Timestamp>,
    /// Each disk.
    pub disks: Vec<RestoreDisk>,
    /// Whether every cluster was compared with its digest.
    pub verified: bool,
    /// Whether trying again can help.
    pub retriable: bool,
}

/// One disk of a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreDisk {
    /// The disk.
    pub name: String,
    /// The new image.
    pub path: PathBuf,
    /// Bytes of the present stage.
    pub total_bytes: u64,
    /// Bytes of it that are done.
    pub done_bytes: u64,
    /// The points that were read, the restored one first.
    pub chain: Vec<String>,
}

/// What a restore is to do, with the namespace whose roots bound it.
#[derive(Debug, Clone)]
pub struct RestoreOrder {
    /// The run's uid.
    pub run: String,
    /// The namespace.
    pub namespace: String,
    /// The repository.
    pub repository: RepositoryRef,
    /// What is written where.
    pub request: RestoreRequest,
}

/// What restores work with.
#[derive(Clone)]
pub struct RestoreSettings {
    /// The folder for how restores ended.
    pub state: PathBuf,
    /// Bounds of repositories.
    pub repositories: Roots,
    /// Bounds of targets, by namespace.
    pub targets: BTreeMap<String, Vec<PathBuf>>,
    /// Runs `qemu-img`.
    pub tool: QemuImg,
    /// The wall clock.
    pub clock: Clock,
}

/// The restores of an agent.
#[derive(Clone)]
pub struct Restores(Arc<Shared>);

struct Shared {
    settings: RestoreSettings,
    metrics: AgentMetrics,
    places: Arc<Semaphore>,
    live: Mutex<HashMap<String, Live>>,
    abandoned: AtomicBool,
}

struct Live {
    state: watch::Receiver<RestoreState>,
    cancel: Cancel,
}

/// The wish that a restore ends, for both worlds: waiting for a place, and blocking work.
#[derive(Clone, Default)]
struct Cancel {
    token: CancellationToken,
    flag: Arc<AtomicBool>,
}

impl Cancel {
    fn ask(&self) {
        self.flag.store(true, Ordering::Relaxed);
        self.token.cancel();
    }
}

impl Restores {
    /// None yet.
    pub fn new(settings: RestoreSettings, metrics: AgentMetrics) -> Restores {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        Restores(Arc::new(Shared { settings, metrics, places, live: Mutex::default(), abandoned: Default::default() }))
    }

    /// Starts a restore, or finds the one of that UID, also one that ended before the agent's last start.
    ///
    /// # Errors
    /// When how it ended cannot be looked up.
    pub async fn start(&self, order: RestoreOrder) -> Result<watch::Receiver<RestoreState>, Refusal> {
        if let Some(state) = self.state(&order.run).await? {
            return Ok(state);
        }
        let mut live = self.live();
        if let Some(known) = live.get(&order.run) {
            return Ok(known.state.clone());
        }
        let disks = order.request.disks.iter().map(|(name, path)| RestoreDisk {
            name: name.to_string(),
            path: path.clone(),
            total_bytes: 0,
            done_bytes: 0,
            chain: Vec::new(),
        });
        let (state, watcher) = watch::channel(RestoreState {
            run: order.run.clone(),
            phase: RestorePhase::Preparing,
            reason: String::new(),
            message: String::new(),
            start_time: (self.0.settings.clock)(),
            completion_time: None,
            disks: disks.collect(),
            verified: false,
            retriable: false,
        });
        let cancel = Cancel::default();
        live.insert(order.run.clone(), Live { state: watcher.clone(), cancel: cancel.clone() });
        drop(live);
        tokio::spawn(self.clone().work(order, state, cancel));
        Ok(watcher)
    }

    /// The state of a restore; none: this agent has never heard of it.
    ///
    /// # Errors
    /// When how it ended cannot be looked up.
    pub async fn state(&self, run: &str) -> Result<Option<watch::Receiver<RestoreState>>, Refusal> {
        if let Some(live) = self.live().get(run) {
            return Ok(Some(live.state.clone()));
        }
        let path = self.file(run);
        let read = tokio::task::spawn_blocking(move || match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        });
        let ended: Option<RestoreState> =
            read.await.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| {
                let message =
                    format!("How restore {run} ended cannot be read from {}: {error}", self.file(run).display());
                Refusal::new(Kind::Internal, "StateUnusable", message)
            })?;
        Ok(ended.map(|state| watch::channel(state).1))
    }

    /// Asks a restore to end. False: it is not live.
    pub fn cancel(&self, run: &str) -> bool {
        self.live().get(run).inspect(|live| live.cancel.ask()).is_some()
    }

    /// Ends all because the agent does. How they end is not kept: the next agent has never heard of them, is asked for
    /// them again, and begins anew; a half-written image has no name yet.
    pub fn abandon(&self) {
        self.0.abandoned.store(true, Ordering::Relaxed);
        for live in self.live().values() {
            live.cancel.ask();
        }
    }

    async fn work(self, order: RestoreOrder, state: watch::Sender<RestoreState>, cancel: Cancel) {
        let run = order.run.clone();
        // Nobody who waits for a place has written anything.
        let place = tokio::select! {
            biased;
            () = cancel.token.cancelled() => None,
            place = self.0.places.clone().acquire_owned() => Some(place),
        };
        let done = match place {
            None => Ok(Err(Failure {
                phase: RestorePhase::Cancelled,
                reason: "Cancelled",
                message: "The restore was cancelled while it waited for its turn".to_owned(),
                retriable: false,
            })),
            Some(_place) => {
                self.0.metrics.restores_active.inc();
                let (settings, progress) = (self.0.settings.clone(), state.clone());
                let work = move || restore(&settings, &order, &progress, &cancel.flag);
                let done = tokio::task::spawn_blocking(work).await;
                self.0.metrics.restores_active.dec();
                done
            }
        };
        if self.0.abandoned.load(Ordering::Relaxed) && !matches!(done, Ok(Ok(_))) {
            return;
        }
        let ended = done.unwrap_or_else(|error| {
            Err(Failure {
                phase: RestorePhase::Failed,
                reason: "AgentBroken",
                message: format!("Work on the restore broke off: {error}"),
                retriable: true,
            })
        });
        state.send_modify(|state| settle(state, ended, (self.0.settings.clock)()));
        let last = state.borrow().clone();
        let result = if last.phase == RestorePhase::Complete {
            "Complete"
        } else if last.phase == RestorePhase::Cancelled {
            "Cancelled"
        } else {
            "Failed"
        };
        self.0.metrics.restores.get_or_create(&Outcome { result, reason: last.reason.clone() }).inc();
        tracing::info!(run, result, reason = last.reason, "{}", last.message);
        let path = self.file(&run);
        let kept = tokio::task::spawn_blocking(move || keep(&path, &last)).await;
        match kept.unwrap_or_else(|error| Err(io::Error::other(error))) {
            // Known on disk now.
            Ok(()) => drop(self.live().remove(&run)),
            Err(error) => tracing::error!(run, %error, "How a restore ended could not be kept"),
        }
    }

    fn file(&self, run: &str) -> PathBuf {
        self.0.settings.state.join("restores").join(format!("{run}.json"))
    }

    fn live(&self) -> MutexGuard<'_, HashMap<String, Live>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Failure {
    phase: RestorePhase,
    reason: &'static str,
    message: String,
    retriable: bool,
}

fn settle(state: &mut RestoreState, ended: Result<Restored, Failure>, now: jiff::Timestamp) {
    state.completion_time = Some(now);
    match ended {
        Ok(restored) => {
            state.phase = RestorePhase::Complete;
            state.verified = restored.verified;
            for disk in &mut state.disks {
                let Some(done) = restored.disks.iter().find(|done| done.name.as_str() == disk.name) else { continue };
                disk.total_bytes = done.virtual_size;
                disk.done_bytes = done.virtual_size;
                disk.chain = done.chain.iter().map(ToString::to_string).collect();
            }
        }
        Err(failure) => {
            state.phase = failure.phase;
            state.reason = failure.reason.to_owned();
            state.message = failure.message;
            state.retriable = failure.retriable;
        }
    }
}

fn restore(
    settings: &RestoreSettings,
    order: &RestoreOrder,
    state: &watch::Sender<RestoreState>,
    cancel: &AtomicBool,
) -> Result<Restored, Failure> {
    let failed = |reason, retry, error: &dyn std::error::Error| Failure {
        phase: if reason == "Cancelled" { RestorePhase::Cancelled } else { RestorePhase::Failed },
        reason,
        message: sentence(error),
        retriable: retry != Retry::OnChange,
    };
    let RepositoryRef { path, id } = &order.repository;
    let repository = Repository::open(&settings.repositories, path, Some(id), &settings.tool)
        .map_err(|error| failed(error.reason(), error.retry(), &error))?;
    let roots = RestoreRoots::new(settings.targets.get(&order.namespace).cloned().unwrap_or_default());
    let mut last = None;
    let mut progress = |now: RestoreProgress| {
        let phase = match now.stage {
            Stage::Copying => RestorePhase::Copying,
            Stage::Verifying => RestorePhase::Verifying,
        };
        // A change of stage at once, bytes ten times a second: every reader is woken each time.
        let stage = (now.disk.clone(), phase);
        let soon = std::time::Instant::now();
        if last.as_ref().is_some_and(|(before, at)| *before == stage && soon.duration_since(*at) < TICK) {
            return;
        }
        last = Some((stage, soon));
        state.send_modify(|state| {
            state.phase = phase;
            if let Some(disk) = state.disks.iter_mut().find(|disk| disk.name == now.disk.as_str()) {
                disk.total_bytes = now.total;
                disk.done_bytes = now.done;
            }
        });
    };
    flatten(&repository, &roots, &order.request, &mut progress, cancel)
        .map_err(|error| failed(error.reason(), error.retry(), &error))
}

/// Between two reports of bytes.
const TICK: Duration = Duration::from_millis(100);

/// Writes how a restore ended, and forgets those that ended long ago.
fn keep(path: &Path, state: &RestoreState) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    let temporary = path.with_extension("new");
    fs::write(&temporary, serde_json::to_vec(state).map_err(io::Error::other)?)?;
    fs::File::open(&temporary)?.sync_all()?;
    fs::rename(&temporary, path)?;
    for entry in fs::read_dir(folder)?.flatten() {
        let old = entry
            .metadata()
            .and_then(|meta| meta.modified())
            .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > REMEMBER));
        if old {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
