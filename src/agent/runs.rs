//! The backup runs that this agent works on: started once per UID whatever is asked how often, one after the other on a
//! guest, watched by anybody, left to QEMU when the agent ends and taken up again when it starts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedMutexGuard, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::guest::{Guests, Socket};
use crate::{
    clock::Clock,
    engine::{
        BackupRequest, Engine, RunControl,
        course::OwnerWish,
        progress::{Phase, RunState},
    },
    metrics::{AgentMetrics, Outcome},
    rpc::status::{Kind, Refusal},
};

/// How long a run that ended is remembered here; the engine's own memory on disk is longer and slower.
const REMEMBER: Duration = Duration::from_secs(600);
/// The first pause before a run is gone on with that could not be, though the journal keeps it; each further one is
/// twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// How often a run that waits looks whether somebody else has ended it.
const LOOK: Duration = Duration::from_secs(10);

/// The runs of an agent.
#[derive(Clone)]
pub struct Runs(Arc<Shared>);

struct Shared {
    engine: Engine,
    guests: Guests,
    metrics: AgentMetrics,
    clock: Clock,
    detach: CancellationToken,
    live: Mutex<HashMap<String, Run>>,
    tasks: Mutex<JoinSet<()>>,
}

struct Run {
    request: BackupRequest,
    state: watch::Receiver<RunState>,
    owner: watch::Sender<OwnerWish>,
    cancel: CancellationToken,
    ended: Option<tokio::time::Instant>,
}

impl Runs {
    /// None yet.
    pub fn new(engine: Engine, guests: Guests, metrics: AgentMetrics, clock: Clock) -> Runs {
        Runs(Arc::new(Shared {
            engine,
            guests,
            metrics,
            clock,
            detach: CancellationToken::new(),
            live: Mutex::default(),
            tasks: Mutex::default(),
        }))
    }

    /// Starts a run, or finds the one of that UID.
    ///
    /// # Errors
    /// `RunUIDReused` when that UID is another guest's or repository's run; `AgentEnding` while the agent ends.
    pub fn start(&self, request: BackupRequest) -> Result<watch::Receiver<RunState>, Refusal> {
        let mut live = self.live();
        live.retain(|_, run| run.ended.is_none_or(|ended| ended.elapsed() < REMEMBER));
        if let Some(run) = live.get(&request.run) {
            if run.request.guest.uuid != request.guest.uuid || run.request.repository != request.repository {
                let message = format!(
                    "Run {} is already a backup of guest {} into {}: a UID names one run",
                    request.run,
                    run.request.guest.name,
                    run.request.repository.path.display()
                );
                return Err(Refusal::new(Kind::Conflict, "RunUIDReused", message));
            }
            return Ok(run.state.clone());
        }
        if self.0.detach.is_cancelled() {
            let message = format!("The agent is ending: run {} was not started", request.run);
            return Err(Refusal::new(Kind::Unavailable, "AgentEnding", message));
        }
        let mut control = RunControl::new(&request, (self.0.clock)());
        control.detach = self.0.detach.child_token();
        let state = control.state.subscribe();
        let run = Run {
            request: request.clone(),
            state: state.clone(),
            owner: control.owner.clone(),
            cancel: control.cancel.clone(),
            ended: None,
        };
        live.insert(request.run.clone(), run);
        drop(live);
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(self.clone().work(request, control));
        Ok(state)
    }

    /// The state of a run that this agent knows, live or lately ended.
    pub fn state(&self, run: &str) -> Option<watch::Receiver<RunState>> {
        self.live().get(run).map(|run| run.state.clone())
    }

    /// Asks a run to end. False: it is not live.
    pub fn cancel(&self, run: &str) -> bool {
        let live = self.live();
        let found = live.get(run).filter(|run| run.ended.is_none());
        found.inspect(|run| run.cancel.cancel()).is_some()
    }

    /// Tells a run what its owner wishes of its course. One that has ended hears nothing.
    pub fn steer(&self, run: &str, wish: OwnerWish) {
        if let Some(run) = self.live().get(run).filter(|run| run.ended.is_none()) {
            run.owner.send_if_modified(|heard| std::mem::replace(heard, wish) != wish);
        }
    }

    /// Leaves all runs to QEMU and the journal, and waits until nobody works on them any more.
    pub async fn detach(&self) {
        self.0.detach.cancel();
        let mut tasks = std::mem::take(&mut *self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        while tasks.join_next().await.is_some() {}
    }

    async fn work(self, request: BackupRequest, control: RunControl) {
        let key = format!("{}/{}", request.guest.namespace, request.guest.name);
        let span = tracing::info_span!("run", run = request.run, name = request.run_name, guest = key);
        let mut pause = FIRST_PAUSE;
        while let Some((socket, turn)) = self.queue(&key, &request, &control).await {
            let active = Counted::new(&self.0.metrics);
            let held = self.attempt(&request, &control, &socket, &span).await;
            // The guest's other runs go on, and do not wait without a word for what may never come.
            drop((turn, active));
            let Some((reason, message)) = held else { break };
            tracing::warn!(parent: &span, reason, "{message}");
            wait(&control.state, &reason, message);
            let cancelled = control.cancel.is_cancelled();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = control.cancel.cancelled(), if !cancelled => {}
                () = control.detach.cancelled() => break,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.ended(&request, &span);
        self.0.guests.look(&key);
        self.0.guests.let_go();
    }

    /// Works on a run until it has ended or is left. Some: it cannot go on now, with the reason, and has not ended, because
    /// the journal keeps it: told as failed it could become a point all the same, and be done twice.
    async fn attempt(
        &self,
        request: &BackupRequest,
        control: &RunControl,
        socket: &Socket,
        span: &tracing::Span,
    ) -> Option<(String, String)> {
        let (engine, monitor) = (self.0.engine.clone(), socket.monitor.clone());
        let (asked, told) = (request.clone(), control.clone());
        let backup = async move {
            let last = engine.backup(&monitor, &asked, &told).await;
            let held = last.phase == Phase::Failed && engine.holds(&asked);
            (last, held)
        };
        match tokio::spawn(tracing::Instrument::instrument(backup, span.clone())).await {
            Ok((last, true)) => Some((last.reason, format!("{}; the run is gone on with soon", last.message))),
            Ok((last, false)) => {
                control.state.send_replace(last);
                None
            }
            Err(error) => {
                let message = format!("The agent's work on the run broke off ({error})");
                if self.holds(request).await {
                    return Some(("AgentBroken".to_owned(), message));
                }
                self.end(&control.state, Phase::Failed, "AgentBroken", message, true);
                None
            }
        }
    }

    async fn holds(&self, request: &BackupRequest) -> bool {
        let (engine, request) = (self.0.engine.clone(), request.clone());
        tokio::task::spawn_blocking(move || engine.holds(&request)).await.unwrap_or(true)
    }

    /// Waits for the guest's socket and for the runs before this one. None: cancelled or left.
    async fn queue(
        &self,
        key: &str,
        request: &BackupRequest,
        control: &RunControl,
    ) -> Option<(Arc<Socket>, OwnedMutexGuard<()>)> {
        self.0.metrics.runs_queued.inc();
        let turn = match self.unless_ended(request, control, self.socket(key, control)).await {
            Some(socket) => {
                let turn = self.unless_ended(request, control, turn(key, &socket, control)).await;
                turn.map(|turn| (socket, turn))
            }
            None => None,
        };
        self.0.metrics.runs_queued.dec();
        turn
    }

    /// What is waited for, or none when the run is left or has ended.
    async fn unless_ended<T>(
        &self,
        request: &BackupRequest,
        control: &RunControl,
        what: impl Future<Output = T>,
    ) -> Option<T> {
        let mut what = std::pin::pin!(what);
        loop {
            let cancelled = control.cancel.is_cancelled();
            tokio::select! {
                // What need not be waited for is there, cancelled or not.
                biased;
                found = &mut what => return Some(found),
                () = control.detach.cancelled() => return None,
                () = control.cancel.cancelled(), if !cancelled => {}
                () = tokio::time::sleep(LOOK) => {}
            }
            if self.is_over(request, control).await {
                return None;
            }
        }
    }

    /// Whether a run that waits has ended: what the journal held may be finished by the guest's next run or by a recovery, and
    /// what it does not hold is cancelled without further ado.
    async fn is_over(&self, request: &BackupRequest, control: &RunControl) -> bool {
        let (engine, asked) = (self.0.engine.clone(), request.clone());
        let look = move || (!engine.holds(&asked)).then(|| engine.finished(&asked.run));
        match tokio::task::spawn_blocking(look).await {
            Ok(Some(Some(ended))) => {
                control.state.send_replace(ended);
                true
            }
            Ok(Some(None)) if control.cancel.is_cancelled() => {
                self.end(&control.state, Phase::Cancelled, "Cancelled", "Cancelled before it began".to_owned(), false);
                true
            }
            _ => false,
        }
    }

    async fn socket(&self, key: &str, control: &RunControl) -> Arc<Socket> {
        let mut listing = self.0.guests.listing();
        loop {
            listing.borrow_and_update();
            if let Some(socket) = self.0.guests.socket(key) {
                return socket;
            }
            let message = format!("No file of this node names guest {key} any more. The run goes on when one does");
            wait(&control.state, "GuestNotFound", message);
            self.0.guests.let_go();
            // The sender lives as long as the guests do, which we hold.
            let _ = listing.changed().await;
        }
    }

    fn end(&self, state: &watch::Sender<RunState>, phase: Phase, reason: &str, message: String, retriable: bool) {
        state.send_modify(|state| {
            state.phase = phase;
            state.reason = reason.to_owned();
            state.message = message;
            state.retriable = retriable;
            state.completion_time = Some((self.0.clock)());
        });
    }

    fn ended(&self, request: &BackupRequest, span: &tracing::Span) {
        let mut live = self.live();
        let Some(run) = live.get_mut(&request.run) else { return };
        let state = run.state.borrow().clone();
        if !state.phase.is_final() {
            return;
        }
        run.ended = Some(tokio::time::Instant::now());
        drop(live);
        let result = match state.phase {
            Phase::Complete => "Complete",
            Phase::Cancelled => "Cancelled",
            Phase::Waiting | Phase::Preparing | Phase::Copying | Phase::Finishing | Phase::Failed => "Failed",
        };
        let metrics = &self.0.metrics;
        metrics.runs.get_or_create(&Outcome { result, reason: state.reason.clone() }).inc();
        metrics.stored_bytes.inc_by(state.disks.iter().map(|disk| disk.stored_bytes).sum());
        if let Some(end) = state.completion_time {
            metrics.run_seconds.observe(end.duration_since(state.start_time).as_secs_f64().max(0.0));
        }
        let message = if state.message.is_empty() { "The run ended" } else { &state.message };
        tracing::info!(parent: span, result, reason = state.reason, "{message}");
    }

    fn live(&self) -> MutexGuard<'_, HashMap<String, Run>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn turn(key: &str, socket: &Socket, control: &RunControl) -> OwnedMutexGuard<()> {
    if let Ok(turn) = socket.turn.clone().try_lock_owned() {
        return turn;
    }
    wait(&control.state, "GuestBusy", format!("Waits for another run of guest {key}"));
    socket.turn.clone().lock_owned().await
}

fn wait(state: &watch::Sender<RunState>, reason: &str, message: String) {
    state.send_modify(|state| {
        state.reason = reason.to_owned();
        state.message = message;
    });
}

/// A run that works, in the metric, until it is dropped.
struct Counted(AgentMetrics);

impl Counted {
    fn new(metrics: &AgentMetrics) -> Counted {
        metrics.runs_active.inc();
        Counted(metrics.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.runs_active.dec();
    }
}
