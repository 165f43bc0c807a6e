//! The stage of the scenarios: objects as an API server keeps them, an agent that does what a test says, a clock that
//! only a test turns, and one log of what was done to both.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use driftline::controller::{
    agents::Directory,
    context::{Context, Feed, Feeds, Guarded},
    error::Error,
    inventory,
    metrics::ControllerMetrics,
    repository,
    write::Kind,
};
use kube::runtime::{controller::Action, watcher};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub(super) use super::agent::FakeAgent;
use super::server::{GOING, HELD, Objects, SPEECHLESS, put, remove, serve};

pub(super) const REPOSITORY_ID: &str = "9f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10";
pub(super) const GUEST_UUID: &str = "11111111-2222-3333-4444-555555555555";
const NAMESPACE: &str = "team-a";
/// How long the controller keeps the Guests of a node that is gone.
const FORGET_AFTER: Duration = Duration::from_secs(86_400);

/// What both sides write down.
pub(super) type Log = Arc<Mutex<Vec<String>>>;

pub(super) struct Stage {
    pub(super) agent: FakeAgent,
    pub(super) now: Arc<AtomicI64>,
    objects: Objects,
    log: Log,
    context: Arc<Context>,
    feeds: Feeds,
    end: CancellationToken,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// A run of the guest that every stage has.
pub(super) fn backup(name: &str) -> Value {
    json!({
        "kind": "BackupRun",
        "metadata": {"name": name},
        "spec": {"guestRef": {"name": "db-1"}, "repositoryRef": {"name": "repo"}}
    })
}

/// A restore of a point's object.
pub(super) fn restore_of(point: &str) -> Value {
    json!({
        "kind": "RestoreRun",
        "metadata": {"name": "r1"},
        "spec": {
            "restorePointRef": {"name": point},
            "target": {"nodeName": "n1", "disks": [{"name": "disk0", "path": "/var/lib/machines/d0"}]}
        }
    })
}

/// Repeats a step until it says that it is done.
pub(super) async fn until(stage: &mut Stage, mut step: impl AsyncFnMut(&mut Stage) -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !step(stage).await {
        assert!(std::time::Instant::now() < deadline, "not within 20 s; log: {:#?}", stage.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Stage {
    /// A guest that is known, and a repository nobody has looked at.
    pub(super) async fn empty() -> Stage {
        let (objects, log) = (Objects::default(), Log::default());
        let now = Arc::new(AtomicI64::new(1_700_000_000));
        let agent = FakeAgent::new(log.clone());
        let (context, feeds, end) = begin(&objects, &log, &agent, &now);
        let mut stage = Stage { agent, now, objects, log, context, feeds, end };
        stage.apply(json!({
            "kind": "BackupRepository",
            "metadata": {"name": "repo"},
            "spec": {"filesystem": {"path": "/srv/backup"}}
        }));
        stage.settle().await;
        stage
    }

    /// The same with the repository looked at.
    pub(super) async fn ready() -> Stage {
        let mut stage = Stage::empty().await;
        stage.reconcile::<driftline::api::BackupRepository, _>("repo", repository::reconcile).await;
        stage.reconcile::<driftline::api::Guest, _>("db-1", driftline::controller::guest::reconcile).await;
        stage.log.lock().unwrap().clear();
        stage
    }

    /// Another controller takes over: nothing is left of the first but what is in the API server and on the agent.
    pub(super) async fn restart(&mut self) {
        self.end.cancel();
        let (context, feeds, end) = begin(&self.objects, &self.log, &self.agent, &self.now);
        (self.context, self.feeds, self.end) = (context, feeds, end);
        self.settle().await;
        if self.status("backuprepositories", "repo")["repositoryID"].is_string() {
            self.reconcile::<driftline::api::BackupRepository, _>("repo", repository::reconcile).await;
        }
    }

    /// Waits for the agent to have been heard, and lets the controller's youth pass.
    async fn settle(&mut self) {
        until(self, async |stage| {
            stage.feed();
            stage.context.inventory.sessions().len() == stage.agent.nodes().len() && stage.exists("guests", "db-1")
        })
        .await;
        self.now.fetch_add(20, Ordering::SeqCst);
    }

    /// One reconcile from an object as it was some time ago, as a watch that lags behind shows it.
    pub(super) async fn reconcile_old<K, F>(
        &mut self,
        object: Value,
        reconcile: fn(Arc<Context>, Arc<K>) -> F,
    ) -> Result<Action, Error>
    where
        K: Kind,
        F: Future<Output = Result<Action, Error>>,
    {
        let object: K = serde_json::from_value(object).unwrap();
        reconcile(self.context.clone(), Arc::new(object)).await
    }

    /// One reconcile of one object, with caches that are up to date.
    pub(super) async fn reconcile<K, F>(&mut self, name: &str, reconcile: fn(Arc<Context>, Arc<K>) -> F)
    where
        K: Kind,
        F: Future<Output = Result<Action, Error>>,
    {
        self.reconcile_in(NAMESPACE, name, reconcile).await;
    }

    /// The same of another namespace's object.
    pub(super) async fn reconcile_in<K, F>(
        &mut self,
        namespace: &str,
        name: &str,
        reconcile: fn(Arc<Context>, Arc<K>) -> F,
    ) where
        K: Kind,
        F: Future<Output = Result<Action, Error>>,
    {
        self.feed();
        let key = (K::plural(&()).into_owned(), namespace.to_owned(), name.to_owned());
        let Some(object) = self.objects.lock().unwrap().get(&key).cloned() else { return };
        let object: K = serde_json::from_value(object).unwrap();
        reconcile(self.context.clone(), Arc::new(object)).await.unwrap();
        self.feed();
    }

    fn feed(&mut self) {
        let objects = self.objects.lock().unwrap().clone();
        fill(&objects, &mut self.feeds.guests);
        fill(&objects, &mut self.feeds.repositories);
        fill(&objects, &mut self.feeds.runs);
        fill(&objects, &mut self.feeds.points);
        fill(&objects, &mut self.feeds.restores);
    }

    /// What a person does with kubectl.
    pub(super) fn apply(&self, object: Value) {
        let kind = object["kind"].as_str().unwrap().to_lowercase();
        let plural = kind.strip_suffix('y').map_or(format!("{kind}s"), |stem| format!("{stem}ies"));
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        put(&self.objects, (plural, NAMESPACE.to_owned(), name), &object, self.now.load(Ordering::SeqCst));
    }

    /// What a person does with kubectl, too.
    pub(super) fn delete(&self, plural: &str, name: &str) {
        let key = (plural.to_owned(), NAMESPACE.to_owned(), name.to_owned());
        remove(&mut self.objects.lock().unwrap(), &key, self.now.load(Ordering::SeqCst));
    }

    /// The namespace is being deleted.
    pub(super) fn end_namespace(&self) {
        self.log.lock().unwrap().push(GOING.to_owned());
    }

    /// Somebody else writes into every status.
    pub(super) fn hold_fields(&self) {
        self.log.lock().unwrap().push(HELD.to_owned());
    }

    /// Gives the cluster a Node object, or takes it away.
    pub(super) fn has_node(&self, name: &str, has: bool) {
        let (mut objects, key) = (self.objects.lock().unwrap(), ("nodes".to_owned(), String::new(), name.to_owned()));
        if has {
            objects.insert(key, json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}));
        } else {
            objects.remove(&key);
        }
    }

    /// Whether it is the API server that answers about nodes.
    pub(super) fn tells_of_nodes(&self, does: bool) {
        let mut log = self.log.lock().unwrap();
        log.retain(|l| l != SPEECHLESS);
        if !does {
            log.push(SPEECHLESS.to_owned());
        }
    }

    /// One reconcile of one object that may fail.
    pub(super) async fn try_reconcile<K, F>(&mut self, name: &str, reconcile: fn(Arc<Context>, Arc<K>) -> F)
    where
        K: Kind,
        F: Future<Output = Result<Action, Error>>,
    {
        let object = self.object(&K::plural(&()), name);
        if !object.is_null() {
            drop(self.reconcile_old(object, reconcile).await);
        }
        self.feed();
    }

    /// Changes an object as it is stored.
    pub(super) fn edit(&self, plural: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let key = (plural.to_owned(), NAMESPACE.to_owned(), name.to_owned());
        change(self.objects.lock().unwrap().get_mut(&key).unwrap());
    }

    /// Puts a copy of an object into another namespace.
    pub(super) fn place(&self, plural: &str, name: &str, namespace: &str) {
        let mut objects = self.objects.lock().unwrap();
        let mut copy = objects[&(plural.to_owned(), NAMESPACE.to_owned(), name.to_owned())].clone();
        copy["metadata"]["namespace"] = json!(namespace);
        copy["metadata"]["uid"] = json!(format!("uid-{namespace}-{name}"));
        objects.insert((plural.to_owned(), namespace.to_owned(), name.to_owned()), copy);
    }

    /// Puts an object into another namespace.
    pub(super) fn move_away(&self, plural: &str, name: &str, namespace: &str) {
        self.place(plural, name, namespace);
        self.delete(plural, name);
    }

    /// Lets the next reconcile of the repository ask its agents anew.
    pub(super) fn forget_answers(&self) {
        self.now.fetch_add(301, Ordering::SeqCst);
    }

    pub(super) fn object(&self, plural: &str, name: &str) -> Value {
        let key = (plural.to_owned(), NAMESPACE.to_owned(), name.to_owned());
        self.objects.lock().unwrap().get(&key).cloned().unwrap_or_default()
    }

    pub(super) fn exists(&self, plural: &str, name: &str) -> bool {
        !self.object(plural, name).is_null()
    }

    pub(super) fn names(&self, plural: &str) -> Vec<String> {
        self.objects.lock().unwrap().keys().filter(|k| k.0 == plural).map(|k| k.2.clone()).collect()
    }

    pub(super) fn status(&self, plural: &str, name: &str) -> Value {
        self.object(plural, name)["status"].clone()
    }

    pub(super) fn finalizers(&self, plural: &str, name: &str) -> Vec<String> {
        serde_json::from_value(self.object(plural, name)["metadata"]["finalizers"].clone()).unwrap_or_default()
    }

    fn find_condition(&self, plural: &str, name: &str, kind: &str) -> Value {
        let conditions = self.status(plural, name)["conditions"].clone();
        conditions.as_array().into_iter().flatten().find(|c| c["type"] == kind).cloned().unwrap_or_default()
    }

    /// Status and reason of a condition.
    pub(super) fn condition(&self, plural: &str, name: &str, kind: &str) -> (String, String) {
        let found = self.find_condition(plural, name, kind);
        let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        (text("status"), text("reason"))
    }

    pub(super) fn message(&self, plural: &str, name: &str, kind: &str) -> String {
        self.find_condition(plural, name, kind)["message"].as_str().unwrap_or_default().to_owned()
    }

    pub(super) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    pub(super) fn count(&self, what: &str) -> usize {
        self.log().iter().filter(|l| *l == what).count()
    }
}

fn begin(
    objects: &Objects,
    log: &Log,
    agent: &FakeAgent,
    now: &Arc<AtomicI64>,
) -> (Arc<Context>, Feeds, CancellationToken) {
    let client = serve(objects.clone(), log.clone(), now.clone());
    let time = now.clone();
    let clock: driftline::clock::Clock =
        Arc::new(move || jiff::Timestamp::from_second(time.load(Ordering::SeqCst)).unwrap());
    let metrics = ControllerMetrics::register(&mut prometheus_client::registry::Registry::default());
    let (context, feeds) = Context::new(client, Arc::new(agent.clone()), clock, metrics, FORGET_AFTER);
    let end = CancellationToken::new();
    tokio::spawn(inventory::keep(context.clone(), end.clone()));
    (context, feeds, end)
}

fn fill<K: Kind>(objects: &BTreeMap<(String, String, String), Value>, feed: &mut Feed<K>) {
    feed.writer.apply_watcher_event(&watcher::Event::Init);
    for (key, object) in objects {
        if key.0 == K::plural(&()) {
            let object: Guarded<K> = serde_json::from_value(object.clone()).unwrap();
            object.0.as_ref().unwrap_or_else(|e| panic!("{key:?}: {e}"));
            feed.writer.apply_watcher_event(&watcher::Event::InitApply(object));
        }
    }
    feed.writer.apply_watcher_event(&watcher::Event::InitDone);
}

/// Ids that were asked for.
pub(super) type Ids = BTreeSet<String>;
