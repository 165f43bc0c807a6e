//! The one binary: arguments, configuration, role.

use std::{io::Write, process::ExitCode};

use clap::Parser;
use driftline::{
    agent, api, certs,
    cli::{
        self,
        args::{Cli, Command},
    },
    controller,
    sentence::sentence,
    telemetry,
};

#[tokio::main]
async fn main() -> ExitCode {
    // First of all: two providers in one process would panic at the first handshake. Only a second call can fail.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let Cli { common, command } = Cli::parse();
    match command {
        Command::Controller(args) => {
            telemetry::init("info");
            controller::run(args).await
        }
        Command::Agent(args) => {
            telemetry::init("info");
            role(agent::run(args).await)
        }
        Command::Certs(args) => told(certs::run(&args)),
        Command::Crds => crds(),
        Command::Verb(verb) => end(cli::run(verb, &common).await as i32),
    }
}

fn role<E: std::error::Error>(ended: Result<(), E>) -> ! {
    if let Err(error) = &ended {
        tracing::error!(error = sentence(error), "The role ended");
    }
    end(i32::from(ended.is_err()))
}

/// Ends the process without waiting for threads that a file system holds: what they do is in the journal.
fn end(status: i32) -> ! {
    std::process::exit(status)
}

fn crds() -> ExitCode {
    let mut out = std::io::stdout().lock();
    for crd in api::crds() {
        let printed = api::crd_file(&crd).is_ok_and(|(_, text)| write!(out, "---\n{text}").is_ok());
        // Whoever reads has gone, such as `head`.
        if !printed {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn told<E: std::error::Error>(done: Result<(), E>) -> ExitCode {
    let Err(error) = done else { return ExitCode::SUCCESS };
    // Nobody to tell when stderr is gone.
    let _ = writeln!(std::io::stderr(), "driftline: {}", sentence(&error));
    ExitCode::FAILURE
}
