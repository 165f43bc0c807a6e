//! The only place that prints. stdout carries the result alone, stderr everything else: progress, notes, errors. A
//! reader that went away (`driftline points | head`) is no error; a result that cannot be written is one.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use tracing_subscriber::{EnvFilter, fmt};

use super::{
    CliError,
    args::{Common, OutputFormat},
};
pub(super) use crate::sentence::bytes;
use crate::{sentence::sentence, telemetry::FILTER_VARIABLE};

/// How results, notes and errors reach the person or script.
#[derive(Debug, Clone)]
pub(super) struct Output {
    format: OutputFormat,
    quiet: bool,
    color: bool,
    terminal: bool,
}

impl Output {
    pub(super) fn new(common: &Common) -> Self {
        let terminal = io::stderr().is_terminal();
        // https://no-color.org: set and not empty.
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { format: common.output, quiet: common.quiet, color: terminal && !no_color, terminal }
    }

    /// Logs to stderr: warnings, more with `-v`, or what `DRIFTLINE_LOG` says.
    pub(super) fn start_log(&self, common: &Common) {
        let level = match (common.quiet, common.verbose) {
            (true, _) => "error",
            (false, 0) => "warn",
            (false, 1) => "warn,driftline=info",
            (false, _) => "warn,driftline=debug",
        };
        let filter = EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new(level));
        let log = fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(self.color).with_target(false);
        // Only a second call in one process (tests) can fail, and the first one's settings are right then.
        let _ = log.try_init();
    }

    /// The result, once: as a document, or as text for people.
    ///
    /// # Errors
    /// When stdout does not take it, such as on a full disk.
    pub(super) fn result(&self, document: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), CliError> {
        let text = match self.format {
            // These documents hold no map with keys other than texts, so that this cannot fail.
            OutputFormat::Json => serde_json::to_string_pretty(document).unwrap_or_default(),
            OutputFormat::Text => text(),
        };
        write_result(io::stdout().lock(), text.trim_end())
    }

    /// Something that a person should know and a script need not.
    pub(super) fn note(&self, text: impl Display) {
        if !self.quiet {
            write(io::stderr().lock(), text);
        }
    }

    /// Why there is no result, and the way out. For scripts the same as a document on stdout.
    pub(super) fn error(&self, error: &CliError) {
        if self.format == OutputFormat::Json {
            let document = ErrorDocument {
                error: ErrorFacts { reason: error.reason(), message: &sentence(error), way_out: error.way_out() },
            };
            // The same stands on stderr.
            let _ = self.result(&document, String::new);
        }
        let (on, off) = if self.color { ("\u{1b}[31;1m", "\u{1b}[0m") } else { ("", "") };
        let mut text = format!("{on}error:{off} {} [{}]", sentence(error), error.reason());
        if let Some(way_out) = error.way_out() {
            text = format!("{text}\n  way out: {way_out}");
        }
        write(io::stderr().lock(), text);
    }

    /// Whether progress is drawn as bars, told in lines, or not at all.
    pub(super) fn progress_style(&self) -> ProgressStyle {
        match (self.quiet, self.terminal) {
            (true, _) => ProgressStyle::None,
            (false, true) => ProgressStyle::Bars,
            (false, false) => ProgressStyle::Lines,
        }
    }
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProgressStyle {
    /// Bars on a terminal.
    Bars,
    /// A line now and then.
    Lines,
    /// Nothing.
    None,
}

#[derive(Serialize)]
struct ErrorDocument<'a> {
    error: ErrorFacts<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorFacts<'a> {
    reason: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    way_out: Option<&'a str>,
}

/// A table without lines, in the manner of kubectl.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    // Each cell has one space of padding; the first one's is taken off.
    let lines = table.to_string();
    lines.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end()).collect::<Vec<_>>().join("\n")
}

/// Writes a result for whoever still reads.
fn write_result(mut to: impl Write, text: impl Display) -> Result<(), CliError> {
    match writeln!(to, "{text}").and_then(|()| to.flush()) {
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => Err(CliError::Result { source }),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn write(mut to: impl Write, text: impl Display) {
    // Nobody is left to be told of a failure to tell.
    let _ = writeln!(to, "{text}").and_then(|()| to.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_that_a_full_disk_does_not_take_is_an_error_and_a_reader_that_left_is_none() {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let error = write_result(full, "a point").unwrap_err();
        assert_eq!((error.reason(), error.exit()), ("ResultNotWritten", crate::cli::Exit::Failed));
        assert!(sentence(&error).contains("stdout: No space left on device"), "{}", sentence(&error));
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert!(write_result(writer, "a point").is_ok());
    }

    #[test]
    fn columns_of_a_table_line_up_without_decoration() {
        let text = table(&["NAME", "SIZE"], [vec!["a".into(), "10".into()], vec!["longer".into(), "2".into()]]);
        let starts: Vec<_> = text.lines().map(|line| line.rfind(' ').unwrap() + 1).collect();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.starts_with("NAME"), "{text}");
        assert_eq!(starts[0], starts[2], "{text}");
        assert!(!text.contains(['|', '+', '-']), "{text}");
    }
}
