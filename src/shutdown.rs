//! The end of a role: SIGTERM and SIGINT as a token that everything waits for.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that the first SIGTERM or SIGINT cancels. A second signal ends the process at once, as a person who presses
/// Ctrl-C twice expects.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn token() -> std::io::Result<CancellationToken> {
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let end = token.clone();
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! { _ = term.recv() => {} _ = interrupt.recv() => {} }
            if !first {
                std::process::exit(130);
            }
            tracing::info!("Asked to end");
            end.cancel();
        }
    });
    Ok(token)
}
