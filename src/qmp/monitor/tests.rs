//! Sockets that are not there, refuse, hang, belong to somebody else or speak nonsense; and the one shared client.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    thread,
};

use tempfile::TempDir;

use super::*;
use crate::qmp::{
    command::QueryStatus,
    fake::{FakeQemu, Fault, Setup, When},
};

fn fake() -> (TempDir, FakeQemu, Monitor) {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Setup::new(folder.path().join("qmp")).start().unwrap();
    let monitor = Monitor::new(Address::Unix(qemu.socket()));
    (folder, qemu, monitor)
}

/// A socket whose clients are each handed to `serve`.
fn speaker(serve: impl Fn(UnixStream) + Send + 'static) -> (TempDir, Monitor) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || listener.incoming().flatten().for_each(&serve));
    (folder, Monitor::new(Address::Unix(path)))
}

/// Says something and waits for the client's end.
fn says(text: impl Into<Vec<u8>>) -> (TempDir, Monitor) {
    let text = text.into();
    speaker(move |mut stream| {
        let _ = stream.write_all(&text);
        let _ = stream.read_to_end(&mut Vec::new());
    })
}

#[tokio::test]
async fn a_socket_that_is_not_there_and_one_that_refuses_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let monitor = Monitor::new(Address::Unix(path.clone()));
    let error = monitor.client().await.unwrap_err();
    assert_eq!((error.reason(), error.retry()), ("MonitorNotThere", Retry::Backoff));
    drop(UnixListener::bind(&path).unwrap());
    let error = monitor.client().await.unwrap_err();
    assert_eq!((error.reason(), error.retry()), ("MonitorRefused", Retry::Backoff));
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let error = monitor.client().await.unwrap_err();
    assert_eq!(error.reason(), "MonitorNotThere");
    assert!(error.to_string().ends_with("is no QMP socket: a folder has that name"), "{error}");
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, "x").unwrap();
    let error = monitor.client().await.unwrap_err();
    assert_eq!((error.reason(), error.retry()), ("MonitorNotThere", Retry::Backoff));
    assert!(error.to_string().ends_with("is no QMP socket: a file has that name"), "{error}");
}

#[tokio::test]
async fn no_symbolic_link_is_followed_to_a_monitor() {
    let (folder, qemu, _) = fake();
    let (link, linked) = (folder.path().join("link"), folder.path().join("linked"));
    std::os::unix::fs::symlink(qemu.socket(), &link).unwrap();
    std::os::unix::fs::symlink(qemu.socket().parent().unwrap(), &linked).unwrap();
    for path in [link, linked.join(qemu.socket().file_name().unwrap())] {
        let error = Monitor::new(Address::Unix(path)).client().await.unwrap_err();
        assert_eq!((error.reason(), error.retry()), ("MonitorLinked", Retry::Backoff));
        assert!(error.to_string().contains(qemu.socket().to_str().unwrap()), "{error}");
    }
    assert!(Monitor::new(Address::Unix(qemu.socket())).client().await.is_ok(), "nobody has touched it");
}

#[tokio::test]
async fn silence_for_five_seconds_means_that_another_client_holds_the_monitor() {
    let (_folder, qemu, monitor) = fake();
    let other = monitor.client().await.unwrap();
    let second = Monitor::new(Address::Unix(qemu.socket()));
    let began = std::time::Instant::now();
    let error = second.client().await.unwrap_err();
    assert!(matches!(error, ConnectError::Busy { .. }), "{error}");
    assert!(began.elapsed() >= GREETING_DEADLINE && began.elapsed() < GREETING_DEADLINE * 2);
    monitor.disconnect().await;
    assert!(other.is_closed());
    assert!(second.client().await.is_ok(), "it is free now");
}

#[tokio::test]
async fn what_is_not_qmp_is_said_to_be_none() {
    for text in
        ["SSH-2.0-OpenSSH_9.2\r\nmore\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n<html>\n", "[1]\n[2]\n", "{}\n{}\n"]
    {
        let (_folder, monitor) = says(text);
        let error = monitor.client().await.unwrap_err();
        assert!(matches!(error, ConnectError::NotQmp { .. }), "{text:?}: {error}");
        assert_eq!((error.reason(), error.retry()), ("NotQMP", Retry::OnChange));
    }
}

#[tokio::test]
async fn a_line_without_an_end_takes_no_more_memory_than_its_bound() {
    let (_folder, monitor) = speaker(|mut stream| while stream.write_all(&[b'x'; 1 << 16]).is_ok() {});
    let error = monitor.client().await.unwrap_err();
    assert!(matches!(error, ConnectError::NotQmp { source: WireError::TooLong { .. }, .. }), "{error}");
}

#[tokio::test]
async fn an_end_before_the_greeting_is_closed() {
    let (_folder, monitor) = speaker(drop);
    let error = monitor.client().await.unwrap_err();
    assert_eq!((error.reason(), error.retry()), ("MonitorClosed", Retry::Backoff));
}

#[tokio::test]
async fn a_qemu_older_than_6_0_is_refused_before_any_command() {
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup { version: (5, 2, 0), ..Setup::new(folder.path().join("qmp")) };
    let qemu = setup.start().unwrap();
    let error = Monitor::new(Address::Unix(qemu.socket())).client().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("QEMU 5.2.0 on {} is too old: 6.0 or newer is needed", qemu.socket().display())
    );
    assert_eq!((error.reason(), error.retry()), ("QEMUTooOld", Retry::OnChange));
    assert!(qemu.log().is_empty());
}

#[tokio::test]
async fn a_qemu_that_greets_and_then_hangs_is_found_out() {
    let (_folder, qemu, monitor) = fake();
    qemu.fault(When::NthOf("qmp_capabilities", 1), Fault::Hang);
    let error = monitor.client().await.unwrap_err();
    assert_eq!((error.reason(), error.retry()), ("MonitorHangs", Retry::Backoff));
}

#[tokio::test]
async fn replies_and_the_rest_of_a_line_meant_for_a_dead_client_are_dropped() {
    let greeting =
        r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 8}, "package": ""}, "capabilities": []}}"#;
    let foreign = r#"{"return": {"status": "paused", "running": false}, "id": "dl-0000000000000000-1"}"#;
    let before = format!("\"id\": 3}}\r\n{foreign}\r\n{greeting}\r\n");
    let (_folder, monitor) = speaker(move |mut stream| {
        let _ = stream.write_all(before.as_bytes());
        let mut lines = Lines::new(MAX_LINE);
        let mut buffer = [0; 1024];
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            lines.feed(&buffer[..read]);
            while let Ok(Some(line)) = lines.next_line() {
                let request: serde_json::Value = serde_json::from_slice(&line).unwrap();
                let value = match request["execute"].as_str() {
                    Some("query-status") => serde_json::json!({"status": "running", "running": true}),
                    Some("qmp_capabilities") => serde_json::json!({}),
                    _ => serde_json::json!([]),
                };
                // Before each reply one to a dead client, which counted its commands the same way.
                let reply = serde_json::json!({"return": value, "id": request["id"]});
                let _ = stream.write_all(format!("{foreign}\r\nnonsense\r\n{reply}\r\n").as_bytes());
            }
        }
    });
    let client = monitor.client().await.unwrap();
    assert!(client.execute(&QueryStatus {}).await.unwrap().running, "the answer of another client was taken");
    assert!(!client.schema().has_command("query-status"));
}

#[tokio::test]
async fn many_callers_share_one_connection_and_a_cut_makes_a_new_one() {
    let (_folder, qemu, monitor) = fake();
    let all = futures::future::join_all((0..20).map(|_| monitor.client())).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(qemu.count("qmp_capabilities"), 1);
    qemu.cut();
    all[0].as_ref().unwrap().closed().await;
    assert!(monitor.client().await.unwrap().execute(&QueryStatus {}).await.unwrap().running);
    assert_eq!(qemu.count("qmp_capabilities"), 2);
}

#[tokio::test]
async fn out_of_band_is_asked_for_where_it_is_offered() {
    let (_folder, qemu, monitor) = fake();
    monitor.client().await.unwrap();
    assert_eq!(qemu.log()[0].arguments, serde_json::json!({"enable": ["oob"]}));
}

#[tokio::test]
async fn the_last_client_gone_frees_the_monitor() {
    let (_folder, qemu, monitor) = fake();
    drop((monitor.client().await.unwrap(), monitor));
    assert!(Monitor::new(Address::Unix(qemu.socket())).client().await.is_ok());
}

#[tokio::test]
async fn a_path_longer_than_a_sockets_address_is_reached_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let mut long: PathBuf = folder.path().to_owned();
    (0..4).for_each(|_| long.push("a-folder-with-a-name-of-forty-characters"));
    std::fs::create_dir_all(&long).unwrap();
    let qemu = Setup::new(folder.path().join("qmp")).start().unwrap();
    let path = long.join("qmp");
    std::fs::hard_link(qemu.socket(), &path).unwrap();
    assert!(Monitor::new(Address::Unix(path)).client().await.is_ok());
}

#[tokio::test]
async fn a_qemu_is_asked_for_its_schema_once() {
    let (folder, qemu, _) = fake();
    let schemas = Some(Schemas::new(folder.path()));
    for _ in 0..3 {
        let options = MonitorOptions { observer: None, schemas: schemas.clone() };
        let monitor = Monitor::with(Address::Unix(qemu.socket()), options);
        let client = monitor.client().await.unwrap();
        assert!(client.schema().has_command("query-jobs") && client.schema().has_driver("qcow2"));
        monitor.disconnect().await;
    }
    assert_eq!(qemu.count("query-qmp-schema"), 1);
}
