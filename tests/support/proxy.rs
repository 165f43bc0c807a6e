//! The test's end of the monitor proxy (`qmp_proxy.rs`, a process of its own).

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock},
    time::Duration,
};

use super::{
    child::{Guarded, wait_for},
    machine::Machine,
    proxy_rules::Request,
};

pub use super::proxy_rules::{Action, Rule, Sent, State};

/// A proxy between what is under test and one machine's monitor. It ends with its machine, or when dropped.
pub struct Proxy {
    child: Guarded,
    control: Mutex<BufReader<UnixStream>>,
    folder: tempfile::TempDir,
}

impl Proxy {
    /// Starts one for a running machine.
    pub fn start(machine: &Machine) -> Proxy {
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix("proxy-");
        let folder = match machine.folder().parent().filter(|_| !machine.launcher().is_empty()) {
            Some(beside) => builder.tempdir_in(beside),
            None => builder.tempdir(),
        };
        let folder = folder.expect("a temporary folder");
        let (child, control) = launch(folder.path(), machine);
        Proxy { child, control: Mutex::new(control), folder }
    }

    /// After the machine was started again: a new proxy at the same socket, with no rules and nothing counted.
    pub fn start_again(&mut self, machine: &Machine) {
        self.child.kill();
        let (child, control) = launch(self.folder.path(), machine);
        (self.child, self.control) = (child, Mutex::new(control));
    }

    /// The socket that takes the monitor's place.
    pub fn qmp(&self) -> PathBuf {
        self.folder.path().join("qmp")
    }

    /// The proxy's process id, which its clients take for QEMU's.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// From now on: `action` on the `nth` (from 1) command of the name.
    pub fn on(&self, command: &str, nth: u32, action: Action) {
        self.ask(&Request::Rule(Rule { command: Some(command.to_owned()), nth, action }));
    }

    /// From now on: `action` on the `nth` (from 1) command of any name.
    pub fn on_any(&self, nth: u32, action: Action) {
        self.ask(&Request::Rule(Rule { command: None, nth, action }));
    }

    /// Forgets the rules that have not acted yet.
    pub fn clear(&self) {
        self.ask(&Request::Clear);
    }

    /// Waits until a rule holds something; panics past the deadline.
    pub fn wait_held(&self, deadline: Duration) {
        wait_for("the proxy holds a command", deadline, || self.state().held.then_some(()));
    }

    /// Lets what is held go on.
    pub fn release(&self) {
        self.ask(&Request::Release);
    }

    /// What has passed so far.
    pub fn state(&self) -> State {
        self.ask(&Request::State)
    }

    /// How often QEMU got the command.
    pub fn count(&self, command: &str) -> usize {
        self.state().commands.iter().filter(|sent| sent.command == command).count()
    }

    fn ask(&self, request: &Request) -> State {
        let mut control = self.control.lock().expect("no test thread panicked here");
        let mut line = serde_json::to_string(request).expect("a request is JSON");
        line.push('\n');
        control.get_mut().write_all(line.as_bytes()).expect("the proxy lives as long as its machine");
        line.clear();
        control.read_line(&mut line).expect("the proxy answers");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("The proxy ended, or said {line:?}: {error}"))
    }
}

fn launch(folder: &Path, machine: &Machine) -> (Guarded, BufReader<UnixStream>) {
    let (listen, control) = (folder.join("qmp"), folder.join("control"));
    for socket in [&listen, &control] {
        let _ = std::fs::remove_file(socket);
    }
    // Where the machine is: whoever is under test takes it for QEMU.
    let mut words = machine.launcher().iter().map(String::as_str).chain([program()]);
    let child = Guarded::start(words.next().expect("there is one"), |command| {
        command.args(words).arg(listen).arg(machine.qmp()).arg(&control).arg(machine.pid_there().to_string());
    });
    let stream = wait_for("the proxy is ready", Duration::from_secs(20), || UnixStream::connect(&control).ok());
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket takes a timeout");
    (child, BufReader::new(stream))
}

/// The proxy's binary. `cargo test --test NAME` builds no examples, so it is built here where it is missing or old.
fn program() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let test = std::env::current_exe().expect("a test knows its own file");
        let profile = test.parent().and_then(Path::parent).expect("tests are built into PROFILE/deps");
        let program = profile.join("examples/qemu-monitor-proxy");
        let support = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support");
        let age = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
        let sources = [support.join("qmp_proxy.rs"), support.join("proxy_rules.rs")];
        if age(&program).is_none_or(|built| sources.iter().any(|source| age(source) > Some(built))) {
            let mut cargo = Command::new(env!("CARGO"));
            cargo.args(["build", "--quiet", "--example", "qemu-monitor-proxy", "--features", "fake"]);
            cargo.current_dir(env!("CARGO_MANIFEST_DIR")).env("CARGO_TARGET_DIR", profile.parent().unwrap_or(profile));
            super::machine::run(&mut cargo);
        }
        program.to_str().expect("the target folder's name is UTF-8").to_owned()
    })
}
