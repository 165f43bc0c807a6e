//! SIGKILL of the agent, the controller, both and the API server while a run goes on. The run ends Complete, with the
//! jobs that it started and exactly one transaction, and what it stored is exact.
//!
//! These tests have an installation of their own: what they kill is what the others use.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    installation::{Installation, NODES, Tenant},
    lab::{
        child::wait_for,
        machine::{Disk, Format, Machine, Plan},
        proxy::Proxy,
        reference::Reference,
    },
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(120);
const NODE: &str = NODES[0];
/// Data of the disk, in MiB, and the rate at which it is copied, in MiB/s: some 10 s a run, long enough for three kills.
const DATA: u64 = 160;
const RATE: u64 = 16;
/// A rate in bytes/s that is as good as none.
const CRAWL: u64 = 64 << 10;

/// A run that is under way, slow enough to be hit in the middle.
struct Underway {
    tenant: Tenant,
    machine: Machine,
    proxy: Proxy,
    reference: Reference,
}

impl Underway {
    fn start(installation: &'static Installation) -> Underway {
        let tenant = installation.tenant();
        let machine = Plan::new().disk(Disk::qcow2("disk0", DATA * MIB)).start();
        machine.write("disk0", 0x33, 0, DATA * MIB);
        let proxy = Proxy::start(&machine);
        tenant.repository(NODE, "local");
        tenant.guest(NODE, "g", &proxy.qmp());
        let reference = Reference::take(&machine);
        let mut spec = tenant.backup_spec("g", "local");
        spec["transfer"] = json!({ "bandwidth": format!("{RATE}Mi") });
        tenant.create("BackupRun", "run", spec).ok();
        Underway { tenant, machine, proxy, reference }
    }

    /// Waits until the job has copied this part of its data, in percent, by QEMU's own word.
    fn wait_for_progress(&self, percent: u64) -> Value {
        wait_for(&format!("{percent} % are copied"), SOON, || {
            let jobs = self.machine.execute("query-jobs", json!({}));
            let job = jobs.as_array()?.first()?;
            let number = |name: &str| job[name].as_u64();
            let (done, all) = (number("current-progress")?, number("total-progress")?);
            (all > 0 && done * 100 >= all * percent).then(|| job["id"].clone())
        })
    }

    /// Lets the copy crawl meanwhile: killing and starting may take longer than the rest of it does.
    fn crawling(&self, job: &Value, meanwhile: impl Fn()) {
        let speed = |bytes: u64| {
            self.machine.execute("block-job-set-speed", json!({ "device": job, "speed": bytes }));
        };
        speed(CRAWL);
        meanwhile();
        speed(RATE * MIB);
    }

    /// The run ends Complete, by the job that was seen, after one transaction; the restore is exact; nothing is left.
    fn ends_exactly(&self, job: &Value) {
        let tenant = &self.tenant;
        tenant.wait_for("backupruns.driftline.dev/run", "Complete", SOON);
        let run = tenant.get("backupruns.driftline.dev", "run");
        assert_eq!(&run["status"]["disks"][0]["jobID"], job, "it ended with another job: {run:#}");
        assert_eq!(self.proxy.count("transaction"), 1, "transactions: {:#?}", self.proxy.state().commands);
        let point = tenant.point_of("run");
        tenant.wait_for(&format!("restorepoints.driftline.dev/{point}"), "Available", SOON);
        let files = tenant.restore("back", &point, NODE, &["disk0"], "Raw");
        tenant.wait_for("restoreruns.driftline.dev/back", "Complete", SOON);
        self.reference.assert_equal("disk0", &files[0], Format::Raw);
        let jobs = self.machine.execute("query-jobs", json!({}));
        assert_eq!(jobs.as_array().map(Vec::len), Some(0), "jobs were left behind: {jobs}");
    }
}

/// Kills and starts again, at 10, 50 and 90 percent of one run and while its copy is synced and hashed.
fn survives(agent: bool, controller: bool) {
    let (installation, _turn) = Installation::to_kill();
    let run = Underway::start(installation);
    let kill_and_start = || {
        if agent {
            installation.kill_agent(NODE);
        }
        if controller {
            installation.kill_controller();
        }
        if agent {
            installation.start_agent(NODE);
        }
        if controller {
            installation.start_controller();
        }
        installation.wait_until_ready();
    };
    let job = run.wait_for_progress(10);
    run.crawling(&job, kill_and_start);
    for percent in [50, 90] {
        assert_eq!(run.wait_for_progress(percent), job, "at {percent} %");
        run.crawling(&job, kill_and_start);
    }
    // The target's node is deleted when all is copied: its reply is the flush. From then on it syncs and hashes. The
    // source of each disk's sentinel is deleted long before.
    let sentinels = run.machine.disks().len();
    wait_for("a target is closed", SOON, || (run.proxy.count("blockdev-del") > sentinels).then_some(()));
    kill_and_start();
    run.ends_exactly(&job);
}

#[test]
fn a_run_outlives_its_agent_whenever_it_is_killed() {
    survives(true, false);
}

#[test]
fn a_run_outlives_its_controller_whenever_it_is_killed() {
    survives(false, true);
}

#[test]
fn a_run_outlives_agent_and_controller_killed_at_once() {
    survives(true, true);
}

#[test]
fn an_api_server_that_is_gone_for_20_seconds_delays_only_the_status() {
    let (installation, _turn) = Installation::to_kill();
    let run = Underway::start(installation);
    let job = run.wait_for_progress(10);
    installation.plane.kill_apiserver();
    let gone = Instant::now();
    wait_for("the job has ended without an API server", SOON, || {
        let jobs = run.machine.execute("query-jobs", json!({}));
        jobs.as_array()?.is_empty().then_some(())
    });
    std::thread::sleep(Duration::from_secs(20).saturating_sub(gone.elapsed()));
    installation.plane.restart_apiserver();
    run.ends_exactly(&job);
}
