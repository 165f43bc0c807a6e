//! The person's verbs: `backup`, `points`, `restore`, `verify`, `recover` and `guests` on this host alone, with no
//! Kubernetes. The same engine as the agent's, in this process, with the same host files where there are any: state,
//! locks and roots. `args` says what can be asked, `output` is the only place that prints, a file per noun does it.

pub mod args;
mod backup;
mod bitmaps;
mod course;
mod error;
mod events;
mod guests;
mod host;
mod jobs;
mod output;
mod points;
mod progress;
mod recover;
mod restore;
mod signals;
mod verify;

pub use error::CliError;

use args::{Common, Verb};
use output::Output;

use crate::engine::course::HostWish;

/// How a verb ended: the process's exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed; nothing was committed.
    Failed = 1,
    /// Wrong usage: nothing was begun.
    Usage = 2,
    /// Verification found damage.
    Damage = 3,
    /// Ctrl-C or SIGTERM, and tidied up.
    Interrupted = 130,
}

/// Does what a person asked for and says how it went.
pub async fn run(verb: Verb, common: &Common) -> Exit {
    let output = Output::new(common);
    output.start_log(common);
    let result = match verb {
        Verb::Backup(args) => backup::run(&args, &output).await,
        Verb::Points(args) => points::run(&args, &output).await,
        Verb::Restore(args) => restore::run(&args, &output).await,
        Verb::Verify(args) => verify::run(&args, &output).await,
        Verb::Recover(args) => recover::run(&args, &output).await,
        Verb::Suspend(at) => course::run(&at, HostWish::Suspend, &output).await,
        Verb::Resume(at) => course::run(&at, HostWish::Resume, &output).await,
        Verb::Cancel(at) => course::run(&at, HostWish::Cancel, &output).await,
        Verb::Bandwidth(args) => course::run(&args.at, HostWish::Bandwidth(args.rate), &output).await,
        Verb::Jobs(at) => jobs::run(&at, &output).await,
        Verb::Bitmaps(args) => bitmaps::run(&args, &output).await,
        Verb::Events(args) => events::run(&args, &output).await,
        Verb::Guests(args) => guests::run(&args, &output).await,
    };
    result.unwrap_or_else(|error| {
        output.error(&error);
        error.exit()
    })
}

/// Runs blocking work (files, `qemu-img`) away from the event loop, and hands its result back.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        // The task is never aborted, so that this can only be its panic.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
