//! The agent's numbers. A registry is passed in; counters are registered without `_total`, which the text form adds.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// A result and its reason; an empty reason for a success.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// `Complete`, `Failed` or `Cancelled`.
    pub result: &'static str,
    /// PascalCase, or empty.
    pub reason: String,
}

/// A reason alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// PascalCase.
    pub reason: String,
}

/// One guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GuestLabels {
    /// The Guest's namespace.
    pub namespace: String,
    /// The Guest's name.
    pub guest: String,
}

/// A call of the contract and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Call {
    /// The method.
    pub method: &'static str,
    /// `OK`, or the refusal's reason.
    pub result: String,
}

/// All numbers of an agent; clones count together.
#[derive(Clone)]
pub struct AgentMetrics {
    /// Backup runs that ended.
    pub runs: Family<Outcome, Counter>,
    /// Bytes that ended runs stored.
    pub stored_bytes: Counter,
    /// How long backup runs took, in seconds.
    pub run_seconds: Histogram,
    /// Runs that work.
    pub runs_active: Gauge,
    /// Runs that wait for their guest.
    pub runs_queued: Gauge,
    /// Restores that ended.
    pub restores: Family<Outcome, Counter>,
    /// Restores that work.
    pub restores_active: Gauge,
    /// Connections to QEMU and commands that failed.
    pub qmp_errors: Family<Reason, Counter>,
    /// 1 where QEMU answers on the guest's monitor.
    pub guest_connected: Family<GuestLabels, Gauge>,
    /// Calls of the controller.
    pub calls: Family<Call, Counter>,
    /// Connections that were refused before any call.
    pub refused: Family<Reason, Counter>,
    /// When our certificate ends, in seconds since 1970.
    pub certificate_expires: Gauge<i64>,
    /// Calls to file systems of repositories that are still going.
    pub repository_calls: Gauge,
}

impl AgentMetrics {
    /// Registers everything under `driftline_agent_`.
    pub fn register(registry: &mut Registry) -> AgentMetrics {
        let seconds = [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4.0 * 3600.0, 12.0 * 3600.0];
        let metrics = AgentMetrics {
            runs: Family::default(),
            stored_bytes: Counter::<u64, AtomicU64>::default(),
            run_seconds: Histogram::new(seconds),
            runs_active: Gauge::default(),
            runs_queued: Gauge::default(),
            restores: Family::default(),
            restores_active: Gauge::default(),
            qmp_errors: Family::default(),
            guest_connected: Family::default(),
            calls: Family::default(),
            refused: Family::default(),
            certificate_expires: Gauge::default(),
            repository_calls: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("driftline_agent");
        registry.register("runs", "Backup runs that ended, by result and reason", metrics.runs.clone());
        registry.register_with_unit(
            "stored",
            "Bytes that complete runs stored",
            Unit::Bytes,
            metrics.stored_bytes.clone(),
        );
        registry.register_with_unit(
            "run_duration",
            "Time from a run's start to its end",
            Unit::Seconds,
            metrics.run_seconds.clone(),
        );
        registry.register("runs_active", "Backup runs that work", metrics.runs_active.clone());
        registry.register("runs_queued", "Backup runs that wait for their guest", metrics.runs_queued.clone());
        registry.register("restores", "Restores that ended, by result and reason", metrics.restores.clone());
        registry.register("restores_active", "Restores that work", metrics.restores_active.clone());
        registry.register("qmp_errors", "Failures to reach or to question QEMU", metrics.qmp_errors.clone());
        registry.register(
            "guest_connected",
            "1 where QEMU answers on the guest's monitor, 0 where it does not",
            metrics.guest_connected.clone(),
        );
        registry.register("calls", "Calls of the controller, by method and result", metrics.calls.clone());
        registry.register("connections_refused", "Connections refused before any call", metrics.refused.clone());
        registry.register_with_unit(
            "certificate_expiry_timestamp",
            "When the agent's certificate ends, since 1970",
            Unit::Seconds,
            metrics.certificate_expires.clone(),
        );
        registry.register(
            "repository_calls",
            "Calls to file systems of repositories that are still going",
            metrics.repository_calls.clone(),
        );
        metrics
    }
}
