//! The host configuration as the agent lives with it (in): waited for while it is missing or wrong, taken up anew when it
//! changes. And the folders that it names, where the node has others in their place by now.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{guest::Guests, mounts, problem::Problem};
use crate::{admin::Readiness, config::HostConfig, sentence::sentence};

/// How often files are looked at that are waited for or may change.
const LOOK: Duration = Duration::from_secs(1);

/// Reads it.
pub(super) fn load(path: &Path) -> Result<HostConfig, Problem> {
    HostConfig::load(path).map_err(|error| Problem {
        subject: path.display().to_string(),
        reason: error.reason(),
        message: sentence(&error),
    })
}

/// Tries every second until it works or the agent ends; says what is wrong once, and in `/readyz` all the time. Where one of
/// the folders is not the node's any more, waiting is in vain, and `/healthz` says so.
pub(super) async fn wait_for<T>(
    attempt: impl Fn() -> Result<T, Problem>,
    folders: [&Path; 2],
    ready: &watch::Sender<Readiness>,
    end: &CancellationToken,
) -> Option<T> {
    let mut said = Vec::new();
    loop {
        let problem = match attempt() {
            Ok(value) => return Some(value),
            Err(problem) => problem,
        };
        let removed = mounts::removed(folders);
        let ended = removed.is_some();
        let problems: Vec<Problem> = removed.into_iter().chain([problem]).collect();
        if said != problems {
            log(&problems);
            let notes = problems.iter().map(|problem| note(problem, "")).collect();
            ready.send_replace(Readiness { ready: false, notes, ended });
            said = problems;
        }
        tokio::select! { () = tokio::time::sleep(LOOK) => {} () = end.cancelled() => return None }
    }
}

/// Ends this life of the agent when the configuration has changed and is right; tells when it has become wrong, and when
/// only another start of the container shows the node's folders.
pub(super) async fn watch(
    path: PathBuf,
    config: HostConfig,
    guests: Guests,
    ready: watch::Sender<Readiness>,
    changed: CancellationToken,
) {
    let listing = guests.listing();
    let mut said = Vec::new();
    while !changed.is_cancelled() {
        tokio::time::sleep(LOOK).await;
        let wrong = match load(&path) {
            Ok(now) if now != config => {
                tracing::info!(path = %path.display(), "The host configuration has changed");
                return changed.cancel();
            }
            Ok(_) => None,
            Err(problem) => Some(problem),
        };
        let files = listing.borrow().guests.iter().filter_map(|guest| guest.file.clone()).collect::<Vec<_>>();
        let sockets = files.iter().map(|file| &*file.qmp);
        let removed = mounts::removed(folders(&path, &config).chain(sockets));
        let problems: Vec<Problem> = removed.iter().chain(&wrong).cloned().collect();
        if problems == said {
            continue;
        }
        log(&problems);
        let in_force = wrong.iter().map(|problem| note(problem, ". What stood there before is in force"));
        let notes = removed.iter().map(|problem| note(problem, "")).chain(in_force).collect();
        ready.send_replace(Readiness { ready: removed.is_none(), notes, ended: removed.is_some() });
        guests.note(problems.clone());
        said = problems;
    }
}

/// All that the agent has of the host.
fn folders<'a>(path: &'a Path, config: &'a HostConfig) -> impl Iterator<Item = &'a Path> {
    let HostConfig { state, locks, guests, repository_roots, restore_roots, scratch, .. } = config;
    let scratch = scratch.iter().map(|scratch| &scratch.directory);
    let all = [state, locks, guests].into_iter().chain(repository_roots).chain(restore_roots.values().flatten());
    std::iter::once(path).chain(all.chain(scratch).map(PathBuf::as_path))
}

fn note(problem: &Problem, more: &str) -> String {
    format!("{}: {}{more}", problem.reason, problem.message)
}

fn log(problems: &[Problem]) {
    for problem in problems {
        tracing::error!(subject = problem.subject, reason = problem.reason, "{}", problem.message);
    }
}
