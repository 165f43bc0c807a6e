//! What every reconcile shares: client, agents, caches of the watched kinds, and what the agents said last. Nothing
//! here outlives the process, and nothing here is truth: after a restart all of it is asked anew.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use kube::{
    Client,
    core::{DeserializeGuard, Resource},
    runtime::{
        events::{Recorder, Reporter},
        reflector::{self, ObjectRef, Store},
    },
};
use tokio::sync::{mpsc, watch};

use super::{
    agents::Directory, catalogue::Catalogue, follow::Followers, inventory::Inventory, metrics::ControllerMetrics,
    nodes::Nodes, repository::View,
};
use crate::{
    api::{BackupRepository, BackupRun, Guest, RestorePoint, RestoreRun, words},
    clock::Clock,
    rpc::v1,
};

/// An object that may not fit its schema: such a one is an entry of its own in a cache and never spoils a list.
pub type Guarded<K> = DeserializeGuard<K>;

/// The caches of one kind: where the watch writes, where reconciles read, and how one is asked for.
pub struct Cache<K: Resource<DynamicType = ()> + Clone + 'static> {
    /// What the API server has, as far as the watch has brought it.
    pub store: Store<Guarded<K>>,
    trigger: mpsc::UnboundedSender<ObjectRef<Guarded<K>>>,
    filled: watch::Receiver<bool>,
}

/// The other ends of a [`Cache`], for the kind's driver.
pub struct Feed<K: Resource<DynamicType = ()> + Clone + 'static> {
    /// Where the watch writes.
    pub writer: reflector::store::Writer<Guarded<K>>,
    /// Objects that somebody asked to be reconciled.
    pub triggers: mpsc::UnboundedReceiver<ObjectRef<Guarded<K>>>,
    /// To be set to true once the first list is complete. `Store::wait_until_ready` wakes only the last one of those who
    /// wait (kube-runtime 5.0), and here several do.
    pub filled: watch::Sender<bool>,
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Cache<K> {
    fn new() -> (Cache<K>, Feed<K>) {
        let writer = reflector::store::Writer::new(());
        let (trigger, triggers) = mpsc::unbounded_channel();
        let (fill, filled) = watch::channel(false);
        (Cache { store: writer.as_reader(), trigger, filled }, Feed { writer, triggers, filled: fill })
    }

    /// The object, if it is there and fits its schema.
    pub fn get(&self, namespace: &str, name: &str) -> Option<K> {
        let found = self.store.get(&ObjectRef::new(name).within(namespace))?;
        found.0.as_ref().ok().cloned()
    }

    /// All objects that fit their schema and for which `keep` is true.
    pub fn find(&self, keep: impl Fn(&K) -> bool) -> Vec<K> {
        let all = self.store.state();
        all.iter().filter_map(|object| object.0.as_ref().ok()).filter(|object| keep(object)).cloned().collect()
    }

    /// Waits until the first list is complete. Ends too when the driver has ended, as it does only with the controller.
    async fn filled(&self) {
        let _ = self.filled.clone().wait_for(|filled| *filled).await;
    }

    /// Asks for a reconcile of the object. Nothing happens when the driver has ended.
    pub fn wake(&self, namespace: &str, name: &str) {
        let _ = self.trigger.send(ObjectRef::new(name).within(namespace));
    }
}

/// The drivers' ends of all caches.
pub struct Feeds {
    /// Of Guests.
    pub guests: Feed<Guest>,
    /// Of BackupRepositories.
    pub repositories: Feed<BackupRepository>,
    /// Of BackupRuns.
    pub runs: Feed<BackupRun>,
    /// Of RestorePoints.
    pub points: Feed<RestorePoint>,
    /// Of RestoreRuns.
    pub restores: Feed<RestoreRun>,
}

/// What every reconcile shares.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// The one writer of Events.
    pub recorders: Recorders,
    /// The agents.
    pub agents: Arc<dyn Directory>,
    /// The time.
    pub clock: Clock,
    /// When the controller started: nothing is given up for what it could not know before.
    pub started: Timestamp,
    /// How long the Guests of a node that is gone stay.
    pub forget_guests_after: Duration,
    /// Numbers.
    pub metrics: ControllerMetrics,
    /// Which nodes are in the cluster.
    pub nodes: Nodes,
    /// What the agents see.
    pub inventory: Inventory,
    /// The points that repositories hold.
    pub catalogue: Catalogue,
    /// What the agents said about repositories, by the object's UID.
    pub views: Mutex<HashMap<String, View>>,
    /// Backups that are going.
    pub backups: Followers<v1::RunState>,
    /// Restores that are going.
    pub restoring: Followers<v1::RestoreState>,
    /// Guests.
    pub guests: Cache<Guest>,
    /// BackupRepositories.
    pub repositories: Cache<BackupRepository>,
    /// BackupRuns.
    pub runs: Cache<BackupRun>,
    /// RestorePoints.
    pub points: Cache<RestorePoint>,
    /// RestoreRuns.
    pub restores: Cache<RestoreRun>,
}

/// Writes Events. kube's recorder counts what is said again of an object with the same reason and action, and keeps the first
/// note whatever comes later: so there is one for each note.
pub struct Recorders {
    client: Client,
    reporter: Reporter,
    by_note: Mutex<HashMap<Option<String>, Recorder>>,
}

impl Recorders {
    /// More than are said within the minutes in which a recorder counts.
    const NOTES: usize = 1000;

    /// The recorder of Events with this note.
    pub fn of(&self, note: Option<&String>) -> Recorder {
        let mut recorders = locked(&self.by_note);
        if recorders.len() >= Self::NOTES {
            recorders.clear();
        }
        let recorder = || Recorder::new(self.client.clone(), self.reporter.clone());
        recorders.entry(note.cloned()).or_insert_with(recorder).clone()
    }
}

impl Context {
    /// A context with empty caches, and the ends that fill them.
    pub fn new(
        client: Client,
        agents: Arc<dyn Directory>,
        clock: Clock,
        metrics: ControllerMetrics,
        forget_guests_after: Duration,
    ) -> (Arc<Context>, Feeds) {
        let reporter = Reporter { controller: words::REPORTER.to_owned(), instance: std::env::var("POD_NAME").ok() };
        let (guests, guest_feed) = Cache::new();
        let (repositories, repository_feed) = Cache::new();
        let (runs, run_feed) = Cache::new();
        let (points, point_feed) = Cache::new();
        let (restores, restore_feed) = Cache::new();
        let context = Context {
            recorders: Recorders { client: client.clone(), reporter, by_note: Mutex::default() },
            client,
            agents,
            started: clock(),
            clock,
            forget_guests_after,
            metrics,
            nodes: Nodes::default(),
            inventory: Inventory::default(),
            catalogue: Catalogue::default(),
            views: Mutex::default(),
            backups: Followers::default(),
            restoring: Followers::default(),
            guests,
            repositories,
            runs,
            points,
            restores,
        };
        let feeds = Feeds {
            guests: guest_feed,
            repositories: repository_feed,
            runs: run_feed,
            points: point_feed,
            restores: restore_feed,
        };
        (Arc::new(context), feeds)
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Waits until all caches are filled: before that, what is not in them proves nothing.
    pub async fn synced(&self) {
        tokio::join!(
            self.guests.filled(),
            self.repositories.filled(),
            self.runs.filled(),
            self.points.filled(),
            self.restores.filled(),
        );
    }

    /// Whether the controller is so young that an agent it has not heard of may be there all the same.
    pub(super) fn is_young(&self) -> bool {
        super::since(self.started, self.now()) < super::HEARING
    }

    /// What the agents said about repositories.
    pub(super) fn views(&self) -> MutexGuard<'_, HashMap<String, View>> {
        locked(&self.views)
    }
}

/// The lock's content; a task that panicked with it leaves whole values behind, because each is set in one step.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use http::{Method, Request, Response};
    use k8s_openapi::api::core::v1::ObjectReference;
    use kube::{
        client::Body,
        runtime::events::{Event, EventType},
    };

    use super::*;

    #[tokio::test]
    async fn what_is_said_anew_is_an_event_of_its_own_and_the_same_again_is_counted() {
        let (service, handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let said = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&said);
        tokio::spawn(async move {
            let mut handle = std::pin::pin!(handle);
            while let Some((request, send)) = handle.next_request().await {
                let (parts, body) = request.into_parts();
                locked(&told).push(parts.method);
                send.send_response(Response::new(body));
            }
        });
        let reporter = Reporter { controller: words::REPORTER.to_owned(), instance: None };
        let recorders = Recorders { client: Client::new(service, "default"), reporter, by_note: Mutex::default() };
        for note in ["one", "one", "other"] {
            let event = Event {
                type_: EventType::Warning,
                reason: "HostFileRefused".to_owned(),
                note: Some(note.to_owned()),
                action: "ReadHostFile".to_owned(),
                secondary: None,
            };
            let node =
                ObjectReference { kind: Some("Node".to_owned()), name: Some("a".to_owned()), ..Default::default() };
            let _ = recorders.of(event.note.as_ref()).publish(&event, &node).await;
        }
        assert_eq!(*locked(&said), [Method::POST, Method::PATCH, Method::POST]);
    }
}
