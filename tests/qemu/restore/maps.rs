//! The map of an image against QEMU's own word, and against bytes that mean nothing.

use std::fs;

use driftline::qcow2::{
    CLUSTER,
    header::Header,
    map::{Kind, Map},
};
use proptest::prelude::*;

use super::support::{self, run};

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// The map says of every cluster what `qemu-img map` says.
    #[test]
    fn the_map_of_an_image_is_what_qemu_img_says(
        clusters in 1_u64..20_000,
        tail in 0_u64..128,
        writes in proptest::collection::vec((0_u64..20_000, 1_u64..40, 0_u8..4), 0..12),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image.qcow2");
        let size = (clusters * CLUSTER).saturating_sub(tail * 512).max(512);
        run("qemu-img", &["create", "-q", "-f", "qcow2", image.to_str().unwrap(), &size.to_string()]);
        let commands: Vec<String> = writes.iter().map(|(at, count, how)| {
            let offset = at % size.div_ceil(CLUSTER) * CLUSTER;
            let length = (count * CLUSTER).min(size - offset);
            match how {
                0 => format!("write -z {offset} {length}"),
                1 => format!("discard {offset} {length}"),
                _ => format!("write -P {} {offset} {length}", at % 255 + 1),
            }
        }).collect();
        support::qemu_io(&image, &commands);
        let bytes = fs::File::open(&image).unwrap();
        let length = bytes.metadata().unwrap().len();
        let header = Header::read(&bytes).unwrap();
        header.expect_stored(size).unwrap();
        let map = Map::read(&bytes, &header, length).unwrap();

        let said = run("qemu-img", &["map", "--output=json", "-f", "qcow2", image.to_str().unwrap()]);
        let said: Vec<serde_json::Value> = serde_json::from_str(&said).unwrap();
        let mut expected = Vec::new();
        for extent in said {
            let (start, length) = (extent["start"].as_u64().unwrap(), extent["length"].as_u64().unwrap());
            for cluster in start / CLUSTER..(start + length).div_ceil(CLUSTER) {
                match (extent["data"].as_bool().unwrap(), extent["present"].as_bool().unwrap()) {
                    (true, _) => {
                        let host = extent["offset"].as_u64().unwrap() + cluster * CLUSTER - start;
                        expected.push((cluster, Some(host)));
                    }
                    (false, true) => expected.push((cluster, None)),
                    (false, false) => {}
                }
            }
        }
        let found: Vec<_> = map.extents.iter().flat_map(|extent| (0..extent.count).map(|n| (extent.first + n, match extent.kind {
            Kind::Data { host } => Some(host + n * CLUSTER),
            Kind::Zero => None,
        }))).collect();
        prop_assert_eq!(found, expected);
    }

    /// Any bytes in the tables give a map or an error.
    #[test]
    fn damaged_tables_never_make_a_panic(at in proptest::collection::vec((0_usize..300_000, any::<u8>()), 1..8)) {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image.qcow2");
        run("qemu-img", &["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "600M"]);
        support::qemu_io(&image, &["write -P 1 0 64k".into(), "write -P 2 599M 64k".into()]);
        let mut bytes = fs::read(&image).unwrap();
        for (at, value) in at {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        if let Ok(header) = Header::read(&bytes) {
            let _ = Map::read(&bytes, &header, bytes.len() as u64);
        }
    }
}
