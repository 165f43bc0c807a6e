//! The turn at the scratch folder: one run of the host at a time takes room in it.

use std::{
    fs::File,
    sync::{Arc, Mutex},
};

use driftline::{engine::gate::Passage, qmp::fake::Pace};

use super::{
    host::{Host, assert_complete},
    shape::{Shape, Way},
};

/// Every run of the host with a scratch folder waits for it: another guest's QEMU or repository that hangs would hold them all.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_may_hang_is_done_while_the_turn_at_the_scratch_folder_is_held() {
    for way in [Way::Direct, Way::Staged, Way::Fleeced] {
        let host = Host::shaped(Shape { way, ..Shape::FIRST }, Pace::AtOnce);
        let path = host.folder.path().join("state/scratch.lock");
        let (turn, held) = (path.clone(), Arc::new(Mutex::new(Vec::new())));
        let seen = Arc::clone(&held);
        let engine = host.gated(Arc::new(move |passage| {
            let journal = matches!(passage, Passage::JournalBefore | Passage::JournalAfter);
            if let (false, Ok(file)) = (journal, File::open(&turn)) {
                let lock = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
                if lock.is_err() {
                    seen.lock().unwrap().push(passage);
                }
            }
            true
        }));
        assert_complete(&host.start(&engine, &host.request("run-1")).end().await);
        assert_eq!(*held.lock().unwrap(), vec![], "{way:?}");
        assert!(path.exists(), "the turn was taken");
    }
}
