//! Descriptors that QEMU has kept of ended runs, because the guest stood still: given up once it runs.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::guest::Guests;
use crate::{
    engine::{Engine, EngineError, PowerState},
    sentence::sentence,
};

/// How long QEMU may take to answer for one guest.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is tried when no guest changes.
const REFRESH: Duration = Duration::from_secs(60);

/// Follows the guests until `end`.
pub(super) async fn follow(engine: Engine, guests: Guests, end: CancellationToken) {
    let mut listing = guests.listing();
    loop {
        let now = listing.borrow_and_update().clone();
        let running = now.guests.iter().filter(|guest| {
            let power_state = guest.seen.facts.as_ref().map(|facts| facts.power_state);
            power_state == Some(PowerState::Running) && guest.seen.problem.is_none()
        });
        for guest in running {
            let (Some(uuid), Some(socket)) = (&guest.seen.uuid, guests.socket(&guest.key)) else { continue };
            match tokio::time::timeout(PATIENCE, engine.give_up_kept(&socket.monitor, uuid)).await {
                // The run tries itself, or QEMU hangs: the next look does.
                Ok(Ok(_) | Err(EngineError::GuestInUse { .. })) | Err(_) => {}
                Ok(Err(error)) => {
                    tracing::warn!(guest = guest.key, reason = error.reason(), "{}", sentence(&error));
                }
            }
        }
        tokio::select! {
            changed = listing.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(REFRESH) => {}
            () = end.cancelled() => return,
        }
    }
}
