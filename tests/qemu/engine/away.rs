//! A repository that goes away around the commit, on a real QEMU: the bitmaps are what is at stake.

use std::{
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use driftline::{
    engine::{BackupRequest, BackupType, Patience, RequestedType},
    repo::Act,
};

use super::{Going, Host, MIB, assert_clean, assert_complete, bitmaps};
use crate::lab::{
    machine::{Disk, Plan},
    reference::Reference,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_goes_away_right_after_the_commit_costs_no_full() {
    let host = Host::new();
    let machine = Plan::new().disk(Disk::qcow2("disk0", 4 * MIB)).disk(Disk::raw("disk1", MIB)).start();
    machine.write("disk0", 7, 0, 3 * MIB);
    let (repository, away) = (host.repository_path(), host.folder.path().join("away"));
    let (from, to, renamed) = (repository.clone(), away.clone(), AtomicBool::new(false));
    let roots = host.roots().with_gate(Arc::new(move |operation| {
        if operation.act == Act::Rename && operation.path.ends_with("manifest.json") {
            renamed.store(true, Ordering::SeqCst);
        } else if operation.act == Act::SyncFolder && renamed.swap(false, Ordering::SeqCst) {
            fs::rename(&from, &to).unwrap();
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(())
    }));
    let patience = Patience {
        commit: Duration::from_secs(2),
        commit_pause: Duration::from_millis(200),
        lock_pause: Duration::from_millis(10),
        ..Patience::default()
    };
    let engine = host.engine_on(roots).with_patience(patience);
    let auto = |name: &str| BackupRequest { kind: RequestedType::Auto, ..host.request(&machine, name, 0) };
    let state = Going::start(&engine, machine.qmp(), &auto("first")).end().await;
    assert_eq!(state.reason, "RepositoryUnavailable", "{}", state.message);
    assert_eq!(engine.finished("first"), None, "it has not ended");
    assert_clean(&machine);
    assert_eq!(bitmaps(&machine).len(), 4, "a checkpoint and a sentinel of each disk");
    machine.write("disk0", 8, MIB, 65536);
    fs::rename(&away, &repository).unwrap();
    let reference = Reference::take(&machine);
    let state = Going::start(&host.engine(), machine.qmp(), &auto("second")).end().await;
    assert_complete(&state);
    assert_eq!(state.kind, Some(BackupType::Incremental), "{:?}", state.type_reason);
    host.assert_equal(&machine, &state, &reference);
    assert_complete(&host.engine().finished("first").unwrap());
    host.assert_tidy(&machine);
}
