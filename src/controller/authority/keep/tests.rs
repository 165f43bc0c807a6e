//! The keeper beside an API server that is there, and is gone.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicI64, Ordering},
};

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::Value;

use super::*;

const NOW: i64 = 1_800_000_000;
const LIFETIME: Duration = Duration::from_secs(900);

/// An API server that has two objects, or is out of order.
fn server(broken: Arc<AtomicBool>) -> Client {
    let (service, handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let objects = Mutex::new(BTreeMap::<String, Value>::new());
    tokio::spawn(async move {
        let mut handle = std::pin::pin!(handle);
        while let Some((request, send)) = handle.next_request().await {
            let (parts, body) = request.into_parts();
            let given: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap_or_default();
            let mut objects = objects.lock().unwrap();
            let object = objects.entry(parts.uri.path().to_owned()).or_insert_with(|| json!({ "metadata": {} }));
            if parts.method == Method::PATCH {
                object["data"] = given["data"].clone();
            }
            let status = if broken.load(Ordering::SeqCst) { 500 } else { 200 };
            let answer = serde_json::to_vec(object).unwrap();
            send.send_response(Response::builder().status(status).body(Body::from(answer)).unwrap());
        }
    });
    Client::new(service, "default")
}

#[tokio::test]
async fn the_controllers_certificate_is_made_anew_while_the_api_server_is_out_of_order() {
    let (broken, now) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicI64::new(NOW)));
    let time = now.clone();
    let clock: Clock = Arc::new(move || jiff::Timestamp::from_second(time.load(Ordering::SeqCst)).unwrap());
    let place = Place { namespace: "d".to_owned(), secret: "s".to_owned(), config_map: "c".to_owned() };
    let terms = Terms { authority: LIFETIME * 100, certificate: LIFETIME, given: false };
    let mut keeper = Keeper::new(server(broken.clone()), clock, place, terms);

    let (nothing, trouble) = keeper.refresh().await;
    assert!(nothing.is_none(), "nothing was ever read");
    assert_eq!(trouble.unwrap().reason(), "AuthorityUnavailable");
    broken.store(false, Ordering::SeqCst);
    let (first, trouble) = keeper.refresh().await;
    let first = first.unwrap();
    assert!(trouble.is_none() && trusts(&first.own.1, first.signer.authority.certificate()));

    broken.store(true, Ordering::SeqCst);
    now.store(NOW + 500, Ordering::SeqCst);
    let (same, trouble) = keeper.refresh().await;
    assert_eq!(same.unwrap().own, first.own, "it is not due yet");
    assert_eq!(trouble.unwrap().reason(), "AuthorityUnavailable");
    now.store(NOW + 700, Ordering::SeqCst);
    let (other, trouble) = keeper.refresh().await;
    let other = other.unwrap();
    assert!(trouble.is_some());
    assert_ne!(other.own.0, first.own.0);
    assert_eq!(other.own.1, first.own.1);
    assert!(facts(&other.own.0.certificate).unwrap().validity.until > u64::try_from(NOW + 900).unwrap());
}
