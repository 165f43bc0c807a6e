//! Logs of the roles: to stderr, as JSON where no person looks on. The person's verbs print through `cli::output`.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt, prelude::*};

/// The environment variable that says what is logged, such as `debug` or `info,driftline::qmp=trace`.
pub const FILTER_VARIABLE: &str = "DRIFTLINE_LOG";

/// Starts logging at `default` unless `DRIFTLINE_LOG` says otherwise. To be called once; a later call changes nothing.
pub fn init(default: &str) {
    let filter = EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new(default));
    let person = std::io::stderr().is_terminal();
    let plain = person.then(|| fmt::layer().with_writer(std::io::stderr).with_target(false));
    let json = (!person).then(|| fmt::layer().json().flatten_event(true).with_writer(std::io::stderr));
    // Only a second call in one process (tests) can fail, and the first one's settings are right then.
    let _ = tracing_subscriber::registry().with(filter).with(plain).with(json).try_init();
}
