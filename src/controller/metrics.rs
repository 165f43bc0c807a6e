//! The controller's numbers. A registry is passed in; counters are registered without `_total`, which the text form
//! adds.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// A kind and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// The kind.
    pub kind: &'static str,
    /// `Complete`, `Failed` or `Cancelled`.
    pub result: &'static str,
    /// PascalCase.
    pub reason: String,
}

/// A kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    /// The kind.
    pub kind: &'static str,
}

/// A kind and a word.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Failure {
    /// The kind.
    pub kind: &'static str,
    /// PascalCase.
    pub reason: &'static str,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Node {
    /// The node's name.
    pub node: String,
}

/// Whose certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Whose {
    /// `controller` or `authority`.
    pub of: &'static str,
}

/// What came of something.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Result {
    /// `OK`, or a PascalCase reason.
    pub result: String,
}

/// All numbers of the controller; clones count together.
#[derive(Clone)]
pub struct ControllerMetrics {
    runs: Family<Outcome, Counter>,
    stored: Counter,
    run_seconds: Histogram,
    queued: Gauge,
    active: Family<KindLabel, Gauge>,
    reconcile: Family<KindLabel, Histogram, fn() -> Histogram>,
    failures: Family<Failure, Counter>,
    agents: Family<Node, Gauge>,
    certificates: Family<Result, Counter>,
    expiry: Family<Whose, Gauge>,
}

/// The names under which the numbers are shown, for the documentation and its test.
pub const NAMES: [(&str, &str); 10] = [
    ("driftline_controller_runs_total", "backups and restores that ended, by kind, result and reason"),
    ("driftline_controller_stored_bytes_total", "bytes that complete backups stored"),
    ("driftline_controller_run_duration_seconds", "time from a backup's start on an agent to its end"),
    ("driftline_controller_runs_queued", "backups that wait for another one of their guest"),
    ("driftline_controller_runs_active", "backups and restores that are going, by kind"),
    ("driftline_controller_reconcile_duration_seconds", "time that a reconcile took, by kind"),
    ("driftline_controller_reconcile_errors_total", "reconciles that failed, by kind and reason"),
    ("driftline_controller_agent_connected", "1 where the node's agent answers, 0 where it does not"),
    ("driftline_controller_agent_certificates_total", "certificates that agents were given, or why not, by result"),
    (
        "driftline_controller_certificate_expiry_timestamp_seconds",
        "when the certificate of the controller, and that of the authority, ends, since 1970",
    ),
];

impl ControllerMetrics {
    /// Registers everything under `driftline_controller_`.
    pub fn register(registry: &mut Registry) -> ControllerMetrics {
        let runs = [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4.0 * 3600.0, 12.0 * 3600.0];
        let reconcile: fn() -> Histogram = || Histogram::new([0.001, 0.005, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0]);
        let metrics = ControllerMetrics {
            runs: Family::default(),
            stored: Counter::default(),
            run_seconds: Histogram::new(runs),
            queued: Gauge::default(),
            active: Family::default(),
            reconcile: Family::new_with_constructor(reconcile),
            failures: Family::default(),
            agents: Family::default(),
            certificates: Family::default(),
            expiry: Family::default(),
        };
        let registry = registry.sub_registry_with_prefix("driftline_controller");
        registry.register("runs", "Backups and restores that ended", metrics.runs.clone());
        registry.register_with_unit(
            "stored",
            "Bytes that complete backups stored",
            Unit::Bytes,
            metrics.stored.clone(),
        );
        registry.register_with_unit(
            "run_duration",
            "Time from a backup's start on an agent to its end",
            Unit::Seconds,
            metrics.run_seconds.clone(),
        );
        registry.register("runs_queued", "Backups that wait for another one of their guest", metrics.queued.clone());
        registry.register("runs_active", "Backups and restores that are going", metrics.active.clone());
        registry.register_with_unit(
            "reconcile_duration",
            "Time that a reconcile took",
            Unit::Seconds,
            metrics.reconcile.clone(),
        );
        registry.register("reconcile_errors", "Reconciles that failed", metrics.failures.clone());
        registry.register(
            "agent_connected",
            "1 where the node's agent answers, 0 where it does not",
            metrics.agents.clone(),
        );
        registry.register(
            "agent_certificates",
            "Certificates that agents were given, or why not",
            metrics.certificates.clone(),
        );
        registry.register_with_unit(
            "certificate_expiry_timestamp",
            "When the certificate of the controller, and that of the authority, ends, since 1970",
            Unit::Seconds,
            metrics.expiry.clone(),
        );
        metrics
    }

    /// A run or restore ended.
    pub fn ended(&self, kind: &'static str, result: &'static str, reason: &str) {
        self.runs.get_or_create(&Outcome { kind, result, reason: reason.to_owned() }).inc();
    }

    /// A backup is complete: bytes stored, time taken.
    pub fn complete(&self, bytes: u64, took: Duration) {
        self.stored.inc_by(bytes);
        self.run_seconds.observe(took.as_secs_f64());
    }

    /// How many runs wait and how many are going.
    pub fn going(&self, kind: &'static str, active: usize) {
        self.active.get_or_create(&KindLabel { kind }).set(i64::try_from(active).unwrap_or(i64::MAX));
    }

    /// How many backups wait for another one of their guest.
    pub fn queued(&self, waiting: usize) {
        self.queued.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    /// A reconcile took so long.
    pub fn reconciled(&self, kind: &'static str, took: Duration) {
        self.reconcile.get_or_create(&KindLabel { kind }).observe(took.as_secs_f64());
    }

    /// A reconcile failed.
    pub fn failed(&self, kind: &'static str, reason: &'static str) {
        self.failures.get_or_create(&Failure { kind, reason }).inc();
    }

    /// When the certificates of the controller and of the authority end, in seconds since 1970.
    pub fn certificates_end(&self, controller: i64, authority: i64) {
        for (of, second) in [("controller", controller), ("authority", authority)] {
            self.expiry.get_or_create(&Whose { of }).set(second);
        }
    }

    /// An agent was given a certificate (`OK`), or why not.
    pub fn certificate(&self, result: &str) {
        self.certificates.get_or_create(&Result { result: result.to_owned() }).inc();
    }

    /// A node has no agent any more.
    pub fn agent_gone(&self, node: &str) {
        self.agents.remove(&Node { node: node.to_owned() });
    }

    /// Whether a node's agent answers.
    pub fn agent(&self, node: &str, connected: bool) {
        self.agents.get_or_create(&Node { node: node.to_owned() }).set(i64::from(connected));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_shown_under_its_documented_name() {
        let mut registry = Registry::default();
        let metrics = ControllerMetrics::register(&mut registry);
        metrics.ended("BackupRun", "Complete", "");
        metrics.complete(1, Duration::from_secs(1));
        metrics.going("BackupRun", 1);
        metrics.reconciled("BackupRun", Duration::from_millis(3));
        metrics.failed("BackupRun", "WriteStatusFailed");
        metrics.agent("n1", true);
        metrics.certificate("OK");
        metrics.certificates_end(1, 2);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for (name, _) in NAMES {
            let shown = |line: &str| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name} "));
            let sum = format!("{name}_sum");
            assert!(text.lines().any(|l| shown(l) || l.starts_with(&sum)), "{name} is missing in:\n{text}");
        }
    }
}
