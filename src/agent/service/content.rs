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
};

pub(super) fn look(repository: &Repository) -> Result<v1::RepositoryResponse, RepoError> {
    let space = repository.space()?;
    let mut points = 0;
    for guest in repository.guests()? {
        points += repository.points(&guest)?.len();
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

/// Guest by guest: each is a call with a deadline of its own, and nobody waits for the last before seeing the first.
pub(super) async fn send_points(
    storage: Storage,
    path: PathBuf,
    repository: Repository,
    guests: Vec<GuestId>,
    sender: mpsc::Sender<Result<v1::Point, Status>>,
) {
    for guest in guests {
        let repository = repository.clone();
        let read = storage.call(&path, move || repository.points(&guest)).await;
        let points = match read.and_then(|points| points.map_err(|error| refused(&error))) {
            Ok(points) => points,
            Err(refusal) => {
                // Nobody to tell when the receiver is gone.
                let _ = sender.send(Err(refusal.into())).await;
                return;
            }
        };
        let graph = Graph::new(points.iter().map(|stored| stored.manifest.point()).collect());
        for stored in &points {
            let point = convert::point(&stored.manifest, &stored.manifest_digest, &graph);
            if sender.send(Ok(point)).await.is_err() {
                return;
            }
        }
    }
}
