//! Each command that was measured to kill QEMU is refused in the versions where it does, and what a backup needs is not.

use serde_json::json;

use super::*;
use crate::qmp::command::{Action, BitmapAdd, BitmapMerge, BitmapMode, BitmapRef, BlockdevBackup, Sync, Transaction};

const VERSIONS: [(u32, u32); 4] = [(6, 0), (7, 2), (8, 2), (10, 0)];

fn version((major, minor): (u32, u32)) -> Version {
    Version { major, minor, micro: 0, package: String::new() }
}

fn known() -> Known {
    let drives =
        BTreeMap::from([("/machine/peripheral/d0".to_owned(), "n0".to_owned()), ("d1".to_owned(), "n1".to_owned())]);
    Known { drive_ids: BTreeSet::from(["drive0".to_owned()]), drives }
}

fn refused(at: (u32, u32), command: &str, arguments: &Value) -> bool {
    check(&version(at), command, arguments, &known()).is_err()
}

fn bitmap(node: &str, name: &str) -> BitmapRef {
    BitmapRef { node: node.to_owned(), name: name.to_owned() }
}

fn add(node: &str, name: &str) -> Action {
    let (node, name) = (node.to_owned(), name.to_owned());
    Action::BlockDirtyBitmapAdd(BitmapAdd { node, name, granularity: 65536, persistent: false, disabled: true })
}

fn transaction(actions: Vec<Action>) -> Value {
    serde_json::to_value(Transaction { actions }).unwrap()
}

#[test]
fn enabling_a_bitmap_of_which_nobody_knows_that_it_exists_is_refused() {
    for at in VERSIONS {
        let enable = Action::BlockDirtyBitmapEnable(bitmap("n0", "b"));
        assert!(refused(at, "transaction", &transaction(vec![enable.clone()])));
        assert!(refused(at, "transaction", &transaction(vec![add("n1", "b"), enable.clone()])), "of another node");
        assert!(refused(at, "transaction", &transaction(vec![enable.clone(), add("n0", "b")])), "added too late");
        assert!(!refused(at, "transaction", &transaction(vec![add("n0", "b"), enable])));
    }
}

#[test]
fn a_grouped_transaction_that_enables_is_refused_before_8_2() {
    for at in VERSIONS {
        let mut grouped = transaction(vec![add("n0", "b"), Action::BlockDirtyBitmapEnable(bitmap("n0", "b"))]);
        grouped["properties"] = json!({"completion-mode": "grouped"});
        assert_eq!(refused(at, "transaction", &grouped), at < (8, 2));
    }
}

#[test]
fn a_drive_id_where_a_node_belongs_is_refused() {
    let backup = |device: &str| Action::BlockdevBackup(BlockdevBackup::new("j", device, "t", Sync::Full));
    for at in VERSIONS {
        for actions in [vec![add("drive0", "b")], vec![add("n0", "b"), backup("drive0")]] {
            assert!(refused(at, "transaction", &transaction(actions)));
        }
        assert!(refused(at, "blockdev-backup", &json!({"device": "drive0"})));
        assert!(refused(at, "block-dirty-bitmap-add", &json!({"node": "drive0", "name": "b"})));
        let legacy = json!({"actions": [{"type": "drive-backup", "data": {"device": "n0", "target": "/x"}}]});
        assert!(refused(at, "transaction", &legacy));
        assert!(refused(at, "drive-backup", &json!({"device": "n0", "target": "/x"})));
    }
}

#[test]
fn setting_a_drive_to_what_it_is_and_resizing_are_refused() {
    let set = |path: &str, node: &str| json!({"path": path, "property": "drive", "value": node});
    for at in VERSIONS {
        assert!(refused(at, "qom-set", &set("/machine/peripheral/d0", "n0")));
        assert!(!refused(at, "qom-set", &set("/machine/peripheral/d0", "filter")));
        assert!(refused(at, "qom-set", &set("/machine/peripheral/d1", "n1")), "by its id");
        assert!(!refused(at, "qom-set", &set("/machine/peripheral/d1", "filter")));
        assert!(refused(at, "qom-set", &set("/machine/peripheral/unknown", "n0")), "nobody knows what it has");
        assert!(!refused(at, "qom-set", &json!({"path": "/x", "property": "other", "value": 1})));
        assert!(refused(at, "block_resize", &json!({"node-name": "n0", "size": 1})));
    }
}

#[test]
fn two_copies_of_one_node_in_one_transaction_are_refused() {
    let backup = |job: &str, device: &str| Action::BlockdevBackup(BlockdevBackup::new(job, device, "t", Sync::Full));
    assert!(refused((10, 0), "transaction", &transaction(vec![backup("a", "n0"), backup("b", "n0")])));
    assert!(!refused((10, 0), "transaction", &transaction(vec![backup("a", "n0"), backup("b", "n1")])));
}

#[test]
fn the_transaction_of_a_run_is_sent() {
    let increment = Sync::Bitmap { bitmap: "inc".to_owned(), bitmap_mode: BitmapMode::Never };
    let actions = vec![
        add("n0", "cp"),
        add("n0", "inc"),
        Action::BlockDirtyBitmapMerge(BitmapMerge {
            node: "n0".to_owned(),
            target: "inc".to_owned(),
            bitmaps: vec![bitmap("n0", "old"), bitmap("sn", "end")],
        }),
        Action::BlockDirtyBitmapRemove(bitmap("n0", "older")),
        Action::BlockDirtyBitmapDisable(bitmap("n0", "cp")),
        Action::BlockDirtyBitmapClear(bitmap("n0", "cp")),
        Action::BlockdevBackup(BlockdevBackup::new("j0", "n0", "t0", increment)),
        Action::BlockdevBackup(BlockdevBackup::new("j1", "n1", "t1", Sync::Full)),
    ];
    for at in VERSIONS {
        assert_eq!(check(&version(at), "transaction", &transaction(actions.clone()), &known()), Ok(()));
    }
}

#[test]
fn arguments_of_no_sense_are_left_to_qemu_to_refuse() {
    for arguments in [json!(null), json!({"actions": 7}), json!({"actions": [7, {"type": 1}, {}]})] {
        assert!(!refused((7, 2), "transaction", &arguments));
    }
}
