//! The client against the scripted QEMU: lost replies, cut connections, replies of others, descriptors.

use std::{fs, io::Write, os::fd::AsFd, sync::atomic::AtomicUsize, time::Duration};

use serde::Serialize;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::qmp::{
    Address, Monitor, MonitorOptions,
    command::{
        Action, AddFd, BitmapAdd, BlockdevAdd, BlockdevBackup, Cont, Empty, QueryFdsets, QueryJobs, QueryStatus,
        RemoveFd, Stop, Sync, Transaction,
    },
    fake::{FakeDisk, FakeQemu, Fault, Setup, When},
};
use crate::retry::Retry;

fn fake() -> (TempDir, FakeQemu) {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let qemu = Setup::new(folder.path().join("qmp")).disk(FakeDisk::qcow2("disk0", &disk).by_drive("drive0"));
    let qemu = qemu.start().unwrap();
    (folder, qemu)
}

async fn connect(qemu: &FakeQemu) -> Client {
    Monitor::new(Address::Unix(qemu.socket())).client().await.unwrap()
}

/// `query-status` that may take a moment only.
#[derive(Serialize)]
struct Impatient {}

impl Command for Impatient {
    const NAME: &'static str = "query-status";
    type Reply = Value;
    const DEADLINE: Duration = Duration::from_millis(100);
}

#[tokio::test]
async fn a_refusal_keeps_qemus_class_and_words() {
    let (_folder, qemu) = fake();
    let client = connect(&qemu).await;
    let error = client.execute(&RemoveFd { fdset_id: 99 }).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "QEMU refused remove-fd: File descriptor named 'fdset-id:99' not found (GenericError)"
    );
    assert_eq!((error.reason(), error.retry()), ("RefusedByQEMU", Retry::OnChange));
    assert!(error.is_qemu("not found") && error.is_qemu("GenericError") && !error.is_qemu("DeviceNotFound"));
}

#[tokio::test]
async fn a_reply_that_comes_too_late_is_dropped_and_the_next_command_gets_its_own() {
    let (_folder, qemu) = fake();
    let client = connect(&qemu).await;
    qemu.fault(When::NthOf("query-status", 1), Fault::DelayReply(Duration::from_millis(400)));
    let error = client.execute(&Impatient {}).await.unwrap_err();
    assert!(matches!(error, ExecuteError::TimedOut { command: "query-status", .. }), "{error}");
    assert!(client.execute(&QueryJobs {}).await.unwrap().is_empty());
    assert!(client.execute(&QueryStatus {}).await.unwrap().running);
}

#[tokio::test]
async fn a_caller_that_stops_waiting_harms_nobody() {
    let (_folder, qemu) = fake();
    let client = connect(&qemu).await;
    qemu.fault(When::NthOf("query-status", 1), Fault::DelayReply(Duration::from_millis(200)));
    let waiting = client.execute(&QueryStatus {});
    assert!(tokio::time::timeout(Duration::from_millis(50), waiting).await.is_err());
    assert!(client.execute(&QueryJobs {}).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_cut_before_or_behind_a_command_is_disconnected_and_the_state_tells_which() {
    for (fault, done) in [(Fault::CutBefore, false), (Fault::CutAfter, true)] {
        let (_folder, qemu) = fake();
        let monitor = Monitor::new(Address::Unix(qemu.socket()));
        let client = monitor.client().await.unwrap();
        qemu.fault(When::NthOf("stop", 1), fault);
        let error = client.execute(&Stop {}).await.unwrap_err();
        assert!(matches!(error, ExecuteError::Disconnected { command: "stop" }), "{error}");
        client.closed().await;
        assert!(client.is_closed());
        let error = client.execute(&Cont {}).await.unwrap_err();
        assert!(matches!(error, ExecuteError::Disconnected { command: "cont" }), "{error}");
        let status = monitor.client().await.unwrap().execute(&QueryStatus {}).await.unwrap();
        assert_eq!(status.running, !done);
    }
}

#[tokio::test]
async fn all_who_wait_learn_of_the_cut() {
    let (_folder, qemu) = fake();
    let client = connect(&qemu).await;
    qemu.fault(When::Every("query-status"), Fault::DropReply);
    let (one, other) = tokio::join!(client.execute(&QueryStatus {}), async {
        let wait = client.execute(&QueryStatus {});
        let kill = async {
            let deadline = Instant::now() + Duration::from_secs(10);
            while qemu.count("query-status") < 2 {
                assert!(Instant::now() < deadline, "the commands never came");
                tokio::task::yield_now().await;
            }
            qemu.kill();
        };
        tokio::join!(wait, kill).0
    });
    for result in [one, other] {
        assert!(matches!(result, Err(ExecuteError::Disconnected { .. })));
    }
}

#[tokio::test]
async fn events_reach_all_listeners_and_unknown_ones_harm_nobody() {
    let (_folder, qemu) = fake();
    let client = connect(&qemu).await;
    let (mut one, mut other) = (client.events(), client.events());
    qemu.emit("FROM_THE_FUTURE", json!({"a": {"b": [1]}}));
    qemu.emit("STOP", Value::Null);
    for listener in [&mut one, &mut other] {
        assert_eq!(listener.recv().await.unwrap().name, "FROM_THE_FUTURE");
        let stop = listener.recv().await.unwrap();
        assert_eq!((stop.name.as_str(), stop.data), ("STOP", Value::Null));
        assert!(stop.timestamp.is_some());
    }
    assert!(client.execute(&QueryStatus {}).await.unwrap().running);
}

#[tokio::test]
async fn a_listener_that_never_reads_stops_nobody() {
    let (_folder, qemu) = fake();
    let client = connect(&qemu).await;
    let mut lazy = client.events();
    for _ in 0..1000 {
        qemu.emit("JOB_STATUS_CHANGE", json!({"id": "j", "status": "running"}));
    }
    assert!(client.execute(&QueryStatus {}).await.unwrap().running);
    assert!(matches!(lazy.recv().await, Err(broadcast::error::RecvError::Lagged(_))));
    assert!(lazy.recv().await.is_ok());
}

#[tokio::test]
async fn each_of_many_descriptors_arrives_with_its_own_command() {
    let (folder, qemu) = fake();
    let client = connect(&qemu).await;
    let files: Vec<_> = (0..20)
        .map(|at| {
            let path = folder.path().join(format!("file{at}"));
            let mut file = fs::File::options().read(true).write(true).create_new(true).open(path).unwrap();
            file.write_all(&vec![0; 1000 + at]).unwrap();
            file
        })
        .collect();
    let passed = futures::future::join_all(files.iter().enumerate().map(|(at, file)| {
        let client = client.clone();
        async move {
            let opaque = Some(format!("file{at}"));
            let fdset_id = Some(i64::try_from(at).unwrap());
            client.execute_with_fd(&AddFd { fdset_id, opaque }, file.as_fd()).await
        }
    }));
    assert!(passed.await.iter().all(Result::is_ok));
    assert_eq!(client.execute(&QueryFdsets {}).await.unwrap().len(), 20);
    for at in 0..20 {
        let options = json!({"driver": "file", "node-name": format!("f{at}"), "filename": format!("/dev/fdset/{at}")});
        client.execute(&BlockdevAdd { options }).await.unwrap();
    }
    let nodes = client.execute(&crate::qmp::command::QueryNamedBlockNodes { flat: true }).await.unwrap();
    for at in 0..20_u64 {
        let node = nodes.iter().find(|node| node.node_name == format!("f{at}")).unwrap();
        assert_eq!(node.image.virtual_size, 1000 + at, "descriptor of another command");
    }
}

#[tokio::test]
async fn a_descriptor_whose_command_was_not_answered_ends_the_connection() {
    /// `add-fd` that may take a moment only.
    #[derive(Serialize)]
    struct ImpatientAddFd {}
    impl Command for ImpatientAddFd {
        const NAME: &'static str = "add-fd";
        type Reply = Empty;
        const DEADLINE: Duration = Duration::from_millis(100);
    }
    let (folder, qemu) = fake();
    let client = connect(&qemu).await;
    qemu.fault(When::NthOf("add-fd", 1), Fault::DropReply);
    let file = fs::File::open(folder.path().join("disk")).unwrap();
    let error = client.execute_with_fd(&ImpatientAddFd {}, file.as_fd()).await.unwrap_err();
    assert!(matches!(error, ExecuteError::TimedOut { command: "add-fd", .. }), "{error}");
    assert!(client.is_closed(), "the next add-fd could be given this descriptor");
}

#[tokio::test]
async fn a_drive_id_is_known_from_the_connection_on_and_refused_before_it_is_sent() {
    let (_folder, qemu) = fake();
    let client = connect(&qemu).await;
    let before = qemu.log().len();
    let bitmap = BitmapAdd {
        node: "drive0".to_owned(),
        name: "b".to_owned(),
        granularity: 65536,
        persistent: false,
        disabled: false,
    };
    let backup = BlockdevBackup::new("j", "drive0", "t", Sync::Full);
    let actions = vec![Action::BlockDirtyBitmapAdd(bitmap), Action::BlockdevBackup(backup)];
    let error = client.execute(&Transaction { actions }).await.unwrap_err();
    assert!(matches!(error, ExecuteError::Endangers { command: "transaction", .. }), "{error}");
    assert_eq!((error.reason(), qemu.log().len()), ("EndangersGuest", before));
}

#[tokio::test]
async fn an_answer_of_another_shape_is_malformed_and_the_connection_stays() {
    #[derive(Serialize)]
    struct Misread {}
    impl Command for Misread {
        const NAME: &'static str = "query-status";
        type Reply = Vec<u8>;
    }
    let (_folder, qemu) = fake();
    let client = connect(&qemu).await;
    let error = client.execute(&Misread {}).await.unwrap_err();
    assert!(matches!(error, ExecuteError::Malformed { command: "query-status", .. }), "{error}");
    assert!(client.execute(&QueryStatus {}).await.unwrap().running);
}

#[tokio::test]
async fn each_failure_is_told_to_the_observer_with_command_and_reason() {
    let (_folder, qemu) = fake();
    let seen = Arc::new((AtomicUsize::new(0), Mutex::new(Vec::new())));
    let told = seen.clone();
    let observer = ErrorObserver::new(move |error| {
        told.0.fetch_add(1, Ordering::Relaxed);
        told.1.lock().unwrap().push((error.command(), error.reason()));
    });
    let options = MonitorOptions { observer: Some(observer), schemas: None };
    let client = Monitor::with(Address::Unix(qemu.socket()), options).client().await.unwrap();
    client.execute(&QueryStatus {}).await.unwrap();
    client.execute(&RemoveFd { fdset_id: 1 }).await.unwrap_err();
    qemu.kill();
    client.execute(&Stop {}).await.unwrap_err();
    assert_eq!(seen.0.load(Ordering::Relaxed), 2);
    assert_eq!(*seen.1.lock().unwrap(), [("remove-fd", "RefusedByQEMU"), ("stop", "MonitorDisconnected")]);
}

#[tokio::test]
async fn the_process_behind_the_socket_is_seen_to_live_and_to_die() {
    let (_folder, qemu) = fake();
    let client = connect(&qemu).await;
    let process = client.process().unwrap().clone();
    assert_eq!(u32::try_from(process.pid).unwrap(), qemu.pid());
    assert!(process.is_alive());
    let stored: Process = serde_json::from_str(&serde_json::to_string(&process).unwrap()).unwrap();
    qemu.kill();
    client.closed().await;
    assert!(!stored.is_alive());
}
