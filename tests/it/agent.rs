//! The agent over real TLS on loopback, with scripted QEMUs: who is served, what of the node's machines is shown, and
//! that runs outlive the agent.

mod content;
mod guests;
mod held;
mod life;
mod machine;
mod runs;
mod tls;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use driftline::{
    agent::{AgentError, Parts},
    certs::{Folder, Validity},
    config::HostConfig,
    metrics::AgentMetrics,
    rpc::{
        client::Agent,
        server::Limits,
        tls::{Files, Identity},
        v1::{self, Guest},
    },
};
use futures::StreamExt;
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub(crate) const NODE: &str = "node-1";
/// Longer than anything here takes; only a failure waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A host: folders, certificates, and an agent that is started and ended.
pub(crate) struct Host {
    dir: tempfile::TempDir,
    authority: Folder,
}

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) registry: Registry,
    end: CancellationToken,
    task: JoinHandle<Result<(), AgentError>>,
}

impl Host {
    pub(crate) fn new() -> Host {
        let dir = tempfile::tempdir().unwrap();
        let authority = Folder::create(&dir.path().join("ca")).unwrap();
        for folder in ["guests.d", "repos", "restores", "state", "locks"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let host = Host { dir, authority };
        host.authority.agent(NODE, &host.path("tls"), Validity::days(1)).unwrap();
        host.authority.controller(&host.path("controller"), Validity::days(1)).unwrap();
        host
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a guest's file that names the socket `<file>.qmp`.
    pub(crate) fn guest(&self, file: &str, name: &str, more: &str) -> PathBuf {
        let socket = self.path(&format!("{file}.qmp"));
        self.guest_at(file, name, &socket, more);
        socket
    }

    pub(crate) fn guest_at(&self, file: &str, name: &str, socket: &Path, more: &str) {
        let text = format!("name = {name:?}\nnamespace = \"team-a\"\nqmp = {socket:?}\n{more}");
        // As an editor does it: never half a file.
        let temporary = self.path("guests.d").join(".new");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.path("guests.d").join(format!("{file}.toml"))).unwrap();
    }

    pub(crate) fn config(&self) -> HostConfig {
        HostConfig {
            state: self.path("state"),
            locks: self.path("locks"),
            guests: self.path("guests.d"),
            repository_roots: vec![self.path("repos")],
            restore_roots: [("team-a".to_owned(), vec![self.path("restores")])].into(),
            reserve: driftline::config::Size(0),
            ..HostConfig::default()
        }
    }

    /// The identity in a folder.
    pub(crate) fn identity(&self, folder: &str) -> Identity {
        Identity::load(Files::in_folder(&self.path(folder))).unwrap()
    }

    pub(crate) async fn start(&self) -> Running {
        self.start_with(Limits::default()).await
    }

    pub(crate) async fn start_with(&self, limits: Limits) -> Running {
        let mut registry = Registry::default();
        let metrics = AgentMetrics::register(&mut registry);
        let parts = Parts::new(NODE, &self.config(), Path::new("host.toml"), metrics).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let identity = self.identity("tls");
        let end = CancellationToken::new();
        let task = tokio::spawn(parts.serve(listener, identity, limits, end.clone()));
        Running { address, registry, end, task }
    }

    /// A controller's connection to the agent.
    pub(crate) fn controller(&self, agent: &Running) -> Agent {
        Agent::new(NODE, vec![agent.address], self.identity("controller"))
    }
}

impl Running {
    /// As SIGTERM does.
    pub(crate) async fn stop(self) {
        self.end.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }

    /// A line of /metrics that begins with `name`, without the name.
    pub(crate) fn metric(&self, name: &str) -> Option<String> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text.lines().find_map(|line| line.strip_prefix(name).map(|rest| rest.trim().to_owned()))
    }
}

/// Follows the agent's guests until `wanted` says so of a listing.
pub(crate) async fn guests_until(agent: &Agent, wanted: impl Fn(&[Guest]) -> bool) -> Vec<Guest> {
    let mut last = Vec::new();
    let seen = async {
        let mut answers = agent.watch_guests().await.unwrap();
        while let Some(answer) = answers.next().await {
            last = answer.unwrap().guests;
            if wanted(&last) {
                return;
            }
        }
    };
    let within = tokio::time::timeout(PATIENCE, seen).await;
    assert!(within.is_ok(), "not seen; last: {last:#?}");
    last
}

/// The reason of a guest's problem, or nothing.
pub(crate) fn reason(guest: &v1::Guest) -> &str {
    guest.problem.as_ref().map_or("", |problem| problem.reason.as_str())
}

/// Waits for something that is looked at again and again.
pub(crate) async fn eventually<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(value) = look().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("it never came")
}
