//! A run of a guest on a real node that is held in its middle, until the test lets it go on.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    lab::{
        child::wait_for,
        machine::{Disk, Format, Machine, Plan},
        proxy::Proxy,
        reference::Reference,
    },
    release::{Release, Team},
};

const MIB: u64 = 1 << 20;
/// Data of the disk, in MiB.
const DATA: u64 = 64;
/// Bytes per second of a job that is held: half of the data takes it minutes.
const SLOW: u64 = 64 << 10;
pub(super) const SOON: Duration = Duration::from_secs(120);

/// A guest `g`, a repository `local` and a run `run` in a namespace of their own.
pub(super) struct Underway {
    pub(super) team: Team,
    pub(super) node: &'static str,
    pub(super) machine: Machine,
    pub(super) proxy: Proxy,
    pub(super) reference: Reference,
    pub(super) job: Value,
}

impl Underway {
    /// Starts one and holds it when half of it is copied.
    pub(super) fn at_half(release: &'static Release, node: &'static str) -> Underway {
        let team = release.team();
        let machine = release.machine_on(node, Plan::new().disk(Disk::qcow2("disk0", DATA * MIB))).start();
        machine.write("disk0", 0x33, 0, DATA * MIB);
        let proxy = Proxy::start(&machine);
        team.repository(node, "local");
        team.guest(node, "g", &proxy.qmp());
        let reference = Reference::take(&machine);
        let mut spec = team.backup_spec("g", "local");
        spec["transfer"] = json!({ "bandwidth": "16Mi" });
        // A second try would hide that the first one was lost.
        spec["backoffLimit"] = 0.into();
        team.create("BackupRun", "run", spec).ok();
        let job = wait_for("half is copied", SOON, || {
            let jobs = machine.execute("query-jobs", json!({}));
            let job = jobs.as_array()?.first()?;
            let (done, all) = (job["current-progress"].as_u64()?, job["total-progress"].as_u64()?);
            (all > 0 && done * 2 >= all).then(|| job["id"].clone())
        });
        let run = Underway { team, node, machine, proxy, reference, job };
        run.set_speed(SLOW);
        run.machine.write("disk0", 0x44, 0, 8 * MIB);
        run
    }

    /// The job is still the one that was seen, it copies, and somebody follows it: what it copies from now on gets into the
    /// status.
    #[track_caller]
    pub(super) fn goes_on(&self) {
        let jobs = self.machine.execute("query-jobs", json!({}));
        assert_eq!(jobs[0]["id"], self.job, "{jobs}");
        assert_eq!(jobs[0]["status"], "running", "{jobs}");
        let told = || {
            let run = self.team.get("backuprun.driftline.dev", "run");
            assert_eq!(run["status"]["phase"], "Copying", "{run:#}");
            run["status"]["disks"][0]["doneBytes"].as_u64().unwrap_or_else(|| panic!("{run:#}"))
        };
        let before = told();
        self.set_speed(MIB);
        let what = format!("told of as having copied more than {before} bytes");
        self.team.wait_until("backuprun.driftline.dev/run", &what, SOON, || (told() > before).then_some(()));
        self.set_speed(SLOW);
    }

    /// Lets it go on as fast as it can.
    pub(super) fn let_go(&self) {
        self.set_speed(0);
    }

    fn set_speed(&self, speed: u64) {
        self.machine.execute("block-job-set-speed", json!({ "device": self.job, "speed": speed }));
    }

    /// It ends Complete, by the job that was seen, after one transaction; the restore is exact; nothing is left.
    #[track_caller]
    pub(super) fn ends_exactly(&self) {
        let team = &self.team;
        team.wait_for("backuprun.driftline.dev/run", "Complete", SOON);
        let run = team.get("backuprun.driftline.dev", "run");
        assert_eq!(run["status"]["disks"][0]["jobID"], self.job, "it ended with another job: {run:#}");
        assert_eq!(self.proxy.count("transaction"), 1, "transactions: {:#?}", self.proxy.state().commands);
        self.restores_exactly("run", &self.reference);
        let jobs = self.machine.execute("query-jobs", json!({}));
        assert_eq!(jobs.as_array().map(Vec::len), Some(0), "jobs were left behind: {jobs}");
    }

    /// A run's point, restored and compared.
    #[track_caller]
    pub(super) fn restores_exactly(&self, run: &str, reference: &Reference) {
        let back = format!("{run}-back");
        let files = self.team.restore(&back, &self.team.point_of(run), self.node, &["disk0"]);
        self.team.wait_for(&format!("restorerun.driftline.dev/{back}"), "Complete", SOON);
        reference.assert_equal("disk0", &files[0], Format::Raw);
    }
}
