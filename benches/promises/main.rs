//! `make bench`: the numbers that this project promises, each beside its bare counterpart, measured in one run and
//! printed as a table with its goal, met or not. A goal that is missed is no failure of the run. What has a cluster in
//! it runs on the control plane of the tests; `tests/runner` gives the whole program their network namespace.
//!
//!     cargo bench --features fake --bench promises [-- --quick] [WORD]
//!
//! `--quick` measures a sixteenth of the data, to see that the benches work; WORD chooses the benches that have it in
//! their names.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, missing_docs, unreachable_pub)]

mod backup;
mod cluster;
#[path = "../../tests/support/controlplane.rs"]
mod controlplane;
mod crowd;
mod guest;
mod idle;
mod increment;
#[path = "../../tests/support/installation.rs"]
mod installation;
#[path = "../../tests/support/lab.rs"]
mod lab;
#[path = "../../tests/support/objects.rs"]
mod objects;
mod ways;

use std::time::Duration;

/// One line of the table.
struct Row {
    /// What was measured.
    what: String,
    /// The number, with its unit.
    measured: String,
    /// The goal and whether it was met; none for what is only reported.
    goal: Option<(String, bool)>,
}

impl Row {
    fn reported(what: &str, measured: String) -> Row {
        Row { what: what.to_owned(), measured, goal: None }
    }

    fn promised(what: &str, measured: String, goal: &str, met: bool) -> Row {
        Row { goal: Some((goal.to_owned(), met)), ..Row::reported(what, measured) }
    }
}

/// Measures, a part of the data only where the word is true.
type Bench = fn(bool) -> Vec<Row>;

fn main() {
    // Two providers in one process would panic at the first handshake. Only a second call can fail.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Cargo itself says --bench.
    let words: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let quick = words.iter().any(|word| word == "--quick");
    let wanted = |name: &str| {
        let mut chosen = words.iter().filter(|word| !word.starts_with("--")).peekable();
        chosen.peek().is_none() || chosen.any(|word| name.contains(word.as_str()))
    };
    let benches: [(&str, Bench); 11] = [
        ("backup-large", backup::large),
        ("backup-small", backup::small),
        ("increment-small", increment::small),
        ("increment-sizes", increment::sizes),
        ("ways", ways::beside_each_other),
        ("ways-clone", ways::clone),
        ("guest-writes", guest::writes),
        ("idle-agent", idle::agent),
        ("cluster-latency", cluster::latency),
        ("cluster-increment", cluster::increment),
        ("crowd-controller", crowd::controller),
    ];
    let mut rows = Vec::new();
    for (name, bench) in benches.into_iter().filter(|(name, _)| wanted(name)) {
        eprintln!("{name} ...");
        let found = bench(quick);
        // The table comes at the end, and the end may not come.
        found.iter().for_each(|row| eprintln!("  {}: {}", row.what.trim_start(), row.measured));
        rows.extend(found);
    }
    let width = |text: fn(&Row) -> usize| rows.iter().map(text).max().unwrap_or(0);
    let (what, measured) = (width(|row| row.what.len()), width(|row| row.measured.len()));
    for row in &rows {
        let goal = match &row.goal {
            Some((goal, true)) => format!("goal {goal}: met"),
            Some((goal, false)) => format!("goal {goal}: NOT MET"),
            None => String::new(),
        };
        println!("{}", format!("{:what$}  {:>measured$}  {goal}", row.what, row.measured).trim_end());
    }
    if quick || cfg!(debug_assertions) {
        println!("These numbers prove nothing: --quick, or built without optimisation.");
    }
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn seconds(durations: &[Duration]) -> f64 {
    median(durations.iter().map(Duration::as_secs_f64).collect())
}
