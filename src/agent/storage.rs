//! Calls to repositories' file systems: on threads of their own, bounded, with a deadline. A mount that hangs holds its
//! own few calls and nobody else's.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    metrics::AgentMetrics,
    rpc::status::{Kind, Refusal},
};

/// Calls at once on one path; where all of them hang, the next one waits for its deadline and is refused.
const PER_PATH: usize = 4;
/// Calls at once on all paths: threads are not without end.
const ALL: usize = 64;

/// The bounds of calls to repositories.
#[derive(Clone)]
pub struct Storage {
    deadline: Duration,
    all: Arc<Semaphore>,
    by_path: Arc<Mutex<HashMap<PathBuf, Arc<Semaphore>>>>,
    metrics: AgentMetrics,
}

impl Storage {
    /// Nothing is going yet. A call that takes longer than `deadline` is refused, though its thread goes on.
    pub fn new(deadline: Duration, metrics: AgentMetrics) -> Storage {
        Storage { deadline, all: Arc::new(Semaphore::new(ALL)), by_path: Arc::default(), metrics }
    }

    /// Does `work` on the repository at `path`.
    ///
    /// # Errors
    /// `RepositoryNotResponding` when it does not end in time.
    pub async fn call<T: Send + 'static>(
        &self,
        path: &Path,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let calls = self.metrics.repository_calls.clone();
        let done = async {
            let permits = self.permits(path).await;
            let working = tokio::task::spawn_blocking(move || {
                calls.inc();
                let result = work();
                calls.dec();
                // Only now, not when the caller goes away: the thread is what is scarce.
                drop(permits);
                result
            });
            working.await
        };
        match tokio::time::timeout(self.deadline, done).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(error)) => {
                let message = format!("Work on the repository {} broke off: {error}", path.display());
                Err(Refusal::new(Kind::Internal, "AgentBroken", message))
            }
            Err(_) => Err(Refusal::new(
                Kind::Deadline,
                "RepositoryNotResponding",
                format!(
                    "The file system of repository {} did not answer within {} s. Look at its mount on this node; requests to other repositories go on",
                    path.display(),
                    self.deadline.as_secs()
                ),
            )),
        }
    }

    async fn permits(&self, path: &Path) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let one = {
            let mut by_path = self.by_path.lock().unwrap_or_else(PoisonError::into_inner);
            by_path.retain(|_, calls| Arc::strong_count(calls) > 1 || calls.available_permits() < PER_PATH);
            by_path.entry(path.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(PER_PATH))).clone()
        };
        // The path's own first: a call that waits for a mount that hangs must hold nothing that others need.
        let one = one.acquire_owned().await.ok()?;
        let all = self.all.clone().acquire_owned().await.ok()?;
        Some((one, all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::registry::Registry;

    #[tokio::test]
    async fn a_file_system_that_hangs_stalls_only_its_own_requests() {
        let metrics = AgentMetrics::register(&mut Registry::default());
        let storage = Storage::new(Duration::from_millis(50), metrics);
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let hang = Arc::new(Mutex::new(hang));
        for _ in 0..PER_PATH + 3 {
            let hang = hang.clone();
            let refused = storage.call(Path::new("/hung"), move || hang.lock().unwrap().recv()).await.unwrap_err();
            assert_eq!(refused.reason, "RepositoryNotResponding");
        }
        assert_eq!(storage.call(Path::new("/healthy"), || 7).await, Ok(7));
        assert_eq!(storage.metrics.repository_calls.get(), i64::try_from(PER_PATH).unwrap());
        drop(release);
        // The threads end now, and the path can be used again.
        let after = async { while storage.call(Path::new("/hung"), || 7).await.is_err() {} };
        tokio::time::timeout(Duration::from_secs(10), after).await.unwrap();
    }
}
