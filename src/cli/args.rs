//! What can be asked on the command line (pure): the roles of the one binary, and the verbs of a person. Values are
//! those of the API, in any case of letters.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

mod words;

pub use self::words::{BackupType, DataPath, Fleecing, ImageFormat, Overwrite, RestoreMode};

use crate::{
    api::quantity,
    config,
    ids::{DiskName, GuestId, PointId},
};

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
    /// Only this disk; may be given several times [default: all that can be backed up].
    #[arg(long = "disk", value_name = "DISK")]
    pub disks: Vec<DiskName>,
    /// Not this disk; may be given several times.
    #[arg(long, value_name = "DISK")]
    pub exclude: Vec<DiskName>,
    /// Bytes per second of each disk, such as 50Mi [default: no limit].
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub bandwidth: Option<u64>,
}

/// `driftline points`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
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

/// What is asked of points.
#[derive(Debug, Subcommand)]
pub enum PointsVerb {
    /// One point with all its disks.
    Show(PointsShow),
}

/// `driftline points show`
#[derive(Debug, Args)]
pub struct PointsShow {
    /// Which point.
    #[command(flatten)]
    pub point: PointSelection,
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

/// A point as a person names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PointName {
    /// The newest one of a guest.
    Latest,
    /// This one.
    Id(PointId),
}

impl std::str::FromStr for PointName {
    type Err = crate::ids::ParseIdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case("latest") { Ok(Self::Latest) } else { text.parse().map(Self::Id) }
    }
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
    /// A disk and the file that it is written to; may be given several times. Other disks are left out.
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

/// A disk of a point and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The disk.
    pub disk: DiskName,
    /// The file.
    pub path: PathBuf,
}

/// `driftline verify`
#[derive(Debug, Args)]
pub struct Verify {
    /// What is verified.
    #[command(flatten)]
    pub from: PointSelection,
    /// Only this point: its id, or latest.
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

fn target(text: &str) -> Result<Target, String> {
    let example = "write DISK=PATH, such as disk0=/var/lib/machines/disk0.qcow2";
    // The last sign that is followed by a path: QOM names of disks may hold one.
    let (disk, path) = text.split_once('=').ok_or(example)?;
    if path.is_empty() {
        return Err(example.to_owned());
    }
    let disk = disk.parse().map_err(|error: crate::ids::ParseIdError| error.to_string())?;
    Ok(Target { disk, path: path.into() })
}

fn guest_name(text: &str) -> Result<String, String> {
    if config::is_guest_name(text) {
        return Ok(text.to_owned());
    }
    Err("write lower case letters, digits, - and dots, such as db-1".to_owned())
}

fn rate(text: &str) -> Result<u64, String> {
    match quantity::parse(text) {
        Ok(0) | Err(_) => Err(format!("{text:?} is not a rate: write bytes per second such as 50Mi, 100M or 52428800")),
        Ok(rate) => Ok(rate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Verb, clap::Error> {
        let all = ["driftline"].iter().chain(words);
        Cli::try_parse_from(all).map(|cli| match cli.command {
            Command::Verb(verb) => verb,
            other => panic!("{other:?} is no verb"),
        })
    }

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn values_are_the_apis_in_any_case() {
        for (kind, format, overwrite) in
            [("Full", "Raw", "Always"), ("full", "raw", "always"), ("FULL", "RAW", "ALWAYS")]
        {
            parse(&["backup", "--qmp", "q", "--repository", "r", "--type", kind]).unwrap();
            let id = "01j00000000000000000000000";
            let words = ["restore", "--repository", "r", "--point", id, "--to", "a=b", "--format", format];
            let words: Vec<_> = words.into_iter().chain(["--overwrite", overwrite]).collect();
            let Verb::Restore(restore) = parse(&words).unwrap() else { panic!("a restore") };
            assert_eq!((restore.format, restore.overwrite), (ImageFormat::Raw, Overwrite::Always));
        }
    }

    #[test]
    fn wrong_values_are_refused_with_what_to_write() {
        for (words, says) in [
            (vec!["backup", "--qmp", "q", "--repository", "r", "--bandwidth", "fast"], "50Mi"),
            (vec!["backup", "--qmp", "q", "--repository", "r", "--bandwidth", "0"], "50Mi"),
            (vec!["backup", "--repository", "r"], "--qmp"),
            (vec!["backup", "--qmp", "q", "--repository", "r", "--name", "Bad Name"], "such as db-1"),
            (vec!["restore", "--repository", "r", "--point", "latest", "--to", "x"], "DISK=PATH"),
            (vec!["restore", "--repository", "r", "--point", "newest", "--to", "a=b"], "26 characters"),
            (vec!["restore", "--repository", "r", "--point", "latest"], "--to"),
            (vec!["points"], "--repository"),
        ] {
            let text = parse(&words).unwrap_err().to_string();
            assert!(text.contains(says), "{words:?}: {text}");
        }
    }

    #[test]
    fn one_point_is_shown_without_asking_for_the_list() {
        let Verb::Points(points) = parse(&["points", "show", "latest", "--repository", "r"]).unwrap() else {
            panic!("points");
        };
        let Some(PointsVerb::Show(show)) = points.show else { panic!("show") };
        assert_eq!(show.id, PointName::Latest);
    }

    #[test]
    fn output_and_verbosity_are_taken_before_and_behind_the_verb() {
        for words in [["-o", "json", "points", "--repository", "r"], ["points", "--repository", "r", "-o", "JSON"]] {
            let cli = Cli::try_parse_from(["driftline"].iter().chain(&words)).unwrap();
            assert_eq!(cli.common.output, OutputFormat::Json);
        }
    }
}
