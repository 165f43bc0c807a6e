//! What `/readyz` of the controller says, and the numbers that are read then (edge).

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    authority::keep::{KeepError, Kept},
    context::Context,
};
use crate::{admin::Readiness, sentence::sentence};

/// Says what is wrong with the authority, in the log and in `/readyz`.
pub(super) fn tell_authority(
    error: Option<&KeepError>,
    trouble: &watch::Sender<Option<String>>,
    ready: &watch::Sender<Readiness>,
) {
    let Some(error) = error else {
        tracing::info!("The authority can be used again");
        trouble.send_replace(None);
        return;
    };
    let text = sentence(error);
    tracing::error!(reason = error.reason(), "{text}");
    let note = format!("{}: {text}", error.reason());
    ready.send_if_modified(|readiness| {
        if !readiness.ready {
            readiness.notes = vec![note.clone()];
        }
        !readiness.ready
    });
    trouble.send_replace(Some(note));
}

/// Keeps `/readyz` true to whether the caches are filled, with a word about agents that do not answer and about the
/// authority. Trouble with it ends no work: what was signed holds for a while.
pub(super) async fn tell(
    context: Arc<Context>,
    certificates: Kept,
    trouble: watch::Receiver<Option<String>>,
    ready: watch::Sender<Readiness>,
    end: CancellationToken,
) {
    context.synced().await;
    tracing::info!("The caches are filled");
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    while end.run_until_cancelled(tick.tick()).await.is_some() {
        let authority = certificates.signer.borrow().authority.validity().until;
        let authority = i64::try_from(authority).unwrap_or(i64::MAX);
        context.metrics.certificates_end(certificates.identity.expires(), authority);
        let answering = context.inventory.sessions();
        let silent: Vec<_> = context.agents.nodes().into_iter().filter(|n| !answering.contains_key(n)).collect();
        let mut notes = vec![format!("{} agents answer", answering.len())];
        if !silent.is_empty() {
            notes.push(format!("Agents that do not answer: {}", silent.join(", ")));
        }
        notes.extend(trouble.borrow().clone());
        let readiness = Readiness { ready: true, notes, ..Readiness::default() };
        ready.send_if_modified(|old| {
            let changed = *old != readiness;
            *old = readiness;
            changed
        });
    }
}
