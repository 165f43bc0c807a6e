//! What QEMU refuses, and that the scripted one refuses it in the same words.

use std::{fs, os::fd::AsFd};

use driftline::qmp::{
    Client, Command,
    command::{
        Action, AddFd, BitmapMerge, BitmapMode, BlockDirtyBitmapAdd, BlockDirtyBitmapRemove, BlockJobSetSpeed,
        BlockdevAdd, BlockdevBackup, BlockdevDel, JobCancel, JobDismiss, RemoveFd, Sync, Transaction,
    },
};
use serde_json::json;

use super::{
    bitmap_add, bitmap_ref,
    machine::{EVEN, Machine, ODD},
    wait_concluded,
};

/// What is refused, and how, in the words of QEMU.
async fn refusals(machine: &Machine) -> Vec<String> {
    let client = machine.client().await;
    let mut words = Vec::new();
    async fn refused<C: Command>(client: &Client, words: &mut Vec<String>, command: &C) {
        match client.execute(command).await {
            Ok(_) => words.push(format!("{} was done", C::NAME)),
            Err(error) => words.push(error.to_string()),
        }
    }
    let missing = || "missing".to_owned();
    refused(&client, &mut words, &AddFd { fdset_id: None, opaque: None }).await;
    refused(&client, &mut words, &RemoveFd { fdset_id: 99 }).await;
    refused(&client, &mut words, &BlockdevDel { node_name: missing() }).await;
    refused(&client, &mut words, &JobDismiss { id: missing() }).await;
    refused(&client, &mut words, &JobCancel { id: missing() }).await;
    refused(&client, &mut words, &BlockJobSetSpeed { device: missing(), speed: 0 }).await;
    refused(&client, &mut words, &BlockDirtyBitmapRemove(bitmap_ref("n0", "missing"))).await;
    refused(&client, &mut words, &BlockDirtyBitmapAdd(bitmap_add("n1", "b", true, false))).await;
    refused(&client, &mut words, &BlockDirtyBitmapAdd(bitmap_add("n0", "b", true, false))).await;
    refused(&client, &mut words, &BlockDirtyBitmapAdd(bitmap_add("n0", "b", true, false))).await;
    refused(&client, &mut words, &BlockDirtyBitmapAdd(bitmap_add("n1", "b", false, false))).await;
    let node = |driver: &str, node: &str, file: &str| BlockdevAdd {
        options: json!({"driver": driver, "node-name": node, "file": {"driver": "file", "filename": file}}),
    };
    refused(&client, &mut words, &node("qcow2", "t", "/dev/fdset/9")).await;
    refused(&client, &mut words, &node("qcow2", "t", "/not/there")).await;
    machine.target(&client, "t0", EVEN).await;
    machine.target(&client, "t1", ODD).await;
    refused(&client, &mut words, &node("qcow2", "t0", "/dev/fdset/0")).await;
    let file = fs::File::open(machine.at("disk1.raw")).unwrap();
    client.execute_with_fd(&AddFd { fdset_id: Some(7), opaque: None }, file.as_fd()).await.unwrap();
    refused(&client, &mut words, &node("raw", "t", "/dev/fdset/7")).await;
    let backup = |target: &str, sync| BlockdevBackup::new("j", "n0", target, sync);
    refused(&client, &mut words, &backup("missing", Sync::Full)).await;
    refused(&client, &mut words, &backup("t1", Sync::Full)).await;
    let bitmap = Sync::Bitmap { bitmap: missing(), bitmap_mode: BitmapMode::Never };
    refused(&client, &mut words, &backup("t0", bitmap)).await;
    for (node, name) in [("n1", "missing"), ("n1", "b"), ("missing", "b")] {
        let bitmaps = vec![bitmap_ref(node, name)];
        let merge = BitmapMerge { node: "n0".to_owned(), target: "b".to_owned(), bitmaps };
        refused(&client, &mut words, &Transaction { actions: vec![Action::BlockDirtyBitmapMerge(merge)] }).await;
    }
    client.execute(&backup("t0", Sync::Full)).await.unwrap();
    wait_concluded(&client, "j").await;
    refused(&client, &mut words, &backup("t0", Sync::Full)).await;
    words
}

#[tokio::test]
async fn refusals_have_the_same_words_on_both() {
    let [real, fake] = Machine::both();
    let (real, fake) = (refusals(&real).await, refusals(&fake).await);
    assert_eq!(real, fake);
    assert!(real.iter().filter(|words| words.ends_with("was done")).count() == 2, "{real:#?}");
}
