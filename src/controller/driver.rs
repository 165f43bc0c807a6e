//! Runs one kind's reconciles: watch, cache, triggers from elsewhere, and a backoff per object, which kube does not
//! have. One object that fails, or that cannot be read, stops no other.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream};
use kube::{
    Api, ResourceExt,
    runtime::{
        WatchStreamExt, applier,
        controller::{Action, Config},
        events::EventType,
        reflector::{self, ObjectRef},
        watcher,
    },
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use super::{
    context::{Context, Feed, Guarded, locked},
    error::Error,
    pause::WatchPause,
    write::{self, Kind},
};
use crate::{api::words::Reason, retry::Retry, sentence::sentence};

/// Objects of one kind that are reconciled at once.
const CONCURRENCY: u16 = 16;
/// Objects that one page of a list holds.
const PAGE: u32 = 250;
/// The first pause after a failure; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// How often each object failed in a row.
struct Backoffs(Mutex<HashMap<String, u32>>);

impl Backoffs {
    fn next(&self, key: String) -> Duration {
        let mut all = locked(&self.0);
        let count = all.entry(key).or_default();
        *count = count.saturating_add(1);
        pause(*count)
    }

    fn reset(&self, key: &str) {
        locked(&self.0).remove(key);
    }
}

fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_PAUSE)
}

/// What a kind's applier carries.
struct Shared {
    context: Arc<Context>,
    backoffs: Backoffs,
}

/// Reconciles all objects of a kind until `end`. `touched` is told of every object that came, changed or went.
pub(super) async fn drive<K, F>(
    kind: &'static str,
    context: Arc<Context>,
    feed: Feed<K>,
    end: CancellationToken,
    touched: impl Fn(&Context, &Guarded<K>) + Send + Sync + 'static,
    reconcile: fn(Arc<Context>, Arc<K>) -> F,
) where
    K: Kind,
    F: Future<Output = Result<Action, Error>> + Send + 'static,
{
    let store = feed.writer.as_reader();
    let api: Api<Guarded<K>> = Api::all(context.client.clone());
    let shared = Arc::new(Shared { context: context.clone(), backoffs: Backoffs(Mutex::default()) });
    let (told, kept) = (shared.clone(), store.clone());
    let watch =
        watcher(api, watcher::Config::default().page_size(PAGE)).backoff(WatchPause::default()).modify(|object| {
            kube::Resource::meta_mut(object).managed_fields = None;
        });
    let filled = feed.filled;
    let watch = reflector::reflector(feed.writer, watch).inspect_ok(move |event| {
        if matches!(event, watcher::Event::InitDone) {
            filled.send_replace(true);
        }
    });
    let own = watch.touched_objects().filter_map(move |object| {
        let object = object.inspect_err(|e| tracing::warn!(kind, "The watch was cut: {}", sentence(e))).ok();
        if let Some(object) = &object {
            touched(&told.context, object);
            // Also one that went without a finalizer: nobody else will ever take its count away.
            if kept.get(&ObjectRef::from_obj(object)).is_none() {
                told.backoffs.reset(&key(object));
            }
        }
        let request = object.map(|o| Ok::<_, watcher::Error>(ObjectRef::from_obj(&o)));
        std::future::ready(request)
    });
    let asked = UnboundedReceiverStream::new(feed.triggers).map(Ok);
    let queue = stream::select(own, asked).take_until(end.clone().cancelled_owned());
    let work = applier(
        move |object: Arc<Guarded<K>>, shared: Arc<Shared>| Box::pin(one(kind, shared, object, reconcile)),
        |object, error, shared| failed(kind, &object, error, &shared),
        shared,
        store,
        queue,
        Config::default().concurrency(CONCURRENCY),
    );
    work.for_each(|_| std::future::ready(())).await;
}

fn key<K: Kind>(object: &Guarded<K>) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

async fn one<K, F>(
    kind: &'static str,
    shared: Arc<Shared>,
    object: Arc<Guarded<K>>,
    reconcile: fn(Arc<Context>, Arc<K>) -> F,
) -> Result<Action, Error>
where
    K: Kind,
    F: Future<Output = Result<Action, Error>> + Send,
{
    let key = key(&object);
    let whole = match &object.0 {
        Ok(whole) => Arc::new(whole.clone()),
        Err(invalid) => {
            unreadable::<K>(kind, &shared.context, &invalid.metadata, &invalid.error).await;
            return Ok(Action::await_change());
        }
    };
    shared.context.synced().await;
    let start = Instant::now();
    let done = reconcile(shared.context.clone(), whole).await;
    shared.context.metrics.reconciled(kind, start.elapsed());
    if done.is_ok() {
        shared.backoffs.reset(&key);
    }
    done
}

/// An object that does not fit its schema, as an earlier version of it may have allowed: said, and left alone.
async fn unreadable<K: Kind>(kind: &'static str, context: &Context, meta: &kube::core::ObjectMeta, error: &str) {
    let regarding = k8s_openapi::api::core::v1::ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(kind.to_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        ..Default::default()
    };
    let event = kube::runtime::events::Event {
        type_: EventType::Warning,
        reason: Reason::ObjectNotReadable.as_str().to_owned(),
        note: Some(
            format!("The object does not fit its schema and is left alone: {error}").chars().take(900).collect(),
        ),
        action: "Read".to_owned(),
        secondary: None,
    };
    tracing::warn!(kind, object = write::full_name(meta), "{error}");
    write::publish(context, event, regarding).await;
}

fn failed<K: Kind>(kind: &'static str, object: &Guarded<K>, error: &Error, shared: &Shared) -> Action {
    let key = key(object);
    tracing::warn!(kind, object = key, reason = error.reason(), "{}", sentence(error));
    shared.context.metrics.failed(kind, error.reason());
    match error.retry() {
        Retry::Now => Action::requeue(Duration::from_millis(50)),
        Retry::Backoff => Action::requeue(shared.backoffs.next(key)),
        // What has to change may change without our being told.
        Retry::OnChange => Action::requeue(LONGEST_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_start_anew_after_a_success() {
        let backoffs = Backoffs(Mutex::default());
        let pauses: Vec<_> = (0..10).map(|_| backoffs.next("a/b".to_owned())).collect();
        assert_eq!(pauses[0], FIRST_PAUSE);
        assert!(pauses.windows(2).all(|w| w[0] <= w[1]));
        assert_eq!(pauses[9], LONGEST_PAUSE);
        assert_eq!(backoffs.next("a/c".to_owned()), FIRST_PAUSE);
        backoffs.reset("a/b");
        assert_eq!(backoffs.next("a/b".to_owned()), FIRST_PAUSE);
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    }
}
