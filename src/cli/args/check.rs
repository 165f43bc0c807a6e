//! What the options' own rules cannot say: wrong usage all the same, and refused before anything is done. Pure.

use clap::{CommandFactory, Parser, error::ErrorKind};

use super::{Backup, Cli, Command, Points, PointsVerb, Verb};

impl Cli {
    /// The words of the command line, or the end of the process with what to write instead.
    pub fn from_command_line() -> Self {
        let cli = Self::parse();
        if let Err(error) = cli.check() {
            error.exit();
        }
        cli
    }

    /// Whether the words go together.
    ///
    /// # Errors
    /// With what to write instead.
    pub fn check(&self) -> Result<(), clap::Error> {
        match &self.command {
            Command::Verb(Verb::Backup(args)) => backup(args),
            Command::Verb(Verb::Points(args)) => points(args),
            Command::Controller(_)
            | Command::Agent(_)
            | Command::Certs(_)
            | Command::Crds
            | Command::Verb(
                Verb::Restore(_)
                | Verb::Verify(_)
                | Verb::Recover(_)
                | Verb::Suspend(_)
                | Verb::Resume(_)
                | Verb::Cancel(_)
                | Verb::Bandwidth(_)
                | Verb::Jobs(_)
                | Verb::Bitmaps(_)
                | Verb::Events(_)
                | Verb::Guests(_),
            ) => Ok(()),
        }
    }
}

fn backup(args: &Backup) -> Result<(), clap::Error> {
    match args.disks.iter().find(|disk| args.exclude.contains(disk)) {
        None => Ok(()),
        Some(disk) => Err(refuse(
            &["backup"],
            ErrorKind::ArgumentConflict,
            &format!("disk {disk} is named by both --disk and --exclude: leave one of them out"),
        )),
    }
}

fn points(args: &Points) -> Result<(), clap::Error> {
    let Some(PointsVerb::Show(show)) = &args.show else { return Ok(()) };
    let twice = args.repository.is_some() && show.repository.is_some() || args.guest.is_some() && show.guest.is_some();
    if twice {
        let text = "give --repository and --guest once, before or behind `show`";
        return Err(refuse(&["points", "show"], ErrorKind::ArgumentConflict, text));
    }
    if args.repository().is_none() {
        let text = "give the repository's folder: driftline points show ID --repository DIR";
        return Err(refuse(&["points", "show"], ErrorKind::MissingRequiredArgument, text));
    }
    Ok(())
}

/// The error as clap tells its own, with the usage of the verb.
fn refuse(verb: &[&str], kind: ErrorKind, text: &str) -> clap::Error {
    let (mut all, mut whole) = (Cli::command(), Cli::command());
    // Gives each verb its whole name.
    all.build();
    let found = verb.iter().try_fold(&mut all, |command, word| command.find_subcommand_mut(word));
    found.unwrap_or(&mut whole).error(kind, text)
}
