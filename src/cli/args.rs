//! What can be asked on the command line (pure): the roles of the one binary, and the verbs of a person. Values are
//! those of the API, in any case of letters.

use std::path::{Path, PathBuf};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

mod check;
mod monitor;
mod values;
mod words;

pub use self::words::{BackupType, DataPath, Fleecing, ImageFormat, Overwrite, Quiesce, RestoreMode};
pub use self::{
    monitor::{AtMonitor, Bandwidth, BitmapAdd, BitmapNamed, Bitmaps, Events},
    values::{PointName, Target},
};

use self::values::{guest_name, rate, target};
use crate::ids::{DiskName, GuestId};

/// Backs up running QEMU/KVM machines.
#[derive(Debug, Parser)]
#[command(name = "driftline", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Exit status: 0 done, 1 failed and nothing committed, 2 wrong usage, 3 verification found \
                        damage, 130 interrupted.")]
pub struct Cli {
    /// What holds for every verb.
    #[command(flatten)]
    pub common: Common,
    /// The role or verb.
    #[command(subcommand)]
    pub command: Command,
}

/// Roles of the binary and verbs of a person.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Follows the objects of a cluster and has the agents do what they ask for.
    Controller(crate::controller::Args),
    /// Serves the controller on one node.
    Agent(crate::agent::Args),
    /// Makes certificates for development and tests.
    Certs(crate::certs::Args),
    /// Prints the definitions of the objects, for `kubectl apply -f -`.
    Crds,
    /// What a person asks for.
    #[command(flatten)]
    Verb(Verb),
}

/// How results are told.
#[derive(Debug, Clone, Default, Args)]
pub struct Common {
    /// How the result is printed on stdout.
    #[arg(short, long, global = true, value_enum, ignore_case = true, default_value = "text")]
    pub output: OutputFormat,
    /// No progress and no notes; errors are still printed.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Log what is done, to stderr; twice for more.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// Form of the result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON document with the API's field names.
    Json,
}

/// What a person asks for, on this host.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// One backup of a running machine, followed until it ends.
    Backup(Backup),
    /// The stored points, newest last; `points show ID` for one.
    Points(Points),
    /// Writes a point's disks into new images.
    Restore(Restore),
    /// Reads everything that is stored and compares it with its digests.
    Verify(Verify),
    /// Finishes or undoes what a killed command left in a machine and the repository.
    Recover(Recover),
    /// Has a machine's run stand still; only one that is fleeced, and for an hour at most.
    Suspend(AtMonitor),
    /// Lets a suspended run go on.
    Resume(AtMonitor),
    /// Ends a machine's run; once all is copied it comes too late.
    Cancel(AtMonitor),
    /// Changes how fast a machine's run copies.
    Bandwidth(Bandwidth),
    /// The block jobs of a machine, whoever has started them.
    Jobs(AtMonitor),
    /// The dirty bitmaps of a machine: lists them; adds, clears or removes one.
    #[command(subcommand)]
    Bitmaps(Bitmaps),
    /// What QEMU tells of a machine, as it happens.
    Events(Events),
    /// The machines of this host, their disks, and whether they can be backed up.
    Guests(Guests),
}

/// Which machine: by its monitor.
#[derive(Debug, Clone, Args)]
pub struct Machine {
    /// The machine's QMP socket.
    #[arg(long, value_name = "SOCKET")]
    pub qmp: PathBuf,
    /// The machine's UUID, only where QEMU was started without one.
    #[arg(long)]
    pub uuid: Option<GuestId>,
}

/// `driftline backup`
#[derive(Debug, Args)]
pub struct Backup {
    /// Which machine.
    #[command(flatten)]
    pub machine: Machine,
    /// The repository's folder. An empty one becomes a repository.
    #[arg(long, value_name = "DIR")]
    pub repository: PathBuf,
    /// The machine's name in the repository [default: as its file on this host says, or QEMU's -name].
    #[arg(long, value_parser = guest_name)]
    pub name: Option<String>,
    /// What is stored.
    #[arg(long = "type", value_enum, ignore_case = true, default_value = "Auto")]
    pub kind: BackupType,
    /// Whether what the machine writes is kept from the repository, so that a slow or broken one cannot hurt it; from QEMU 8.2
    /// on, with a [scratch] folder in host.toml.
    #[arg(long, value_enum, ignore_case = true, default_value = "Auto")]
    pub fleecing: Fleecing,
    /// Which way the data takes: Direct into the repository, which has to be on a local file system then, or Staged by way of
    /// the [scratch] folder in host.toml.
    #[arg(long, value_enum, ignore_case = true, default_value = "Auto")]
    pub data_path: DataPath,
    /// Whether the guest agent freezes the machine's file systems for the instant, so that they are whole without a check.
    #[arg(long, value_enum, ignore_case = true, default_value = "Never")]
    pub quiesce: Quiesce,
    /// The guest agent's socket [default: guestAgent in the machine's file].
    #[arg(long, value_name = "SOCKET")]
    pub guest_agent: Option<PathBuf>,
    /// Only this disk; may be given several times [default: all that can be backed up].
    #[arg(long = "disk", value_name = "DISK")]
    pub disks: Vec<DiskName>,
    /// Not this disk; may be given several times, and need not be there.
    #[arg(long, value_name = "DISK")]
    pub exclude: Vec<DiskName>,
    /// Bytes per second of each disk, such as 50Mi [default: no limit].
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub bandwidth: Option<u64>,
}

/// `driftline points`
#[derive(Debug, Args)]
#[command(subcommand_negates_reqs = true)]
pub struct Points {
    /// One point instead of the list.
    #[command(subcommand)]
    pub show: Option<PointsVerb>,
    /// The repository's folder.
    #[arg(long, value_name = "DIR", required = true)]
    pub repository: Option<PathBuf>,
    /// Only this machine's points.
    #[arg(long, value_name = "NAME|UUID")]
    pub guest: Option<String>,
}

impl Points {
    /// The repository's folder, wherever it was named.
    pub fn repository(&self) -> Option<&Path> {
        let Some(PointsVerb::Show(show)) = &self.show else { return self.repository.as_deref() };
        show.repository.as_deref().or(self.repository.as_deref())
    }

    /// The machine, wherever it was named.
    pub fn guest(&self) -> Option<&str> {
        let Some(PointsVerb::Show(show)) = &self.show else { return self.guest.as_deref() };
        show.guest.as_deref().or(self.guest.as_deref())
    }
}

/// What is asked of points.
#[derive(Debug, Subcommand)]
pub enum PointsVerb {
    /// One point with all its disks.
    Show(PointsShow),
}

/// `driftline points show`
#[derive(Debug, Args)]
pub struct PointsShow {
    /// The repository's folder; also before `show`.
    #[arg(long, value_name = "DIR")]
    pub repository: Option<PathBuf>,
    /// The machine that the point is of; needed with `latest` when the repository holds several.
    #[arg(long, value_name = "NAME|UUID")]
    pub guest: Option<String>,
    /// Print the machine's stored definition instead: block graph and command line.
    #[arg(long)]
    pub definition: bool,
    /// The point's id, or latest.
    #[arg(value_name = "ID")]
    pub id: PointName,
}

/// Where a point is looked for.
#[derive(Debug, Clone, Args)]
pub struct PointSelection {
    /// The repository's folder.
    #[arg(long, value_name = "DIR")]
    pub repository: PathBuf,
    /// The machine that the point is of; needed with `latest` when the repository holds several.
    #[arg(long, value_name = "NAME|UUID")]
    pub guest: Option<String>,
}

/// `driftline restore`
#[derive(Debug, Args)]
pub struct Restore {
    /// Where the point is.
    #[command(flatten)]
    pub from: PointSelection,
    /// The point's id, or latest.
    #[arg(long, value_name = "ID|latest")]
    pub point: PointName,
    /// How the images are made.
    #[arg(long, value_enum, ignore_case = true, default_value = "Flatten")]
    pub mode: RestoreMode,
    /// A disk and the file that it is written to; may be given several times. Other disks are left out. Where a name holds a
    /// =, write the path from / or ./ on.
    #[arg(long, value_name = "DISK=PATH", required = true, value_parser = target)]
    pub to: Vec<Target>,
    /// Format of the new images.
    #[arg(long, value_enum, ignore_case = true, default_value = "Qcow2")]
    pub format: ImageFormat,
    /// What becomes of files that are there already.
    #[arg(long, value_enum, ignore_case = true, default_value = "Never")]
    pub overwrite: Overwrite,
    /// Only say what would be written.
    #[arg(long)]
    pub dry_run: bool,
}

/// `driftline verify`
#[derive(Debug, Args)]
pub struct Verify {
    /// What is verified.
    #[command(flatten)]
    pub from: PointSelection,
    /// Only this point, with all that it builds on: its id, or latest.
    #[arg(long, value_name = "ID|latest")]
    pub point: Option<PointName>,
}

/// `driftline recover`
#[derive(Debug, Args)]
pub struct Recover {
    /// Which machine.
    #[command(flatten)]
    pub machine: Machine,
    /// The repository's folder.
    #[arg(long, value_name = "DIR")]
    pub repository: PathBuf,
    /// Also end jobs of ours in the machine that no journal of this host knows. Only when nobody else is at work.
    #[arg(long)]
    pub adopt: bool,
}

/// `driftline guests`
#[derive(Debug, Args)]
pub struct Guests {
    /// Only the machine at this QMP socket.
    #[arg(long, value_name = "SOCKET", conflicts_with = "guests_dir")]
    pub qmp: Option<PathBuf>,
    /// The folder of the machines' files [default: as the host's configuration says].
    #[arg(long, value_name = "DIR")]
    pub guests_dir: Option<PathBuf>,
}

#[cfg(test)]
mod tests;
