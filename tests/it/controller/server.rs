//! An API server of the scenarios: it keeps objects, counts their versions, and knows just what the controller does with
//! one.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::{Client, client::Body};
use serde_json::{Value, json};

use super::fixtures::Log;

/// By plural, namespace and name.
pub(super) type Objects = Arc<Mutex<BTreeMap<(String, String, String), Value>>>;
/// In the log: the namespace is being deleted, and takes no new objects.
pub(super) const GOING: &str = "namespace going";

/// In the log: what answers about nodes is not the server, but something in front of it that knows none of its paths.
pub(super) const SPEECHLESS: &str = "nodes unknown";

/// In the log: another field manager holds a field of every status.
pub(super) const HELD: &str = "fields held";

/// Stores what the server adds to an object, and merges what is there.
pub(super) fn put(objects: &Objects, key: (String, String, String), given: &Value, now: i64) -> Value {
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

pub(super) fn remove(
    objects: &mut BTreeMap<(String, String, String), Value>,
    key: &(String, String, String),
    now: i64,
) {
    let held = objects.get(key).is_some_and(|o| o["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty()));
    if !held {
        objects.remove(key);
    } else if let Some(object) = objects.get_mut(key) {
        object["metadata"]["deletionTimestamp"] = json!(jiff::Timestamp::from_second(now).unwrap().to_string());
    }
}

/// Gives an object its next resource version.
fn renew(object: &mut Value) {
    let version: u64 = object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    object["metadata"]["resourceVersion"] = json!((version + 1).to_string());
}

fn refusal(code: StatusCode) -> (StatusCode, Value) {
    (code, json!({"kind": "Status", "status": "Failure", "reason": "x", "message": "x", "code": code.as_u16()}))
}

/// A client of an API server that knows just what the controller does with one.
pub(super) fn serve(objects: Objects, log: Log, now: Arc<AtomicI64>) -> Client {
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
    if let ["api", "v1", "nodes", name] = parts.as_slice() {
        log.lock().unwrap().push(format!("{method} nodes/{name}"));
        if log.lock().unwrap().iter().any(|l| l == SPEECHLESS) {
            return refusal(StatusCode::NOT_FOUND);
        }
        let node = objects.lock().unwrap().get(&("nodes".to_owned(), String::new(), (*name).to_owned())).cloned();
        return node.map_or_else(
            || {
                let (code, mut answer) = refusal(StatusCode::NOT_FOUND);
                answer["reason"] = json!("NotFound");
                (code, answer)
            },
            |node| (StatusCode::OK, node),
        );
    }
    let key = (parts[5].to_owned(), parts[4].to_owned(), parts[6].to_owned());
    let note = |what: String| log.lock().unwrap().push(what);
    let there = objects.lock().unwrap().contains_key(&key);
    match (method, parts.get(7)) {
        (&Method::DELETE, None) => {
            note(format!("DELETE {}/{}", key.0, key.2));
            if !there {
                return refusal(StatusCode::NOT_FOUND);
            }
            let wanted = &body["preconditions"];
            let meta = objects.lock().unwrap()[&key]["metadata"].clone();
            if ["uid", "resourceVersion"].iter().any(|p| !wanted[p].is_null() && wanted[p] != meta[p]) {
                return refusal(StatusCode::CONFLICT);
            }
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
            if body["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
                return refusal(StatusCode::CONFLICT);
            }
            if log.lock().unwrap().iter().any(|l| l == HELD) {
                let (code, mut answer) = refusal(StatusCode::CONFLICT);
                answer["message"] = json!("conflict with \"kubectl-patch\": .status.phase");
                answer["details"] = json!({"causes": [{"reason": "FieldManagerConflict", "field": ".status.phase"}]});
                return (code, answer);
            }
            object["status"] = status.clone();
            renew(object);
            (StatusCode::OK, object.clone())
        }
        (&Method::PATCH, None) if body["metadata"]["finalizers"].is_array() && there => {
            note(format!("PATCH {}/{} finalizers {}", key.0, key.2, body["metadata"]["finalizers"]));
            let mut objects = objects.lock().unwrap();
            let object = objects.get_mut(&key).unwrap();
            if body["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
                return refusal(StatusCode::CONFLICT);
            }
            object["metadata"]["finalizers"] = body["metadata"]["finalizers"].clone();
            renew(object);
            let answer = object.clone();
            if answer["metadata"]["deletionTimestamp"].is_string() {
                remove(&mut objects, &key, now);
            }
            (StatusCode::OK, answer)
        }
        (&Method::PATCH, None) if key.0 == "restorepoints" && log.lock().unwrap().iter().any(|l| l == GOING) => {
            refusal(StatusCode::FORBIDDEN)
        }
        (&Method::PATCH, None) if !body["metadata"]["finalizers"].is_array() => {
            note(format!("APPLY {}/{}", key.0, key.2));
            (StatusCode::OK, put(objects, key, body, now))
        }
        (&Method::PATCH, _) => refusal(StatusCode::NOT_FOUND),
        (method, sub) => panic!("the controller never does this: {method} {path} {sub:?}"),
    }
}
