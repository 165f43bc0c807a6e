//! Ctrl-C and SIGTERM: the first one cancels cleanly, the second one ends the process at once. SIGHUP, a terminal that
//! was closed, cancels cleanly and no more: it may come from the shell and from the kernel for one closing.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{CliError, output::Output};
use crate::shutdown;

/// Whether somebody asked to end, for both worlds: the event loop and blocking work.
#[derive(Clone)]
pub(super) struct Interrupt {
    /// Cancelled by the first signal.
    pub(super) token: CancellationToken,
    /// Set by the first signal.
    pub(super) flag: Arc<AtomicBool>,
}

impl Interrupt {
    /// Listens from now on; says so once when the first signal comes.
    pub(super) fn listen(output: &Output) -> Result<Self, CliError> {
        let token = shutdown::token().map_err(|source| CliError::Signals { source })?;
        hang_up(&token).map_err(|source| CliError::Signals { source })?;
        let flag = Arc::new(AtomicBool::new(false));
        let (end, set, output) = (token.clone(), flag.clone(), output.clone());
        tokio::spawn(async move {
            end.cancelled().await;
            set.store(true, Ordering::Relaxed);
            output.note("Interrupted: tidying up. Once more ends at once and leaves that to `driftline recover`.");
        });
        Ok(Self { token, flag })
    }

    /// Listens for what has nothing to tidy up.
    pub(super) fn quietly() -> Result<Self, CliError> {
        let token = shutdown::token().map_err(|source| CliError::Signals { source })?;
        Ok(Self { token, flag: Arc::default() })
    }

    /// Whether the first signal has come.
    pub(super) fn came(&self) -> bool {
        self.token.is_cancelled()
    }
}

/// Cancels when the terminal is closed, unless somebody (`nohup`) had SIGHUP ignored: listening would undo that.
fn hang_up(token: &CancellationToken) -> std::io::Result<()> {
    if std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hang_up(&status)) {
        return Ok(());
    }
    let (mut signals, end) = (signal(SignalKind::hangup())?, token.clone());
    tokio::spawn(async move {
        while signals.recv().await.is_some() {
            end.cancel();
        }
    });
    Ok(())
}

/// Whether the process ignores SIGHUP, the lowest bit of the mask (proc_pid_status(5)).
fn ignores_hang_up(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nohup_does_is_seen_in_the_processs_status() {
        assert!(ignores_hang_up("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000000\n"));
        assert!(!ignores_hang_up("SigBlk:\t0000000000000001\nSigIgn:\t0000000000001000\n"));
        assert!(!ignores_hang_up(""));
    }
}
