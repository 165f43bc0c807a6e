//! A disk for tests, on a node of its own, and bitmaps on it.

use super::{BitmapFacts, DiskFacts};

/// A qcow2 disk of 1 MiB that can be backed up, on node `n-<name>`.
pub(in crate::engine) fn disk(name: &str) -> DiskFacts {
    DiskFacts {
        name: name.parse().unwrap(),
        qdev: name.to_owned(),
        node_name: format!("n-{name}"),
        top_node: format!("n-{name}"),
        filters: Vec::new(),
        driver: "qcow2".to_owned(),
        format: "qcow2".to_owned(),
        file: String::new(),
        virtual_size: 1 << 20,
        persistent_bitmaps: true,
        ineligible: None,
        foreign_job: None,
        bitmaps: Vec::new(),
        bitmaps_below: Vec::new(),
    }
}

/// A bitmap that records, and that nothing uses.
pub(in crate::engine) fn bitmap(name: &str) -> BitmapFacts {
    BitmapFacts {
        name: name.to_owned(),
        bytes: 0,
        ours: true,
        recording: true,
        busy: false,
        persistent: true,
        inconsistent: false,
    }
}
