//! How long a watch that was cut waits before it begins anew (pure): as kube's own does, but seconds at most, because
//! whoever applies an object after an outage waits for that.

use std::time::Duration;

use kube::runtime::{utils::Backoff, watcher::DefaultBackoff};

/// The longest pause. One controller has a handful of watches: a server that comes back can bear that.
const LONGEST: Duration = Duration::from_secs(5);

/// kube's pauses, none of them longer than [`LONGEST`].
#[derive(Default)]
pub(super) struct WatchPause(DefaultBackoff);

impl Iterator for WatchPause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|pause| pause.min(LONGEST))
    }
}

impl Backoff for WatchPause {
    fn reset(&mut self) {
        self.0.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_seconds_and_no_further() {
        let mut pauses = WatchPause::default();
        assert!(pauses.next().unwrap() < Duration::from_secs(2));
        assert!(pauses.take(20).all(|pause| pause <= LONGEST));
    }
}
