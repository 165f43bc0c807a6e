//! A backup by the built command, and what goes wrong with it.

use std::{
    collections::BTreeSet,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::Child,
    time::{Duration, Instant},
};

use rand::{RngExt, seq::IndexedRandom};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use super::{MIB, Torture, deeds::active};

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// SIGKILL to the command and its children.
    KillCommand,
    KillMachine,
    KillBoth,
    /// Ctrl-C.
    Interrupt,
    /// QEMU ends cleanly.
    Quit,
    /// The repository's server gives no answer for a while.
    Hang,
    /// It is killed, and another one takes its place.
    Sever,
    /// Somebody else takes all the space that is left in the repository.
    Full,
    /// A disk is taken away from the machine.
    Unplug,
    /// The machine goes on in a second QEMU.
    Migrate,
    /// Somebody takes a snapshot of a disk, or of what the run has put above it.
    Snapshot,
}

/// Half of the runs go well.
const FAULTS: [(u32, Fault); 12] = [
    (50, Fault::None),
    (14, Fault::KillCommand),
    (10, Fault::KillMachine),
    (8, Fault::KillBoth),
    (10, Fault::Interrupt),
    (8, Fault::Quit),
    (8, Fault::Hang),
    (8, Fault::Sever),
    (8, Fault::Full),
    (6, Fault::Unplug),
    (8, Fault::Migrate),
    (8, Fault::Snapshot),
];

impl Torture {
    /// One run of the command. What it says comes back as the round's outcome.
    pub(super) fn attempt(&mut self) -> Value {
        let kind =
            *["Auto", "Auto", "Auto", "Auto", "Auto", "Full", "Incremental", "Copy"].choose(&mut self.rng).unwrap();
        let bandwidth = *["", "16Mi", "4Mi"].choose(&mut self.rng).unwrap();
        let mut fleecing = *["Auto", "Always", "Never"].choose(&mut self.rng).unwrap();
        if fleecing == "Always" && !self.machine.can_fleece() && self.rng.random_ratio(9, 10) {
            // It is refused there.
            fleecing = "Never";
        }
        let path = *["Auto", "Auto", "Staged"].choose(&mut self.rng).unwrap();
        let fault = match FAULTS.choose_weighted(&mut self.rng, |(weight, _)| *weight).unwrap().1 {
            Fault::Hang | Fault::Sever if self.behind.is_none() => Fault::None,
            Fault::Full if self.behind.is_some() => Fault::None,
            Fault::Unplug if !self.can_unplug() => Fault::None,
            Fault::Migrate if !self.can_migrate() => Fault::None,
            Fault::Snapshot if self.is_overlay("a") => Fault::None,
            fault => fault,
        };
        let after = Duration::from_millis(self.rng.random_range(0..600));
        let recovers = self.rng.random_ratio(2, 3);
        self.deeds.push(format!("{kind} {bandwidth} {fleecing} {path} {fault:?} {after:?} {recovers}"));
        // Those of a run that was cut off are finished first.
        let earlier = self.jobs();
        let (mut child, began) = (self.start(kind, bandwidth, fleecing, path), Instant::now());
        let mut going = false;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status.code();
            }
            assert!(began.elapsed() < PATIENCE, "{:?}: the command does not end", self.deeds);
            if fault != Fault::None && began.elapsed() >= after {
                self.strike(fault, &mut child);
                break child.wait().unwrap().code();
            }
            // Once its jobs are there the instant has passed.
            going = going || !self.jobs().is_subset(&earlier);
            if going {
                self.write();
            } else {
                std::thread::sleep(Duration::from_millis(2));
            }
        };
        let said = std::fs::read_to_string(self.folder.path().join("stdout")).unwrap();
        let said: Value = serde_json::from_str(&said).unwrap_or_default();
        self.machine.end_former();
        if !self.machine.is_alive() {
            self.restart(false);
            self.deeds.push("started again".to_owned());
        }
        let outcome = json!({ "status": status, "said": said });
        self.judge(kind, fault, status, &said);
        // A copy makes no checkpoint and removes none.
        if kind != "Copy" {
            let complete = status == Some(0) && fault == Fault::None;
            self.incomplete = if complete { 0 } else { self.incomplete + 1 };
        }
        if recovers {
            let qmp = self.machine.qmp().display().to_string();
            let recovered = self.run(&["recover", "--qmp", &qmp, "--repository", &self.path("repository")]);
            let text = String::from_utf8_lossy(&recovered.stderr).into_owned();
            assert!(recovered.status.success() || fault != Fault::None, "{:?}: {text}", self.deeds);
            let context = format!("{:?}: {outcome}; {text}", self.deeds);
            self.assert_clean(&context);
        }
        outcome
    }

    fn filler(&self) -> PathBuf {
        self.folder.path().join("repository/filler")
    }

    fn jobs(&self) -> BTreeSet<String> {
        let jobs = self.machine.execute("query-jobs", json!({}));
        jobs.as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
    }

    fn start(&self, kind: &str, bandwidth: &str, fleecing: &str, path: &str) -> Child {
        let file = |name: &str| std::fs::File::create(self.folder.path().join(name)).unwrap();
        let (qmp, repository) = (self.machine.qmp().display().to_string(), self.path("repository"));
        let mut command = self.command();
        command.args(["backup", "--qmp", &qmp, "--repository", &repository, "--name", "g", "--type", kind]);
        command.args(["--fleecing", fleecing, "--data-path", path]);
        command.args(["-o", "json", "--quiet"]).stdout(file("stdout")).stderr(file("stderr")).process_group(0);
        if !bandwidth.is_empty() {
            command.args(["--bandwidth", bandwidth]);
        }
        command.spawn().unwrap()
    }

    fn strike(&mut self, fault: Fault, child: &mut Child) {
        let group = Pid::from_child(child);
        let signal = |signal| {
            // It may have ended by itself.
            let _ = kill_process_group(group, signal);
        };
        match fault {
            Fault::None => {}
            Fault::KillCommand => {
                signal(Signal::KILL);
                // What it has sent may still be done: the machine's next command would meet it half-done.
                std::thread::sleep(Duration::from_millis(200));
            }
            Fault::KillMachine => self.machine.kill(),
            Fault::KillBoth => {
                signal(Signal::KILL);
                self.machine.kill();
            }
            Fault::Interrupt => signal(Signal::INT),
            Fault::Quit => self.machine.quit(),
            Fault::Full => {
                let file = std::fs::File::create(self.filler()).unwrap();
                let free = rustix::fs::fstatvfs(&file).unwrap();
                let left = self.rng.random_range(0..4 * MIB);
                let taken = (free.f_bavail * free.f_frsize).saturating_sub(left);
                // The run takes space too.
                let _ = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, taken.max(1));
                // A copy that is whole waits for room.
                std::thread::sleep(Duration::from_millis(500));
                std::fs::remove_file(self.filler()).unwrap();
            }
            Fault::Unplug => {
                self.machine.unplug("b");
                let without = self.pending.last().unwrap().clone().into_iter().filter(|(disk, _)| disk != "b");
                self.pending.push(without.collect());
            }
            Fault::Migrate => {
                self.migrate();
                self.forget_transient();
            }
            Fault::Snapshot => {
                let node = if self.rng.random() { "fmt-a".to_owned() } else { active(&self.machine, "a") };
                let taken = self.snapshot("a", &node);
                self.deeds.push(format!("Snapshot of {node}, taken {taken}"));
            }
            Fault::Hang | Fault::Sever => {
                let Some(behind) = &mut self.behind else { return };
                if fault == Fault::Hang {
                    behind.hang()
                } else {
                    behind.kill()
                }
                std::thread::sleep(Duration::from_millis(300));
                if fault == Fault::Hang { behind.go_on() } else { behind.revive() }
            }
        }
    }

    /// Whether the command's end fits to what was done to it, and each disk's type to what it went through.
    fn judge(&mut self, kind: &str, fault: Fault, status: Option<i32>, said: &Value) {
        let context = format!("{:?}: {status:?} {said}", self.deeds);
        let complete = status == Some(0);
        let reason = said["error"]["reason"].as_str().unwrap_or_default();
        let message = said["error"]["message"].as_str().unwrap_or_default();
        // What is staged leaves too little of the scratch folder for a fleece, and grown disks are too large to be staged.
        let impossible = kind == "Incremental" && reason == "IncrementalImpossible"
            || ["FleecingUnsafe", "ScratchFull"].contains(&reason)
            || reason == "TargetUnsafe" && message.contains("raise the budget");
        // The guest has overwritten more than the scratch could take: the run fails, and nothing is lost.
        let broken = reason == "SnapshotBroken";
        assert!(complete || !matches!(fault, Fault::None | Fault::Hang) || impossible || broken, "{context}");
        if !complete {
            // Whether a point was made is seen in the repository. It may be the base of the next run, or not.
            if !impossible && !broken {
                self.continued.clear();
            }
            return;
        }
        let disks = said["disks"].as_array().unwrap();
        for disk in disks {
            let due = self.continued.contains(disk["name"].as_str().unwrap());
            assert!(kind != "Auto" || !due || disk["type"] == "Incremental", "{context}: {disk}");
        }
        if kind != "Copy" {
            self.continued = disks.iter().map(|disk| disk["name"].as_str().unwrap().to_owned()).collect();
        }
        if fault != Fault::None {
            // It may have come too late for the run and in time for the machine.
            self.continued.clear();
        }
    }
}
