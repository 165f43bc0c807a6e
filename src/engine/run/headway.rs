//! How far a try of the commit is: told to whoever waits for it, and kept, because a try that comes further than all before it
//! has met another failure.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Record, Run};
use crate::ids::DiskName;

/// The bytes that a try has carried and checked, and its steps, one each: all tries do the same in the same order.
#[derive(Default)]
pub(super) struct Headway(Arc<AtomicU64>);

impl Headway {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// A step is done.
    pub(super) fn step(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// What a long call reports its bytes to. Said at most once a second, for nobody reads faster; whoever waits for the run of
    /// somebody else reads whose disk it is.
    pub(super) fn teller(
        &self,
        run: &Run<'_>,
        record: &Record,
        disk: &DiskName,
        done: &'static str,
    ) -> impl FnMut(u64) + Send + use<> {
        let (shown, disk) = (run.control.state.clone(), disk.clone());
        let whose =
            if run.own { String::new() } else { format!("Run {} is finished first. ", record.request.run_name) };
        let (headway, before, mut said) = (Arc::clone(&self.0), self.get(), Instant::now());
        move |bytes| {
            headway.store(before + bytes, Ordering::Relaxed);
            if said.elapsed() < Duration::from_secs(1) {
                return;
            }
            said = Instant::now();
            shown.send_if_modified(|state| {
                // A run that was cancelled has left the call behind.
                let waits = !state.phase.is_final();
                if waits {
                    state.message = format!("{whose}Disk {disk}: {bytes} bytes {done}");
                }
                waits
            });
        }
    }
}
