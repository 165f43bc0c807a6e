//! The QMP client against a real QEMU, and the scripted one beside it: what a test of the engine believes of the
//! scripted QEMU is shown here of the real one by the very same steps.

mod fleece;
mod machine;
mod refusals;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use driftline::qmp::{
    Client, Command, ConnectError, ExecuteError,
    block::{JobInfo, JobStatus},
    command::{
        Action, AddFd, BitmapAdd, BitmapMerge, BitmapMode, BitmapRef, BlockDirtyBitmapRemove, BlockJobSetSpeed,
        BlockdevAdd, BlockdevBackup, BlockdevDel, Cont, JobCancel, JobDismiss, QomGet, QomList, QueryBlock,
        QueryBlockGraph, QueryBlockJobs, QueryFdsets, QueryJobs, QueryMigrate, QueryName, QueryNamedBlockNodes,
        QueryStatus, QueryUuid, QueryVersion, RemoveFd, Stop, Sync, Transaction, Yank, YankInstance,
    },
};
use serde::Serialize;
use serde_json::{Value, json};

use self::machine::{EVEN, Machine, ODD, UUID, run, run_well, text};

fn bitmap_add(node: &str, name: &str, persistent: bool, disabled: bool) -> BitmapAdd {
    BitmapAdd { node: node.to_owned(), name: name.to_owned(), granularity: 65536, persistent, disabled }
}

fn bitmap_ref(node: &str, name: &str) -> BitmapRef {
    BitmapRef { node: node.to_owned(), name: name.to_owned() }
}

async fn wait_concluded(client: &Client, job: &str) -> JobInfo {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let jobs = client.execute(&QueryJobs {}).await.unwrap();
        let found = jobs.into_iter().find(|info| info.id == job).expect("the job is listed");
        if found.status == JobStatus::Concluded {
            return found;
        }
        assert!(Instant::now() < deadline, "job {job} does not end: {found:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Data and zero clusters of the top image.
fn clusters(image: &Path) -> u64 {
    let output = run("qemu-img", &["map", "--output=json", "-f", "qcow2", text(image)]);
    let map: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let present = map.iter().filter(|extent| extent["present"] == true);
    present.map(|extent| extent["length"].as_u64().unwrap().div_ceil(65536)).sum()
}

#[tokio::test]
async fn the_connection_knows_version_process_schema_and_guest() {
    for machine in Machine::both() {
        let client = machine.client().await;
        let version = client.execute(&QueryVersion {}).await.unwrap();
        assert_eq!(*client.version(), version);
        assert!(version.at_least(7, 0));
        let process = client.process().unwrap();
        assert_eq!(u32::try_from(process.pid).unwrap(), machine.pid());
        assert!(process.is_alive());
        let schema = client.schema();
        assert!(schema.has_command("query-jobs") && !schema.has_command("no-such-command"));
        assert!(schema.has_argument("blockdev-backup", "filter-node-name"));
        assert!(schema.has_event("JOB_STATUS_CHANGE") && schema.has_driver("copy-before-write"));
        assert_eq!(client.execute(&QueryUuid {}).await.unwrap().uuid, UUID);
        assert_eq!(client.execute(&QueryName {}).await.unwrap().name.as_deref(), Some("fake"));
        assert_eq!(client.execute(&QueryMigrate {}).await.unwrap().status, None);
        let devices = client.execute(&QomList { path: "/machine/peripheral".to_owned() }).await.unwrap();
        assert!(devices.iter().any(|p| p.name == "disk1" && p.kind == "child<virtio-blk-pci>"));
        let path = "/machine/peripheral/disk0".to_owned();
        assert_eq!(client.execute(&QomGet { path, property: "drive".to_owned() }).await.unwrap(), json!("n0"));
    }
}

#[tokio::test]
async fn disks_and_graph_have_the_same_shape_on_both() {
    for machine in Machine::both() {
        let client = machine.client().await;
        let devices = client.execute(&QueryBlock {}).await.unwrap();
        let shapes: BTreeSet<_> = devices
            .iter()
            .map(|device| {
                let node = device.inserted.as_ref().unwrap();
                let (qdev, size) = (device.qdev.clone().unwrap(), node.image.virtual_size);
                (device.device.clone(), qdev, node.node_name.clone(), node.drv.clone(), size, node.image.cluster_size)
            })
            .collect();
        let shape = |disk: &str, node: &str, drv: &str, size, cluster| {
            let qdev = format!("/machine/peripheral/{disk}/virtio-backend");
            (String::new(), qdev, node.to_owned(), drv.to_owned(), size, cluster)
        };
        let expected = [shape("disk0", "n0", "qcow2", EVEN, Some(65536)), shape("disk1", "n1", "raw", ODD, None)];
        assert_eq!(shapes, BTreeSet::from(expected));
        let graph = client.execute(&QueryBlockGraph {}).await.unwrap();
        let below = |name: &str, edge: &str| {
            let parent = graph.nodes.iter().find(|node| node.name == name).unwrap().id;
            let child = graph.edges.iter().find(|e| e.parent == parent && e.name == edge).unwrap().child;
            graph.nodes.iter().find(|node| node.id == child).unwrap().name.clone()
        };
        assert_eq!(below("/machine/peripheral/disk1/virtio-backend", "root"), "n1");
        assert!(below("n1", "file").starts_with("#block"));
        let nodes = client.execute(&QueryNamedBlockNodes { flat: true }).await.unwrap();
        assert_eq!(nodes.len(), 4);
    }
}

#[tokio::test]
async fn a_second_client_gets_silence_and_is_served_when_the_first_leaves() {
    let machine = Machine::real();
    let first = machine.client().await;
    let second = machine.monitor();
    let began = Instant::now();
    assert!(matches!(second.client().await, Err(ConnectError::Busy { .. })));
    assert!(began.elapsed() >= Duration::from_secs(5));
    first.close();
    assert!(second.client().await.unwrap().execute(&QueryStatus {}).await.unwrap().running);
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_to_a_dead_client_are_not_taken_for_ours() {
    let machine = Machine::real();
    drop(machine.client().await);
    for _ in 0..25 {
        // Its ids count from 1 and its last commands are never answered to it.
        let mut dying = UnixStream::connect(machine.at("qmp")).unwrap();
        let mut greeting = [0; 1];
        dying.read_exact(&mut greeting).unwrap();
        let mut commands = r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]},"id":1}"#.to_owned();
        for id in 2..9 {
            commands += &format!(r#"{{"execute":"query-named-block-nodes","arguments":{{"flat":true}},"id":{id}}}"#);
        }
        dying.write_all(commands.as_bytes()).unwrap();
        drop(dying);
        let client = machine.client().await;
        assert!(client.execute(&QueryStatus {}).await.unwrap().running);
        assert_eq!(client.execute(&QueryJobs {}).await.unwrap(), []);
        client.close();
    }
}

#[tokio::test]
async fn a_copy_by_passed_descriptors_is_complete_in_both_and_of_the_same_progress() {
    let mut progress = Vec::new();
    for machine in Machine::both() {
        let client = machine.client().await;
        let mut events = client.events();
        let (set0, set1) = (machine.target(&client, "t0", EVEN).await, machine.target(&client, "t1", ODD).await);
        let actions = vec![
            Action::BlockDirtyBitmapAdd(bitmap_add("n0", "cp", true, false)),
            Action::BlockDirtyBitmapAdd(bitmap_add("n1", "cp", false, false)),
            Action::BlockdevBackup(BlockdevBackup::new("j0", "n0", "t0", Sync::Full)),
            Action::BlockdevBackup(BlockdevBackup::new("j1", "n1", "t1", Sync::Full)),
        ];
        client.execute(&Transaction { actions }).await.unwrap();
        for job in ["j0", "j1"] {
            let ended = wait_concluded(&client, job).await;
            assert_eq!((ended.error, ended.current_progress), (None, ended.total_progress));
            progress.push(ended.total_progress);
        }
        for (node, set, disk, job) in [("t0", set0, "disk0.raw", "j0"), ("t1", set1, "disk1.raw", "j1")] {
            client.execute(&BlockdevDel { node_name: node.to_owned() }).await.unwrap();
            client.execute(&RemoveFd { fdset_id: set }).await.unwrap();
            let (image, disk) = (machine.at(&format!("{node}.qcow2")), machine.at(disk));
            run_well("qemu-img", &["check", "-f", "qcow2", text(&image)]);
            run_well("qemu-img", &["compare", "-U", "-f", "qcow2", "-F", "raw", text(&image), text(&disk)]);
            let total =
                client.execute(&QueryJobs {}).await.unwrap().iter().find(|j| j.id == job).unwrap().total_progress;
            assert_eq!(clusters(&image), total.div_ceil(65536));
            client.execute(&JobDismiss { id: job.to_owned() }).await.unwrap();
        }
        assert_eq!(client.execute(&QueryFdsets {}).await.unwrap(), []);
        assert_eq!(client.execute(&QueryJobs {}).await.unwrap(), []);
        let mut life = Vec::new();
        while life.last().is_none_or(|last| last != "null") {
            let event = events.recv().await.unwrap();
            match (event.text("id"), event.text("device")) {
                (Some("j0"), _) => life.push(event.text("status").unwrap().to_owned()),
                (_, Some("j0")) => life.push(event.name),
                _ => {}
            }
        }
        // How often it is paused for a moment differs.
        life.retain(|step| step != "paused" && step != "running");
        assert_eq!(life, ["created", "waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"]);
    }
    assert_eq!(progress[..2], progress[2..], "real and scripted");
}

#[tokio::test]
async fn a_target_is_empty_until_its_node_is_deleted_and_lost_on_a_kill() {
    for mut machine in Machine::both() {
        let client = machine.client().await;
        machine.target(&client, "t1", ODD).await;
        client.execute(&BlockdevBackup::new("j1", "n1", "t1", Sync::Full)).await.unwrap();
        assert_eq!(wait_concluded(&client, "j1").await.error, None);
        let process = client.process().unwrap().clone();
        machine.kill();
        client.closed().await;
        assert!(!process.is_alive());
        let image = machine.at("t1.qcow2");
        run_well("qemu-img", &["check", "-f", "qcow2", text(&image)]);
        assert_eq!(clusters(&image), 0, "the copy was never in the file");
        let refused = machine.monitor().client().await.unwrap_err();
        assert!(matches!(refused, ConnectError::Refused { .. }), "{refused}");
    }
}

#[tokio::test]
async fn a_refused_transaction_leaves_no_bitmap_and_no_job() {
    for machine in Machine::both() {
        let client = machine.client().await;
        machine.target(&client, "t0", EVEN).await;
        let actions = vec![
            Action::BlockDirtyBitmapAdd(bitmap_add("n0", "cp", true, false)),
            Action::BlockdevBackup(BlockdevBackup::new("j0", "n0", "t0", Sync::Full)),
            Action::BlockdevBackup(BlockdevBackup::new("j1", "n1", "not-there", Sync::Full)),
        ];
        let error = client.execute(&Transaction { actions }).await.unwrap_err();
        assert!(error.is_qemu("Cannot find device='not-there' nor node-name='not-there'"), "{error}");
        assert_eq!(client.execute(&QueryJobs {}).await.unwrap(), []);
        let nodes = client.execute(&QueryNamedBlockNodes { flat: true }).await.unwrap();
        assert!(nodes.iter().all(|node| node.dirty_bitmaps.is_empty() && node.drv != "copy-before-write"));
        client.execute(&BlockdevDel { node_name: "t0".to_owned() }).await.unwrap();
    }
}

#[tokio::test]
async fn a_running_job_is_on_top_of_its_disk_and_is_cancelled_without_a_trace() {
    for machine in Machine::both() {
        let client = machine.client().await;
        machine.slow();
        machine.target(&client, "t0", EVEN).await;
        let mut backup = BlockdevBackup::new("j0", "n0", "t0", Sync::Full);
        backup.speed = Some(65536);
        backup.filter_node_name = Some("above".to_owned());
        let checkpoint = Action::BlockDirtyBitmapAdd(bitmap_add("n0", "cp", true, false));
        client.execute(&Transaction { actions: vec![checkpoint, Action::BlockdevBackup(backup)] }).await.unwrap();
        let top = async || {
            let devices = client.execute(&QueryBlock {}).await.unwrap();
            let disk0 = devices.into_iter().find(|d| d.qdev.as_deref().unwrap().contains("disk0")).unwrap();
            let node = disk0.inserted.unwrap();
            (node.node_name, node.drv, node.dirty_bitmaps.iter().any(|bitmap| bitmap.name.is_some()))
        };
        assert_eq!(top().await, ("above".to_owned(), "copy-before-write".to_owned(), false));
        let block_jobs = client.execute(&QueryBlockJobs {}).await.unwrap();
        assert_eq!((block_jobs[0].device.as_str(), block_jobs[0].speed), ("j0", 65536));
        let busy = client.execute(&BlockdevDel { node_name: "t0".to_owned() }).await.unwrap_err();
        assert!(busy.is_qemu("Node 't0' is busy: block device is in use by block job: backup"), "{busy}");
        client.execute(&BlockJobSetSpeed { device: "j0".to_owned(), speed: 1000 }).await.unwrap();
        let early = client.execute(&JobDismiss { id: "j0".to_owned() }).await.unwrap_err();
        assert!(early.is_qemu("cannot accept command verb 'dismiss'"), "{early}");
        client.execute(&JobCancel { id: "j0".to_owned() }).await.unwrap();
        let ended = wait_concluded(&client, "j0").await;
        assert_eq!(ended.error.as_deref(), Some("Operation canceled"));
        assert_eq!(top().await, ("n0".to_owned(), "qcow2".to_owned(), true));
        let late = client.execute(&JobCancel { id: "j0".to_owned() }).await.unwrap_err();
        assert!(late.is_qemu("Job 'j0' in state 'concluded' cannot accept command verb 'cancel'"), "{late}");
        client.execute(&BlockdevDel { node_name: "t0".to_owned() }).await.unwrap();
        client.execute(&JobDismiss { id: "j0".to_owned() }).await.unwrap();
    }
}

#[tokio::test]
async fn a_sentinel_marks_one_granule_and_an_increment_copies_what_was_written() {
    let mut counts = Vec::new();
    for machine in Machine::both() {
        let client = machine.client().await;
        let source = machine.at("sentinel.qcow2");
        run_well("qemu-img", &["create", "-f", "qcow2", text(&source), &ODD.to_string()]);
        run_well("qemu-img", &["bitmap", "--add", "-g", "65536", "-f", "qcow2", text(&source), "s"]);
        let last = (ODD - 1) / 65536 * 65536;
        let write = format!("write -z -u {last} {}", ODD - last);
        run_well("qemu-io", &["-f", "qcow2", "-c", &write, text(&source)]);
        let options = json!({"driver": "qcow2", "node-name": "sn", "read-only": true,
            "file": {"driver": "file", "filename": source}});
        client.execute(&BlockdevAdd { options }).await.unwrap();
        let merge = |target: &str, from: BitmapRef| {
            let (node, target) = ("n1".to_owned(), target.to_owned());
            Action::BlockDirtyBitmapMerge(BitmapMerge { node, target, bitmaps: vec![from] })
        };
        let actions = vec![
            Action::BlockDirtyBitmapAdd(bitmap_add("n1", "cp", false, false)),
            Action::BlockDirtyBitmapAdd(bitmap_add("n1", "cp.end", false, true)),
            merge("cp.end", bitmap_ref("sn", "s")),
        ];
        client.execute(&Transaction { actions }).await.unwrap();
        client.execute(&BlockdevDel { node_name: "sn".to_owned() }).await.unwrap();
        if let Some(write) = machine.write("disk1", 65536 * 2 + 512, 65536) {
            assert_eq!(client.execute(&write).await.unwrap(), "");
        }
        let actions = vec![
            Action::BlockDirtyBitmapAdd(bitmap_add("n1", "cp.inc", false, true)),
            merge("cp.inc", bitmap_ref("n1", "cp")),
            merge("cp.inc", bitmap_ref("n1", "cp.end")),
        ];
        client.execute(&Transaction { actions }).await.unwrap();
        let nodes = client.execute(&QueryNamedBlockNodes { flat: true }).await.unwrap();
        let node = nodes.iter().find(|node| node.node_name == "n1").unwrap();
        let count = |name: &str| node.dirty_bitmaps.iter().find(|b| b.name.as_deref() == Some(name)).unwrap().count;
        counts.push([count("cp"), count("cp.end"), count("cp.inc")]);
        machine.target(&client, "t1", ODD).await;
        let sync = Sync::Bitmap { bitmap: "cp.inc".to_owned(), bitmap_mode: BitmapMode::Never };
        client.execute(&BlockdevBackup::new("j1", "n1", "t1", sync)).await.unwrap();
        let ended = wait_concluded(&client, "j1").await;
        counts.push([ended.total_progress, 0, 0]);
        client.execute(&BlockdevDel { node_name: "t1".to_owned() }).await.unwrap();
        assert_eq!(clusters(&machine.at("t1.qcow2")), ended.total_progress.div_ceil(65536));
        client.execute(&JobDismiss { id: "j1".to_owned() }).await.unwrap();
        client.execute(&BlockDirtyBitmapRemove(bitmap_ref("n1", "cp.inc"))).await.unwrap();
    }
    assert_eq!(counts[0][..2], [2 * 65536, 65536]);
    assert_eq!(counts[..2], counts[2..], "real and scripted");
}

#[tokio::test]
async fn stop_and_cont_are_told_by_status_and_event() {
    for machine in Machine::both() {
        let client = machine.client().await;
        let mut events = client.events();
        client.execute(&Stop {}).await.unwrap();
        assert!(!client.execute(&QueryStatus {}).await.unwrap().running);
        client.execute(&Cont {}).await.unwrap();
        assert!(client.execute(&QueryStatus {}).await.unwrap().running);
        assert_eq!([events.recv().await.unwrap().name, events.recv().await.unwrap().name], ["STOP", "RESUME"]);
    }
}

#[tokio::test]
async fn fd_sets_that_no_node_uses_go_with_the_client_on_7_2() {
    for machine in Machine::both() {
        let client = machine.client().await;
        if client.version().at_least(8, 0) {
            return;
        }
        machine.target(&client, "t0", EVEN).await;
        let file = fs::File::open(machine.at("disk1.raw")).unwrap();
        client.execute_with_fd(&AddFd { fdset_id: Some(7), opaque: None }, file.as_fd()).await.unwrap();
        client.close();
        drop(client);
        let client = machine.client().await;
        let sets = client.execute(&QueryFdsets {}).await.unwrap();
        assert_eq!(sets.iter().map(|set| set.fdset_id).collect::<Vec<_>>(), [0]);
    }
}

#[tokio::test]
async fn a_qemu_that_hangs_times_out_and_serves_on_when_it_is_back() {
    #[derive(Serialize)]
    struct Impatient {}
    impl Command for Impatient {
        const NAME: &'static str = "query-status";
        type Reply = Value;
        const DEADLINE: Duration = Duration::from_millis(300);
    }
    let machine = Machine::real();
    let client = machine.client().await;
    let pid = machine.pid().to_string();
    run_well("kill", &["-STOP", &pid]);
    let error = client.execute(&Impatient {}).await.unwrap_err();
    run_well("kill", &["-CONT", &pid]);
    assert!(matches!(error, ExecuteError::TimedOut { .. }), "{error}");
    assert!(client.process().unwrap().is_alive());
    assert!(client.execute(&QueryStatus {}).await.unwrap().running);
}

#[tokio::test]
async fn yank_is_sent_out_of_band() {
    let machine = Machine::real();
    let client = machine.client().await;
    let instances = vec![YankInstance::BlockNode { node_name: "n0".to_owned() }];
    let error = client.execute(&Yank { instances }).await.unwrap_err();
    assert!(error.is_qemu("Instance not found"), "{error}");
}

#[tokio::test]
async fn a_qemu_that_ends_disconnects_whoever_waits() {
    let mut machine = Machine::real();
    let client = machine.client().await;
    machine.kill();
    let error = client.execute(&QueryStatus {}).await.unwrap_err();
    assert!(matches!(error, ExecuteError::Disconnected { command: "query-status" }), "{error}");
}
