//! Guests and restores as the contract tells them. Pure.

use super::{
    inventory::{GuestView, Listing},
    problem::Problem,
    restores::{RestorePhase, RestoreState},
};
use crate::rpc::{convert, v1};

/// All guests.
pub(super) fn guests(listing: &Listing) -> v1::WatchGuestsResponse {
    v1::WatchGuestsResponse {
        guests: listing.guests.iter().map(guest).collect(),
        problems: listing.problems.iter().map(problem).collect(),
    }
}

fn guest(view: &GuestView) -> v1::Guest {
    let (namespace, name) = view.key.split_once('/').unwrap_or(("", &view.key));
    let facts = view.seen.facts.as_deref();
    let power = match facts {
        _ if view.seen.off => v1::PowerState::Off,
        Some(facts) => convert::power_state(facts.power_state),
        None => v1::PowerState::Unspecified,
    };
    v1::Guest {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        labels: view.file.iter().flat_map(|file| file.labels.clone()).collect(),
        uuid: view.seen.uuid.as_ref().map(ToString::to_string).unwrap_or_default(),
        power_state: power.into(),
        qemu_version: facts.map(|facts| facts.version.to_string()).unwrap_or_default(),
        connection: v1::Connection::Qmp.into(),
        capabilities: facts.map(|facts| facts.capabilities.clone()).unwrap_or_default(),
        quirks: facts.map(|facts| facts.quirks.clone()).unwrap_or_default(),
        disks: facts.map(|facts| facts.disks.iter().map(convert::disk).collect()).unwrap_or_default(),
        problem: view.seen.problem.as_ref().map(problem),
    }
}

fn problem(problem: &Problem) -> v1::Problem {
    v1::Problem {
        subject: problem.subject.clone(),
        reason: problem.reason.to_owned(),
        message: problem.message.clone(),
    }
}

/// A restore's state.
pub(super) fn restore(state: &RestoreState, session: &str) -> v1::RestoreState {
    let phase = match state.phase {
        RestorePhase::Preparing => v1::RestorePhase::Preparing,
        RestorePhase::Copying => v1::RestorePhase::Copying,
        RestorePhase::Verifying => v1::RestorePhase::Verifying,
        RestorePhase::Complete => v1::RestorePhase::Complete,
        RestorePhase::Failed => v1::RestorePhase::Failed,
        RestorePhase::Cancelled => v1::RestorePhase::Cancelled,
    };
    v1::RestoreState {
        run_uid: state.run.clone(),
        phase: phase.into(),
        session: session.to_owned(),
        reason: state.reason.clone(),
        message: state.message.clone(),
        start_time: convert::millis(Some(state.start_time)),
        completion_time: convert::millis(state.completion_time),
        disks: state
            .disks
            .iter()
            .map(|disk| v1::RestoreDiskState {
                name: disk.name.clone(),
                path: disk.path.to_string_lossy().into_owned(),
                total_bytes: disk.total_bytes,
                done_bytes: disk.done_bytes,
                chain: disk.chain.clone(),
            })
            .collect(),
        verified: state.verified,
        retriable: state.retriable,
    }
}
