//! Disks with a past, or none: an image that another guest had, a clone, a disk of no bytes.

use std::{fs, process::Command, sync::Arc, time::Duration};

use driftline::{
    chain::next::{BackupType, TypeReason},
    clock,
    engine::RunState,
};

use super::{Going, Host, MIB, assert_complete, increments::INCREMENT, increments::auto};
use crate::lab::machine::{Disk, Machine, Plan, run};

fn machine() -> Machine {
    let machine = Plan::new().disk(Disk::qcow2("disk0", 4 * MIB)).start();
    machine.write("disk0", 7, 0, 3 * MIB);
    machine
}

async fn full(host: &Host, machine: &Machine) -> RunState {
    Going::start(&host.engine(), machine.qmp(), &host.request(machine, "full", 0)).end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_from_a_host_whose_clock_was_ahead_has_increments_from_its_first_full_on() {
    let host = Host::new();
    let mut ahead = machine();
    let clock: clock::Clock = Arc::new(|| jiff::Timestamp::now() + Duration::from_secs(3600));
    for run in ["one", "two"] {
        let state =
            Going::start(&host.engine_by(clock.clone()), ahead.qmp(), &host.request(&ahead, run, 0)).end().await;
        assert_complete(&state);
    }
    ahead.quit();
    let mut here = machine();
    here.quit();
    fs::copy(&ahead.disk("disk0").file, &here.disk("disk0").file).unwrap();
    here.start_again();
    let first = [(BackupType::Full, TypeReason::BaseNotInRepository)];
    assert_eq!(auto(&host, &here, "first").await, first);
    for run in ["second", "third"] {
        here.write("disk0", 1, 65536, 512);
        assert_eq!(auto(&host, &here, run).await, [INCREMENT], "{run}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_backup_of_a_clone_of_an_image_that_was_backed_up_is_one() {
    let host = Host::new();
    let mut golden = machine();
    assert_complete(&full(&host, &golden).await);
    golden.quit();
    let mut clone = machine();
    clone.quit();
    let (base, image) = (&golden.disk("disk0").file, &clone.disk("disk0").file);
    fs::remove_file(image).unwrap();
    let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
    run(Command::new("qemu-img").args(create).arg(base).arg(image));
    clone.start_again();
    assert_eq!(auto(&host, &clone, "clone").await, [(BackupType::Full, TypeReason::FirstBackup)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_of_no_bytes_is_left_out_and_the_others_are_backed_up() {
    let host = Host::new();
    let machine = Plan::new().disk(Disk::qcow2("disk0", 4 * MIB)).disk(Disk::raw("empty", 0)).start();
    let state = full(&host, &machine).await;
    assert_complete(&state);
    let disks: Vec<_> = state.disks.iter().map(|disk| disk.name.as_str()).collect();
    assert_eq!(disks, ["disk0"]);
}
