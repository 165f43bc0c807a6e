//! A machine that moves to another QEMU: a run would make the migration fail at its very end, so it gives way, and what it
//! continues goes along.

use driftline::{
    chain::next::{BackupType, RequestedType},
    engine::{BackupRequest, Phase},
};
use serde_json::json;

use super::{
    Going, Host, MIB, SOON, assert_clean, assert_complete, assert_failed,
    increments::{INCREMENT, auto},
};
use crate::lab::{
    child::wait_for,
    machine::{Disk, Machine, Plan},
};

/// Some seconds for the little that a machine without a guest has.
const SLOWLY: u64 = 100_000;

fn slow_down(machine: &Machine) {
    machine.execute("migrate-set-parameters", json!({ "max-bandwidth": SLOWLY }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_gives_way_to_a_migration_and_the_next_one_is_an_increment_there() {
    for (kind, with_bitmaps) in [(RequestedType::Full, true), (RequestedType::Auto, true), (RequestedType::Auto, false)]
    {
        let host = Host::new();
        let mut machine = Plan::new().disk(Disk::qcow2("disk0", 4 * MIB)).start();
        machine.write("disk0", 1, 0, 4 * MIB);
        let first = Going::start(&host.engine(), machine.qmp(), &host.request(&machine, "first", 0)).end().await;
        assert_complete(&first);
        machine.write("disk0", 2, MIB, MIB);
        slow_down(&machine);
        let request = BackupRequest { kind, ..host.request(&machine, "second", 65536) };
        let going = Going::start(&host.engine(), machine.qmp(), &request);
        going.reach(Phase::Copying).await;
        let moved = tokio::task::block_in_place(|| machine.migrate(with_bitmaps));
        let state = going.end().await;
        // The bitmap of an increment is in use, and QEMU sends no such bitmap: the next one goes through.
        assert_eq!(moved.is_err(), kind == RequestedType::Auto && with_bitmaps, "{kind:?} {moved:?}");
        if moved.is_err() {
            tokio::task::block_in_place(|| machine.migrate(with_bitmaps)).unwrap();
        }
        assert_failed(&state, "MigrationStarted");
        machine.end_former();
        assert_clean(&machine);
        host.assert_tidy(&machine);

        machine.write("disk0", 3, 3 * MIB, 4096);
        // The checkpoint of the run that gave way may have gone along: it is passed over, and removed.
        let [(next, _)] = auto(&host, &machine, "third").await[..] else { panic!("one disk") };
        assert_eq!(next, BackupType::Incremental, "{kind:?} bitmaps {with_bitmaps}");
        assert_eq!(auto(&host, &machine, "fourth").await, [INCREMENT]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_run_begins_during_a_migration() {
    let host = Host::new();
    let machine = Plan::new().disk(Disk::qcow2("disk0", MIB)).start();
    slow_down(&machine);
    machine.execute("migrate", json!({ "uri": "exec:cat > /dev/null" }));
    let refused = Going::start(&host.engine(), machine.qmp(), &host.request(&machine, "refused", 0)).end().await;
    assert_failed(&refused, "GuestMigrating");
    machine.execute("migrate_cancel", json!({}));
    wait_for("the migration ends", SOON, || {
        (machine.execute("query-migrate", json!({}))["status"] == "cancelled").then_some(())
    });
    assert_complete(&Going::start(&host.engine(), machine.qmp(), &host.request(&machine, "next", 0)).end().await);
}
