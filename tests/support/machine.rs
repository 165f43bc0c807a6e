//! A real QEMU with real disks, as people start them: raw, qcow2, with backing files, of odd sizes; by `-blockdev`
//! and `-drive`; with iothreads and filters.
//!
//! The machine's `qmp()` socket is for what is under test; the test itself writes through a second monitor, with the
//! human monitor's `qemu-io`, which acts on the disk as the guest's device would.

mod moves;

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use serde_json::json;

pub use super::disk::{Attach, Disk, Format};
use super::{
    child::{Guarded, wait_for},
    monitor::Monitor,
    tiny_guest::{Console, TinyGuest},
};

/// What a machine is started with.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    disks: Vec<Disk>,
    unplugged: Vec<Disk>,
    uuid: Option<String>,
    paused: bool,
    linux: bool,
    files: bool,
    kvm: bool,
    arguments: Vec<String>,
    launcher: Vec<String>,
    parent: Option<PathBuf>,
}

impl Plan {
    /// A machine without disks and with a UUID made up.
    pub fn new() -> Plan {
        Plan { uuid: Some(uuid::Uuid::new_v4().to_string()), ..Plan::default() }
    }

    /// One more disk.
    pub fn disk(mut self, disk: Disk) -> Plan {
        self.disks.push(disk);
        self
    }

    /// `-uuid`; `None`: QEMU has none.
    pub fn uuid(self, uuid: Option<&str>) -> Plan {
        Plan { uuid: uuid.map(str::to_owned), ..self }
    }

    /// `-S`: it never runs unless somebody says so.
    pub fn paused(self) -> Plan {
        Plan { paused: true, ..self }
    }

    /// Boots the tiny Linux guest, whose writer writes to all disks. See [`Machine::console`].
    pub fn linux(self) -> Plan {
        Plan { linux: true, ..self }
    }

    /// Boots the same, which writes files to the ext4 on its first disk instead, beside a guest agent: see
    /// [`Machine::guest_agent`].
    pub fn files(self) -> Plan {
        Plan { linux: true, files: true, ..self }
    }

    /// A machine whose only disk `disk0`, raw at `image`, has an ext4 that its guest writes files to, and whose guest agent answers.
    pub fn with_files(image: &Path) -> Machine {
        File::create(image).and_then(|file| file.set_len(48 << 20)).expect("an image can be made");
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-b", "4096"]).arg(image));
        let machine = Plan::new().disk(Disk::raw("disk0", 48 << 20).at(image)).files().start();
        machine.console().wait_until_up();
        machine
    }

    /// KVM where the host has it, else TCG. For machines that only hold disks TCG is the quieter one.
    pub fn kvm(self) -> Plan {
        Plan { kvm: true, ..self }
    }

    /// More of QEMU's own arguments.
    pub fn arguments(mut self, arguments: &[&str]) -> Plan {
        self.arguments.extend(arguments.iter().map(|&a| a.to_owned()));
        self
    }

    /// QEMU is the child of another program, such as nsenter, and its folder is in `parent`, which both sides see by this
    /// path.
    pub fn launched_by(self, launcher: Vec<String>, parent: &Path) -> Plan {
        Plan { launcher, parent: Some(parent.to_owned()), ..self }
    }

    /// Starts QEMU; returns when its monitor answers.
    pub fn start(mut self) -> Machine {
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix("machine-");
        let folder = match &self.parent {
            Some(parent) => builder.tempdir_in(parent),
            None => builder.tempdir(),
        };
        let folder = folder.expect("a temporary folder");
        for disk in &mut self.disks {
            if disk.file.as_os_str().is_empty() {
                disk.file = folder.path().join(format!("{}.{}", disk.name, disk.format.word()));
            }
            if !disk.file.exists() {
                disk.create();
            }
        }
        let (child, monitor, console) = launch(&self, folder.path());
        Machine { child, former: None, monitor: Mutex::new(monitor), console, plan: self, folder }
    }
}

/// A running QEMU. Dropping it kills it.
pub struct Machine {
    child: Guarded,
    /// The process that it has migrated from.
    former: Option<Guarded>,
    monitor: Mutex<Monitor>,
    console: Option<Console>,
    plan: Plan,
    folder: tempfile::TempDir,
}

impl Drop for Machine {
    fn drop(&mut self) {
        if !self.plan.launcher.is_empty() {
            self.kill();
        }
    }
}

impl Machine {
    /// The monitor socket for what is under test.
    pub fn qmp(&self) -> PathBuf {
        self.folder.path().join("qmp")
    }

    /// The machine's own folder: disks, sockets, output.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process id that QEMU has where it was launched into.
    pub fn pid_there(&self) -> u32 {
        let Some(qemu) = self.launched() else { return self.pid() };
        let status = std::fs::read_to_string(format!("/proc/{}/status", qemu.as_raw_nonzero())).unwrap_or_default();
        let own = status.lines().find_map(|line| line.strip_prefix("NSpid:")?.split_whitespace().next_back());
        own.and_then(|own| own.parse().ok()).expect("QEMU runs")
    }

    /// The words that it was launched by.
    pub fn launcher(&self) -> &[String] {
        &self.plan.launcher
    }

    /// The UUID that it was started with.
    pub fn uuid(&self) -> &str {
        self.plan.uuid.as_deref().expect("the test gave the machine a UUID")
    }

    /// All disks, in their order.
    pub fn disks(&self) -> &[Disk] {
        &self.plan.disks
    }

    /// A disk by its name.
    pub fn disk(&self, name: &str) -> &Disk {
        self.disks().iter().find(|disk| disk.name == name).unwrap_or_else(|| panic!("The machine has no disk {name}"))
    }

    /// From the next start on, the disk's image is this file.
    pub fn put(&mut self, disk: &str, file: &Path, format: Format) {
        let found = self.plan.disks.iter_mut().find(|found| found.name == disk).expect("the machine has the disk");
        (found.file, found.format) = (file.to_owned(), format);
    }

    /// The guest agent's socket, of a machine of [`Plan::files`].
    pub fn guest_agent(&self) -> PathBuf {
        self.folder.path().join("qga")
    }

    /// The Linux guest's console.
    pub fn console(&self) -> &Console {
        self.console.as_ref().expect("the machine was started with Plan::linux")
    }

    /// A QMP command on the test's own monitor.
    pub fn execute(&self, command: &str, arguments: serde_json::Value) -> serde_json::Value {
        self.monitor.lock().expect("no test thread panicked here").execute(command, arguments)
    }

    /// The same, or QEMU's description of the error.
    pub fn try_execute(&self, command: &str, arguments: serde_json::Value) -> Result<serde_json::Value, String> {
        self.monitor.lock().expect("no test thread panicked here").try_execute(command, arguments)
    }

    /// QEMU's version.
    pub fn version(&self) -> (u64, u64) {
        let version = &self.execute("query-version", json!({}))["qemu"];
        (version["major"].as_u64().unwrap_or_default(), version["minor"].as_u64().unwrap_or_default())
    }

    /// Whether QEMU is one that shows right data in a snapshot.
    pub fn can_fleece(&self) -> bool {
        self.version() >= (8, 2)
    }

    /// Whether a descriptor that is given up while the machine stands stays open.
    pub fn keeps_descriptors_while_paused(&self) -> bool {
        self.version() < (9, 1)
    }

    /// `query-status`: `running`, `paused`, `prelaunch`, `io-error`.
    pub fn status(&self) -> String {
        self.execute("query-status", json!({}))["status"].as_str().unwrap_or_default().to_owned()
    }

    /// Writes `length` bytes of `pattern` as the guest's device would.
    pub fn write(&self, disk: &str, pattern: u8, offset: u64, length: u64) {
        self.qemu_io(disk, &format!("write -P {pattern} {offset} {length}"), "wrote ");
    }

    /// Writes zeros by QEMU's own request for it.
    pub fn write_zeroes(&self, disk: &str, offset: u64, length: u64) {
        self.qemu_io(disk, &format!("write -z {offset} {length}"), "wrote ");
    }

    /// Flushes a disk, with the metadata that QEMU holds in memory.
    pub fn flush(&self, disk: &str) {
        self.qemu_io(disk, "flush", "");
    }

    /// Any `qemu-io` command. What it prints goes to QEMU's output, which must then hold `expected` in its last line.
    pub fn qemu_io(&self, disk: &str, command: &str, expected: &str) {
        let before = self.output().len();
        let answer = {
            let mut monitor = self.monitor.lock().expect("no test thread panicked here");
            monitor.human(&format!("qemu-io {} \"{command}\"", self.disk(disk).device()))
        };
        let said = self.output().split_off(before);
        assert!(
            answer.is_empty() && said.contains(expected) && !said.contains("failed"),
            "qemu-io {command:?} on {disk}: {answer}{said}"
        );
    }

    /// What QEMU printed on its standard output.
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.folder().join("stdout")).unwrap_or_default()
    }

    /// What QEMU complained about.
    pub fn complaints(&self) -> String {
        std::fs::read_to_string(self.folder().join("stderr")).unwrap_or_default()
    }

    /// True while QEMU runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.is_alive()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(qemu) = self.launched() {
            // Its parent ends with it.
            let _ = rustix::process::kill_process(qemu, rustix::process::Signal::KILL);
            self.child.wait(Duration::from_secs(20));
        }
        self.child.kill();
    }

    /// QEMU, where it is the child of another program.
    fn launched(&self) -> Option<rustix::process::Pid> {
        let parent = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
        let child = children.split_whitespace().next().filter(|_| !self.plan.launcher.is_empty())?;
        rustix::process::Pid::from_raw(child.parse().ok()?)
    }

    /// SIGSTOP or SIGCONT and the like.
    pub fn signal(&self, signal: rustix::process::Signal) {
        self.child.signal(signal);
    }

    /// A clean end by `quit`, with the bitmaps stored.
    pub fn quit(&mut self) {
        let _ = self.try_execute("quit", json!({}));
        self.child.wait(Duration::from_secs(20));
    }

    /// Starts it again as the child of another program: on another node.
    pub fn start_again_by(&mut self, launcher: Vec<String>) {
        self.kill();
        self.plan.launcher = launcher;
        self.start_again();
    }

    /// Starts it again with the same disks and sockets, after its end.
    pub fn start_again(&mut self) {
        self.kill();
        let (child, monitor, console) = launch(&self.plan, self.folder.path());
        (self.child, self.console) = (child, console);
        *self.monitor.lock().expect("no test thread panicked here") = monitor;
    }
}

fn launch(plan: &Plan, folder: &Path) -> (Guarded, Monitor, Option<Console>) {
    for socket in ["qmp", "test", "console", "qga"] {
        let _ = std::fs::remove_file(folder.join(socket));
    }
    let output = |name: &str| Stdio::from(File::create(folder.join(name)).expect("the machine's folder takes files"));
    let socket = |name: &str| format!("unix:{},server=on,wait=off", folder.join(name).display());
    // stdbuf: what the human monitor's qemu-io prints is to be seen at once.
    let mut words = plan.launcher.iter().map(String::as_str).chain(["stdbuf"]);
    let mut child = Guarded::start(words.next().expect("there is one"), |command| {
        command.args(words).args(["-oL", "qemu-system-x86_64", "-machine", "q35", "-display", "none", "-nodefaults"]);
        command.args(["-qmp", &socket("qmp"), "-qmp", &socket("test")]);
        if plan.kvm {
            command.args(["-accel", "kvm"]);
        }
        command.args(["-accel", "tcg"]);
        if let Some(uuid) = &plan.uuid {
            command.args(["-uuid", uuid]);
        }
        if plan.paused {
            command.arg("-S");
        }
        if plan.linux {
            let guest = TinyGuest::build();
            let console = format!("socket,id=console,path={},server=on,wait=off", folder.join("console").display());
            let words = if plan.files { "files" } else { "" };
            command.args(["-cpu", "max", "-m", "256", "-append", &format!("console=ttyS0 quiet panic=-1 {words}")]);
            command.arg("-kernel").arg(guest.kernel).arg("-initrd").arg(guest.initrd);
            command.args(["-chardev", &console, "-serial", "chardev:console"]);
        }
        if plan.files {
            let agent = format!("socket,id=qga,path={},server=on,wait=off", folder.join("qga").display());
            command.args(["-chardev", &agent, "-device", "virtio-serial-pci"]);
            command.args(["-device", "virtserialport,chardev=qga,name=org.qemu.guest_agent.0"]);
        }
        // In their places, plugged or not: a machine that migrates finds its like.
        let plugged = plan.disks.iter().map(|disk| (&disk.name, disk.arguments()));
        let mut disks: Vec<_> = plugged.chain(plan.unplugged.iter().map(|disk| (&disk.name, disk.remains()))).collect();
        if !plan.unplugged.is_empty() {
            disks.sort();
        }
        command.args(disks.into_iter().flat_map(|(_, arguments)| arguments));
        command.args(&plan.arguments).stdin(Stdio::null()).stdout(output("stdout")).stderr(output("stderr"));
    });
    wait_for("QEMU opens its monitors", Duration::from_secs(20), || {
        let complaints = || std::fs::read_to_string(folder.join("stderr")).unwrap_or_default();
        assert!(child.is_alive(), "QEMU ended: {}", complaints());
        (folder.join("qmp").exists() && folder.join("test").exists()).then_some(())
    });
    let monitor = Monitor::connect(&folder.join("test"));
    let console = plan.linux.then(|| Console::connect(&folder.join("console")));
    (child, monitor, console)
}

/// Runs a command to its end; panics with its output when it fails.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("Cannot run {command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?} failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}
