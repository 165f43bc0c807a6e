//! `driftline recover`: finishes or undoes what a killed command left in a machine and in the repository. The engine does
//! the same before each backup.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::{
    CliError, Exit,
    args::Recover,
    guests::{Known, identity},
    host::Host,
    output::Output,
    progress::Progress,
};
use crate::engine::{Phase, Recovered, RepositoryRef};

/// Recovers and says what was done.
pub(super) async fn run(args: &Recover, output: &Output) -> Result<Exit, CliError> {
    let host = Host::load()?;
    let known = Known::look(&host, &args.machine.qmp)?;
    let monitor = host.monitor(&args.machine.qmp);
    let guest = known.identify(&args.machine, None, &identity(&monitor).await?)?;
    let repository = host.open(&args.repository).await?;
    let engine = host.engine(repository.path())?;
    let named = RepositoryRef { path: repository.path().to_owned(), id: repository.id().clone() };
    let left = engine.unfinished()?.iter().any(|left| left.guest.uuid == guest.uuid);
    let recovered = tokio::select! {
        recovered = engine.recover(&monitor, &guest.uuid, &named, args.adopt) => recovered?,
        never = wait(Progress::new(output)), if left => match never {},
    };
    let done = Document::new(recovered);
    output.result(&done, || done.sentence(&guest.name))?;
    Ok(Exit::Done)
}

/// Says what is waited for, now and then; never ends by itself. Not at once: where somebody works on the machine, that is
/// the answer a second later, and no run was cut off.
async fn wait(mut progress: Progress) -> std::convert::Infallible {
    const STEP: &str =
        "A run of this machine was cut off. It is finished or undone: a copy that QEMU still makes is waited for";
    let mut tick = tokio::time::interval_at(Instant::now() + Duration::from_secs(2), Duration::from_secs(1));
    loop {
        tick.tick().await;
        progress.show(STEP, &[]);
    }
}

/// What was found and done.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    /// Whether an earlier run was finished or undone.
    found: bool,
    /// How that run ended; none where it had not begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<RunDocument>,
    /// Jobs, nodes and descriptors that no journal knew, and that are gone now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    adopted: Vec<String>,
    /// Bitmaps that nobody could use any more, and that are gone now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    removed: Vec<String>,
    /// What waits for a repository that could not be reached, and what became of what did.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RunDocument {
    uid: String,
    phase: Phase,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    restore_point: Option<String>,
}

impl Document {
    fn new(recovered: Recovered) -> Self {
        let run = recovered.run.map(|state| RunDocument {
            restore_point: state.point.map(|point| point.manifest.identity.point.to_string()),
            uid: state.run,
            phase: state.phase,
            reason: state.reason,
            message: state.message,
        });
        let Recovered { found, adopted, removed, notes, .. } = recovered;
        Self { found, run, adopted, removed, notes }
    }

    fn sentence(&self, guest: &str) -> String {
        let mut text = match (&self.run, self.found) {
            (None, false) if self.notes.is_empty() => format!("Nothing was left to do for {guest}"),
            (None, false) => format!("Looked after what earlier runs of {guest} have left in repositories"),
            (None, true) => format!("Undid a run of {guest} that had not begun to copy"),
            (Some(RunDocument { restore_point: Some(point), .. }), _) => {
                format!("Finished what an earlier run of {guest} had begun: point {point} is stored")
            }
            (Some(run), _) => format!("Undid an earlier run of {guest}: {} [{}]", run.message, run.reason),
        };
        for what in &self.adopted {
            text = format!("{text}\nRemoved {what}, which no journal of this host knows");
        }
        for what in &self.removed {
            text = format!("{text}\nRemoved {what}, which is of no use any more");
        }
        for what in &self.notes {
            text = format!("{text}\n{what}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_removed_is_said_with_the_reason() {
        let done = Document {
            found: false,
            run: None,
            adopted: vec!["job x".into()],
            removed: vec!["bitmap y".into()],
            notes: vec![],
        };
        let text = done.sentence("db-1");
        assert!(text.contains("Removed job x, which no journal of this host knows\n"), "{text}");
        assert!(text.ends_with("Removed bitmap y, which is of no use any more"), "{text}");
    }
}
