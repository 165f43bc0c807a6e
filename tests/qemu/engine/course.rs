//! A fleeced run that is suspended, slowed down and resumed while its engine dies: on a real QEMU from 8.2 on.

use std::time::Duration;

use driftline::engine::{Phase, course::OwnerWish};
use serde_json::{Value, json};

use super::{
    Going, MIB, SOON, assert_clean, assert_complete, fill,
    fleeced::{host, request},
    varied,
};
use crate::lab::{child::wait_for, machine::Machine, reference::Reference};

fn progress(machine: &Machine) -> Vec<(u64, String)> {
    let jobs = machine.execute("query-jobs", json!({}));
    let of = |job: &Value| (job["current-progress"].as_u64().unwrap(), job["status"].as_str().unwrap().to_owned());
    jobs.as_array().unwrap().iter().map(of).collect()
}

fn wait_until_paused(machine: &Machine) {
    wait_for("the jobs stand", SOON, || progress(machine).iter().all(|(_, status)| status == "paused").then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_suspended_at_a_third_and_whose_engine_dies_is_exact_when_it_is_resumed() {
    let machine = varied().start();
    if !machine.can_fleece() {
        return;
    }
    let host = host(1 << 30);
    fill(&machine);
    let reference = Reference::take(&machine);
    let request = request(&host, &machine, "run-1", MIB / 2);
    let first = Going::start(&host.engine(), machine.qmp(), &request);
    first.reach(Phase::Copying).await;
    wait_for("a third is copied", SOON, || {
        let total: u64 = machine.disks().iter().map(|disk| disk.size).sum();
        (progress(&machine).iter().map(|(done, _)| done).sum::<u64>() >= total / 3).then_some(())
    });
    first.control.owner.send_replace(OwnerWish { suspend: Some(true), bandwidth: Some(MIB / 2) });
    wait_until_paused(&machine);
    // Its engine is gone, without a word.
    first.task.abort();
    drop(first.task.await);
    let stands = progress(&machine);
    for disk in machine.disks() {
        machine.write(&disk.name, 0xd0, 0, disk.size.min(MIB));
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(progress(&machine), stands, "the counters are flat");
    let second = Going::start(&host.engine(), machine.qmp(), &request);
    let mut states = second.control.state.subscribe();
    let shown = states.wait_for(|state| state.phase == Phase::Copying && state.disks.iter().all(|disk| disk.paused));
    tokio::time::timeout(SOON, shown).await.expect("it is shown").unwrap();
    assert_eq!(progress(&machine), stands);
    second.control.owner.send_replace(OwnerWish { suspend: Some(false), bandwidth: Some(0) });
    let state = second.end().await;
    assert_complete(&state);
    assert!(state.disks.iter().all(|disk| disk.speed == 0), "{:?}", state.disks);
    assert_clean(&machine);
    host.assert_equal(&machine, &state, &reference);
    host.assert_restores(&machine, &state, &reference);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_run_is_cancelled_and_the_next_one_is_exact() {
    let machine = varied().start();
    if !machine.can_fleece() {
        return;
    }
    let host = host(1 << 30);
    fill(&machine);
    let going = Going::start(&host.engine(), machine.qmp(), &request(&host, &machine, "run-1", MIB / 2));
    going.reach(Phase::Copying).await;
    going.control.owner.send_replace(OwnerWish { suspend: Some(true), bandwidth: None });
    wait_until_paused(&machine);
    going.control.cancel.cancel();
    assert_eq!(going.end().await.phase, Phase::Cancelled);
    assert_clean(&machine);
    host.assert_tidy(&machine);
    let reference = Reference::take(&machine);
    let state = Going::start(&host.engine(), machine.qmp(), &request(&host, &machine, "run-2", 0)).end().await;
    assert_complete(&state);
    host.assert_equal(&machine, &state, &reference);
}
