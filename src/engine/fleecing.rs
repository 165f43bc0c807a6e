//! Whether the jobs of a run read from a snapshot, so that a slow, full or broken target cannot hurt the guest. Pure: what
//! QEMU is and can do, the disks and the room in the scratch folder come in as values.
//!
//! A plain job makes the guest's own writes wait for its target, and fail with it; no version up to 10.0 has an option
//! against that. Below 8.2 a snapshot shows wrong data after the guest has written zeros (both measured).

use serde::{Deserialize, Serialize};

use super::{
    choose::Chosen,
    graph::{GuestFacts, PowerState},
    space,
};
use crate::qmp::quirks;

/// What is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RequestedFleecing {
    /// Where it can be done.
    #[default]
    Auto,
    /// Or the run fails.
    Always,
    /// Not at all.
    Never,
}

/// Why a run is not fleeced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Unfleeced {
    /// The request says so.
    #[error("the request says so")]
    NotRequested,
    /// QEMU below 8.2 would store wrong data.
    #[error("QEMU before 8.2 shows wrong data in a snapshot; restart the machine with a newer one")]
    FleecingUnsafe,
    /// QEMU was built without what it takes.
    #[error("this QEMU has no copy-before-write or snapshot-access")]
    FleecingUnsupported,
    /// Reading through it inflates the guest's image (measured).
    #[error("a disk has a copy-on-read filter, through which reading inflates its image; remove the filter")]
    CopyOnRead,
    /// Nobody would let the guest go on if the agent died in that moment, until there is another one.
    #[error(
        "several disks have one instant only while the guest stands still for a moment; ask for it with fleecing Always"
    )]
    SeveralDisks,
    /// Nobody has said where.
    #[error("host.toml names no [scratch] folder")]
    ScratchMissing,
    /// What the job writes is local, with room for all that it can need: the target cannot hurt the guest either.
    #[error("its copy is staged in the scratch folder")]
    Staged,
    /// There is too little room.
    #[error("the scratch folder has too little room; raise its budget in host.toml, or make room on its file system")]
    ScratchFull,
}

/// From where on, in bytes, a scratch of the limit says that it is nearly used up: three quarters of it.
pub fn low_water(limit: u64) -> u64 {
    limit / 4 * 3
}

impl Unfleeced {
    /// Reason word.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotRequested => "NotRequested",
            Self::FleecingUnsafe => "FleecingUnsafe",
            Self::FleecingUnsupported => "FleecingUnsupported",
            Self::CopyOnRead => "CopyOnRead",
            Self::SeveralDisks => "SeveralDisks",
            Self::ScratchMissing => "ScratchMissing",
            Self::Staged => "Staged",
            Self::ScratchFull => "ScratchFull",
        }
    }
}

/// The least that a disk's scratch is good for, in bytes: the metadata of its image and some clusters.
const LEAST: u64 = 32 * space::CLUSTER;

/// The most bytes of scratch for each of the chosen disks, in their order, or why there are none. `room` is what may be
/// taken of the scratch folder now, where there is one; `supported`: whether QEMU has the nodes that it takes.
///
/// # Errors
/// Why the run is not fleeced.
pub fn decide(
    requested: RequestedFleecing,
    guest: &GuestFacts,
    chosen: &[Chosen],
    supported: bool,
    room: Option<u64>,
) -> Result<Vec<u64>, Unfleeced> {
    if requested == RequestedFleecing::Never {
        return Err(Unfleeced::NotRequested);
    }
    if quirks::FLEECING.is_in(&guest.version) {
        return Err(Unfleeced::FleecingUnsafe);
    }
    if !supported {
        return Err(Unfleeced::FleecingUnsupported);
    }
    let of_run = |name: &str| chosen.iter().any(|disk| disk.name.as_str() == name);
    if guest.disks.iter().any(|d| of_run(d.name.as_str()) && d.filters.iter().any(|f| f == "copy-on-read")) {
        return Err(Unfleeced::CopyOnRead);
    }
    let stops = chosen.len() > 1 && guest.power_state == PowerState::Running;
    if stops && requested == RequestedFleecing::Auto {
        return Err(Unfleeced::SeveralDisks);
    }
    let room = room.ok_or(Unfleeced::ScratchMissing)?;
    let bounds: Vec<u64> = chosen.iter().map(|disk| space::upper_bound(disk.virtual_size)).collect();
    let all: u64 = bounds.iter().fold(0, |all, bound| all.saturating_add(*bound));
    // Where there is not room for all that the guest could overwrite, each disk gets its share.
    let share = |bound: u64| match u128::from(bound) * u128::from(room) / u128::from(all.max(1)) {
        share if all > room => u64::try_from(share).unwrap_or(u64::MAX) / space::CLUSTER * space::CLUSTER,
        _ => bound,
    };
    let shares: Vec<u64> = bounds.iter().copied().map(share).collect();
    match shares.iter().zip(bounds).any(|(share, bound)| *share < LEAST.min(bound)) {
        true => Err(Unfleeced::ScratchFull),
        false => Ok(shares),
    }
}

#[cfg(test)]
mod tests;
