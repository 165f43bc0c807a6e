//! What each error is called, and whether trying again can help.

use super::{
    EngineError,
    words::{GUEST_HARMED, TARGET_STUCK},
};
use crate::{
    chain::next::TypeReason,
    engine::{data_path::Unsafe, graph::Change},
    retry::Retry,
};

impl EngineError {
    /// Reason word for conditions, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Connect { source } => source.reason(),
            Self::Inspect { source, .. } | Self::Qemu { source, .. } => source.reason(),
            Self::Refused(source) => source.reason(),
            Self::Lock(source) => source.reason(),
            Self::Journal(source) => source.reason(),
            Self::Repository { source, .. } => source.reason(),
            Self::TargetUnsafe { .. } => "TargetUnsafe",
            Self::Staging { source } if source.reason() == "RepositoryFull" => "ScratchFull",
            Self::Staging { .. } => "ScratchUnusable",
            Self::ReadOnly { .. } => "RepositoryReadOnly",
            Self::NoSpace { .. } => "RepositoryFull",
            Self::Sentinel { .. } => "SentinelNotMade",
            Self::Sync { .. } => "RepositoryIOError",
            Self::CopyIncomplete { .. } => "CopyIncomplete",
            Self::CopyGone { .. } => "CopyGone",
            Self::GuestHarmed { .. } => GUEST_HARMED,
            Self::GuestStopped { .. } => "GuestStopped",
            Self::MigrationStarted { .. } => "MigrationStarted",
            Self::NotFleeced { why } => why.reason(),
            Self::NotQuiesced { reason, .. } => reason,
            Self::Scratch { .. } => "ScratchUnusable",
            Self::Overlaid { .. } => TypeReason::ActiveLayerChanged.as_str(),
            Self::DiskChanged { change, .. } => match change {
                Change::Unplugged => "DiskNotFound",
                Change::Layer(_) => TypeReason::ActiveLayerChanged.as_str(),
                Change::Filter(_) => "FilterChanged",
                Change::Job(_) => "ForeignJob",
            },
            Self::FilterStuck { .. } | Self::FilterUsed { .. } => "FilterStuck",
            Self::DiskShrunk { .. } => TypeReason::DiskShrunk.as_str(),
            Self::TooManyAttempts { .. } => "TooManyAttempts",
            Self::Bitmap(refusal) => refusal.reason(),
            Self::Course(error) => error.reason(),
            Self::DescriptorsKept { .. } => "DescriptorsKept",
            Self::JobStuck { .. } | Self::NotCleared { .. } => TARGET_STUCK,
            Self::CommitUnknown { .. } => "RepositoryUnavailable",
            Self::EarlierOutsideRoots { .. } => "OutsideRoots",
            Self::GuestInUse { .. } => "GuestInUse",
            Self::Unanswered { .. } => "MonitorUnanswered",
            Self::OtherMachine { .. } => "OtherMachine",
            Self::Broken { .. } => "EngineBroken",
        }
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Connect { source } => source.retry(),
            Self::Inspect { source, .. } | Self::Qemu { source, .. } => source.retry(),
            Self::Refused(source) => source.retry(),
            Self::Lock(source) => source.retry(),
            Self::Journal(source) => source.retry(),
            Self::Repository { source, .. } => source.retry(),
            Self::TargetUnsafe { why: Unsafe::ScratchFull { .. }, .. } => Retry::Backoff,
            Self::TargetUnsafe { .. }
            | Self::ReadOnly { .. }
            | Self::NotFleeced { .. }
            | Self::Bitmap(_)
            | Self::Course(_)
            | Self::EarlierOutsideRoots { .. } => Retry::OnChange,
            Self::NoSpace { .. }
            | Self::Sentinel { .. }
            | Self::Sync { .. }
            | Self::Staging { .. }
            | Self::CopyIncomplete { .. }
            | Self::CopyGone { .. }
            | Self::GuestHarmed { .. }
            | Self::GuestStopped { .. }
            | Self::MigrationStarted { .. }
            | Self::NotQuiesced { .. }
            | Self::Scratch { .. }
            | Self::Overlaid { .. }
            | Self::DiskChanged { .. }
            | Self::FilterStuck { .. }
            | Self::FilterUsed { .. }
            | Self::DiskShrunk { .. }
            | Self::TooManyAttempts { .. }
            | Self::DescriptorsKept { .. }
            | Self::JobStuck { .. }
            | Self::NotCleared { .. }
            | Self::CommitUnknown { .. }
            | Self::GuestInUse { .. }
            | Self::Unanswered { .. }
            | Self::OtherMachine { .. }
            | Self::Broken { .. } => Retry::Backoff,
        }
    }
}
