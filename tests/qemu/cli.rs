//! The built command against a real QEMU: what a person types, what comes out, what is left behind.

mod course;
mod interrupted;
mod json;
mod refused;
mod stray;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use crate::lab::{
    child::{Guarded, wait_for},
    machine::{Attach, Disk, Format, Machine, Plan},
    reference::Reference,
};

const MIB: u64 = 1 << 20;

/// A host with a configuration of its own and an empty folder for a repository.
struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    fn new() -> Host {
        let folder = tempfile::Builder::new().prefix("host-").tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        for name in ["repository", "restored", "guests.d"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let config = format!(
            "state = {:?}\nlocks = {:?}\nguests = {:?}\nrepositoryRoots = [{:?}]\nreserve = \"1Mi\"\n\
             [restoreRoots]\nteam-a = [{:?}]\n",
            path("state"),
            path("locks"),
            path("guests.d"),
            path("repository"),
            path("restored"),
        );
        std::fs::write(folder.path().join("host.toml"), config).unwrap();
        Host { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn repository(&self) -> String {
        self.path("repository").display().to_string()
    }

    /// Runs the command to its end.
    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_driftline"));
        command.args(words).env("DRIFTLINE_CONFIG", self.path("host.toml")).stdin(Stdio::null()).output().unwrap()
    }

    /// The one JSON document of a command that must do what it is asked.
    fn json(&self, words: &[&str]) -> Value {
        let output = self.run(&[words, &["-o", "json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Starts the command and leaves it running.
    fn start(&self, words: &[&str]) -> Guarded {
        let file = |name: &str| std::fs::File::create(self.path(name)).unwrap();
        // As from a terminal, also where the tests themselves run without one (`nohup`).
        Guarded::start("env", |command| {
            command.args(["--default-signal=HUP,INT", env!("CARGO_BIN_EXE_driftline")]);
            command.args(words).env("DRIFTLINE_CONFIG", self.path("host.toml"));
            command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
        })
    }

    fn said(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn backup(&self, machine: &Machine) -> Value {
        let qmp = machine.qmp().display().to_string();
        self.json(&["backup", "--qmp", &qmp, "--repository", &self.repository()])
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn wait_for_jobs(machine: &Machine, count: usize) {
    wait_for("the backup's jobs run", Duration::from_secs(30), || {
        (machine.execute("query-block-jobs", json!({})).as_array().unwrap().len() >= count).then_some(())
    });
}

/// Files of stored points: folders in the guest's folder but not its lease.
fn point_folders(repository: &Path, machine: &Machine) -> Vec<PathBuf> {
    let folder = repository.join("guests").join(machine.uuid());
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
}

#[test]
fn a_backup_made_while_the_machine_writes_restores_equal_to_its_instant() {
    let host = Host::new();
    let machine = Plan::new()
        .disk(Disk::qcow2("disk0", 24 * MIB))
        .disk(Disk::raw("disk1", 8 * MIB + 512).attach(Attach::DriveAndDevice))
        .start();
    machine.write("disk0", 0x11, MIB, 16 * MIB);
    machine.write("disk1", 0x22, 0, 8 * MIB + 512);
    let reference = Reference::take(&machine);
    let (qmp, repository) = (machine.qmp().display().to_string(), host.repository());
    let words = ["backup", "--qmp", &qmp, "--repository", &repository, "--bandwidth", "4Mi", "-o", "json"];
    let mut backup = host.start(&words);
    wait_for_jobs(&machine, 2);
    for at in 0..16 {
        machine.write("disk0", 0x33, at * MIB + 4096, 65536);
        machine.write("disk1", 0x44, at * MIB / 2, 512);
    }
    let jobs = machine.execute("query-block-jobs", json!({}));
    assert!(!jobs.as_array().unwrap().is_empty(), "the writes came while it copied");
    let status = backup.wait(Duration::from_secs(120));
    assert_eq!(status.code(), Some(0), "{}", host.said("stderr"));
    let said = host.said("stderr");
    assert!(said.contains("Initialised repository"), "{said}");
    assert!(said.contains("Copying: "), "a plain line where there is no terminal: {said}");
    let document: Value = serde_json::from_str(&host.said("stdout")).unwrap();
    let point = document["restorePoint"].as_str().unwrap();

    for (format, option) in [(Format::Qcow2, "Qcow2"), (Format::Raw, "raw")] {
        let file = |disk: &str| host.path("restored").join(format!("{disk}.{option}"));
        let to = |disk: &str| format!("{disk}={}", file(disk).display());
        let (disk0, disk1) = (to("disk0"), to("disk1"));
        let words = ["restore", "--repository", &repository, "--point", point, "--to", &disk0, "--to", &disk1];
        let words = [&words[..], &["--format", option]].concat();
        let planned = host.json(&[&words[..], &["--dry-run"]].concat());
        assert_eq!((&planned["dryRun"], file("disk0").exists()), (&json!(true), false));
        assert_eq!(host.json(&words)["verified"], json!(true));
        for disk in ["disk0", "disk1"] {
            reference.assert_equal(disk, &file(disk), format);
        }
        let again = host.run(&words);
        assert_eq!(again.status.code(), Some(1));
        assert!(text(&again.stderr).contains("--overwrite"), "{}", text(&again.stderr));
    }
    assert_eq!(machine.status(), "running");
}

#[test]
fn a_linux_guest_that_writes_all_the_time_restores_equal_and_never_sees_an_error() {
    let host = Host::new();
    let disks = [Disk::qcow2("disk0", 48 * MIB), Disk::raw("disk1", 16 * MIB + 4096)];
    let machine = disks.into_iter().fold(Plan::new().linux(), Plan::disk).start();
    let console = machine.console();
    console.wait_until_up();
    console.go();
    wait_for("the writer fills the disks", Duration::from_secs(60), || (console.status().writes > 1000).then_some(()));
    console.stop();
    let reference = Reference::take(&machine);
    let (qmp, repository) = (machine.qmp().display().to_string(), host.repository());
    let mut backup = host.start(&["backup", "--qmp", &qmp, "--repository", &repository, "--bandwidth", "8Mi"]);
    wait_for_jobs(&machine, 2);
    let before = console.go().writes;
    let status = backup.wait(Duration::from_secs(120));
    assert_eq!(status.code(), Some(0), "{}", host.said("stderr"));
    let after = console.stop();
    assert!(after.writes > before + 100, "it wrote while it was copied: {before} and {after:?}");
    assert_eq!(after.errors, 0, "no write of the guest failed");
    for disk in ["disk0", "disk1"] {
        let file = host.path("restored").join(disk);
        let to = format!("{disk}={}", file.display());
        host.json(&["restore", "--repository", &repository, "--point", "latest", "--to", &to, "--format", "Raw"]);
        reference.assert_equal(disk, &file, Format::Raw);
    }
    // The raw one can be read while QEMU has it open.
    let moved_on = reference.difference("disk1", &machine.disk("disk1").file, Format::Raw);
    assert!(moved_on.is_some(), "the disk has moved on since the instant");
}

#[test]
fn a_flipped_byte_is_found_with_its_disk_offset_and_point() {
    let host = Host::new();
    let machine = Plan::new().disk(Disk::qcow2("disk0", 4 * MIB)).paused().start();
    machine.write("disk0", 0x5a, MIB, 65536);
    let document = host.backup(&machine);
    let point = document["restorePoint"].as_str().unwrap();
    let repository = host.repository();
    let intact = host.run(&["verify", "--repository", &repository]);
    assert_eq!(intact.status.code(), Some(0), "{}", text(&intact.stderr));
    assert!(text(&intact.stdout).starts_with("Intact: "), "{}", text(&intact.stdout));

    let image = point_folders(Path::new(&repository), &machine)[0].join("disk0.qcow2");
    let mut bytes = std::fs::read(&image).unwrap();
    let cluster = bytes.chunks(65536).position(|cluster| cluster.iter().all(|&byte| byte == 0x5a)).unwrap();
    bytes[cluster * 65536 + 77] ^= 1;
    std::fs::write(&image, bytes).unwrap();
    let damaged = host.run(&["verify", "--repository", &repository, "--point", point, "-o", "json"]);
    assert_eq!(damaged.status.code(), Some(3), "{}", text(&damaged.stderr));
    let found: Value = serde_json::from_slice(&damaged.stdout).unwrap();
    let findings = found["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1, "{found}");
    for (key, value) in
        [("kind", json!("ClusterDamaged")), ("disk", json!("disk0")), ("offset", json!(MIB)), ("point", json!(point))]
    {
        assert_eq!(findings[0][key], value, "{found}");
    }
    let told = text(&host.run(&["verify", "--repository", &repository]).stdout);
    assert!(told.contains("DAMAGED") && told.contains("disk0") && told.contains(point), "{told}");
}
