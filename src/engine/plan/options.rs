//! How the attempt's nodes are opened.

use serde_json::{Value, json};

/// `blockdev-add` of a target: the parent of its header is not opened, and zeros that are written become holes.
pub fn target_options(node: &str, fdset: i64) -> Value {
    json!({
        "driver": "qcow2",
        "node-name": node,
        "backing": null,
        "detect-zeroes": "on",
        "discard": "unmap",
        "file": {"driver": "file", "filename": format!("/dev/fdset/{fdset}")},
    })
}

/// `blockdev-add` of a scratch: it cannot grow beyond its limit, whoever is dead by then. Its file has a name, so that it can
/// warn before.
pub fn scratch_options(node: &str, file: &str, fdset: i64, limit: u64) -> Value {
    json!({
        "driver": "qcow2",
        "node-name": node,
        "backing": null,
        "discard": "unmap",
        "file": {
            "driver": "raw",
            "size": limit,
            "file": {"driver": "file", "node-name": file, "filename": format!("/dev/fdset/{fdset}")},
        },
    })
}

/// `blockdev-add` of a filter: what cannot be kept in the scratch, or not soon, breaks the snapshot and not the guest's write.
/// Without `unmap` the guest's discards would be dropped (measured).
pub fn filter_options(node: &str, over: &str, scratch: &str) -> Value {
    json!({
        "driver": "copy-before-write",
        "node-name": node,
        "file": over,
        "target": scratch,
        "on-cbw-error": "break-snapshot",
        "cbw-timeout": 5,
        "discard": "unmap",
    })
}

/// `blockdev-add` of a snapshot.
pub fn snapshot_options(node: &str, filter: &str) -> Value {
    json!({"driver": "snapshot-access", "node-name": node, "file": filter})
}

/// `blockdev-add` of the source of a sentinel's bits.
pub fn sentinel_options(node: &str, fdset: i64) -> Value {
    json!({
        "driver": "qcow2",
        "node-name": node,
        "read-only": true,
        "file": {"driver": "file", "filename": format!("/dev/fdset/{fdset}"), "read-only": true},
    })
}
