//! Follows runs on their agents (in): one task per run holds the stream, reconnects, and publishes what a reconcile
//! may see. A change of phase is published at once, mere progress at most once per second and run, every 10 s when more
//! than 50 are going: a status that is made from what was published cannot be written more often than that.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture};
use jiff::Timestamp;
use tokio::{task::AbortHandle, time::Instant};

use super::{
    agents::{AgentCalls, Directory},
    context::locked,
};
use crate::{
    clock::Clock,
    rpc::{
        client::{Answers, RpcError},
        v1,
    },
    sentence::sentence,
};

/// Above so many runs at once progress is published less often.
const MANY: usize = 50;
/// Pauses before an agent that did not answer is asked again.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(5)];

/// How often progress is published with so many runs going.
fn interval(running: usize) -> Duration {
    if running > MANY { Duration::from_secs(10) } else { Duration::from_secs(1) }
}

/// A state that an agent streams.
pub trait Followed: Clone + PartialEq + Send + 'static {
    /// Whether nothing more comes.
    fn is_final(&self) -> bool;
    /// What makes a change worth telling at once.
    fn milestone(&self) -> Vec<i64>;
    /// The stream.
    fn watch<'a>(agent: &'a dyn AgentCalls, id: &'a str) -> BoxFuture<'a, Result<Answers<Self>, RpcError>>;
}

impl Followed for v1::RunState {
    fn is_final(&self) -> bool {
        matches!(self.phase(), v1::RunPhase::Complete | v1::RunPhase::Failed | v1::RunPhase::Cancelled)
    }

    fn milestone(&self) -> Vec<i64> {
        let errors = self.disks.iter().filter(|d| !d.error.is_empty()).count();
        let attempts = i64::from(self.attempts);
        vec![i64::from(self.phase), attempts, i64::from(self.checkpoint_time > 0), i64::try_from(errors).unwrap_or(0)]
    }

    fn watch<'a>(agent: &'a dyn AgentCalls, id: &'a str) -> BoxFuture<'a, Result<Answers<Self>, RpcError>> {
        agent.watch_run(id)
    }
}

impl Followed for v1::RestoreState {
    fn is_final(&self) -> bool {
        matches!(self.phase(), v1::RestorePhase::Complete | v1::RestorePhase::Failed | v1::RestorePhase::Cancelled)
    }

    fn milestone(&self) -> Vec<i64> {
        vec![i64::from(self.phase)]
    }

    fn watch<'a>(agent: &'a dyn AgentCalls, id: &'a str) -> BoxFuture<'a, Result<Answers<Self>, RpcError>> {
        agent.watch_restore(id)
    }
}

/// What is known about a run on its agent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen<S> {
    /// The state that was published last, and when.
    pub state: Option<(S, Timestamp)>,
    /// The agent says that it has never heard of the run.
    pub unknown: bool,
    /// Since when the agent does not answer; None while it does.
    pub lost_since: Option<Timestamp>,
}

struct Entry<S> {
    seen: Seen<S>,
    /// How often the agent's answers to other calls were told: a call that began before may say what is no longer so.
    told: u64,
    task: AbortHandle,
}

/// All runs that are followed, by the id that their agents know.
pub struct Followers<S> {
    entries: Arc<Mutex<HashMap<String, Entry<S>>>>,
}

impl<S> Default for Followers<S> {
    fn default() -> Self {
        Followers { entries: Arc::default() }
    }
}

/// What a following task works with.
struct Task<S> {
    entries: Arc<Mutex<HashMap<String, Entry<S>>>>,
    agents: Arc<dyn Directory>,
    node: String,
    id: String,
    clock: Clock,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl<S: Followed> Followers<S> {
    /// What is known about the run; None when it is not followed.
    pub fn seen(&self, id: &str) -> Option<Seen<S>> {
        locked(&self.entries).get(id).map(|e| e.seen.clone())
    }

    /// Follows a run on a node from now on, unless it is followed already. `wake` is called at each publication.
    pub fn follow(
        &self,
        agents: Arc<dyn Directory>,
        (node, id): (&str, &str),
        clock: Clock,
        wake: impl Fn() + Send + Sync + 'static,
    ) {
        let mut entries = locked(&self.entries);
        if entries.contains_key(id) {
            return;
        }
        let task = Task {
            entries: self.entries.clone(),
            agents,
            node: node.to_owned(),
            id: id.to_owned(),
            clock,
            wake: Box::new(wake),
        };
        // The task takes the lock that is held here before it publishes anything.
        let task = tokio::spawn(task.run()).abort_handle();
        let seen = Seen { state: None, unknown: false, lost_since: None };
        entries.insert(id.to_owned(), Entry { seen, told: 0, task });
    }

    /// Takes a state that the agent gave in an answer, so that what it said before is not held against it. But an end stays:
    /// the stream may tell of it before the answer to the start is read, and then nobody listens any more.
    pub fn tell(&self, id: &str, state: S, now: Timestamp) {
        if let Some(entry) = locked(&self.entries).get_mut(id) {
            if !state.is_final() && entry.seen.state.as_ref().is_some_and(|(shown, _)| shown.is_final()) {
                return;
            }
            entry.seen = Seen { state: Some((state, now)), unknown: false, lost_since: None };
            entry.told += 1;
        }
    }

    /// No longer follows a run.
    pub fn forget(&self, id: &str) {
        if let Some(entry) = locked(&self.entries).remove(id) {
            entry.task.abort();
        }
    }

    /// How many runs are going.
    pub fn running(&self) -> usize {
        going(&locked(&self.entries))
    }
}

fn going<S: Followed>(entries: &HashMap<String, Entry<S>>) -> usize {
    entries.values().filter(|e| e.seen.state.as_ref().is_none_or(|(s, _)| !s.is_final())).count()
}

impl<S: Followed> Task<S> {
    async fn run(self) {
        let mut failures = 0;
        loop {
            let told = self.told();
            match self.listen(&mut failures).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) if error.is_not_found() && self.told() != told => {}
                // What it said in an earlier life is no longer so: its state folder was lost, or it had kept nothing yet.
                Err(error) if error.is_not_found() => self.publish(|seen, _| {
                    *seen = Seen { state: None, unknown: true, lost_since: None };
                }),
                Err(error) => {
                    tracing::debug!(node = self.node, run = self.id, "{}", sentence(&error));
                    self.lost();
                }
            }
            tokio::time::sleep(PAUSES[failures.min(PAUSES.len() - 1)]).await;
            failures += 1;
        }
    }

    /// One stream's life; true when the run has ended.
    async fn listen(&self, failures: &mut usize) -> Result<bool, RpcError> {
        let Some(agent) = self.agents.get(&self.node) else {
            self.lost();
            return Ok(false);
        };
        let mut stream = S::watch(agent.as_ref(), &self.id).await?;
        let mut shown: Option<S> = None;
        let mut pending: Option<S> = None;
        let mut due = Instant::now();
        loop {
            let next = tokio::select! {
                next = stream.next() => next,
                () = tokio::time::sleep_until(due), if pending.is_some() => {
                    if let Some(state) = pending.take() {
                        due = self.show(&state);
                        shown = Some(state);
                    }
                    continue;
                }
            };
            match next {
                None => {
                    self.lost();
                    return Ok(false);
                }
                Some(Err(error)) => return Err(error),
                Some(Ok(state)) => {
                    *failures = 0;
                    let told = shown.as_ref().is_some_and(|s| s.milestone() == state.milestone());
                    if told && !state.is_final() && Instant::now() < due {
                        pending = Some(state);
                        continue;
                    }
                    pending = None;
                    due = self.show(&state);
                    let ended = state.is_final();
                    shown = Some(state);
                    if ended {
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// Publishes a state; answers when mere progress may be published again.
    fn show(&self, state: &S) -> Instant {
        self.publish(|seen, now| {
            seen.unknown = false;
            seen.lost_since = None;
            // What is shown already keeps its time: a status made from it stays the same.
            if seen.state.as_ref().is_none_or(|(old, _)| old != state) {
                seen.state = Some((state.clone(), now));
            }
        });
        Instant::now() + interval(going(&locked(&self.entries)))
    }

    fn told(&self) -> u64 {
        locked(&self.entries).get(&self.id).map_or(0, |entry| entry.told)
    }

    fn lost(&self) {
        self.publish(|seen, now| {
            seen.lost_since.get_or_insert(now);
        });
    }

    fn publish(&self, change: impl FnOnce(&mut Seen<S>, Timestamp)) {
        if let Some(entry) = locked(&self.entries).get_mut(&self.id) {
            change(&mut entry.seen, (self.clock)());
        }
        (self.wake)();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_less_often_when_many_runs_are_going() {
        assert_eq!(interval(50), Duration::from_secs(1));
        assert_eq!(interval(51), Duration::from_secs(10));
    }

    #[test]
    fn bytes_are_no_milestone_but_phases_checkpoints_and_errors_are() {
        let mut state = v1::RunState { phase: v1::RunPhase::Copying.into(), ..Default::default() };
        state.disks = vec![v1::DiskState { done_bytes: 1, ..Default::default() }];
        let mut other = state.clone();
        other.disks[0].done_bytes = 2;
        assert_eq!(state.milestone(), other.milestone());
        other.disks[0].error = "EIO".to_owned();
        assert_ne!(state.milestone(), other.milestone());
        let taken = v1::RunState { checkpoint_time: 1, ..state.clone() };
        assert_ne!(state.milestone(), taken.milestone());
    }
    #[tokio::test]
    async fn an_answer_that_is_read_late_does_not_undo_the_end_that_the_stream_told() {
        let followers = Followers::<v1::RunState>::default();
        let state = |phase: v1::RunPhase| v1::RunState { phase: phase.into(), ..Default::default() };
        let task = tokio::spawn(async {}).abort_handle();
        let entry = Entry { seen: Seen { state: None, unknown: false, lost_since: None }, told: 0, task };
        locked(&followers.entries).insert("run".to_owned(), entry);
        let shown = || followers.seen("run").unwrap().state.unwrap().0.phase();
        let now = Timestamp::UNIX_EPOCH;
        followers.tell("run", state(v1::RunPhase::Preparing), now);
        followers.tell("run", state(v1::RunPhase::Failed), now);
        followers.tell("run", state(v1::RunPhase::Preparing), now);
        assert_eq!(shown(), v1::RunPhase::Failed);
    }
}
