//! What both roles tell of themselves on `/metrics` after a run: what a person draws and is woken by.

use std::time::Duration;

use crate::{
    installation::{Installation, NODES},
    lab::{
        child::wait_for,
        machine::{Disk, Plan},
    },
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
const NODE: &str = NODES[0];

/// The sum of all samples of a metric whose labels hold each of these texts.
fn sum(text: &str, metric: &str, labels: &[&str]) -> f64 {
    let samples = text.lines().filter(|line| {
        line.strip_prefix(metric).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    });
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[test]
fn both_roles_count_what_a_run_did() {
    let installation = Installation::shared();
    let machine = Plan::new().disk(Disk::raw("disk0", 8 * MIB)).start();
    machine.write("disk0", 0x42, 0, MIB);
    let tenant = installation.tenant();
    tenant.repository(NODE, "local");
    tenant.guest(NODE, "g", &machine.qmp());
    let before = (installation.metrics("controller"), installation.metrics(NODE));
    tenant.back_up("run", "g", "local");
    tenant.wait_for("backupruns.driftline.dev/run", "Complete", SOON);
    // Whoever watches may hear of the end a moment before it is counted.
    let ended = |metrics: &str, role: &str| {
        let labels = ["kind=\"BackupRun\"", "result=\"Complete\""];
        // An agent counts backups alone.
        let labels = if role == "agent" { &labels[1..] } else { &labels[..] };
        sum(metrics, &format!("driftline_{role}_runs_total"), labels)
    };
    // Smaller runs of other tests are counted too: the bytes are this one's.
    let counts = |before: &str, now: &str, role: &str| {
        let stored = |metrics: &str| sum(metrics, &format!("driftline_{role}_stored_bytes_total"), &[]);
        ended(now, role) > ended(before, role) && stored(now) - stored(before) >= MIB as f64
    };
    wait_for("both roles have counted the run", SOON, || {
        let now = (installation.metrics("controller"), installation.metrics(NODE));
        let counted = counts(&before.0, &now.0, "controller") && counts(&before.1, &now.1, "agent");
        counted.then_some(())
    });
    let after = (installation.metrics("controller"), installation.metrics(NODE));

    let grew = |metric: &str, labels: &[&str]| sum(&after.0, metric, labels) - sum(&before.0, metric, labels);
    assert!(
        grew("driftline_controller_runs_total", &["kind=\"BackupRun\"", "result=\"Complete\""]) >= 1.0,
        "{}",
        after.0
    );
    assert!(grew("driftline_controller_stored_bytes_total", &[]) >= MIB as f64, "{}", after.0);
    assert!(grew("driftline_controller_run_duration_seconds_count", &[]) >= 1.0, "{}", after.0);
    assert!(grew("driftline_controller_reconcile_duration_seconds_count", &[]) >= 1.0, "{}", after.0);
    assert_eq!(sum(&after.0, "driftline_controller_agent_connected", &[NODE]), 1.0, "{}", after.0);
    assert!(after.0.contains("driftline_controller_runs_queued "), "{}", after.0);

    let grew = |metric: &str, labels: &[&str]| sum(&after.1, metric, labels) - sum(&before.1, metric, labels);
    assert!(grew("driftline_agent_runs_total", &["result=\"Complete\""]) >= 1.0, "{}", after.1);
    assert!(grew("driftline_agent_stored_bytes_total", &[]) >= MIB as f64, "{}", after.1);
    assert!(grew("driftline_agent_run_duration_seconds_count", &[]) >= 1.0, "{}", after.1);
    assert!(sum(&after.1, "driftline_agent_guest_connected", &[&tenant.namespace]) >= 1.0, "{}", after.1);
    assert!(after.1.contains("driftline_agent_runs_queued "), "{}", after.1);

    tenant.declare_guest(NODE, "gone", &installation.host(NODE).join("nobody.qmp"), "");
    wait_for("a monitor that is not there is counted", SOON, || {
        (sum(&installation.metrics(NODE), "driftline_agent_qmp_errors_total", &[]) >= 1.0).then_some(())
    });
}
