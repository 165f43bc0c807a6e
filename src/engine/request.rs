//! What a run is asked to do, and how its course can be changed. Pure data: the agent makes it from a gRPC request, the
//! command from its arguments; the journal keeps it, so that a run goes on after a crash without being asked again.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    course::OwnerWish, data_path::RequestedDataPath, fleecing::RequestedFleecing, progress::RunState, quiesce::Quiesce,
};
use crate::{
    chain::next::RequestedType,
    ids::{DiskName, GuestId, RepositoryId},
};

/// One run: a backup of one guest into one repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupRequest {
    /// The run's uid. The same uid again is the same run, whatever else the request says.
    pub run: String,
    /// The run's name, for people.
    pub run_name: String,
    /// Whom to back up.
    pub guest: GuestRef,
    /// Where to.
    pub repository: RepositoryRef,
    /// The type that was asked for.
    #[serde(rename = "type")]
    pub kind: RequestedType,
    /// Which disks.
    #[serde(default)]
    pub disks: DiskSelection,
    /// Whether the guest is kept from the target.
    #[serde(default)]
    pub fleecing: RequestedFleecing,
    /// Which way the data takes.
    #[serde(default)]
    pub data_path: RequestedDataPath,
    /// Bytes per second over each disk's job; 0 is without a limit.
    #[serde(default)]
    pub bandwidth: u64,
    /// Whether the guest's file systems stand still at the instant.
    #[serde(default)]
    pub quiesce: Quiesce,
    /// The policy that made the run, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyRef>,
}

/// A guest, as its host knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestRef {
    /// Its identity.
    pub uuid: GuestId,
    /// Its name.
    pub name: String,
    /// The namespace that it belongs to; empty on a host without Kubernetes.
    #[serde(default)]
    pub namespace: String,
}

/// A repository: the path and the identity that must be found there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryRef {
    /// The folder.
    pub path: PathBuf,
    /// A folder with no or another id is refused, nothing is written.
    pub id: RepositoryId,
}

/// Names of disks. Nothing included: all that can be backed up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskSelection {
    /// Only these; one that is missing or cannot be backed up fails the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<DiskName>,
    /// Not these. A name that no disk has is no error: the disk may be gone for good.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<DiskName>,
}

/// The policy that made a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRef {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// How a run tells its state and hears of changes to its course.
#[derive(Debug, Clone)]
pub struct RunControl {
    /// The state, sent at each change.
    pub state: watch::Sender<RunState>,
    /// What whoever asked for the run wishes of its course.
    pub owner: watch::Sender<OwnerWish>,
    /// Cancels the run. From the moment that all is copied it comes too late: the point is committed.
    pub cancel: CancellationToken,
    /// Makes `Engine::backup` return soon and leave the jobs going, to be adopted later: what SIGTERM does.
    pub detach: CancellationToken,
}

impl RunControl {
    /// A control nobody has touched yet, for a run that waits.
    pub fn new(request: &BackupRequest, now: jiff::Timestamp) -> Self {
        let (state, _) = watch::channel(RunState::waiting(request, now));
        let (owner, _) = watch::channel(OwnerWish::default());
        Self { state, owner, cancel: CancellationToken::new(), detach: CancellationToken::new() }
    }
}
