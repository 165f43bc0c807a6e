//! `driftline events`: what a machine's QEMU tells, as it happens.

use serde::Serialize;
use serde_json::Value;
use tokio::sync::broadcast::error::RecvError;

use super::{CliError, Exit, args::Events, host::Host, output::Output, signals::Interrupt};
use crate::qmp::Event;

/// Prints one event, or each one until Ctrl-C.
pub(super) async fn run(args: &Events, output: &Output) -> Result<Exit, CliError> {
    let interrupt = Interrupt::quietly()?;
    let client = Host::load()?.monitor(&args.at.qmp).client().await?;
    let mut events = client.events();
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = interrupt.token.cancelled() => return Ok(Exit::Done),
        };
        match event {
            Ok(event) if args.event.as_ref().is_some_and(|wanted| !wanted.eq_ignore_ascii_case(&event.name)) => {}
            Ok(event) => {
                let document = Document::new(&event);
                output.result(&document, || document.line(args.timestamp))?;
                if !args.r#loop {
                    return Ok(Exit::Done);
                }
            }
            Err(RecvError::Lagged(missed)) => output.note(format!("{missed} events came too fast and were missed")),
            Err(RecvError::Closed) => {
                output.note("QEMU has ended, or closed the monitor");
                return Ok(Exit::Done);
            }
        }
    }
}

/// One event.
#[derive(Serialize)]
struct Document<'a> {
    event: &'a str,
    /// By QEMU's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<jiff::Timestamp>,
    #[serde(skip_serializing_if = "Value::is_null")]
    data: &'a Value,
}

impl<'a> Document<'a> {
    fn new(event: &'a Event) -> Self {
        Self { event: &event.name, timestamp: event.timestamp, data: &event.data }
    }

    fn line(&self, timestamp: bool) -> String {
        let at = self.timestamp.filter(|_| timestamp).map(|at| format!("{at} ")).unwrap_or_default();
        if self.data.is_null() { format!("{at}{}", self.event) } else { format!("{at}{} {}", self.event, self.data) }
    }
}
