//! The reply types against answers captured from QEMU 7.2.22 while a backup of one disk ran.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;

fn captured<T: DeserializeOwned>(command: &str) -> T {
    let all: Value = serde_json::from_str(include_str!("captured-7.2.json")).unwrap();
    serde_json::from_value(all[command].clone()).unwrap()
}

#[test]
fn devices_are_read_with_a_jobs_filter_on_top_an_empty_drive_and_a_drive_id() {
    let devices: Vec<BlockDevice> = captured("query-block");
    let [by_drive, copied, empty] = devices.as_slice() else { panic!("three devices") };
    assert_eq!(by_drive.device, "drive2");
    assert!(by_drive.inserted.as_ref().unwrap().node_name.starts_with("#block"));
    let top = copied.inserted.as_ref().unwrap();
    assert_eq!((copied.device.as_str(), top.drv.as_str(), top.node_name.as_str()), ("", "copy-before-write", "flt"));
    assert!(top.dirty_bitmaps.iter().all(|bitmap| bitmap.name.is_none()));
    assert!(empty.removable && empty.inserted.is_none());
}

#[test]
fn nodes_are_read_with_named_and_anonymous_bitmaps() {
    let nodes: Vec<BlockNode> = captured("query-named-block-nodes");
    let node = nodes.iter().find(|node| node.node_name == "n0").unwrap();
    assert_eq!((node.image.virtual_size, node.image.cluster_size), (3 << 20, Some(65536)));
    assert_eq!(node.image.format_specific.as_ref().unwrap().data["compat"], json!("1.1"));
    let [of_the_job, checkpoint] = node.dirty_bitmaps.as_slice() else { panic!("two bitmaps") };
    assert_eq!(of_the_job.name, None);
    assert!(checkpoint.recording && checkpoint.persistent && !checkpoint.busy && !checkpoint.inconsistent);
}

#[test]
fn the_graph_jobs_fd_sets_status_and_devices_are_read() {
    let graph: BlockGraph = captured("x-debug-query-block-graph");
    assert_eq!(graph.nodes[0].kind, GraphNodeKind::BlockDriver);
    assert_eq!(graph.nodes[1].kind, GraphNodeKind::BlockJob);
    assert_eq!(graph.edges[1].name, "target");
    let jobs: Vec<JobInfo> = captured("query-jobs");
    assert_eq!((&jobs[0].status, jobs[0].error.as_deref()), (&JobStatus::Concluded, Some("Operation canceled")));
    let jobs: Vec<BlockJobInfo> = captured("query-block-jobs");
    assert_eq!((jobs[0].speed, &jobs[0].status), (65536, &JobStatus::Running));
    let sets: Vec<FdSet> = captured("query-fdsets");
    assert_eq!(sets[1].fds[0].opaque.as_deref(), Some("driftline.x"));
    assert_eq!(captured::<StatusInfo>("query-status").status, RunState::Running);
    assert!(captured::<Vec<QomProperty>>("qom-list").iter().any(|p| p.kind == "child<virtio-blk-pci>"));
}

#[test]
fn states_of_a_newer_qemu_keep_their_word() {
    let job = json!({"id": "j", "type": "backup", "status": "dreaming", "current-progress": 0, "total-progress": 1});
    let job: JobInfo = serde_json::from_value(job).unwrap();
    assert_eq!(job.status, JobStatus::Other("dreaming".to_owned()));
    let status: StatusInfo = serde_json::from_value(json!({"status": "guest-panicked", "running": false})).unwrap();
    assert_eq!(status.status, RunState::Other("guest-panicked".to_owned()));
}

#[test]
fn a_bitmap_after_a_crash_is_inconsistent() {
    let bitmap: DirtyBitmap = serde_json::from_value(json!({"name": "p1", "recording": false, "persistent": true,
        "busy": false, "granularity": 65536, "count": 0, "inconsistent": true}))
    .unwrap();
    assert!(bitmap.inconsistent);
}
