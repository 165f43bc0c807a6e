//! What of a guest's file, and of an object with a long name, is seen with kubectl.

use std::time::Duration;

use crate::{
    installation::{Installation, NODES},
    lab::machine::{Disk, Plan},
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
const NODE: &str = NODES[0];

#[test]
fn a_label_that_leaves_the_guests_file_leaves_the_guest() {
    let tenant = Installation::shared().tenant();
    let machine = Plan::new().disk(Disk::raw("disk0", MIB)).start();
    let label = || tenant.get("guests.driftline.dev", "g")["metadata"]["labels"]["tier"].clone();
    tenant.declare_guest(NODE, "g", &machine.qmp(), "[labels]\ntier = \"gold\"\n");
    tenant.wait_for("guests.driftline.dev/g", "Ready", SOON);
    assert_eq!(label(), "gold");
    tenant.kubectl(["label", "guests.driftline.dev/g", "mine=stays"]).ok();
    tenant.declare_guest(NODE, "g", &machine.qmp(), "");
    tenant.wait_until("guests.driftline.dev/g", "without its label", SOON, || label().is_null().then_some(()));
    assert_eq!(tenant.get("guests.driftline.dev", "g")["metadata"]["labels"]["mine"], "stays");
}

#[test]
fn an_object_with_the_longest_name_has_its_events() {
    let tenant = Installation::shared().tenant();
    // Wherever such a name is cut, a dash may stand there.
    let name = format!("run-{}x", "x-".repeat(124));
    tenant.back_up(&name, "nobody", "nowhere");
    let note = tenant.event(&name, "GuestNotFound", SOON);
    assert!(note.contains("nobody"), "{note}");
}
