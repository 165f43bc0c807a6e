//! Every word that other programs may rely on: labels, finalizers, field manager, reasons. Pure.
//!
//! Each stands here once and in `docs/operations.md` (a test compares). Reasons that an agent gives are passed on as
//! they come; they stand with the errors that they name.

/// The field manager of all that the controller writes.
pub const FIELD_MANAGER: &str = "driftline-controller";
/// The controller's name in Events.
pub const REPORTER: &str = "driftline-controller";
/// On a run that may be going on an agent: deleting the object cancels the run first.
pub const FINALIZER: &str = "driftline.dev/cancel";
/// On everything that the controller makes.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of [`LABEL_MANAGED_BY`].
pub const MANAGED_BY: &str = "driftline";
/// On RestorePoints: the guest's UUID.
pub const LABEL_GUEST_UUID: &str = "driftline.dev/guest-uuid";
/// On RestorePoints: the repository's id.
pub const LABEL_REPOSITORY_ID: &str = "driftline.dev/repository-id";
/// On RestorePoints: the point's id.
pub const LABEL_POINT_ID: &str = "driftline.dev/point-id";

/// Labels and finalizers with their meaning, for the documentation and its test.
pub const NAMES: [(&str, &str); 5] = [
    (FINALIZER, "finalizer on runs and restores that may be going on an agent; removed when they have ended"),
    (LABEL_MANAGED_BY, "`driftline` on every Guest and RestorePoint that the controller made"),
    (LABEL_GUEST_UUID, "on RestorePoints: the guest's UUID"),
    (LABEL_REPOSITORY_ID, "on RestorePoints: the repository's id"),
    (LABEL_POINT_ID, "on RestorePoints: the point's id"),
];

macro_rules! reasons {
    ($($name:ident $meaning:literal;)+) => {
        /// The controller's own reasons: of conditions and Events, and in metrics.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
        pub enum Reason { $(#[doc = $meaning] $name,)+ }

        impl Reason {
            /// All of them.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)+];

            /// The word as it stands in conditions and Events.
            pub fn as_str(self) -> &'static str {
                match self { $(Reason::$name => stringify!($name),)+ }
            }

            /// What it means, for the documentation.
            pub fn meaning(self) -> &'static str {
                match self { $(Reason::$name => $meaning,)+ }
            }
        }
    };
}

reasons! {
    InvalidSpec "A field of the spec cannot be read; the message says which and what to write.";
    Discovered "An agent sees the guest and can back it up.";
    NotDiscovered "No agent's host file names this guest: it was made by hand, and nothing is done with it.";
    Vanished "The agent that saw the guest no longer does: its file on the host is gone.";
    ClaimedTwice "Host files on two nodes give the same name in the same namespace: remove one of them.";
    DuplicateUUID "Guests on two nodes have the same UUID: give one of them its own.";
    AgentUnavailable "The node's agent does not answer.";
    NodeGone "The guest's node is no longer in the cluster, and no other node has the guest; the message says when the object is deleted.";
    Forgotten "A Guest was deleted because its node had been gone for the time of controller.forgetGuestsAfter; its restore points stay.";
    NoAgent "No agent is connected that could use the repository.";
    HostFileRefused "A file on the host cannot be used; the message names it.";
    Initialising "The repository's id is chosen, its folder is about to be initialised.";
    Initialised "The folder became a repository.";
    Adopted "The folder was a repository already and is shown with its points.";
    Validating "The agents are being asked.";
    Validated "Every agent that should see the repository sees it.";
    PartlyAvailable "Some agents do not see the repository; unavailableOn names them.";
    Unavailable "No agent can use the repository; the message says why.";
    ReadOnly "The repository takes no new points, because its accessMode is ReadOnly or its folder cannot be written.";
    NotInitialised "The folder is not a repository, and accessMode ReadOnly forbids to make it one.";
    UsedByAnotherObject "Another BackupRepository object shows the same repository; the older one keeps it.";
    PointsNotListed "The repository's points could not be listed; the list shown is the last one.";
    PointNotShown "A RestorePoint object could not be written; the point itself is safe in the repository.";
    GuestNotFound "There is no Guest of that name in this namespace.";
    GuestNotReady "The guest cannot be backed up now; the message says why.";
    GuestPoweredOff "The guest does not run.";
    NoEligibleDisk "No disk of the guest can be backed up, or none of those that were named.";
    DiskNotFound "The guest has no disk of a name that the spec gives.";
    RepositoryNotFound "There is no BackupRepository of that name and namespace.";
    RepositoryNotReady "The repository cannot be used now; the message says why.";
    RepositoryReadOnly "The repository takes no new points.";
    RepositoryNotOnNode "The guest's node does not see the repository.";
    NamespaceNotAllowed "The repository's usagePolicy does not name this namespace.";
    Queued "Another run of the same guest is in front.";
    Starting "The agent is being asked to start.";
    Running "The run is going on its agent.";
    Retrying "A try failed and is repeated after a pause.";
    AgentLost "The agent did not answer for ten minutes while it held the run.";
    RunUnknownToAgent "The agent has no record of a run that it had started.";
    DeadlineExceeded "The run took longer than activeDeadline.";
    Cancelling "The run is being cancelled.";
    Cancelled "The run was cancelled before its restore point was durable.";
    BackupComplete "The restore point is durable.";
    BackupFailed "The run failed and its agent gave no reason.";
    PointNotFound "There is no RestorePoint of that name in this namespace.";
    PointNotAvailable "The repository does not hold the point now, or a point that it builds on.";
    InRepository "The repository holds the point and all that it builds on.";
    NotInRepository "The repository holds no such point for this namespace: made by hand, or the data is gone.";
    ChainBroken "A point that this one builds on is missing or is another.";
    RepositoryUnknown "The repository has not been read yet.";
    RestoreComplete "The restored images are whole and have their names.";
    RestoreFailed "The restore failed and its agent gave no reason.";
    DigestsCompared "Every cluster was compared with its stored digest.";
    Frozen "The guest's file systems stood still at the instant.";
    Suspended "The run stands still, because its spec says so.";
    SuspendedOnHost "The run stands still, because of `driftline suspend` on its host.";
    Resumed "The run goes on after it stood still.";
    CheckpointTaken "The instant that the restore point holds has come.";
    CheckpointPending "The instant that the restore point holds has not come yet.";
    Expired "The object was deleted because its ttlAfterFinished was over; its restore point stays.";
    ForeignObject "An object of a computed name is there that the controller did not make; it is left alone.";
    FieldConflict "Another field manager holds a field that the controller writes; the message names both.";
    ObjectNotReadable "The stored object does not fit its schema; it is left alone.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_one_that_the_api_takes() {
        for reason in Reason::ALL {
            let word = reason.as_str();
            assert!(word.len() <= 128 && word.starts_with(|c: char| c.is_ascii_uppercase()), "{word}");
            assert!(word.bytes().all(|b| b.is_ascii_alphanumeric()), "{word}");
            assert!(reason.meaning().ends_with('.'), "{word}");
        }
    }
}
