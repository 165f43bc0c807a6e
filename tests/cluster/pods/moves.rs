//! A guest that moves to the other worker: its process ends here and is started there, on the same disk.

use std::time::{Duration, Instant};

use super::underway::SOON;
use crate::{
    lab::machine::{Disk, Plan},
    release::{NODES, Release},
};

const MIB: u64 = 1 << 20;

#[test]
fn a_guest_that_moves_to_the_other_node_is_found_within_five_seconds_and_is_the_same() {
    let (release, _turn) = Release::take();
    let team = release.team();
    let [from, to] = NODES;
    let plan = Plan::new().disk(Disk::qcow2("disk0", 16 * MIB));
    let mut machine = release.machine_on(from, plan).start();
    // A platform that moves machines names them on every node; whoever has the process has the guest.
    team.guest(from, "g", &machine.qmp());
    let uid = team.get("guests.driftline.dev", "g")["metadata"]["uid"].clone();
    machine.quit();
    team.forget_guest(from, "g");
    machine.start_again_by(release.nodes.node(to).launcher());
    let began = Instant::now();
    team.declare_guest(to, "g", &release.socket_on_node(&machine.qmp()));
    team.wait_until("guests.driftline.dev/g", "found on the other node", SOON, || {
        let guest = team.get("guests.driftline.dev", "g");
        let conditions = guest["status"]["conditions"].as_array()?;
        let is_ready = conditions.iter().any(|found| found["type"] == "Ready" && found["status"] == "True");
        (guest["status"]["node"] == to && is_ready).then_some(())
    });
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    let guest = team.get("guests.driftline.dev", "g");
    assert_eq!(guest["status"]["uuid"], machine.uuid());
    assert_eq!(guest["metadata"]["uid"], uid, "it is the same object");
    let all = team.kubectl(["get", "guests.driftline.dev", "-o", "name"]).ok();
    assert_eq!(all.lines().count(), 1, "{all}");
}
