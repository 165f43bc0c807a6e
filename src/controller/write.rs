//! Everything that the controller writes to the API server (out): status by server-side apply, finalizers, Events,
//! objects of computed names. One field manager, never by force, and a status only when it changed.

use std::{fmt::Debug, time::Duration};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1 as events},
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::{NamespaceResourceScope, ObjectMeta},
    runtime::events::{Event, EventType},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use super::{
    context::Context,
    error::{Error, is_code},
};
use crate::api::{
    condition,
    words::{self, Reason},
};
use crate::sentence::sentence;

/// The longest note that an Event takes, in characters (the API's limit is 1 kB).
const NOTE_LIMIT: usize = 900;
/// The longest name of an object that kube's recorder can name an Event after: it adds a time, and 253 is the most.
const RECORDER_NAME: usize = 230;
/// How long an Event may take: it is never worth more.
const EVENT_DEADLINE: Duration = Duration::from_secs(5);
/// How long any other call may take. The client has no limit of its own (kube 5.0 dropped its read timeout), and an API
/// server that hangs must not hold a reconcile for ever.
const DEADLINE: Duration = Duration::from_secs(30);

/// A namespaced kind with a status.
pub trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Serialize
    + Send
    + Sync
    + 'static
{
    /// The status.
    type Status: Clone + Default + PartialEq + Serialize + Send + Sync;
    /// The status as it was read.
    fn status(&self) -> Option<&Self::Status>;
    /// The conditions of a status.
    fn conditions(status: &Self::Status) -> &[Condition];
}

macro_rules! kinds {
    ($($kind:ident, $status:ident;)+) => {$(
        impl Kind for crate::api::$kind {
            type Status = crate::api::$status;
            fn status(&self) -> Option<&Self::Status> {
                self.status.as_ref()
            }
            fn conditions(status: &Self::Status) -> &[Condition] {
                &status.conditions
            }
        }
    )+};
}

kinds! {
    Guest, GuestStatus;
    BackupRepository, BackupRepositoryStatus;
    BackupRun, BackupRunStatus;
    RestorePoint, RestorePointStatus;
    RestoreRun, RestoreRunStatus;
}

/// `namespace/name`, for messages.
pub(super) fn full_name(meta: &ObjectMeta) -> String {
    format!("{}/{}", meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// A call's answer, or that there was none in time.
pub(super) async fn answer<T>(call: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    let late = || kube::Error::Service(format!("the API server did not answer within {} s", DEADLINE.as_secs()).into());
    tokio::time::timeout(DEADLINE, call).await.unwrap_or_else(|_| Err(late()))
}

fn api<K: Kind>(context: &Context, namespace: &str) -> Api<K> {
    Api::namespaced(context.client.clone(), namespace)
}

/// Writes the status when it differs from the one that was read, and an Event when `Ready` has another status or reason.
/// The object then has the resource version of what was written, for the next write of the same reconcile.
///
/// # Errors
/// When the API server does not take it, above all because the object was changed since it was read: what was decided
/// from an old state must not undo a newer one, such as a run's end. An object that is gone is no error.
pub async fn status<K: Kind>(context: &Context, object: &mut K, status: &K::Status, action: &str) -> Result<(), Error> {
    if object.status() == Some(status) {
        return Ok(());
    }
    let name = object.name_any();
    let namespace = object.namespace().unwrap_or_default();
    // The UID makes the server refuse a status that is meant for an earlier object of the same name.
    let body = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {
            "name": name, "namespace": namespace, "uid": object.uid(), "resourceVersion": object.resource_version(),
        },
        "status": status,
    });
    let params = PatchParams::apply(words::FIELD_MANAGER);
    let version = match answer(api::<K>(context, &namespace).patch_status(&name, &params, &Patch::Apply(&body))).await {
        Ok(written) => written.resource_version(),
        Err(error) if is_code(&error, 404) => return Ok(()),
        Err(source) => {
            let (kind, name) = (K::kind(&()).into_owned(), full_name(object.meta()));
            let error = Error::WriteStatus { kind, name, source: Box::new(source) };
            conflict(context, object, &error, action).await;
            return Err(error);
        }
    };
    object.meta_mut().resource_version = version;
    let before = object.status().and_then(|s| condition::find(K::conditions(s), condition::READY));
    let after = condition::find(K::conditions(status), condition::READY);
    if let Some(after) = after
        && before.is_none_or(|b| b.status != after.status || b.reason != after.reason)
    {
        let quiet = after.status == "True" || condition::is_true(K::conditions(status), condition::RECONCILING);
        let kind = if quiet { EventType::Normal } else { EventType::Warning };
        event(context, &*object, kind, &after.reason, action, &after.message).await;
    }
    Ok(())
}

/// Tells on the object that another manager holds a field of ours, which nothing in its status can tell. Never by force:
/// a field has one writer, and who is the wrong one is for a person to say.
pub(super) async fn conflict<K: Kind>(context: &Context, object: &K, error: &Error, action: &str) {
    if let Some(said) = error.field_conflict() {
        let note = format!(
            "The controller cannot write the object: {said}. See who holds which field by `kubectl get --show-managed-fields`, and remove that manager's fields."
        );
        event(context, object, EventType::Warning, Reason::FieldConflict.as_str(), action, &note).await;
    }
}

/// Writes an Event about an object. Failures are logged and nothing else: an Event is never worth a reconcile.
pub async fn event<K: Kind>(context: &Context, object: &K, kind: EventType, reason: &str, action: &str, note: &str) {
    let event = Event {
        type_: kind,
        reason: reason.to_owned(),
        note: Some(note.chars().take(NOTE_LIMIT).collect()),
        action: action.to_owned(),
        secondary: None,
    };
    publish(context, event, object.object_ref(&())).await;
}

/// Writes an Event about anything.
pub(super) async fn publish(context: &Context, event: Event, regarding: ObjectReference) {
    let long = regarding.name.as_ref().is_some_and(|name| name.len() > RECORDER_NAME);
    let written = async {
        if long {
            publish_long(context, &event, regarding.clone()).await
        } else {
            context.recorders.of(event.note.as_ref()).publish(&event, &regarding).await
        }
    };
    match tokio::time::timeout(EVENT_DEADLINE, written).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(reason = event.reason, "An Event was not written: {}", sentence(&error)),
        Err(_) => tracing::warn!(reason = event.reason, "An Event was not written in time"),
    }
}

/// The Event of an object whose name is too long for kube's recorder to make a name of it.
async fn publish_long(context: &Context, event: &Event, regarding: ObjectReference) -> kube::Result<()> {
    let now = context.now();
    let namespace = regarding.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let name = regarding.name.clone().unwrap_or_default();
    // One a second for each thing that is said of the object.
    let said = format!("{}/{name}/{}/{}", regarding.kind.as_deref().unwrap_or_default(), event.reason, event.action);
    let digest = blake3::hash(format!("{said}/{}", now.as_second()).as_bytes()).to_hex();
    let short: String = name.chars().take(RECORDER_NAME - digest.len()).collect();
    let object = events::Event {
        metadata: ObjectMeta {
            // A name's parts end in a letter or digit.
            name: Some(format!("{}.{}", short.trim_end_matches(['-', '.']), &digest[..16])),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        action: Some(event.action.clone()),
        reason: Some(event.reason.clone()),
        note: event.note.clone(),
        type_: Some(if matches!(event.type_, EventType::Normal) { "Normal" } else { "Warning" }.to_owned()),
        regarding: Some(regarding),
        reporting_controller: Some(words::REPORTER.to_owned()),
        reporting_instance: Some(std::env::var("POD_NAME").unwrap_or_else(|_| words::REPORTER.to_owned())),
        ..events::Event::default()
    };
    let api: Api<events::Event> = Api::namespaced(context.client.clone(), &namespace);
    match api.create(&PostParams::default(), &object).await {
        Ok(_) => Ok(()),
        Err(error) if is_code(&error, 409) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Sets or takes our finalizer, leaving those of others alone. The resource version makes it fail rather than undo
/// what somebody else did to the list meanwhile.
///
/// # Errors
/// When the API server does not take it; an object that is gone is no error.
pub async fn finalizer<K: Kind>(context: &Context, object: &mut K, wanted: bool) -> Result<(), Error> {
    let mut finalizers = object.finalizers().to_vec();
    if finalizers.iter().any(|f| f == words::FINALIZER) == wanted {
        return Ok(());
    }
    if wanted {
        finalizers.push(words::FINALIZER.to_owned());
    } else {
        finalizers.retain(|f| f != words::FINALIZER);
    }
    let body = json!({ "metadata": { "resourceVersion": object.resource_version(), "uid": object.uid(), "finalizers": finalizers } });
    let params = PatchParams { field_manager: Some(words::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let namespace = object.namespace().unwrap_or_default();
    let call = api::<K>(context, &namespace);
    match answer(call.patch(&object.name_any(), &params, &Patch::Merge(&body))).await {
        Ok(written) => {
            object.meta_mut().resource_version = written.resource_version();
            *object.finalizers_mut() = finalizers;
            Ok(())
        }
        Err(error) if is_code(&error, 404) => Ok(()),
        Err(source) => {
            let (kind, name) = (K::kind(&()).into_owned(), full_name(object.meta()));
            Err(Error::Finalizer { kind, name, source: Box::new(source) })
        }
    }
}

/// Makes an object of a computed name, or sets our fields of the one that is there.
///
/// # Errors
/// When the API server does not take it, above all because somebody else owns a field with another value.
pub async fn apply<K: Kind>(context: &Context, object: &K) -> Result<(), Error> {
    let namespace = object.namespace().unwrap_or_default();
    let params = PatchParams::apply(words::FIELD_MANAGER);
    match answer(api::<K>(context, &namespace).patch(&object.name_any(), &params, &Patch::Apply(object))).await {
        Ok(_) => Ok(()),
        Err(source) => {
            let (kind, name) = (K::kind(&()).into_owned(), full_name(object.meta()));
            Err(Error::WriteObject { kind, name, source: Box::new(source) })
        }
    }
}

/// Deletes exactly this object, not another one of its name. One that is gone is no error.
///
/// # Errors
/// When the API server refuses.
pub async fn delete<K: Kind>(context: &Context, object: &K) -> Result<(), Error> {
    delete_only(context, object, Preconditions { uid: object.uid(), resource_version: None }).await.map(drop)
}

/// Deletes exactly this object as it was read. Says whether it did: one that was changed meanwhile stays, and neither
/// that nor one that is gone is an error.
///
/// # Errors
/// When the API server refuses.
pub async fn delete_unchanged<K: Kind>(context: &Context, object: &K) -> Result<bool, Error> {
    let only = Preconditions { uid: object.uid(), resource_version: object.resource_version() };
    delete_only(context, object, only).await
}

async fn delete_only<K: Kind>(context: &Context, object: &K, only: Preconditions) -> Result<bool, Error> {
    let params = DeleteParams { preconditions: Some(only), ..DeleteParams::background() };
    let namespace = object.namespace().unwrap_or_default();
    match answer(api::<K>(context, &namespace).delete(&object.name_any(), &params)).await {
        Ok(_) => Ok(true),
        Err(error) if is_code(&error, 404) || is_code(&error, 409) => Ok(false),
        Err(source) => {
            let (kind, name) = (K::kind(&()).into_owned(), full_name(object.meta()));
            Err(Error::Delete { kind, name, source: Box::new(source) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_never_answers_is_an_error_in_time() {
        let error = answer(std::future::pending::<kube::Result<()>>()).await.unwrap_err();
        assert!(error.to_string().contains("30 s"), "{error}");
    }
}
