//! A long chain of a guest that writes all the time: thirty increments, and each of the points restored at the end.

use driftline::{
    chain::next::{BackupType, RequestedType},
    engine::{BackupRequest, Phase},
};

use super::{Going, Host, MIB, assert_clean, assert_complete};
use crate::lab::{
    machine::{Disk, Plan},
    reference::Reference,
};

const INCREMENTS: usize = 30;

#[tokio::test(flavor = "multi_thread")]
async fn thirty_increments_of_a_guest_under_load_restore_to_their_instants() {
    let host = Host::new();
    let machine =
        Plan::new().disk(Disk::qcow2("disk0", 12 * MIB)).disk(Disk::raw("disk1", 6 * MIB + 4096)).linux().start();
    let console = machine.console();
    tokio::task::block_in_place(|| console.wait_until_up());
    console.go();
    let mut points = Vec::new();
    for round in 0..=INCREMENTS {
        // The writer stands still only for the copy: the instant lies between stop and go.
        let reference = tokio::task::block_in_place(|| {
            console.stop();
            Reference::take(&machine)
        });
        let request = host.request(&machine, &format!("run-{round}"), 0);
        let request = BackupRequest { kind: RequestedType::Auto, ..request };
        let going = Going::start(&host.engine(), machine.qmp(), &request);
        going.reach_past(Phase::Preparing).await;
        console.go();
        let state = going.end().await;
        assert_complete(&state);
        let expected = if round == 0 { BackupType::Full } else { BackupType::Incremental };
        assert!(state.disks.iter().all(|disk| disk.kind == expected), "round {round}: {:?}", state.disks);
        points.push((state, reference));
    }
    let writer = console.stop();
    assert!(writer.writes > 1000 && writer.errors == 0, "{writer:?}");
    assert_clean(&machine);
    host.assert_tidy(&machine);
    for (state, reference) in &points {
        host.assert_restores(&machine, state, reference);
    }
    let (last, reference) = points.last().unwrap();
    host.assert_equal(&machine, last, reference);
    assert_eq!(last.point.as_ref().unwrap().chain.len(), INCREMENTS + 1);
}
