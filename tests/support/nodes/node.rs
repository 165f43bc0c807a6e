//! One node: its namespaces, its disk and its daemons, from power on to power cut.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};

use super::{
    Bench,
    daemons::{self, Setting},
    needs,
    network::Place,
};
use crate::{controlplane::process::Process, lab::child::wait_for};

/// How long a node may take from power on to Ready; 2 s on an idle machine of two cores.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// A node of the bench. Dropped, it is gone.
pub struct Node {
    name: String,
    place: Place,
    bench: Arc<Bench>,
    /// Its disk, its logs, and the sign that its namespaces are set up.
    folder: PathBuf,
    kubeconfig: PathBuf,
    running: Mutex<Option<Running>>,
}

/// What there is between power on and power cut.
struct Running {
    init: Pid,
    /// `unshare`, the parent of `init`.
    parent: Process,
    cgroup_root: String,
    daemons: BTreeMap<String, Process>,
}

impl Node {
    /// A node that is still off.
    pub(super) fn new(name: &str, place: Place, bench: Arc<Bench>) -> Node {
        let folder = bench.folder.join(name);
        fs::create_dir_all(folder.join("disk")).expect("A node's folder can be made");
        let kubeconfig = bench.plane.client_kubeconfig(&format!("system:node:{name}"), Some("system:nodes"));
        Node { name: name.to_owned(), place, bench, folder, kubeconfig, running: Mutex::new(None) }
    }

    /// The node's address, from the test and from everywhere in the cluster.
    pub fn address(&self) -> std::net::Ipv4Addr {
        self.place.address()
    }

    /// `program` as a process of the node, not of a pod: in its network, its file system and among its processes. It
    /// ends with the node.
    pub fn enter(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        enter(self.running().as_ref().unwrap_or_else(|| self.is_off()).init, program)
    }

    /// The words before a program that is to be a process of the node.
    pub fn launcher(&self) -> Vec<String> {
        let command = self.enter("");
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let mut words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
        words.pop();
        words
    }

    /// The node's file system, as a path of the test's. It is another one after each power cut.
    pub fn root(&self) -> PathBuf {
        root(self.running().as_ref().unwrap_or_else(|| self.is_off()).init)
    }

    /// Starts the node and waits until it is Ready.
    ///
    /// Panics with the step that failed and the end of the right log.
    pub fn power_on(&self) {
        let deadline = Instant::now() + READY_WITHIN;
        let mut guard = self.running();
        assert!(guard.is_none(), "Node {} is on already", self.name);
        let running = guard.insert(self.start_init());
        self.wait("its namespaces are set up", &mut running.parent, deadline, || self.folder.join("up").exists());
        self.place.connect(running.init);
        self.setting(running, |setting| setting.write());
        self.start_daemon(running, "containerd");
        self.wait_for_daemon(running, "containerd", deadline);
        if !self.folder.join("disk/images").exists() {
            load_image(running.init, &self.bench.image);
            fs::write(self.folder.join("disk/images"), "").expect("A node's folder can be written");
        }
        self.start_daemon(running, "kubelet");
        // kube-proxy asks for its node once, and waits for seconds when there is none yet.
        let registered = || self.bench.plane.kubectl(["get", "node", &self.name]).succeeded();
        self.wait("kubelet registers it", running.daemon("kubelet"), deadline, registered);
        self.start_daemon(running, "proxy");
        drop(guard);
        self.wait_until_ready_by(deadline);
        let mut guard = self.running();
        let running = guard.as_mut().unwrap_or_else(|| self.is_off());
        self.wait_for_daemon(running, "proxy", deadline);
    }

    /// Ends the node at once, as a power cut does: every process and /run are gone, its disk stays.
    pub fn power_cut(&self) {
        let Some(mut running) = self.running().take() else { return };
        // The kernel ends all processes of the namespace with its init, and its parent ends when all is over.
        let _ = rustix::process::kill_process(running.init, Signal::KILL);
        let deadline = Instant::now() + Duration::from_secs(10);
        while running.parent.is_alive() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(running);
        self.place.disconnect();
        self.bench.cgroups.remove(&self.name);
    }

    /// Waits until the API server says that this start of the node, not one before a power cut, is Ready.
    pub fn wait_until_ready(&self) {
        self.wait_until_ready_by(Instant::now() + READY_WITHIN);
    }

    /// Sends a signal to `containerd`, `kubelet` or `proxy`.
    pub fn signal(&self, daemon: &str, signal: Signal) {
        self.running().as_mut().unwrap_or_else(|| self.is_off()).signal(daemon, signal);
    }

    /// Kills a daemon with SIGKILL, where it runs, and starts it again; returns when it is back at work. Pods go on
    /// meanwhile.
    pub fn restart(&self, daemon: &str) {
        let mut guard = self.running();
        let running = guard.as_mut().unwrap_or_else(|| self.is_off());
        if running.daemon(daemon).is_alive() {
            running.signal(daemon, Signal::KILL);
            // Not the nsenter: it ends when the daemon has, with all its ports and locks.
            let process = running.daemon(daemon);
            wait_for(&format!("the end of {daemon}"), Duration::from_secs(10), || (!process.is_alive()).then_some(()));
        }
        self.start_daemon(running, daemon);
        self.wait_for_daemon(running, daemon, Instant::now() + READY_WITHIN);
    }

    /// Gives the node an image, from an archive as `nodes::image::write` makes it.
    pub fn load_image(&self, archive: &Path) {
        load_image(self.running().as_ref().unwrap_or_else(|| self.is_off()).init, archive);
    }

    /// The end of what the node's daemons have logged, for a test's complaint.
    pub fn logs(&self) -> String {
        let guard = self.running();
        let Some(running) = guard.as_ref() else { return format!("--- {} is off", self.name) };
        let log = |(name, process): (&String, &Process)| format!("--- {name} of {}\n{}", self.name, process.log_tail());
        running.daemons.iter().map(log).collect::<Vec<_>>().join("\n")
    }

    fn start_init(&self) -> Running {
        let _ = fs::remove_file(self.folder.join("up"));
        let cgroup_root = self.bench.cgroups.make(&self.name);
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--", "sh"]);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/nodes/inside.sh")).arg(&self.folder);
        command.env("PATH", needs::path());
        let mut parent = Process::start("init", command, &self.folder);
        let mut init = None;
        let deadline = Instant::now() + Duration::from_secs(10);
        let pid = parent.pid();
        self.wait("its namespaces are made", &mut parent, deadline, || {
            init = child_of(pid);
            init.is_some()
        });
        Running { init: init.expect("It was waited for"), parent, cgroup_root, daemons: BTreeMap::new() }
    }

    fn start_daemon(&self, running: &mut Running, daemon: &str) {
        let line = self.setting(running, |setting| setting.command(daemon));
        let (program, args) = line.split_first().expect("A command line has a program");
        let mut command = enter(running.init, program);
        command.args(args);
        running.daemons.insert(daemon.to_owned(), Process::start(daemon, command, &self.folder));
    }

    fn wait_for_daemon(&self, running: &mut Running, daemon: &str, deadline: Instant) {
        let root = root(running.init);
        let answers = || daemons::answers(daemon, &root, self.place);
        self.wait(&format!("{daemon} answers"), running.daemon(daemon), deadline, answers);
    }

    fn setting<T>(&self, running: &Running, use_it: impl FnOnce(Setting<'_>) -> T) -> T {
        use_it(Setting {
            name: &self.name,
            place: self.place,
            plane: &self.bench.plane,
            kubelet_kubeconfig: &self.kubeconfig,
            proxy_kubeconfig: &self.bench.proxy_kubeconfig,
            root: &root(running.init),
            cgroup_root: &running.cgroup_root,
        })
    }

    fn wait_until_ready_by(&self, deadline: Instant) {
        // Each start is another boot to kubelet, see inside.sh; the Ready of the boot before says nothing.
        let boot = fs::read_to_string(self.root().join("proc/sys/kernel/random/boot_id"));
        let wanted = format!("{} True", boot.expect("A node has a boot id").trim());
        let path = "jsonpath={.status.nodeInfo.bootID} {.status.conditions[?(@.type=='Ready')].status}";
        let mut guard = self.running();
        let kubelet = guard.as_mut().unwrap_or_else(|| self.is_off()).daemon("kubelet");
        self.wait("it is Ready", kubelet, deadline, || {
            self.bench.plane.kubectl(["get", "node", &self.name, "-o", path]).stdout() == wanted
        });
    }

    /// Waits for a step that `process` has to do; panics with the end of its log when it ends or time is over.
    fn wait(&self, step: &str, process: &mut Process, deadline: Instant, mut done: impl FnMut() -> bool) {
        while !done() {
            let why = match process.is_alive() {
                false => "ended",
                true if Instant::now() > deadline => "is still not there",
                true => {
                    std::thread::sleep(Duration::from_millis(50));
                    continue;
                }
            };
            let logs = process.log_tail();
            panic!("Node {}, until {step}: {process:?} {why}. The end of its log:\n{logs}", self.name);
        }
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_off(&self) -> ! {
        panic!("Node {} is off", self.name)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.power_cut();
    }
}

impl Running {
    fn daemon(&mut self, name: &str) -> &mut Process {
        self.daemons
            .get_mut(name)
            .unwrap_or_else(|| panic!("A node has no daemon {name:?}: containerd, kubelet, proxy"))
    }

    /// Sends a signal to the daemon itself, which is the child of an nsenter.
    fn signal(&mut self, name: &str, signal: Signal) {
        let parent = self.daemon(name).pid();
        let child = wait_for(&format!("{name} is started"), Duration::from_secs(5), || child_of(parent));
        rustix::process::kill_process(child, signal).unwrap_or_else(|error| panic!("{name} takes no signal: {error}"));
        // nsenter stops itself with its child, and would then not see its end.
        if matches!(signal, Signal::CONT | Signal::KILL) {
            self.daemon(name).signal(Signal::CONT);
        }
    }
}

fn enter(init: Pid, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", &init.as_raw_nonzero().to_string(), "--net", "--mount", "--pid", "--"]).arg(program);
    command.env("PATH", needs::path());
    command
}

fn root(init: Pid) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root", init.as_raw_nonzero()))
}

fn load_image(init: Pid, archive: &Path) {
    let mut command = enter(init, "ctr");
    let output = command.args(["--namespace", "k8s.io", "images", "import"]).arg(archive).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The child of a process that has one: `unshare` and `nsenter` fork what they were told to run.
fn child_of(parent: Pid) -> Option<Pid> {
    let parent = parent.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
}
