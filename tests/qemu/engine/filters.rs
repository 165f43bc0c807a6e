//! Disks below filters of the user's.

use std::process::Command;

use driftline::engine::{BackupRequest, BackupType, RequestedFleecing, RequestedType};

use super::{Going, MIB, assert_complete, assert_failed, fleeced};
use crate::lab::{
    machine::{Attach, Disk, Format, Plan, run},
    reference::Reference,
};

/// Reading through `copy-on-read` writes to the image: a backup does not, and what the guest reads meanwhile stays exact.
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_below_copy_on_read_is_not_inflated_by_its_chain() {
    let host = fleeced::host(1 << 30);
    let base = host.folder.path().join("base.raw");
    std::fs::write(&base, vec![0x5a; 8 << 20]).unwrap();
    let image = host.folder.path().join("clone.qcow2");
    let disk = Disk::qcow2("clone", 8 * MIB).at(&image).backed_by(&base, Format::Raw).attach(Attach::CopyOnRead);
    let machine = Plan::new().disk(disk).start();
    machine.write("clone", 1, MIB, MIB);
    let request = |run| BackupRequest { kind: RequestedType::Auto, ..host.request(&machine, run, 0) };
    let mut chain = Vec::new();
    for (run, kind) in [("full", BackupType::Full), ("increment", BackupType::Incremental)] {
        machine.write("clone", 2, 3 * MIB, 65536);
        let (reference, before) = (Reference::take(&machine), std::fs::metadata(&image).unwrap().len());
        let state = Going::start(&host.engine(), machine.qmp(), &request(run)).end().await;
        assert_complete(&state);
        assert_eq!(state.kind, Some(kind));
        let after = std::fs::metadata(&image).unwrap().len();
        assert!(after < before + MIB, "{run}: the image grew from {before} to {after} bytes");
        chain.push((state, reference));
        machine.qemu_io("clone", "read -P 90 5M 1M", "read ");
    }
    for (state, reference) in &chain {
        host.assert_equal(&machine, state, reference);
    }
    if machine.can_fleece() {
        let always = BackupRequest { fleecing: RequestedFleecing::Always, ..request("always") };
        assert_failed(&Going::start(&host.engine(), machine.qmp(), &always).end().await, "CopyOnRead");
    }
    run(Command::new("qemu-img").args(["check", "-U"]).arg(&image));
}
