//! Ctrl-C and SIGTERM: the first one cancels cleanly, the second one ends the process at once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

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
        let flag = Arc::new(AtomicBool::new(false));
        let (end, set, output) = (token.clone(), flag.clone(), output.clone());
        tokio::spawn(async move {
            end.cancelled().await;
            set.store(true, Ordering::Relaxed);
            output.note("Interrupted: tidying up. Once more ends at once and leaves that to `driftline recover`.");
        });
        Ok(Self { token, flag })
    }

    /// Whether the first signal has come.
    pub(super) fn came(&self) -> bool {
        self.token.is_cancelled()
    }
}
