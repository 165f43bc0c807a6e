//! Driftline installed on a test's control plane as a person would install it: the chart's objects, one controller with
//! the token of the chart's ServiceAccount (never an administrator's), and one agent for each of two nodes. Controller and
//! agents are processes of the built program with the chart's arguments.
//!
//! There is no kubelet: what it would give the pods, a token and the content of a ConfigMap, and what the pods of the
//! chart's Service would give, the EndpointSlice, is written here. The latter may not carry a loopback address, so all of
//! this runs inside of `tests/in-netns`.
#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test binary uses its part")]

#[path = "installation/pod.rs"]
mod pod;
#[path = "installation/tenant.rs"]
mod tenant;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::controlplane::{ControlPlane, free_port, process, process::Process};

pub use tenant::Tenant;

pub use crate::objects::API_VERSION;
use crate::objects::Objects;

/// The namespace that the chart is installed into.
pub const NAMESPACE: &str = "driftline-system";
/// The nodes that have an agent.
pub const NODES: [&str; 2] = ["node-a", "node-b"];
/// Namespaces that the hosts' files give a place for restores.
const TENANTS: usize = 64;

/// A running Driftline.
pub struct Installation {
    /// Its control plane.
    pub plane: &'static ControlPlane,
    folder: PathBuf,
    program: PathBuf,
    agent_port: u16,
    controller: Mutex<Option<Role>>,
    agents: Mutex<BTreeMap<&'static str, Role>>,
    tenants: AtomicUsize,
}

/// A role's process, and where it serves health and metrics.
struct Role {
    process: Process,
    admin: String,
}

impl Installation {
    /// The one installation of this test binary, made at the first call.
    pub fn shared() -> &'static Installation {
        static SHARED: OnceLock<Installation> = OnceLock::new();
        SHARED.get_or_init(|| Installation::start(ControlPlane::shared()))
    }

    /// Another one, with a control plane of its own, for tests that kill its parts: whoever shares an installation may need
    /// any of them at any time. One test has it at a time.
    pub fn to_kill() -> (&'static Installation, MutexGuard<'static, ()>) {
        static TO_KILL: OnceLock<Installation> = OnceLock::new();
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let start = || Installation::start(Box::leak(Box::new(ControlPlane::start(free_port()))));
        (TO_KILL.get_or_init(start), turn)
    }

    /// Installs the chart and starts controller and agents; returns when all of them are ready.
    pub fn start(plane: &'static ControlPlane) -> Installation {
        let installation = Installation {
            plane,
            folder: process::folder_that_ends_with_us("driftline-installation"),
            program: PathBuf::from(env!("CARGO_BIN_EXE_driftline")),
            agent_port: free_port(),
            controller: Mutex::new(None),
            agents: Mutex::new(BTreeMap::new()),
            tenants: AtomicUsize::new(0),
        };
        installation.check_network();
        installation.apply_chart();
        installation.start_controller();
        for node in NODES {
            installation.make_host(node);
        }
        installation.hand_out_authorities();
        for node in NODES {
            pod::place(plane, node);
            installation.start_agent(node);
        }
        installation.announce_agents();
        installation.wait_until_ready();
        installation
    }

    /// A namespace of its own with a place for repositories and restores on each node.
    pub fn tenant(&'static self) -> Tenant {
        let tenant = self.tenant_to_be();
        self.plane.kubectl(["create", "namespace", &tenant.namespace]).ok();
        tenant
    }

    /// The same without its namespace, which the test makes as a person would.
    pub fn tenant_to_be(&'static self) -> Tenant {
        let namespace = tenant_name(self.tenants.fetch_add(1, Ordering::Relaxed));
        Tenant { installation: self, objects: Objects::new(self.plane, namespace, || self.logs()) }
    }

    /// The folder that stands for a node's own file system.
    pub fn host(&self, node: &str) -> PathBuf {
        self.folder.join(node)
    }

    /// The controller's process id.
    pub fn controller_pid(&self) -> rustix::process::Pid {
        self.controller().as_ref().expect("The controller runs").process.pid()
    }

    /// Kills the controller with SIGKILL.
    pub fn kill_controller(&self) {
        *self.controller() = None;
    }

    /// Starts the controller again.
    pub fn start_controller(&self) {
        let admin = format!("127.0.0.1:{}", free_port());
        let account = self.plane.account_kubeconfig(NAMESPACE, "driftline-controller");
        let given = [("--namespace", NAMESPACE.to_owned()), ("--admin-listen", admin.clone())];
        let mut command = self.role("deployment/driftline-controller", &given);
        command.env("KUBECONFIG", account);
        *self.controller() = Some(Role { process: Process::start("controller", command, &self.folder), admin });
    }

    /// Kills a node's agent and all its children with SIGKILL.
    pub fn kill_agent(&self, node: &'static str) {
        self.agents().remove(node);
    }

    /// Starts a node's agent again.
    pub fn start_agent(&self, node: &'static str) {
        self.start_agent_with_token(node, &pod::token(self.plane, node));
    }

    /// The token that the pod of a node's agent has.
    pub fn token(&self, node: &str) -> String {
        pod::token(self.plane, node)
    }

    /// Starts a node's agent with a token of somebody's.
    pub fn start_agent_with_token(&self, node: &'static str, token: &str) {
        let admin = format!("127.0.0.1:{}", free_port());
        let own = |file: &str| self.host(node).join(file).display().to_string();
        fs::write(own("token"), token).expect("A node's file can be written");
        let given = [
            ("--node-name", node.to_owned()),
            ("--listen", format!("{}:{}", address(node), self.agent_port)),
            ("--tls-dir", own("tls")),
            ("--token", own("token")),
            ("--authorities", own("ca.crt")),
            ("--admin-listen", admin.clone()),
            ("--config", own("host.toml")),
        ];
        let command = self.role("daemonset/driftline-agent", &given);
        let process = Process::start(&format!("agent-{node}"), command, &self.folder);
        self.agents().insert(node, Role { process, admin });
    }

    /// Sends a signal to a node's agent.
    pub fn signal_agent(&self, node: &str, signal: rustix::process::Signal) {
        self.agents().get(node).expect("The agent runs").process.signal(signal);
    }

    /// Where a node's agent serves gRPC.
    pub fn agent_address(&self, node: &str) -> String {
        format!("{}:{}", address(node), self.agent_port)
    }

    /// The metrics of a role: `controller` or a node's name.
    pub fn metrics(&self, role: &str) -> String {
        let admin = self.admin(role);
        http_get(&admin, "/metrics").unwrap_or_else(|why| panic!("{role} gives no metrics: {why}"))
    }

    /// What a role says of itself while it is ready.
    pub fn readiness(&self, role: &str) -> String {
        let admin = self.admin(role);
        http_get(&admin, "/readyz").unwrap_or_else(|why| panic!("{role} is not ready: {why}"))
    }

    /// The end of what controller and agents have logged, for a test's complaint.
    pub fn logs(&self) -> String {
        let controller = self.controller().as_ref().map(|role| role.process.log_tail()).unwrap_or_default();
        let agents = self.agents();
        let agents = agents.iter().map(|(node, role)| format!("--- agent of {node}\n{}", role.process.log_tail()));
        format!("--- controller\n{controller}\n{}", agents.collect::<Vec<_>>().join("\n"))
    }

    /// Waits until controller and agents say that they are ready.
    pub fn wait_until_ready(&self) {
        for role in NODES.into_iter().chain(["controller"]) {
            let admin = self.admin(role);
            let deadline = Instant::now() + Duration::from_secs(60);
            while let Err(why) = http_get(&admin, "/readyz") {
                assert!(self.runs(role) && Instant::now() < deadline, "{role} is not ready: {why}\n{}", self.logs());
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    fn runs(&self, role: &str) -> bool {
        match role {
            "controller" => self.controller().as_mut().is_some_and(|role| role.process.is_alive()),
            node => self.agents().get_mut(node).is_some_and(|role| role.process.is_alive()),
        }
    }

    fn admin(&self, role: &str) -> String {
        match role {
            "controller" => self.controller().as_ref().expect("The controller runs").admin.clone(),
            node => self.agents().get(node).expect("The agent runs").admin.clone(),
        }
    }

    fn controller(&self) -> MutexGuard<'_, Option<Role>> {
        self.controller.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn agents(&self) -> MutexGuard<'_, BTreeMap<&'static str, Role>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_network(&self) {
        TcpListener::bind((address(NODES[0]), 0)).unwrap_or_else(|error| {
            panic!("{} is no address here ({error}): run this through tests/in-netns", address(NODES[0]))
        });
    }

    fn apply_chart(&self) {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/driftline");
        self.plane.kubectl(["create", "namespace", NAMESPACE]).ok();
        let chart = chart.to_str().expect("The checkout's path is UTF-8");
        let rendered = self.plane.helm(["template", "driftline", chart, "--namespace", NAMESPACE, "--no-hooks"]).ok();
        self.plane.apply(NAMESPACE, &rendered).ok();
        self.plane.kubectl(["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]).ok();
    }

    /// Gives the agents' pods what the controller tells them, as a kubelet would put it into their volume.
    pub fn hand_out_authorities(&self) {
        let trusted = self.trusted_authorities();
        for node in NODES {
            fs::write(self.host(node).join("ca.crt"), &trusted).expect("A node's file can be written");
        }
    }

    /// Whom the controller tells the agents' pods to trust.
    pub fn trusted_authorities(&self) -> String {
        let path = "jsonpath={.data.ca\\.crt}";
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let text =
                self.plane.kubectl(["get", "configmap", "driftline-authority", "-n", NAMESPACE, "-o", path]).ok();
            if !text.is_empty() {
                return text;
            }
            assert!(Instant::now() < deadline, "The controller tells nobody whom to trust:\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The host files of a node: its roots are folders of its own, with one for each tenant.
    fn make_host(&self, node: &str) {
        let host = self.host(node);
        for folder in ["guests.d", "repositories", "restores", "state", "locks"] {
            fs::create_dir_all(host.join(folder)).expect("A node's folder can be made");
        }
        let quoted = |name: &str| toml::Value::from(host.join(name).display().to_string()).to_string();
        let mut text = format!(
            "state = {}\nlocks = {}\nguests = {}\nrepositoryRoots = [{}]\n[restoreRoots]\n",
            quoted("state"),
            quoted("locks"),
            quoted("guests.d"),
            quoted("repositories")
        );
        for tenant in (0..TENANTS).map(tenant_name) {
            text.push_str(&format!("{tenant} = [{}]\n", quoted(&format!("restores/{tenant}"))));
            fs::create_dir_all(host.join("restores").join(&tenant)).expect("A tenant's folder can be made");
        }
        fs::write(host.join("host.toml"), text).expect("host.toml can be written");
    }

    /// What the endpoint slice controller would write for the pods of the chart's headless Service.
    fn announce_agents(&self) {
        let service = self.plane.kubectl(["get", "service", "driftline-agents", "-n", NAMESPACE, "-o", "json"]).ok();
        let service: Value = serde_json::from_str(&service).expect("kubectl prints JSON");
        let port = &service["spec"]["ports"][0]["name"];
        let endpoints: Vec<Value> = NODES
            .iter()
            .map(|node| json!({ "addresses": [address(node)], "nodeName": node, "conditions": { "ready": true } }))
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "driftline-agents-test",
                "labels": { "kubernetes.io/service-name": service["metadata"]["name"] },
            },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{ "name": port, "port": self.agent_port, "protocol": "TCP" }],
        });
        self.plane.apply(NAMESPACE, &slice.to_string()).ok();
    }

    /// The command of a workload's container, as the API server has it, with what a test gives another value. Whatever
    /// else the chart says stays; a flag that the chart does not have is a mistake of this file.
    fn role(&self, workload: &str, given: &[(&str, String)]) -> Command {
        let path = "jsonpath={.spec.template.spec.containers[0].args}";
        let args = self.plane.kubectl(["get", workload, "-n", NAMESPACE, "-o", path]).ok();
        let args: Vec<String> = serde_json::from_str(&args).expect("kubectl prints the arguments as JSON");
        for (flag, _) in given {
            assert!(args.iter().any(|arg| arg.starts_with(&format!("{flag}="))), "{workload} has no {flag}: {args:?}");
        }
        let mut command = Command::new(&self.program);
        for arg in args {
            let flag = arg.split('=').next().unwrap_or_default();
            match given.iter().find(|(name, _)| *name == flag) {
                Some((_, value)) => command.arg(format!("{flag}={value}")),
                None => command.arg(arg),
            };
        }
        command.env("DRIFTLINE_LOG", std::env::var("DRIFTLINE_TEST_LOG").unwrap_or_else(|_| "info".to_owned()));
        // Nothing of the person's own host.
        command.env_remove("DRIFTLINE_CONFIG");
        command
    }
}

/// The address of a node's agent, in the range that `tests/in-netns` gives to lo.
fn address(node: &str) -> String {
    let index = NODES.iter().position(|known| *known == node).expect("It is a node of this installation");
    format!("198.51.100.{}", index + 1)
}

fn tenant_name(index: usize) -> String {
    assert!(index < TENANTS, "There are more tenants than the hosts' files name: raise TENANTS");
    format!("team-{index:02}")
}

/// The body of a plain HTTP answer with status 200; anything else in words.
fn http_get(address: &str, path: &str) -> Result<String, String> {
    let answer = http_exchange(address, path).map_err(|error| format!("{address}{path}: {error}"))?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
        _ => Err(answer),
    }
}

fn http_exchange(address: &str, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
