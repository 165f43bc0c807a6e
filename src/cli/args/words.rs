//! The words that options take; any case will do. Pure.

use clap::ValueEnum;

/// Type of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum BackupType {
    /// What has changed since the last point, where that is known exactly, else everything.
    Auto,
    /// What has changed, or fail.
    Incremental,
    /// Everything: the point stands on its own.
    Full,
    /// Everything, and no later backup builds on it.
    Copy,
}

/// Whether a machine is kept from the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum Fleecing {
    /// Where it can be done.
    Auto,
    /// Or fail.
    Always,
    /// Not at all.
    Never,
}

/// Whether the file systems of a machine stand still at the instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum Quiesce {
    /// Or fail.
    Required,
    /// Where it can be done.
    Preferred,
    /// Not at all.
    Never,
}

/// Which way the data takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum DataPath {
    /// Direct where the repository is on a local file system, else Staged.
    Auto,
    /// Straight into the repository.
    Direct,
    /// By way of the scratch folder.
    Staged,
}

/// How images are restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum RestoreMode {
    /// One new image for each disk, that needs no other file.
    Flatten,
}

/// Format of a restored image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum ImageFormat {
    /// QEMU's own, with room for bitmaps.
    Qcow2,
    /// The disk's bytes, with holes where it is zero.
    Raw,
}

/// What becomes of files that are there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum Overwrite {
    /// They are refused.
    Never,
    /// Those that an earlier restore of the same guest wrote are replaced.
    IfSameGuest,
    /// Any file is replaced.
    Always,
}
