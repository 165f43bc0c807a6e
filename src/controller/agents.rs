//! The agents as the controller calls them: a thin layer over `rpc::client` that a test can replace by agents of its
//! own making. Nothing is decided here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::rpc::{
    client::{Agent, Agents, Answers, LinkState, RpcError},
    v1,
};

/// How often it is looked which nodes have one.
const LOOK: Duration = Duration::from_millis(200);

/// The answer to one call.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, RpcError>>;

/// One node's agent. The methods are those of the contract; see `rpc::client::Agent`.
#[allow(missing_docs, reason = "each is the contract's call of the same name")]
pub trait AgentCalls: Send + Sync {
    fn link(&self) -> LinkState;
    fn describe(&self) -> Answer<'_, v1::DescribeResponse>;
    fn watch_guests(&self) -> Answer<'_, Answers<v1::WatchGuestsResponse>>;
    fn start_backup(&self, request: v1::StartBackupRequest) -> Answer<'_, v1::RunState>;
    fn watch_run<'a>(&'a self, id: &'a str) -> Answer<'a, Answers<v1::RunState>>;
    fn cancel_run<'a>(&'a self, id: &'a str) -> Answer<'a, v1::RunState>;
    fn steer_run<'a>(&'a self, id: &'a str, course: v1::RunCourse) -> Answer<'a, v1::RunState>;
    fn start_restore(&self, request: v1::StartRestoreRequest) -> Answer<'_, v1::RestoreState>;
    fn watch_restore<'a>(&'a self, id: &'a str) -> Answer<'a, Answers<v1::RestoreState>>;
    fn cancel_restore<'a>(&'a self, id: &'a str) -> Answer<'a, v1::RestoreState>;
    fn repository(&self, request: v1::RepositoryRequest) -> Answer<'_, v1::RepositoryResponse>;
    fn list_points(&self, request: v1::ListPointsRequest) -> Answer<'_, Answers<v1::Point>>;
}

/// The agents by node.
pub trait Directory: Send + Sync {
    /// The agent of a node, if the node has one.
    fn get(&self, node: &str) -> Option<Arc<dyn AgentCalls>>;
    /// The nodes that have an agent, in order.
    fn nodes(&self) -> Vec<String>;
}

impl Directory for Agents {
    fn get(&self, node: &str) -> Option<Arc<dyn AgentCalls>> {
        Agents::get(self, node).map(|agent| Arc::new(agent) as Arc<dyn AgentCalls>)
    }

    fn nodes(&self) -> Vec<String> {
        Agents::nodes(self)
    }
}

/// Runs one task for each node that has an agent, until it has none or until `end`: the task's own token is cancelled then.
/// A node that has one again gets another task when the one before has ended, which tells of the end until then.
pub async fn each<F>(
    nodes: impl Fn() -> Vec<String>,
    end: CancellationToken,
    task: impl Fn(String, CancellationToken) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut tasks: BTreeMap<String, (CancellationToken, JoinHandle<()>)> = BTreeMap::new();
    let mut tick = tokio::time::interval(LOOK);
    while end.run_until_cancelled(tick.tick()).await.is_some() {
        let nodes: BTreeSet<_> = nodes().into_iter().collect();
        tasks.retain(|node, (own, running)| {
            if !nodes.contains(node) {
                own.cancel();
            }
            !running.is_finished()
        });
        for node in nodes {
            tasks.entry(node.clone()).or_insert_with(|| {
                let own = end.child_token();
                let running = tokio::spawn(task(node, own.clone()));
                (own, running)
            });
        }
    }
}

impl AgentCalls for Agent {
    fn link(&self) -> LinkState {
        self.state()
    }

    fn describe(&self) -> Answer<'_, v1::DescribeResponse> {
        Box::pin(Agent::describe(self))
    }

    fn watch_guests(&self) -> Answer<'_, Answers<v1::WatchGuestsResponse>> {
        Box::pin(Agent::watch_guests(self))
    }

    fn start_backup(&self, request: v1::StartBackupRequest) -> Answer<'_, v1::RunState> {
        Box::pin(Agent::start_backup(self, request))
    }

    fn watch_run<'a>(&'a self, id: &'a str) -> Answer<'a, Answers<v1::RunState>> {
        Box::pin(Agent::watch_run(self, id))
    }

    fn cancel_run<'a>(&'a self, id: &'a str) -> Answer<'a, v1::RunState> {
        let control = Some(v1::control_run_request::Control::Cancel(true));
        Box::pin(self.control_run(v1::ControlRunRequest { run_uid: id.to_owned(), control }))
    }

    fn steer_run<'a>(&'a self, id: &'a str, course: v1::RunCourse) -> Answer<'a, v1::RunState> {
        let control = Some(v1::control_run_request::Control::Course(course));
        Box::pin(self.control_run(v1::ControlRunRequest { run_uid: id.to_owned(), control }))
    }

    fn start_restore(&self, request: v1::StartRestoreRequest) -> Answer<'_, v1::RestoreState> {
        Box::pin(Agent::start_restore(self, request))
    }

    fn watch_restore<'a>(&'a self, id: &'a str) -> Answer<'a, Answers<v1::RestoreState>> {
        Box::pin(Agent::watch_restore(self, id))
    }

    fn cancel_restore<'a>(&'a self, id: &'a str) -> Answer<'a, v1::RestoreState> {
        let control = Some(v1::control_restore_request::Control::Cancel(true));
        Box::pin(self.control_restore(v1::ControlRestoreRequest { run_uid: id.to_owned(), control }))
    }

    fn repository(&self, request: v1::RepositoryRequest) -> Answer<'_, v1::RepositoryResponse> {
        Box::pin(Agent::repository(self, request))
    }

    fn list_points(&self, request: v1::ListPointsRequest) -> Answer<'_, Answers<v1::Point>> {
        Box::pin(Agent::list_points(self, request))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_that_comes_back_gets_a_task_when_the_one_before_has_ended() {
        let (there, running) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let started = Arc::new(AtomicUsize::new(0));
        let nodes = || if there.load(Ordering::SeqCst) { vec!["n1".to_owned()] } else { vec![] };
        let task = |_, end: CancellationToken| {
            let (running, started) = (running.clone(), started.clone());
            async move {
                started.fetch_add(1, Ordering::SeqCst);
                assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "two at one time");
                end.cancelled().await;
                tokio::time::sleep(LOOK * 10).await;
                running.fetch_sub(1, Ordering::SeqCst);
            }
        };
        let end = CancellationToken::new();
        let story = async {
            let pause = || tokio::time::sleep(LOOK * 2);
            pause().await;
            there.store(false, Ordering::SeqCst);
            pause().await;
            there.store(true, Ordering::SeqCst);
            pause().await;
            assert_eq!(started.load(Ordering::SeqCst), 1, "the first one still ends");
            tokio::time::sleep(LOOK * 12).await;
            assert_eq!((started.load(Ordering::SeqCst), running.load(Ordering::SeqCst)), (2, 1));
            end.cancel();
        };
        tokio::join!(each(nodes, end.clone(), task), story);
    }
}
