//! Answers of a real QEMU 7.2.22 with every kind of disk, and what is made of them.

use serde::Deserialize;
use serde_json::{Value, json};

use super::*;

#[derive(Deserialize)]
struct Capture {
    devices: Vec<BlockDevice>,
    nodes: Vec<BlockNode>,
    graph: BlockGraph,
    types: HashMap<String, String>,
    peripherals: Vec<(String, String)>,
}

fn captured(change: impl FnOnce(&mut Value)) -> Answers {
    let mut value: Value = serde_json::from_str(include_str!("qemu-7.2.22.json")).unwrap();
    change(&mut value);
    let Capture { devices, nodes, graph, types, peripherals } = serde_json::from_value(value).unwrap();
    Answers { devices, nodes, graph: Some(graph), types, peripherals }
}

fn disk(change: impl FnOnce(&mut Value), name: &str) -> DiskFacts {
    disks(&captured(change)).into_iter().find(|disk| disk.name.as_str() == name).unwrap()
}

#[test]
fn each_disk_has_its_name_its_node_and_its_eligibility() {
    let table: Vec<_> = disks(&captured(|_| {}))
        .into_iter()
        .map(|disk| {
            let DiskFacts { name, node_name, driver, filters, persistent_bitmaps, .. } = &disk;
            let verdict = if disk.eligible() { "eligible" } else { disk.ineligible_reason() };
            format!("{name} | {node_name} | {driver} | {filters:?} | {persistent_bitmaps} | {verdict}")
        })
        .collect();
    insta::assert_snapshot!(table.join("\n"));
}

#[test]
fn a_filter_of_somebodys_job_is_a_foreign_job() {
    let found = disk(
        |capture| {
            capture["graph"]["nodes"].as_array_mut().unwrap().extend([
                json!({"id": 900, "name": "theirs", "type": "block-job"}),
                json!({"id": 901, "name": "flt", "type": "block-driver"}),
            ]);
            let id = |name: &str| {
                let nodes = capture["graph"]["nodes"].as_array().unwrap();
                nodes.iter().find(|node| node["name"] == name).unwrap()["id"].clone()
            };
            let edges = [
                json!({"parent": 900, "child": 901, "name": "main node", "perm": [], "shared-perm": []}),
                json!({"parent": 901, "child": id("n-a"), "name": "file", "perm": [], "shared-perm": []}),
            ];
            capture["graph"]["edges"].as_array_mut().unwrap().extend(edges);
            for device in capture["devices"].as_array_mut().unwrap() {
                if device["inserted"]["node-name"] == "n-a" {
                    device["inserted"]["node-name"] = json!("flt");
                    device["inserted"]["drv"] = json!("copy-before-write");
                }
            }
            let mut filter = capture["nodes"][0].clone();
            (filter["node-name"], filter["drv"]) = (json!("flt"), json!("copy-before-write"));
            capture["nodes"].as_array_mut().unwrap().push(filter);
        },
        "disk0",
    );
    assert_eq!((found.foreign_job.as_deref(), found.node_name.as_str()), (Some("theirs"), "n-a"));
}

#[test]
fn a_job_on_the_backing_file_is_a_foreign_job() {
    let found = disk(
        |capture| {
            let nodes = capture["graph"]["nodes"].as_array_mut().unwrap();
            let base = nodes.iter().find(|node| node["name"] == "#block460").unwrap()["id"].clone();
            nodes.push(json!({"id": 900, "name": "commit", "type": "block-job"}));
            let edge = json!({"parent": 900, "child": base, "name": "main node", "perm": [], "shared-perm": []});
            capture["graph"]["edges"].as_array_mut().unwrap().push(edge);
        },
        "disk1",
    );
    assert_eq!(found.foreign_job.as_deref(), Some("commit"));
}

#[test]
fn pass_through_vhost_user_and_synthetic_disks_are_refused() {
    let as_type = |kind: &str| {
        let kind = json!(kind);
        disk(|capture| capture["types"]["/machine/peripheral/disk0/virtio-backend"] = kind, "disk0").ineligible
    };
    assert_eq!(as_type("scsi-block"), Some(Ineligible::PassThrough));
    assert_eq!(as_type("virtio-blk-device"), None);
    let vhost = |capture: &mut Value| {
        let peripheral = json!(["/machine/peripheral/vu0", "vhost-user-blk-pci"]);
        capture["peripherals"].as_array_mut().unwrap().push(peripheral);
    };
    assert_eq!(disk(vhost, "vu0").ineligible, Some(Ineligible::VhostUser));
    let vvfat = |capture: &mut Value| {
        for node in capture["nodes"].as_array_mut().unwrap() {
            if node["node-name"] == "#block164" {
                node["drv"] = json!("vvfat");
            }
        }
    };
    assert_eq!(disk(vvfat, "disk0").ineligible, Some(Ineligible::Synthetic));
}

#[test]
fn a_disk_of_no_bytes_is_empty() {
    let of_size = |size: u64| {
        disk(
            |capture| {
                for node in capture["nodes"].as_array_mut().unwrap() {
                    if node["node-name"] == "n-a" {
                        node["image"]["virtual-size"] = json!(size);
                    }
                }
            },
            "disk0",
        )
        .ineligible
    };
    assert_eq!((of_size(0), of_size(512)), (Some(Ineligible::Empty), None));
}

#[test]
fn units_of_one_device_go_by_their_paths() {
    let names: Vec<_> = disks(&captured(|capture| {
        for device in capture["devices"].as_array_mut().unwrap() {
            if device["qdev"] == "/machine/peripheral/disk1/virtio-backend" {
                device["qdev"] = json!("/machine/peripheral/disk0/unit1");
            }
        }
    }))
    .into_iter()
    .map(|disk| disk.name.to_string())
    .collect();
    for name in ["/machine/peripheral/disk0/virtio-backend", "/machine/peripheral/disk0/unit1"] {
        assert!(names.iter().any(|known| known == name), "{names:?}");
    }
}

#[test]
fn a_qom_path_longer_than_a_name_still_gives_a_name() {
    let long = format!("/machine/unattached/{}", "x".repeat(200));
    let answers = captured(|capture| {
        capture["devices"][7]["qdev"] = json!(long);
        capture["devices"][7]["device"] = json!("");
    });
    assert!(disks(&answers)[7].name.as_str().starts_with("device-"));
}

#[test]
fn the_power_state_says_who_may_be_touched() {
    use RunState as R;
    for (state, running, expected) in [
        (R::Running, true, PowerState::Running),
        (R::Prelaunch, false, PowerState::Paused),
        (R::IoError, false, PowerState::IoError),
        (R::Inmigrate, false, PowerState::Migrating),
        (R::Postmigrate, false, PowerState::Migrating),
        (R::FinishMigrate, false, PowerState::Migrating),
        (R::Other("shutdown".to_owned()), false, PowerState::Off),
        (R::Other("watchdog".to_owned()), false, PowerState::Paused),
    ] {
        assert_eq!(PowerState::new(&state, running), expected, "{state:?}");
    }
}

/// How disk0 stands after a change of the captured machine.
fn changed(change: impl FnOnce(&mut Value)) -> Option<Change> {
    let place = Place { qdev: "/machine/peripheral/disk0/virtio-backend", top: "n-a", node: "n-a" };
    super::change(&captured(change), place)
}

fn graph_id(capture: &Value, name: &str) -> Value {
    let nodes = capture["graph"]["nodes"].as_array().unwrap();
    nodes.iter().find(|node| node["name"] == name).unwrap()["id"].clone()
}

/// A node above `n-a`, with the edge to it.
fn put_above(capture: &mut Value, name: &str, drv: &str, role: &str) {
    let edge = json!({"parent": 901, "child": graph_id(capture, "n-a"), "name": role, "perm": [], "shared-perm": []});
    capture["graph"]["edges"].as_array_mut().unwrap().push(edge);
    let node = json!({"id": 901, "name": name, "type": "block-driver"});
    capture["graph"]["nodes"].as_array_mut().unwrap().push(node);
    let mut node = capture["nodes"][0].clone();
    (node["node-name"], node["drv"]) = (json!(name), json!(drv));
    capture["nodes"].as_array_mut().unwrap().push(node);
}

fn give_device(capture: &mut Value, name: &str, drv: &str) {
    for device in capture["devices"].as_array_mut().unwrap() {
        if device["inserted"]["node-name"] == "n-a" {
            (device["inserted"]["node-name"], device["inserted"]["drv"]) = (json!(name), json!(drv));
        }
    }
}

#[test]
fn a_disk_that_nobody_has_touched_has_not_changed() {
    assert_eq!(changed(|_| {}), None);
}

#[test]
fn an_overlay_a_filter_and_an_unplugged_device_are_changes() {
    let overlay = changed(|capture| {
        put_above(capture, "overlay", "qcow2", "backing");
        give_device(capture, "overlay", "qcow2");
    });
    assert_eq!(overlay, Some(Change::Layer("overlay".to_owned())));
    let throttle = changed(|capture| {
        put_above(capture, "thr", "throttle", "file");
        give_device(capture, "thr", "throttle");
    });
    assert_eq!(throttle, Some(Change::Filter("thr".to_owned())));
    let gone = changed(|capture| {
        let devices = capture["devices"].as_array_mut().unwrap();
        devices.retain(|device| device["inserted"]["node-name"] != "n-a");
    });
    assert_eq!(gone, Some(Change::Unplugged));
}

/// `query-block` leaves out filters that QEMU has put in by itself.
#[test]
fn a_mirror_whose_filter_is_not_shown_is_a_change_and_a_foreign_job() {
    let mirror = |capture: &mut Value| {
        put_above(capture, "#block900", "mirror_top", "file");
        let job = json!({"id": 902, "name": "theirs", "type": "block-job"});
        capture["graph"]["nodes"].as_array_mut().unwrap().push(job);
        let edge = json!({"parent": 902, "child": 901, "name": "main node", "perm": [], "shared-perm": []});
        capture["graph"]["edges"].as_array_mut().unwrap().push(edge);
    };
    assert_eq!(changed(mirror), Some(Change::Job("theirs".to_owned())));
    assert_eq!(disk(mirror, "disk0").foreign_job.as_deref(), Some("theirs"));
}
