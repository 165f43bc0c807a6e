//! The one binary: arguments, configuration, role.

use std::{
    io::{self, Write},
    process::ExitCode,
};

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
    let Cli { common, command } = Cli::from_command_line();
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
        Command::Crds => told(crds()),
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

fn crds() -> io::Result<()> {
    let mut out = io::stdout().lock();
    for crd in api::crds() {
        let (_, text) = api::crd_file(&crd).map_err(io::Error::other)?;
        match write!(out, "---\n{text}").and_then(|()| out.flush()) {
            // Whoever reads has gone, such as `head`.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(|error| io::Error::other(format!("Cannot write to stdout: {error}")))?,
        }
    }
    Ok(())
}

fn told<E: std::error::Error>(done: Result<(), E>) -> ExitCode {
    let Err(error) = done else { return ExitCode::SUCCESS };
    // Nobody to tell when stderr is gone.
    let _ = writeln!(std::io::stderr(), "driftline: {}", sentence(&error));
    ExitCode::FAILURE
}
