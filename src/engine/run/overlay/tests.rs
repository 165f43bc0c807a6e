//! Which overlay is on a filter, and what takes the filter out from below it.

use serde_json::{Value, json};

use super::*;

const FILTER: &str = "dl-0badcafe-0-cbw";

/// A device with its edges: 1 the device, 2 an overlay, 3 the filter, 4 what is below it.
fn graph(edges: &[(u64, u64, &str)]) -> BlockGraph {
    let node = |id: u64, name: &str, kind: &str| json!({"id": id, "name": name, "type": kind});
    let edge = |(parent, child, name): &(u64, u64, &str)| json!({"parent": parent, "child": child, "name": name, "perm": [], "shared-perm": []});
    let nodes = [
        node(1, "disk0", "block-backend"),
        node(2, "overlay", "block-driver"),
        node(3, FILTER, "block-driver"),
        node(4, "n0", "block-driver"),
    ];
    let edges: Vec<Value> = edges.iter().map(edge).collect();
    serde_json::from_value(json!({"nodes": nodes, "edges": edges})).unwrap()
}

fn backed() -> BlockGraph {
    graph(&[(1, 2, "root"), (2, 3, "backing"), (3, 4, "file")])
}

fn node(backing: Option<&str>) -> BlockNode {
    let image = json!({"filename": "o", "format": "qcow2", "virtual-size": 512, "backing-filename": backing});
    serde_json::from_value(json!({"node-name": "overlay", "drv": "qcow2", "ro": false, "file": "o", "image": image}))
        .unwrap()
}

#[test]
fn a_filter_below_a_device_alone_is_below_no_overlay() {
    let graph = graph(&[(1, 3, "root"), (3, 4, "file")]);
    assert_eq!(overlay_on(&graph, FILTER), None);
    assert_eq!(stream(&graph, &[], FILTER), None);
    assert_eq!(overlay_on(&graph, "dl-0badcafe-1-cbw"), None);
}

#[test]
fn an_overlay_gets_what_is_below_the_filter_and_keeps_what_it_calls_it() {
    let stream = |backing| stream(&backed(), &[node(backing)], FILTER).unwrap();
    let expected = BlockStream {
        job_id: FILTER.to_owned(),
        device: "overlay".to_owned(),
        base_node: "n0".to_owned(),
        backing_file: Some("base.qcow2".to_owned()),
    };
    assert_eq!(stream(Some("base.qcow2")), expected);
    let made_up = BlockStream { backing_file: None, ..expected };
    assert_eq!(stream(Some(r#"json:{"driver":"copy-before-write"}"#)), made_up);
    assert_eq!(stream(None), made_up);
}
