//! How answers are given (edge): counted, and streams that end with the agent.

use futures::stream;
use tokio::sync::watch;
use tonic::{Response, Status};

use super::{Answers, Service};
use crate::{
    metrics::Call,
    rpc::status::{Kind, Refusal},
};

impl Service {
    /// A value, then each change of it, until `say` calls one the last or the agent ends.
    pub(super) fn follow<T, M>(
        &self,
        value: watch::Receiver<T>,
        say: impl Fn(&T) -> (M, bool) + Send + 'static,
    ) -> Answers<M>
    where
        T: Send + Sync + 'static,
        M: Send + 'static,
    {
        let end = self.end.clone();
        let state = Some((value, true));
        Box::pin(stream::unfold((state, say), move |(state, say)| {
            let end = end.clone();
            async move {
                let (mut value, first) = state?;
                if !first {
                    let changed = tokio::select! {
                        changed = value.changed() => changed.is_ok(),
                        () = end.cancelled() => false,
                    };
                    if !changed {
                        return Some((Err(ending().into()), (None, say)));
                    }
                }
                let (message, last) = say(&value.borrow_and_update());
                Some((Ok(message), ((!last).then_some((value, false)), say)))
            }
        }))
    }

    pub(super) async fn counted<T>(
        &self,
        method: &'static str,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<Response<T>, Status> {
        let done = work.await;
        let result = done.as_ref().map_or_else(|refusal| refusal.reason.clone(), |_| "OK".to_owned());
        self.metrics.calls.get_or_create(&Call { method, result }).inc();
        done.map(Response::new).map_err(|refusal| {
            tracing::warn!(method, reason = refusal.reason, "{}", refusal.message);
            refusal.into()
        })
    }
}

/// The last word of a stream whose agent ends.
pub(super) fn ending() -> Refusal {
    Refusal::new(Kind::Unavailable, "AgentEnding", "The agent is ending: ask its successor")
}
