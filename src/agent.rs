//! The agent: one per node. It finds the node's machines, holds their monitors, does backups and restores through the
//! engine when the controller asks, and knows nothing of Kubernetes. Its end changes nothing for a backup that is
//! going: QEMU goes on, and the next agent finds the run in the journal.
//!
//! Reading order: `discover` (files) -> `guest` (a task per machine) -> `inventory` (all of them, pure) -> `service`
//! (what the controller asks) -> `runs`, `restores`, `storage` (who does it); `kept` looks after what QEMU did not give up.

mod configuration;
pub mod discover;
pub mod enrolment;
mod error;
pub mod guest;
pub mod inventory;
mod kept;
pub mod known;
mod mounts;
pub mod problem;
pub mod restores;
pub mod runs;
pub mod service;
pub mod storage;
mod view;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

pub use self::error::AgentError;
use self::{
    discover::Found,
    enrolment::Enrolment,
    guest::Guests,
    known::Known,
    problem::Problem,
    restores::{RestoreSettings, Restores},
    runs::Runs,
    service::Service,
    storage::Storage,
};
use crate::{
    admin::{self, Readiness},
    clock,
    config::HostConfig,
    engine::{Engine, Settings},
    ids::SessionId,
    metrics::{AgentMetrics, Reason},
    qcow2::tool::{FileOwner, QemuImg},
    qmp::Schemas,
    repo::Roots,
    rpc::{
        server::{self, Limits, OnRefused},
        tls::{Files, Identity, TlsError},
    },
    sentence::sentence,
    shutdown,
};

/// How long a call to a repository's file system may take; below the controller's own deadline.
const STORAGE: Duration = Duration::from_secs(20);
/// How long the runs may take to let go when the agent ends.
const DETACH: Duration = Duration::from_secs(15);

/// Serves the controller on one node.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The node's name, as Kubernetes has it and as the certificate names it.
    #[arg(long, env = "DRIFTLINE_NODE_NAME")]
    pub node_name: String,
    /// Where the controller reaches the agent.
    #[arg(long, default_value = "0.0.0.0:7443")]
    pub listen: SocketAddr,
    /// The folder of tls.crt, tls.key and ca.crt; with --token, where the certificate is kept that the controller gives.
    #[arg(long, default_value = "/etc/driftline/tls", env = "DRIFTLINE_TLS_DIR")]
    pub tls_dir: PathBuf,
    /// The token of the agent's ServiceAccount, bound to its pod and made for the audience controller.driftline. For it
    /// the controller gives the agent its certificate. Without it the certificate is that of the files in --tls-dir.
    #[arg(long)]
    pub token: Option<PathBuf>,
    /// The certificates of the authorities that the controller's may be of [default: ca.crt in --tls-dir].
    #[arg(long)]
    pub authorities: Option<PathBuf>,
    /// Where /healthz, /readyz and /metrics are.
    #[arg(long, default_value = "0.0.0.0:7444")]
    pub admin_listen: SocketAddr,
    /// The host configuration.
    #[arg(long, env = crate::config::PATH_VARIABLE, default_value = crate::config::DEFAULT_PATH)]
    pub config: PathBuf,
}

impl Args {
    fn credentials(&self) -> Result<Credentials, TlsError> {
        let authorities = self.authorities.clone().unwrap_or_else(|| self.tls_dir.join("ca.crt"));
        let Some(token) = &self.token else {
            return Identity::load(Files { authorities, ..Files::in_folder(&self.tls_dir) }).map(Credentials::from);
        };
        let enrolment = Enrolment::new(&self.node_name, &self.tls_dir, token);
        Ok(Credentials { identity: enrolment.identity(&authorities)?, enrolment: Some(enrolment) })
    }
}

/// What an agent shows of itself.
pub struct Credentials {
    /// For its connections.
    pub identity: Identity,
    /// How it gets its certificate; none where that is in files of the host.
    pub enrolment: Option<Enrolment>,
}

impl From<Identity> for Credentials {
    fn from(identity: Identity) -> Credentials {
        Credentials { identity, enrolment: None }
    }
}

/// Runs until SIGTERM.
///
/// # Errors
/// When an address cannot be listened on.
pub async fn run(args: Args) -> Result<(), AgentError> {
    let end = shutdown::token().map_err(|source| AgentError::Signals { source })?;
    raise_descriptor_limit();
    run_until(args, end).await
}

/// Each machine's monitor and each connection is a descriptor; the usual soft limit of 1024 is there for programs that
/// use `select`.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "The limit of open files stays as it is");
    }
}

/// Runs until `end`. A configuration or certificate that is missing or wrong is waited for and named by `/readyz`,
/// so that a mistake in a file never is a crash loop. A changed configuration is taken up as if the agent restarted.
///
/// # Errors
/// When an address cannot be listened on.
pub async fn run_until(args: Args, end: CancellationToken) -> Result<(), AgentError> {
    let mut registry = Registry::default();
    let metrics = AgentMetrics::register(&mut registry);
    let (ready, readiness) = watch::channel(Readiness::default());
    let probes = listen(args.admin_listen).await?;
    tokio::spawn(admin::serve(probes, Arc::new(registry), readiness, end.clone()));
    while !end.is_cancelled() {
        let started = || -> Result<_, Problem> {
            let credentials = args.credentials().map_err(|error| Problem {
                subject: args.tls_dir.display().to_string(),
                reason: error.reason(),
                message: sentence(&error),
            })?;
            let config = configuration::load(&args.config)?;
            let parts =
                Parts::new(&args.node_name, &config, &args.config, metrics.clone()).map_err(|error| Problem {
                    subject: args.config.display().to_string(),
                    reason: error.reason(),
                    message: sentence(&error),
                })?;
            Ok((credentials, config, parts))
        };
        let folders = [&*args.config, &*args.tls_dir];
        let Some((credentials, config, parts)) = configuration::wait_for(started, folders, &ready, &end).await else {
            break;
        };
        let listener = listen(args.listen).await?;
        ready.send_replace(Readiness { ready: true, ..Readiness::default() });
        let changed = end.child_token();
        let watching = tokio::spawn(configuration::watch(
            args.config.clone(),
            config,
            parts.guests.clone(),
            ready.clone(),
            changed.clone(),
        ));
        parts.serve(listener, credentials, Limits::default(), changed).await?;
        watching.abort();
        ready.send_replace(Readiness {
            notes: vec!["The agent is ending or reading its configuration again".to_owned()],
            ..Readiness::default()
        });
    }
    Ok(())
}

async fn listen(address: SocketAddr) -> Result<TcpListener, AgentError> {
    TcpListener::bind(address).await.map_err(|source| AgentError::Listen { address, source })
}

/// An agent's parts, put together and not yet at work.
pub struct Parts {
    /// The node's machines.
    pub guests: Guests,
    /// The backups.
    pub runs: Runs,
    /// The restores.
    pub restores: Restores,
    /// This start.
    pub session: SessionId,
    node: String,
    folder: PathBuf,
    engine: Engine,
    roots: Roots,
    tool: QemuImg,
    metrics: AgentMetrics,
}

impl Parts {
    /// Everything that the host configuration says, for one life of the agent.
    ///
    /// # Errors
    /// When the state folder cannot be used, or the user is not there.
    pub fn new(node: &str, config: &HostConfig, path: &Path, metrics: AgentMetrics) -> Result<Parts, AgentError> {
        let owner = config.owner(path).map_err(|source| AgentError::Config { source })?;
        let tool = QemuImg::new("qemu-img", owner.map(|(uid, gid)| FileOwner { uid, gid }));
        let roots = Roots::new(config.repository_roots.clone());
        let settings = Settings {
            state: config.state.clone(),
            locks: config.locks.clone(),
            roots: roots.clone(),
            tool: tool.clone(),
            clock: clock::system(),
            reserve_bytes: config.reserve.0,
            scratch: config.scratch.as_ref().map(crate::engine::Scratch::from),
        };
        let engine = Engine::new(settings).map_err(|source| AgentError::Engine { source })?;
        let guests = Guests::new(Known::new(&config.state), Schemas::new(&config.state), metrics.clone());
        let runs = Runs::new(engine.clone(), guests.clone(), metrics.clone(), clock::system());
        let restores = RestoreSettings {
            state: config.state.clone(),
            repositories: roots.clone(),
            targets: config.restore_roots.clone(),
            tool: tool.clone(),
            clock: clock::system(),
        };
        Ok(Parts {
            guests,
            runs,
            restores: Restores::new(restores, metrics.clone()),
            session: SessionId::from_random(rand::random()),
            node: node.to_owned(),
            folder: config.guests.clone(),
            engine,
            roots,
            tool,
            metrics,
        })
    }

    /// Takes up what the journal holds, then serves until `end`, and leaves all jobs going.
    ///
    /// # Errors
    /// When the journal cannot be read, or the server fails as a whole.
    pub async fn serve(
        self,
        listener: TcpListener,
        credentials: impl Into<Credentials>,
        limits: Limits,
        end: CancellationToken,
    ) -> Result<(), AgentError> {
        let Credentials { identity, enrolment } = credentials.into();
        let Parts { guests, runs, restores, session, node, folder, engine, roots, tool, metrics } = self;
        for request in engine.unfinished().map_err(|source| AgentError::Engine { source })? {
            tracing::info!(run = request.run, name = request.run_name, "A run of an earlier start is gone on with");
            if let Err(refusal) = runs.start(request) {
                tracing::error!(reason = refusal.reason, "{}", refusal.message);
            }
        }
        let (sender, found) = watch::channel(Found::default());
        // The guests' tasks outlive `end` until the runs have let go: a run must not lose its monitor under way.
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        let scanning = stop.clone();
        tokio::spawn(async move { discover::watch(&folder, sender, scanning).await });
        let (following, stopped) = (guests.clone(), stop.clone());
        tokio::spawn(async move { following.follow(found, stopped).await });
        let (gauge, certificate, stopped) = (metrics.certificate_expires.clone(), identity.clone(), stop.clone());
        tokio::spawn(async move {
            while !stopped.is_cancelled() {
                gauge.set(certificate.expires());
                tokio::select! { () = tokio::time::sleep(Duration::from_secs(60)) => {} () = stopped.cancelled() => {} }
            }
        });
        tokio::spawn(kept::follow(engine.clone(), guests.clone(), stop.clone()));
        tracing::info!(node, session = session.as_str(), "The agent serves");
        let service = Service {
            node,
            session,
            guests,
            runs: runs.clone(),
            restores: restores.clone(),
            engine,
            roots,
            tool,
            storage: Storage::new(STORAGE, metrics.clone()),
            enrolment,
            metrics: metrics.clone(),
            end: end.clone(),
        };
        let refused = metrics.refused.clone();
        let on_refused: OnRefused = Arc::new(move |reason| {
            refused.get_or_create(&Reason { reason: reason.to_owned() }).inc();
        });
        let served = server::serve(listener, identity, service, limits, on_refused, end).await;
        restores.abandon();
        if tokio::time::timeout(DETACH, runs.detach()).await.is_err() {
            tracing::warn!("A run did not let go in time; the next agent finds it in the journal");
        }
        served.map_err(|source| AgentError::Serve { source })
    }
}
