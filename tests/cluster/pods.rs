//! Driftline in pods on real nodes, installed by helm. Each test has one of a few clusters for itself, and leaves it whole.

mod audit;
mod certificates;
mod container;
mod lost;
mod moves;
mod outlive;
mod reinstall;
mod underway;

use std::time::Duration;

use serde_json::json;

use crate::{
    lab::{
        machine::{Disk, Format, Plan},
        reference::Reference,
    },
    release::{NODES, Release},
};

const MIB: u64 = 1 << 20;
const WITHIN: Duration = Duration::from_secs(120);

#[test]
fn two_guests_on_two_nodes_are_backed_up_at_the_same_time_and_restored_to_equality() {
    let (release, _turn) = Release::take();
    let team = release.team();
    let machines = NODES.map(|node| {
        let plan = Plan::new().disk(Disk::qcow2("disk0", 64 * MIB)).disk(Disk::raw("disk1", 16 * MIB + 512));
        let machine = release.machine_on(node, plan).start();
        machine.write("disk0", 0x5a, 3 * MIB, 32 * MIB);
        machine.write("disk1", 0xa5, MIB, 7 * MIB);
        (node, machine)
    });
    let mut references = Vec::new();
    for (node, machine) in &machines {
        team.guest(node, node, &machine.qmp());
        team.repository(node, node);
        references.push(Reference::take(machine));
        let mut spec = team.backup_spec(node, node);
        spec["transfer"] = json!({ "bandwidth": "1Mi" });
        // A second try would be of another instant.
        spec["backoffLimit"] = 0.into();
        team.create("BackupRun", node, spec).ok();
    }
    for (node, machine) in &machines {
        team.wait_for(&format!("backuprun.driftline.dev/{node}"), "CheckpointCreated", WITHIN);
        machine.write("disk0", 0x11, 0, 16 * MIB);
        machine.write("disk1", 0x22, 0, 16 * MIB);
    }
    let copying = machines.each_ref().map(|(_, machine)| {
        let jobs = machine.execute("query-jobs", json!({}));
        let running = jobs.as_array().unwrap().iter().filter(|job| job["status"] == "running");
        running.map(|job| job["id"].clone()).collect::<Vec<_>>()
    });
    assert!(copying.iter().all(|jobs| !jobs.is_empty()), "both copy at the same time: {copying:?}");
    for ((node, machine), jobs) in machines.iter().zip(copying) {
        let run = format!("backuprun.driftline.dev/{node}");
        let phase = || team.get("backuprun.driftline.dev", node)["status"]["phase"].clone();
        team.wait_until(&run, "shown as copying", WITHIN, || (phase() == "Copying").then_some(()));
        for job in jobs {
            machine.execute("block-job-set-speed", json!({ "device": job, "speed": 0 }));
        }
    }
    for ((node, _), reference) in machines.iter().zip(&references) {
        team.wait_for(&format!("backuprun.driftline.dev/{node}"), "Complete", WITHIN);
        let files = team.restore(&format!("{node}-back"), &team.point_of(node), node, &["disk0", "disk1"]);
        team.wait_for(&format!("restorerun.driftline.dev/{node}-back"), "Complete", WITHIN);
        for (disk, file) in ["disk0", "disk1"].iter().zip(&files) {
            reference.assert_equal(disk, file, Format::Raw);
        }
    }
    let tested = release.helm("test", &["--timeout=60s"]);
    assert!(tested.succeeded(), "{tested}");
    // A second release would take the first one's guests.
    let second = release.second(&["--set=crds.install=false"]);
    assert!(second.refused().contains("driftline-controller"), "Helm says whose it is");
}
