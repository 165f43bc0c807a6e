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
    context::{Context, Feed, Feeds, Guarded},
    error::Error,
    inventory,
    metrics::ControllerMetrics,
    repository,
    write::Kind,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::{
    Client,
    client::Body,
    runtime::{controller::Action, watcher},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub(super) use super::agent::FakeAgent;

pub(super) const REPOSITORY_ID: &str = "9f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10";
pub(super) const GUEST_UUID: &str = "11111111-2222-3333-4444-555555555555";
const NAMESPACE: &str = "team-a";

/// What both sides write down.
pub(super) type Log = Arc<Mutex<Vec<String>>>;
type Objects = Arc<Mutex<BTreeMap<(String, String, String), Value>>>;

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
            !stage.context.inventory.sessions().is_empty() && stage.exists("guests", "db-1")
        })
        .await;
        self.now.fetch_add(20, Ordering::SeqCst);
    }

    /// One reconcile of one object, with caches that are up to date.
    pub(super) async fn reconcile<K, F>(&mut self, name: &str, reconcile: fn(Arc<Context>, Arc<K>) -> F)
    where
        K: Kind,
        F: Future<Output = Result<Action, Error>>,
    {
        self.feed();
        let key = (K::plural(&()).into_owned(), NAMESPACE.to_owned(), name.to_owned());
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
    let (context, feeds) = Context::new(client, Arc::new(agent.clone()), clock, metrics);
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

/// Stores what the server adds to an object, and merges what is there.
fn put(objects: &Objects, key: (String, String, String), given: &Value, now: i64) -> Value {
    let mut objects = objects.lock().unwrap();
    let created = jiff::Timestamp::from_second(now).unwrap().to_string();
    let object = objects.entry(key.clone()).or_insert_with(|| {
        json!({
            "apiVersion": "driftline.dev/v1alpha1",
            "metadata": {
                "name": key.2, "namespace": key.1, "uid": format!("uid-{}", key.2),
                "creationTimestamp": created, "generation": 1, "resourceVersion": "1"
            }
        })
    });
    object["kind"] = given["kind"].clone();
    object["spec"] = given["spec"].clone();
    if given["metadata"]["labels"].is_object() {
        object["metadata"]["labels"] = given["metadata"]["labels"].clone();
    }
    object.clone()
}

fn remove(objects: &mut BTreeMap<(String, String, String), Value>, key: &(String, String, String), now: i64) {
    let held = objects.get(key).is_some_and(|o| o["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty()));
    if !held {
        objects.remove(key);
    } else if let Some(object) = objects.get_mut(key) {
        object["metadata"]["deletionTimestamp"] = json!(jiff::Timestamp::from_second(now).unwrap().to_string());
    }
}

/// A client of an API server that knows just what the controller does with one.
fn serve(objects: Objects, log: Log, now: Arc<AtomicI64>) -> Client {
    let (service, handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    tokio::spawn(async move {
        let mut handle = std::pin::pin!(handle);
        while let Some((request, send)) = handle.next_request().await {
            let (parts, body) = request.into_parts();
            let bytes = body.collect().await.unwrap().to_bytes();
            let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let (status, answer) =
                respond(&objects, &log, &parts.method, parts.uri.path(), &body, now.load(Ordering::SeqCst));
            let answer = serde_json::to_vec(&answer).unwrap();
            send.send_response(Response::builder().status(status).body(Body::from(answer)).unwrap());
        }
    });
    Client::new(service, "default")
}

fn respond(objects: &Objects, log: &Log, method: &Method, path: &str, body: &Value, now: i64) -> (StatusCode, Value) {
    let parts: Vec<_> = path.trim_start_matches('/').split('/').collect();
    if parts[1] == "events.k8s.io" {
        log.lock().unwrap().push(format!("event {}", body["reason"].as_str().unwrap_or_default()));
        return (StatusCode::CREATED, body.clone());
    }
    let key = (parts[5].to_owned(), parts[4].to_owned(), parts[6].to_owned());
    let note = |what: String| log.lock().unwrap().push(what);
    let missing = json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "message": "x", "code": 404});
    let there = objects.lock().unwrap().contains_key(&key);
    match (method, parts.get(7)) {
        (&Method::DELETE, None) => {
            note(format!("DELETE {}/{}", key.0, key.2));
            remove(&mut objects.lock().unwrap(), &key, now);
            (StatusCode::OK, json!({"kind": "Status", "status": "Success"}))
        }
        (&Method::PATCH, Some(&"status")) if there => {
            let status = &body["status"];
            let ready = status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready");
            let word =
                status["phase"].as_str().or_else(|| ready.and_then(|c| c["reason"].as_str())).unwrap_or_default();
            note(format!("PATCH {}/{}/status {word}", key.0, key.2));
            let mut objects = objects.lock().unwrap();
            let object = objects.get_mut(&key).unwrap();
            assert_eq!(body["metadata"]["uid"], object["metadata"]["uid"], "a status is for one object alone");
            object["status"] = status.clone();
            (StatusCode::OK, object.clone())
        }
        (&Method::PATCH, None) if body["metadata"]["finalizers"].is_array() && there => {
            note(format!("PATCH {}/{} finalizers {}", key.0, key.2, body["metadata"]["finalizers"]));
            let mut objects = objects.lock().unwrap();
            let object = objects.get_mut(&key).unwrap();
            object["metadata"]["finalizers"] = body["metadata"]["finalizers"].clone();
            let answer = object.clone();
            if answer["metadata"]["deletionTimestamp"].is_string() {
                remove(&mut objects, &key, now);
            }
            (StatusCode::OK, answer)
        }
        (&Method::PATCH, None) if !body["metadata"]["finalizers"].is_array() => {
            note(format!("APPLY {}/{}", key.0, key.2));
            (StatusCode::OK, put(objects, key, body, now))
        }
        (&Method::PATCH, _) => (StatusCode::NOT_FOUND, missing),
        (method, sub) => panic!("the controller never does this: {method} {path} {sub:?}"),
    }
}

/// Ids that were asked for.
pub(super) type Ids = BTreeSet<String>;
