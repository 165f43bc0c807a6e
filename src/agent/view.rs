//! Guests and restores as the contract tells them. Pure.

use super::{
    inventory::{GuestView, Listing},
    problem::Problem,
    restores::{RestorePhase, RestoreState},
};
use crate::rpc::{convert, v1};

/// The most that is said of one guest, in bytes of the wire. All guests of a node are one message with a limit, and one
/// machine with thousands of disks or of other programs' bitmaps must not silence the others.
const GUEST_LIMIT: usize = 128 << 10;

/// All guests.
pub(super) fn guests(listing: &Listing) -> v1::WatchGuestsResponse {
    v1::WatchGuestsResponse {
        guests: listing.guests.iter().map(|view| bounded(guest(view))).collect(),
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

/// A guest without what would make it too large, and then with the reason.
fn bounded(mut guest: v1::Guest) -> v1::Guest {
    if prost::Message::encoded_len(&guest) <= GUEST_LIMIT {
        return guest;
    }
    guest.disks.iter_mut().for_each(|disk| disk.bitmaps.clear());
    if prost::Message::encoded_len(&guest) > GUEST_LIMIT {
        let subject = format!("{}/{}", guest.namespace, guest.name);
        let message = format!(
            "Guest {subject} has {} disks: more than can be told to the controller. Split the machine, or back it up with the command on its node",
            guest.disks.len()
        );
        guest.disks.clear();
        guest.problem = Some(v1::Problem { subject, reason: "GuestTooLarge".to_owned(), message });
    }
    guest
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::MAX_ANSWER;

    fn machine(disks: usize, bitmaps: usize) -> v1::Guest {
        let bitmap = v1::Bitmap { name: "b".repeat(64), ..v1::Bitmap::default() };
        let disk = v1::Disk { name: "d".repeat(32), bitmaps: vec![bitmap; bitmaps], ..v1::Disk::default() };
        v1::Guest { disks: vec![disk; disks], ..v1::Guest::default() }
    }

    #[test]
    fn a_machine_of_any_size_leaves_room_for_the_others() {
        assert_eq!(bounded(machine(64, 4)), machine(64, 4));
        let many_bitmaps = bounded(machine(64, 10_000));
        assert_eq!((many_bitmaps.disks.len(), many_bitmaps.problem), (64, None));
        assert!(prost::Message::encoded_len(&machine(10_000, 10)) > MAX_ANSWER, "it would silence the node");
        let many_disks = bounded(machine(10_000, 10));
        assert!(prost::Message::encoded_len(&many_disks) < GUEST_LIMIT);
        assert_eq!(many_disks.problem.unwrap().reason, "GuestTooLarge");
    }
}
