//! The machines of these tests: a real QEMU and a scripted one with the same disks.

use std::{
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command as Process, Stdio},
    time::{Duration, Instant},
};

use driftline::qmp::{
    Address, Client, Monitor,
    command::{AddFd, BlockdevAdd, HumanMonitorCommand},
    fake::{FakeDisk, FakeQemu, Pace, Setup},
};
use serde_json::json;
use tempfile::TempDir;

pub(super) const UUID: &str = "9f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10";
/// No multiple of a cluster.
pub(super) const ODD: u64 = 1_536_512;
pub(super) const EVEN: u64 = 3 << 20;

/// A machine with `disk0` (qcow2, node `n0`, 3 MiB) and `disk1` (raw, node `n1`, an odd size).
pub(super) struct Machine {
    folder: TempDir,
    kind: Kind,
}

enum Kind {
    Real(Child),
    Fake(FakeQemu),
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(super) fn run(program: &str, arguments: &[&str]) -> std::process::Output {
    Process::new(program).args(arguments).output().unwrap()
}

pub(super) fn run_well(program: &str, arguments: &[&str]) {
    let output = run(program, arguments);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Data, zeros, a hole and data again.
fn content(size: u64) -> Vec<u8> {
    let byte = |at: u64| if at / 65536 % 3 == 1 { 0 } else { u8::try_from(at / 512 % 251).unwrap() + 1 };
    (0..size).map(byte).collect()
}

impl Machine {
    fn files() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("disk0.raw"), content(EVEN)).unwrap();
        fs::write(folder.path().join("disk1.raw"), content(ODD)).unwrap();
        folder
    }

    pub(super) fn real() -> Machine {
        let folder = Machine::files();
        let at = |name: &str| folder.path().join(name);
        run_well("qemu-img", &["convert", "-O", "qcow2", text(&at("disk0.raw")), text(&at("disk0.qcow2"))]);
        let n0 = json!({"driver": "qcow2", "node-name": "n0",
            "file": {"driver": "file", "filename": at("disk0.qcow2")}});
        let n1 = json!({"driver": "raw", "node-name": "n1", "file": {"driver": "file", "filename": at("disk1.raw")}});
        let child = Process::new("qemu-system-x86_64")
            .args(["-machine", "q35", "-accel", "tcg", "-display", "none", "-nodefaults", "-uuid", UUID])
            .args(["-name", "fake", "-m", "64"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", text(&at("qmp")))])
            .args(["-blockdev", &n0.to_string(), "-device", "virtio-blk-pci,id=disk0,drive=n0"])
            .args(["-blockdev", &n1.to_string(), "-device", "virtio-blk-pci,id=disk1,drive=n1"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let machine = Machine { folder, kind: Kind::Real(child) };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !machine.at("qmp").exists() {
            assert!(Instant::now() < deadline, "QEMU made no socket");
            std::thread::yield_now();
        }
        machine
    }

    fn fake() -> Machine {
        let folder = Machine::files();
        let disk0 = FakeDisk::qcow2("disk0", folder.path().join("disk0.raw")).node("n0");
        let disk1 = FakeDisk::raw("disk1", folder.path().join("disk1.raw")).node("n1");
        let setup = Setup::new(folder.path().join("qmp")).uuid(UUID).disk(disk0).disk(disk1).version(10, 0);
        let qemu = setup.pace(Pace::AtOnce).start().unwrap();
        Machine { folder, kind: Kind::Fake(qemu) }
    }

    pub(super) fn both() -> [Machine; 2] {
        [Machine::real(), Machine::fake()]
    }

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn monitor(&self) -> Monitor {
        Monitor::new(Address::Unix(self.at("qmp")))
    }

    /// QEMU makes the socket's file a moment before it listens.
    pub(super) async fn client(&self) -> Client {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match self.monitor().client().await {
                Ok(client) => return client,
                Err(error) => assert!(Instant::now() < deadline, "no connection: {error}"),
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        match &self.kind {
            Kind::Real(child) => child.id(),
            Kind::Fake(qemu) => qemu.pid(),
        }
    }

    pub(super) fn kill(&mut self) {
        match &mut self.kind {
            Kind::Real(child) => {
                child.kill().unwrap();
                child.wait().unwrap();
            }
            Kind::Fake(qemu) => qemu.kill(),
        }
    }

    pub(super) fn is_scripted(&self) -> bool {
        matches!(self.kind, Kind::Fake(_))
    }

    /// Jobs of the scripted one go on until they are cancelled; the real one's go on by their small bandwidth.
    pub(super) fn slow(&self) {
        if let Kind::Fake(qemu) = &self.kind {
            qemu.set_pace(Pace::Manual);
        }
    }

    pub(super) fn write(&self, disk: &str, offset: u64, length: u64) -> Option<HumanMonitorCommand> {
        match &self.kind {
            Kind::Real(_) => Some(HumanMonitorCommand {
                command_line: format!(
                    "qemu-io -d /machine/peripheral/{disk}/virtio-backend \"write -P 0xaa {offset} {length}\""
                ),
            }),
            Kind::Fake(qemu) => {
                qemu.write(disk, offset, &vec![0xaa; usize::try_from(length).unwrap()]).unwrap();
                None
            }
        }
    }

    /// An empty target for a disk of `size`, handed over by descriptor as node `node`; answers with its fd set.
    pub(super) async fn target(&self, client: &Client, node: &str, size: u64) -> i64 {
        let path = self.at(&format!("{node}.qcow2"));
        run_well("qemu-img", &["create", "-f", "qcow2", text(&path), &size.to_string()]);
        let file = fs::File::options().read(true).write(true).open(&path).unwrap();
        let add = AddFd { fdset_id: None, opaque: Some("driftline.test".to_owned()) };
        let set = client.execute_with_fd(&add, file.as_fd()).await.unwrap().fdset_id;
        let options = json!({"driver": "qcow2", "node-name": node, "backing": null, "detect-zeroes": "on",
            "file": {"driver": "file", "filename": format!("/dev/fdset/{set}")}});
        client.execute(&BlockdevAdd { options }).await.unwrap();
        set
    }
}
