//! What a repository holds, as the contract tells it (edge): a summary, and its points one after the other.

use std::path::PathBuf;

use tokio::sync::mpsc;
use tonic::Status;

use super::refused;
use crate::{
    agent::storage::Storage,
    chain::graph::Graph,
    ids::GuestId,
    repo::{RepoError, Repository},
    rpc::{convert, v1},
    sentence::sentence,
};

pub(super) fn look(repository: &Repository) -> Result<v1::RepositoryResponse, RepoError> {
    let space = repository.space()?;
    let mut points = 0;
    let listing = repository.listing()?;
    for finding in &listing.findings {
        tracing::warn!(repository = %repository.id(), "{}", finding.message);
    }
    for guest in listing.guests {
        match repository.points(&guest) {
            Ok(found) => points += found.len(),
            Err(error) => leave_out(repository, &guest, &error),
        }
    }
    Ok(v1::RepositoryResponse {
        id: repository.id().to_string(),
        format_version: repository.format_version(),
        writable: space.writable,
        capacity_bytes: space.capacity,
        available_bytes: space.available,
        restore_points: u64::try_from(points).unwrap_or(u64::MAX),
        problem: None,
        local: space.local,
    })
}

/// One guest hides no other.
fn leave_out(repository: &Repository, guest: &GuestId, error: &RepoError) {
    let repository = repository.id();
    tracing::warn!(%repository, %guest, reason = error.reason(), "The points of a guest are left out: {}", sentence(error));
}

/// Guest by guest: each is a call with a deadline of its own, and nobody waits for the last before seeing the first. A
/// guest whose folder cannot be read is left out; where none can be, or the folder of all of them, that is the answer.
pub(super) async fn send_points(
    storage: Storage,
    path: PathBuf,
    repository: Repository,
    guests: Vec<GuestId>,
    sender: mpsc::Sender<Result<v1::Point, Status>>,
) {
    let (mut any, mut unread) = (false, None);
    for guest in guests {
        let repository = repository.clone();
        let read = storage.call(&path, move || match repository.points(&guest) {
            Err(error) => {
                leave_out(&repository, &guest, &error);
                repository.guests().map(|_| Err(error))
            }
            read => Ok(read),
        });
        let points = match read.await.and_then(|read| read.map_err(|error| refused(&error))) {
            Ok(Ok(points)) => points,
            Ok(Err(error)) => {
                unread = Some(error);
                continue;
            }
            Err(refusal) => {
                // Nobody to tell when the receiver is gone.
                let _ = sender.send(Err(refusal.into())).await;
                return;
            }
        };
        any = true;
        let graph = Graph::new(points.iter().map(|stored| stored.manifest.point()).collect());
        for stored in &points {
            let point = convert::point(&stored.manifest, &stored.manifest_digest, &graph);
            if sender.send(Ok(point)).await.is_err() {
                return;
            }
        }
    }
    if let Some(error) = unread.filter(|_| !any) {
        let _ = sender.send(Err(refused(&error).into())).await;
    }
}
