//! Which disks a run stores, each with its type and why; or why the run cannot be. Pure: request, guest and stored
//! points come in as values. A guest or disk that is not ours to touch is refused here, before anything is done.

use std::collections::BTreeSet;

use super::{
    graph::{BitmapFacts, DiskFacts, GuestFacts, PowerState},
    request::BackupRequest,
};
use crate::{
    chain::{
        graph::Graph,
        next::{self, Bitmap, Candidate, Choice, RequestedType, TypeReason},
    },
    ids::{BitmapName, BitmapRole, DiskName, GuestId, LineageId, PointId, RepositoryId},
    retry::Retry,
};

/// A disk that the run stores.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Chosen {
    /// The disk.
    pub name: DiskName,
    /// Its format node.
    pub node: String,
    /// Its size in bytes.
    pub virtual_size: u64,
    /// Whether its bitmaps can be stored in the image.
    pub persistent: bool,
    /// The type and why.
    pub choice: Choice,
}

/// Why a run cannot be, as the guest stands now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another machine answers than was meant.
    #[error("QEMU at the monitor is guest {found}, not {expected}; correct the guest's file or the run")]
    WrongGuest {
        /// Who was meant.
        expected: GuestId,
        /// Who answered.
        found: GuestId,
    },
    /// A migration holds the guest.
    #[error("Guest is being migrated, or was migrated away; back it up where it runs, once that has ended")]
    Migrating,
    /// No disk is left to store.
    #[error("Guest has no disk that can be backed up: {why}")]
    NoEligibleDisk {
        /// Each disk's reason.
        why: String,
    },
    /// A disk was named that the guest has not.
    #[error("Guest has no disk {disk}; it has {there}")]
    DiskNotFound {
        /// The disk.
        disk: DiskName,
        /// The guest's disks.
        there: String,
    },
    /// A disk was named that cannot be stored.
    #[error("Disk {disk} cannot be backed up: {reason}")]
    DiskIneligible {
        /// The disk.
        disk: DiskName,
        /// The word of the table of eligibility.
        reason: &'static str,
    },
    /// An increment was asked for, and would not be exact.
    #[error("Disk {disk} cannot be backed up incrementally ({}); use type Auto, which makes a full of it", reason.as_str())]
    IncrementalImpossible {
        /// The disk.
        disk: DiskName,
        /// Why it needs a full.
        reason: TypeReason,
    },
    /// Somebody else works on a disk.
    #[error("Disk {disk} is in use by {job}, which is not this run's; wait for it to end, or end it")]
    ForeignJob {
        /// The disk.
        disk: DiskName,
        /// The job, or its filter node.
        job: String,
    },
}

impl Refusal {
    /// Reason word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::WrongGuest { .. } => "WrongGuest",
            Self::Migrating => "GuestMigrating",
            Self::NoEligibleDisk { .. } => "NoEligibleDisk",
            Self::DiskNotFound { .. } => "DiskNotFound",
            Self::DiskIneligible { .. } => "DiskIneligible",
            Self::IncrementalImpossible { .. } => "IncrementalImpossible",
            Self::ForeignJob { .. } => "ForeignJob",
        }
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Migrating | Self::ForeignJob { .. } => Retry::Backoff,
            Self::WrongGuest { .. }
            | Self::NoEligibleDisk { .. }
            | Self::DiskNotFound { .. }
            | Self::DiskIneligible { .. }
            | Self::IncrementalImpossible { .. } => Retry::OnChange,
        }
    }
}

/// The disks of the run. `graph` holds the guest's points in the repository, and what is wrong with those that `bases`
/// gives.
pub fn choose(request: &BackupRequest, guest: &GuestFacts, graph: &Graph) -> Result<Vec<Chosen>, Refusal> {
    if let Some(found) = &guest.uuid
        && *found != request.guest.uuid
    {
        return Err(Refusal::WrongGuest { expected: request.guest.uuid.clone(), found: found.clone() });
    }
    if guest.power_state == PowerState::Migrating {
        return Err(Refusal::Migrating);
    }
    let disks = select(request, guest)?;
    if disks.is_empty() {
        return Err(Refusal::NoEligibleDisk { why: why_none(request, guest) });
    }
    if let Some(disk) = disks.iter().find(|disk| disk.foreign_job.is_some()) {
        let job = disk.foreign_job.clone().unwrap_or_default();
        return Err(Refusal::ForeignJob { disk: disk.name.clone(), job });
    }
    let repository = &request.repository.id;
    let shared = shared_lineages(&guest.disks, repository);
    disks
        .into_iter()
        .map(|disk| {
            let choice = next::choose(request.kind, &candidate(disk, repository), &shared, graph);
            Ok(Chosen {
                name: disk.name.clone(),
                node: disk.node_name.clone(),
                virtual_size: disk.virtual_size,
                persistent: disk.persistent_bitmaps,
                choice: choice.map_err(|reason| Refusal::IncrementalImpossible { disk: disk.name.clone(), reason })?,
            })
        })
        .collect()
}

/// The disks of points that an increment of this request could continue, by the bitmaps on the guest's disks: what is
/// stored of them has to be whole.
pub fn bases(request: &BackupRequest, disks: &[DiskFacts], graph: &Graph) -> Vec<(PointId, DiskName)> {
    if matches!(request.kind, RequestedType::Full | RequestedType::Copy) {
        return Vec::new();
    }
    let bitmaps = disks.iter().flat_map(|disk| candidate(disk, &request.repository.id).bitmaps);
    bitmaps
        .filter(|bitmap| bitmap.name.role == BitmapRole::Checkpoint)
        .filter_map(|Bitmap { name, .. }| {
            let stored = graph.point(&name.point)?.disks.iter().find(|disk| disk.lineage == name.lineage)?;
            Some((name.point, stored.name.clone()))
        })
        .collect()
}

fn candidate<'a>(disk: &'a DiskFacts, repository: &RepositoryId) -> Candidate<'a> {
    let ours = |facts: &BitmapFacts| {
        let name = facts.name.parse::<BitmapName>().ok().filter(|name| name.is_of(repository))?;
        let BitmapFacts { bytes, recording, busy, inconsistent, .. } = *facts;
        Some(Bitmap { name, bytes, recording, busy, inconsistent })
    };
    Candidate {
        name: &disk.name,
        virtual_size: disk.virtual_size,
        persistent: disk.persistent_bitmaps,
        bitmaps: disk.bitmaps.iter().filter_map(ours).collect(),
        below: disk.bitmaps_below.iter().filter(|name| name.is_of(repository)).map(|n| n.lineage.clone()).collect(),
    }
}

/// Lineages that several disks of the guest have bitmaps of, whether those are stored in this run or not.
fn shared_lineages(disks: &[DiskFacts], repository: &RepositoryId) -> BTreeSet<LineageId> {
    let (mut seen, mut shared) = (BTreeSet::new(), BTreeSet::new());
    for disk in disks {
        let lineages: BTreeSet<_> = candidate(disk, repository).bitmaps.into_iter().map(|b| b.name.lineage).collect();
        shared.extend(lineages.intersection(&seen).cloned());
        seen.extend(lineages);
    }
    shared
}

fn select<'a>(request: &BackupRequest, guest: &'a GuestFacts) -> Result<Vec<&'a DiskFacts>, Refusal> {
    for name in &request.disks.include {
        let disk = guest.disks.iter().find(|disk| disk.name == *name).ok_or_else(|| {
            let there: Vec<_> = guest.disks.iter().map(|disk| disk.name.as_str()).collect();
            Refusal::DiskNotFound { disk: name.clone(), there: there.join(", ") }
        })?;
        if !disk.eligible() {
            return Err(Refusal::DiskIneligible { disk: name.clone(), reason: disk.ineligible_reason() });
        }
    }
    let wanted = |disk: &&DiskFacts| {
        disk.eligible()
            && !request.disks.exclude.contains(&disk.name)
            && (request.disks.include.is_empty() || request.disks.include.contains(&disk.name))
    };
    Ok(guest.disks.iter().filter(wanted).collect())
}

fn why_none(request: &BackupRequest, guest: &GuestFacts) -> String {
    if guest.disks.is_empty() {
        return "it has no disks".to_owned();
    }
    let reasons: Vec<_> = guest
        .disks
        .iter()
        .map(|disk| match disk.ineligible {
            Some(reason) => format!("{} is {}", disk.name, reason.as_str()),
            None if request.disks.exclude.contains(&disk.name) => format!("{} is excluded", disk.name),
            None => format!("{} is not included", disk.name),
        })
        .collect();
    reasons.join(", ")
}

#[cfg(test)]
mod tests;
