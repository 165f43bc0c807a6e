//! What a fleece is made of, on QEMU from 8.2 on.

use std::fs;

use driftline::qmp::{
    Client,
    command::{BlockSetWriteThreshold, BlockdevAdd, BlockdevBackup, BlockdevDel, QomSet, QueryBlock, Sync},
};
use serde_json::{Value, json};

use super::{
    machine::{EVEN, Machine, run_well, text},
    wait_concluded,
};

async fn add(client: &Client, options: Value) {
    client.execute(&BlockdevAdd { options }).await.unwrap();
}

async fn delete(client: &Client, node: &str) -> Result<(), String> {
    let deleted = client.execute(&BlockdevDel { node_name: node.to_owned() }).await;
    deleted.map(drop).map_err(|error| error.to_string())
}

async fn warn(client: &Client, node: &str) -> Result<(), String> {
    let command = BlockSetWriteThreshold { node_name: node.to_owned(), write_threshold: 1 << 20 };
    client.execute(&command).await.map(drop).map_err(|error| error.to_string())
}

/// The connection refuses a node that the device has already, by the newest answer.
async fn give(client: &Client, node: &str) -> Result<(), String> {
    client.execute(&QueryBlock {}).await.unwrap();
    let path = "/machine/peripheral/disk0/virtio-backend".to_owned();
    let given = client.execute(&QomSet { path, property: "drive".to_owned(), value: node.into() }).await;
    given.map(drop).map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_snapshot_shows_the_instant_at_which_the_device_got_its_filter() {
    for machine in Machine::both() {
        let client = machine.client().await;
        if !client.version().at_least(8, 2) && !machine.is_scripted() {
            continue;
        }
        let (disk, before) = (machine.at("disk0.raw"), machine.at("before.raw"));
        machine.target(&client, "scratch", EVEN).await;
        warn(&client, "scratch").await.unwrap();
        let unknown = warn(&client, "nothing").await.unwrap_err();
        assert!(unknown.contains("Device 'nothing' not found"), "{unknown}");
        let filter = json!({"driver": "copy-before-write", "node-name": "filter", "file": "n0", "target": "scratch",
            "on-cbw-error": "break-snapshot", "cbw-timeout": 5, "discard": "unmap"});
        add(&client, filter).await;
        fs::copy(&disk, &before).unwrap();
        give(&client, "filter").await.unwrap();
        add(&client, json!({"driver": "snapshot-access", "node-name": "snapshot", "file": "filter"})).await;
        if let Some(write) = machine.write("disk0", 65536, 200_000) {
            client.execute(&write).await.unwrap();
        }
        let busy = delete(&client, "filter").await.unwrap_err();
        assert!(busy.contains("filter is in use"), "{busy}");
        let refused = give(&client, "n0").await.unwrap_err();
        assert!(refused.contains("Permission conflict on node 'n0'"), "{refused}");

        machine.target(&client, "t0", EVEN).await;
        client.execute(&BlockdevBackup::new("j0", "snapshot", "t0", Sync::Full)).await.unwrap();
        assert_eq!(wait_concluded(&client, "j0").await.error, None);
        delete(&client, "t0").await.unwrap();
        let image = machine.at("t0.qcow2");
        run_well("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", text(&image), text(&before)]);

        delete(&client, "snapshot").await.unwrap();
        give(&client, "n0").await.unwrap();
        delete(&client, "filter").await.unwrap();
        delete(&client, "scratch").await.unwrap();
    }
}
