//! Which test has which of the few clusters of a test binary.

use std::sync::{Condvar, Mutex, PoisonError};

use super::Release;
use crate::lab::netns::{Inside, Netns};

/// Clusters at once: most of a test is waiting.
const AT_ONCE: usize = 3;

/// A cluster that one test has. Dropped, the next one has it, unless this one has failed and left it as it was then.
pub struct Turn {
    pub(super) cluster: Option<Cluster>,
    /// The thread is in the cluster's network.
    pub(super) inside: Option<Inside>,
}

pub(super) type Cluster = (&'static Release, Netns);

struct Clusters {
    free: Vec<Cluster>,
    made: usize,
    lost: usize,
}

static CLUSTERS: Mutex<Clusters> = Mutex::new(Clusters { free: Vec::new(), made: 0, lost: 0 });
static GIVEN_BACK: Condvar = Condvar::new();

impl Turn {
    /// Waits for one that is there already, or may be made.
    pub(super) fn wait() -> Turn {
        let mut clusters = CLUSTERS.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(cluster) = clusters.free.pop() {
                let inside = cluster.1.enter();
                return Turn { cluster: Some(cluster), inside: Some(inside) };
            }
            if clusters.made < AT_ONCE {
                clusters.made += 1;
                return Turn { cluster: None, inside: None };
            }
            assert!(
                clusters.lost < AT_ONCE,
                "Tests before this one have failed, and left their clusters as they were then"
            );
            clusters = GIVEN_BACK.wait(clusters).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut clusters = CLUSTERS.lock().unwrap_or_else(PoisonError::into_inner);
        match self.cluster.take() {
            Some(cluster) if !std::thread::panicking() => clusters.free.push(cluster),
            _ => clusters.lost += 1,
        }
        GIVEN_BACK.notify_all();
    }
}
