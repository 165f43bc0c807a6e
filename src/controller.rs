//! The controller: turns what people ask for into requests to agents, and what agents say into status.
//!
//! Per kind a driver with five stages: observe (reads) -> world (typed facts) -> plan (pure, total) -> apply (does
//! exactly that step) -> report (pure; one server-side-apply patch, only when it changed). It keeps no state of its own:
//! after a restart it asks the agents what is going and follows it. Follow a BackupRun from `run`.

use std::{collections::BTreeMap, net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::{
    api::discovery::v1::EndpointSlice,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{
    Api, Client, ResourceExt,
    runtime::{WatchStreamExt, reflector, watcher},
};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{self, Readiness},
    api::{BackupRepository, condition},
    clock,
    rpc::{client::Agents, v1},
    sentence::sentence,
    shutdown,
};

pub mod advice;
pub mod agents;
pub mod args;
pub mod authority;
pub mod catalogue;
pub mod context;
mod driver;
pub mod enrol;
pub mod error;
pub mod follow;
pub mod guest;
pub mod inventory;
pub mod metrics;
pub mod nodes;
mod pause;
pub mod point;
mod ready;
pub mod repository;
pub mod restore;
pub mod run;
pub mod write;

pub use args::Args;
use authority::keep::{KeepError, Keeper};
use context::{Context, Feeds};
use enrol::Enroller;
use metrics::ControllerMetrics;
use pause::WatchPause;

/// How long the controller has after its start to hear of the agents, before it says that they do not answer.
const HEARING: Duration = Duration::from_secs(10);

/// Why the controller could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No kubeconfig and not in a cluster, or one that cannot be used.
    #[error("Connecting to the API server failed")]
    Connect {
        /// What the client says.
        #[source]
        source: Box<kube::Error>,
    },
    /// The port of the probes is taken.
    #[error("Listening on {address} for probes and metrics failed")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The signal handlers cannot be installed.
    #[error("Installing the signal handlers failed")]
    Signals {
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
}

/// Runs the controller until SIGTERM.
pub async fn run(args: Args) -> ExitCode {
    match start(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

async fn start(args: Args) -> Result<(), RunError> {
    let end = shutdown::token().map_err(|source| RunError::Signals { source })?;
    let client = Client::try_default().await.map_err(|source| RunError::Connect { source: Box::new(source) })?;
    let listener = tokio::net::TcpListener::bind(args.admin_listen)
        .await
        .map_err(|source| RunError::Listen { address: args.admin_listen, source })?;
    let mut registry = Registry::default();
    let metrics = ControllerMetrics::register(&mut registry);
    let (ready, shown) =
        watch::channel(Readiness { notes: vec!["The caches are being filled".to_owned()], ..Readiness::default() });
    let admin = tokio::spawn(admin::serve(listener, Arc::new(registry), shown, end.clone()));
    let (trouble, troubled) = watch::channel(None);
    let waiting = ready.clone();
    let told = move |error: Option<&KeepError>| ready::tell_authority(error, &trouble, &waiting);
    let keeper = Keeper::new(client.clone(), clock::system(), args.place(), args.terms());
    let Some(kept) = keeper.begin(told, end.clone()).await else { return Ok(()) };
    let agents = Agents::new(kept.identity.clone());
    let slices = tokio::spawn(find_agents(client.clone(), args.clone(), agents.clone(), end.clone()));
    let enroller = Enroller {
        client: client.clone(),
        agents: agents.clone(),
        kept: kept.clone(),
        account: format!("system:serviceaccount:{}:{}", args.namespace, args.agents_account),
        clock: clock::system(),
        metrics: metrics.clone(),
    };
    let enrolling = tokio::spawn(enrol::keep(enroller, end.clone()));
    let (context, feeds) = Context::new(client, Arc::new(agents), clock::system(), metrics, args.forget_guests_after);
    let answering = tokio::spawn(ready::tell(context.clone(), kept, troubled, ready, end.clone()));
    let inventory = tokio::spawn(inventory::keep(context.clone(), end.clone()));
    drive(context, feeds, end).await;
    // Runs go on in QEMU and on the agents; whoever comes next asks them.
    for task in [slices, enrolling, answering, inventory] {
        task.abort();
    }
    admin.abort();
    Ok(())
}

/// Runs the drivers of all kinds until `end`.
pub async fn drive(context: Arc<Context>, feeds: Feeds, end: CancellationToken) {
    let Feeds { guests, repositories, runs, points, restores } = feeds;
    tokio::join!(
        driver::drive("Guest", context.clone(), guests, end.clone(), guest_touched, guest::reconcile),
        driver::drive(
            "BackupRepository",
            context.clone(),
            repositories,
            end.clone(),
            repository_touched,
            repository::reconcile
        ),
        driver::drive("BackupRun", context.clone(), runs, end.clone(), run_touched, run::reconcile),
        driver::drive("RestorePoint", context.clone(), points, end.clone(), point_touched, point::reconcile),
        driver::drive("RestoreRun", context.clone(), restores, end, restore_touched, restore::reconcile),
    );
}

/// A Guest object is a view: where an agent has the guest, it comes back at once.
fn guest_touched(context: &Context, object: &context::Guarded<crate::api::Guest>) {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    if context.guests.get(&namespace, &name).is_none() {
        context.inventory.deleted(&namespace, &name);
    }
}

/// A point's object that was deleted comes back when its repository is looked at.
fn point_touched(context: &Context, object: &context::Guarded<crate::api::RestorePoint>) {
    if let Ok(point) = &object.0
        && context.points.get(&point.namespace().unwrap_or_default(), &point.name_any()).is_none()
    {
        let reference = &point.spec.repository_ref;
        context.repositories.wake(reference.namespace_or(&point.namespace().unwrap_or_default()), &reference.name);
    }
}

/// A run whose object is gone, because somebody took its finalizer away, is followed no longer; it goes on by itself.
fn run_touched(context: &Context, object: &context::Guarded<crate::api::BackupRun>) {
    if let Ok(run) = &object.0
        && context.runs.get(&run.namespace().unwrap_or_default(), &run.name_any()).is_none_or(|r| r.uid() != run.uid())
    {
        run::forget(context, run);
    }
}

/// The same for a restore.
fn restore_touched(context: &Context, object: &context::Guarded<crate::api::RestoreRun>) {
    if let Ok(restore) = &object.0
        && let Some(uid) = restore.uid()
        && context
            .restores
            .get(&restore.namespace().unwrap_or_default(), &restore.name_any())
            .is_none_or(|r| r.uid() != restore.uid())
    {
        context.restoring.forget(&uid);
    }
}

/// A repository's object that is gone takes its list of points with it; the points stay where they are.
fn repository_touched(context: &Context, object: &context::Guarded<BackupRepository>) {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    if context.repositories.get(&namespace, &name).is_none()
        && let Some(uid) = object.uid()
    {
        context.catalogue.forget(&uid);
        context.views().remove(&uid);
        let shown = |p: &crate::api::RestorePoint| {
            let own = p.namespace().unwrap_or_default();
            p.spec.repository_ref.name == name && p.spec.repository_ref.namespace_or(&own) == namespace
        };
        for point in context.points.find(shown) {
            context.points.wake(&point.namespace().unwrap_or_default(), &point.name_any());
        }
    }
}

/// Keeps the directory of agents true to the EndpointSlices of their Service.
async fn find_agents(client: Client, args: Args, agents: Agents, end: CancellationToken) {
    let api: Api<EndpointSlice> = Api::namespaced(client, &args.namespace);
    let config = watcher::Config::default().labels(&format!("kubernetes.io/service-name={}", args.agents_service));
    let (reader, writer) = reflector::store();
    // Every event and not only those that touch an object: a list shows in the store when it is complete.
    let watch = reflector::reflector(writer, watcher(api, config).backoff(WatchPause::default()));
    let mut watch = std::pin::pin!(watch.take_until(end.cancelled_owned()));
    while let Some(event) = watch.next().await {
        match event {
            Ok(_) => agents.set(addresses(&reader.state())),
            Err(error) => tracing::warn!("The watch of EndpointSlices was cut: {}", sentence(&error)),
        }
    }
}

/// Addresses by node. An agent that is not ready is listed too: whether it answers is found out by asking it.
fn addresses(slices: &[Arc<EndpointSlice>]) -> BTreeMap<String, Vec<SocketAddr>> {
    let mut nodes: BTreeMap<String, Vec<SocketAddr>> = BTreeMap::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten();
        let port = ports.filter(|p| p.name.as_deref() == Some("grpc")).find_map(|p| p.port);
        let Some(port) = port.and_then(|p| u16::try_from(p).ok()) else { continue };
        for endpoint in &slice.endpoints {
            let Some(node) = &endpoint.node_name else { continue };
            let parsed = endpoint.addresses.iter().filter_map(|a| a.parse().ok());
            nodes.entry(node.clone()).or_default().extend(parsed.map(|ip: std::net::IpAddr| SocketAddr::new(ip, port)));
        }
    }
    nodes
}

/// A time of the wire: milliseconds since 1970, 0 for none.
fn time(ms: u64) -> Option<Timestamp> {
    i64::try_from(ms).ok().filter(|ms| *ms > 0).and_then(|ms| Timestamp::from_millisecond(ms).ok())
}

/// From one instant to a later one; zero when the clock went back.
fn since(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// Since when an object waits for this, by its conditions: what was on its way, or waited for something else, begins to
/// wait now, however old it is.
fn waits_since(conditions: &[Condition], reason: &str, created: Timestamp, now: Timestamp) -> Timestamp {
    match condition::find(conditions, condition::READY) {
        Some(ready) if ready.reason == reason => ready.last_transition_time.0.max(created),
        Some(_) => now,
        None => created,
    }
}

/// Has `Ready` say since when an object waits for this: another reason is a transition too, though `Ready` stays False.
fn begin_to_wait(conditions: &mut [Condition], reason: &str, now: Timestamp) {
    let ready = conditions.iter_mut().find(|c| c.type_ == condition::READY && c.reason != reason);
    if let Some(ready) = ready {
        ready.last_transition_time = Time(now);
    }
}

/// Has conditions say that this generation of the spec was seen, where nothing else of them changes any more.
fn seen(conditions: &mut [Condition], generation: Option<i64>) {
    for condition in conditions {
        condition.observed_generation = generation;
    }
}

/// A number of the wire as the API writes it; more than it can write becomes the most that it can.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The same for small numbers.
fn small(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// A type of the wire as the API writes it.
fn backup_type(kind: v1::BackupType) -> &'static str {
    match kind {
        v1::BackupType::Unspecified => "",
        v1::BackupType::Full => "Full",
        v1::BackupType::Incremental => "Incremental",
        v1::BackupType::Copy => "Copy",
        v1::BackupType::Auto => "Auto",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_found_by_node_and_port_name_and_nothing_else_is() {
        let slice: EndpointSlice = serde_json::from_value(serde_json::json!({
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["10.0.0.1"], "nodeName": "a"},
                {"addresses": ["10.0.0.2", "fd00::2"], "nodeName": "b", "conditions": {"ready": false}},
                {"addresses": ["10.0.0.3"]},
                {"addresses": ["not an address"], "nodeName": "c"}
            ],
            "ports": [{"name": "admin", "port": 8081}, {"name": "grpc", "port": 9443}]
        }))
        .unwrap();
        let found = addresses(&[Arc::new(slice)]);
        assert_eq!(found["a"], ["10.0.0.1:9443".parse().unwrap()]);
        assert_eq!(found["b"].len(), 2);
        assert!(found["c"].is_empty() && found.len() == 3);
    }

    #[test]
    fn times_of_the_wire_are_milliseconds_and_zero_is_none() {
        assert_eq!(time(0), None);
        assert_eq!(time(1_500).unwrap().as_millisecond(), 1_500);
        assert_eq!(time(u64::MAX), None);
        assert_eq!(since(Timestamp::from_second(10).unwrap(), Timestamp::from_second(5).unwrap()), Duration::ZERO);
    }

    #[test]
    fn each_reason_is_waited_for_from_its_own_beginning() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut list = vec![];
        assert_eq!(waits_since(&list, "Away", at(5), at(9)), at(5), "what is new waits since it was made");
        for (reason, second) in [("Away", 10), ("Away", 50), ("Problem", 90), ("Problem", 120)] {
            begin_to_wait(&mut list, reason, at(second));
            condition::set_stage(&mut list, condition::Stage::NotReady, (reason, "m"), 1, at(second));
        }
        assert_eq!(waits_since(&list, "Problem", at(5), at(130)), at(90));
        assert_eq!(waits_since(&list, "Away", at(5), at(130)), at(130));
    }
}
