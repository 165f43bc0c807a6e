//! The controller's way to the agents (out): one channel per node over mutual TLS, connected when first used and again
//! after each cut, with a state that metrics and conditions can show. Answers are plain values and streams; errors
//! carry the agent's own reason.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures::{StreamExt, stream::BoxStream};
use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};

use super::{
    MAX_ANSWER, status,
    tls::Identity,
    v1::{self, agent_client::AgentClient},
};
use crate::retry::Retry;

mod link;
mod visit;

use link::Link;
pub use link::LinkState;
pub use visit::Visit;

/// How long a call that answers once may take; a call that starts a stream must start it by then.
const DEADLINE: Duration = Duration::from_secs(30);

/// What an agent says, one after the other; ends after the first error.
pub type Answers<T> = BoxStream<'static, Result<T, RpcError>>;

/// A call to an agent that gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RpcError {
    /// There is no connection to the agent.
    #[error("{call} cannot reach the agent of node {node}: {why}")]
    Unreachable {
        /// The node.
        node: String,
        /// The call.
        call: &'static str,
        /// What the connection failed with.
        why: String,
    },
    /// The agent did not answer in time.
    #[error("{call} had no answer from the agent of node {node} within {} s", deadline.as_secs())]
    TimedOut {
        /// The node.
        node: String,
        /// The call.
        call: &'static str,
        /// How long was waited.
        deadline: Duration,
    },
    /// Who answers holds the node's certificate and says that it is another node.
    #[error("The agent at node {node} says that it is node {claimed}: its --node-name and its certificate disagree")]
    WrongNode {
        /// The node that was meant.
        node: String,
        /// The node that it says it is.
        claimed: String,
    },
    /// The agent refused, with its own reason.
    #[error("{message}")]
    Refused {
        /// The node.
        node: String,
        /// The call.
        call: &'static str,
        /// The refusal.
        kind: status::Kind,
        /// The agent's PascalCase word.
        reason: String,
        /// The agent's sentence.
        message: String,
        /// What the agent says about trying again.
        retry: Retry,
    },
    /// The answer breaks the contract: too large, or from another version.
    #[error("{call} to the agent of node {node} failed: {message}")]
    Protocol {
        /// The node.
        node: String,
        /// The call.
        call: &'static str,
        /// What gRPC said.
        message: String,
    },
}

impl RpcError {
    /// The word for conditions, Events and metrics; for a refusal the agent's own.
    pub fn reason(&self) -> &str {
        match self {
            RpcError::Unreachable { .. } => "AgentUnreachable",
            RpcError::TimedOut { .. } => "AgentNotResponding",
            RpcError::WrongNode { .. } => "AgentIsAnotherNode",
            RpcError::Refused { reason, .. } => reason,
            RpcError::Protocol { .. } => "AgentProtocolError",
        }
    }

    /// What trying again can do.
    pub fn retry(&self) -> Retry {
        match self {
            RpcError::Unreachable { .. } | RpcError::TimedOut { .. } | RpcError::Protocol { .. } => Retry::Backoff,
            RpcError::WrongNode { .. } => Retry::OnChange,
            RpcError::Refused { retry, .. } => *retry,
        }
    }

    /// True when the agent has never heard of what was asked for.
    pub fn is_not_found(&self) -> bool {
        matches!(self, RpcError::Refused { kind: status::Kind::NotFound, .. })
    }
}

/// The agents that the controller knows of, by node.
#[derive(Clone)]
pub struct Agents {
    identity: Identity,
    by_node: Arc<ArcSwap<BTreeMap<String, Agent>>>,
    setting: Arc<Mutex<()>>,
}

impl Agents {
    /// Nobody yet; `identity` is the controller's.
    pub fn new(identity: Identity) -> Agents {
        Agents { identity, by_node: Arc::default(), setting: Arc::default() }
    }

    /// What the EndpointSlices say now. An agent with the addresses that it had keeps its connection.
    pub fn set(&self, nodes: BTreeMap<String, Vec<SocketAddr>>) {
        let _one = self.setting.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.by_node.load_full();
        let after = nodes
            .into_iter()
            .map(|(node, mut addresses)| {
                addresses.sort();
                let agent = before.get(&node).filter(|agent| agent.0.link.addresses() == addresses.as_slice());
                let agent = agent.cloned().unwrap_or_else(|| Agent::new(&node, addresses, self.identity.clone()));
                (node, agent)
            })
            .collect();
        self.by_node.store(Arc::new(after));
    }

    /// The agent of a node.
    pub fn get(&self, node: &str) -> Option<Agent> {
        self.by_node.load().get(node).cloned()
    }

    /// The nodes that have an agent, in order.
    pub fn nodes(&self) -> Vec<String> {
        self.by_node.load().keys().cloned().collect()
    }
}

/// One node's agent.
#[derive(Clone)]
pub struct Agent(Arc<Inner>);

struct Inner {
    link: Arc<Link>,
    client: AgentClient<Channel>,
    session: ArcSwap<Option<String>>,
}

impl Agent {
    /// An agent at one of the addresses; connects when first used.
    pub fn new(node: &str, addresses: Vec<SocketAddr>, identity: Identity) -> Agent {
        let link = Arc::new(Link::new(node, addresses, identity));
        let client = AgentClient::new(link.channel()).max_decoding_message_size(MAX_ANSWER);
        Agent(Arc::new(Inner { link, client, session: ArcSwap::default() }))
    }

    /// The node.
    pub fn node(&self) -> &str {
        self.0.link.node()
    }

    /// Where it is reached.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.0.link.addresses()
    }

    /// Whether there is a connection now, and if not, why the last attempt failed.
    pub fn state(&self) -> LinkState {
        self.0.link.state()
    }

    /// The session of the last `describe`. A changed one means "ask what survived".
    pub fn session(&self) -> Option<String> {
        self.0.session.load().as_ref().clone()
    }

    /// Who the agent is.
    ///
    /// # Errors
    /// Also when it says that it is another node's.
    pub async fn describe(&self) -> Result<v1::DescribeResponse, RpcError> {
        let mut client = self.0.client.clone();
        let answer = self.once("Describe", client.describe(timed(v1::DescribeRequest {}))).await?;
        if answer.node != self.node() {
            return Err(RpcError::WrongNode { node: self.node().to_owned(), claimed: answer.node });
        }
        self.0.session.store(Arc::new(Some(answer.session.clone())));
        Ok(answer)
    }

    /// The node's guests: all of them at once, and again at each change.
    ///
    /// # Errors
    /// When the stream cannot be started.
    pub async fn watch_guests(&self) -> Result<Answers<v1::WatchGuestsResponse>, RpcError> {
        let mut client = self.0.client.clone();
        self.many("WatchGuests", client.watch_guests(v1::WatchGuestsRequest {})).await
    }

    /// Starts a backup, or answers with the state of the run that has this UID.
    ///
    /// # Errors
    /// When the agent refuses: no such guest, a guest with a problem, a repository that is not there.
    pub async fn start_backup(&self, request: v1::StartBackupRequest) -> Result<v1::RunState, RpcError> {
        let mut client = self.0.client.clone();
        let answer = self.once("StartBackup", client.start_backup(timed(request))).await?;
        answer.state.ok_or_else(|| self.incomplete("StartBackup"))
    }

    /// A run's state, then each change, until it has ended.
    ///
    /// # Errors
    /// `is_not_found` when the agent has never heard of the run.
    pub async fn watch_run(&self, run_uid: &str) -> Result<Answers<v1::RunState>, RpcError> {
        let mut client = self.0.client.clone();
        let request = v1::WatchRunRequest { run_uid: run_uid.to_owned() };
        self.many("WatchRun", client.watch_run(request)).await
    }

    /// Asks a run to change its course; answers with the state before.
    ///
    /// # Errors
    /// `is_not_found` when the agent has never heard of the run.
    pub async fn control_run(&self, request: v1::ControlRunRequest) -> Result<v1::RunState, RpcError> {
        let mut client = self.0.client.clone();
        let answer = self.once("ControlRun", client.control_run(timed(request))).await?;
        answer.state.ok_or_else(|| self.incomplete("ControlRun"))
    }

    /// Starts a restore, or answers with the state of the restore that has this UID.
    ///
    /// # Errors
    /// When the agent refuses: paths outside of the restore roots, no such point.
    pub async fn start_restore(&self, request: v1::StartRestoreRequest) -> Result<v1::RestoreState, RpcError> {
        let mut client = self.0.client.clone();
        let answer = self.once("StartRestore", client.start_restore(timed(request))).await?;
        answer.state.ok_or_else(|| self.incomplete("StartRestore"))
    }

    /// A restore's state, then each change, until it has ended.
    ///
    /// # Errors
    /// `is_not_found` when the agent has never heard of the restore.
    pub async fn watch_restore(&self, run_uid: &str) -> Result<Answers<v1::RestoreState>, RpcError> {
        let mut client = self.0.client.clone();
        let request = v1::WatchRestoreRequest { run_uid: run_uid.to_owned() };
        self.many("WatchRestore", client.watch_restore(request)).await
    }

    /// Asks a restore to change its course; answers with the state before.
    ///
    /// # Errors
    /// `is_not_found` when the agent has never heard of the restore.
    pub async fn control_restore(&self, request: v1::ControlRestoreRequest) -> Result<v1::RestoreState, RpcError> {
        let mut client = self.0.client.clone();
        let answer = self.once("ControlRestore", client.control_restore(timed(request))).await?;
        answer.state.ok_or_else(|| self.incomplete("ControlRestore"))
    }

    /// Initialises or validates a repository. A folder that cannot be used is an answer with a `problem`.
    ///
    /// # Errors
    /// When the agent does not answer, or the folder's file system does not.
    pub async fn repository(&self, request: v1::RepositoryRequest) -> Result<v1::RepositoryResponse, RpcError> {
        let mut client = self.0.client.clone();
        self.once("Repository", client.repository(timed(request))).await
    }

    /// The points of a repository, oldest first.
    ///
    /// # Errors
    /// When the repository is not there or is another one.
    pub async fn list_points(&self, request: v1::ListPointsRequest) -> Result<Answers<v1::Point>, RpcError> {
        let mut client = self.0.client.clone();
        self.many("ListPoints", client.list_points(request)).await
    }

    /// The jobs of a guest, whoever has started them.
    ///
    /// # Errors
    /// When the guest is not there, or its QEMU does not say.
    pub async fn jobs(&self, guest: v1::GuestRef) -> Result<v1::JobsResponse, RpcError> {
        let mut client = self.0.client.clone();
        self.once("Jobs", client.jobs(timed(v1::JobsRequest { guest: Some(guest) }))).await
    }

    /// The dirty bitmaps of a guest, after what is asked for was done to one of them.
    ///
    /// # Errors
    /// When that may not be done; then nothing was.
    pub async fn bitmaps(&self, request: v1::BitmapsRequest) -> Result<v1::BitmapsResponse, RpcError> {
        let mut client = self.0.client.clone();
        self.once("Bitmaps", client.bitmaps(timed(request))).await
    }

    /// What a guest's QEMU tells from now on, until QEMU ends.
    ///
    /// # Errors
    /// When the guest is not there.
    pub async fn events(&self, request: v1::EventsRequest) -> Result<Answers<v1::Event>, RpcError> {
        let mut client = self.0.client.clone();
        self.many("Events", client.events(request)).await
    }

    async fn once<T>(
        &self,
        call: &'static str,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, RpcError> {
        once(&self.0.link, call, answer).await
    }

    async fn many<T: Send + 'static>(
        &self,
        call: &'static str,
        answer: impl Future<Output = Result<Response<Streaming<T>>, Status>>,
    ) -> Result<Answers<T>, RpcError> {
        let stream = self.once(call, answer).await?;
        let link = self.0.link.clone();
        Ok(stream.map(move |answer| answer.map_err(|status| error(&link, call, &status))).boxed())
    }

    fn incomplete(&self, call: &'static str) -> RpcError {
        RpcError::Protocol { node: self.node().to_owned(), call, message: "the answer has no state".to_owned() }
    }
}

/// One answer to one call, in time.
async fn once<T>(
    link: &Link,
    call: &'static str,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, RpcError> {
    match tokio::time::timeout(DEADLINE, answer).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(error(link, call, &status)),
        Err(_) => Err(RpcError::TimedOut { node: link.node().to_owned(), call, deadline: DEADLINE }),
    }
}

/// Tells the agent, too, when nobody waits any longer.
fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

fn error(link: &Link, call: &'static str, status: &Status) -> RpcError {
    let node = link.node().to_owned();
    if let Some(refusal) = status::refusal(status) {
        let status::Refusal { kind, reason, message, retry } = refusal;
        return RpcError::Refused { node, call, kind, reason, message, retry };
    }
    match status.code() {
        Code::DeadlineExceeded => RpcError::TimedOut { node, call, deadline: DEADLINE },
        Code::OutOfRange | Code::ResourceExhausted | Code::Unimplemented | Code::DataLoss => {
            RpcError::Protocol { node, call, message: status.message().to_owned() }
        }
        _ => RpcError::Unreachable {
            node,
            call,
            why: link.state().problem.unwrap_or_else(|| deepest(status).unwrap_or_else(|| status.message().to_owned())),
        },
    }
}

/// tonic says "transport error" and keeps what happened as the source of a source.
fn deepest(error: &dyn std::error::Error) -> Option<String> {
    let mut source = error.source()?;
    while let Some(deeper) = source.source() {
        source = deeper;
    }
    Some(source.to_string())
}
