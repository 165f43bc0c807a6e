//! A real Kubernetes control plane for tests, `make demo` and `make sandbox`: etcd, kube-apiserver with RBAC, and
//! kube-controller-manager with the garbage collector, namespaces and service accounts. No kubelet and no scheduler:
//! the roles of Driftline are started as plain processes by whoever uses this. `nodes.rs` starts it in its other shape,
//! with a scheduler and every controller, for real nodes to join.
//!
//! It listens on free ports of one address, signs its own certificates, keeps everything in one temporary folder, and
//! ends with the process that started it, whatever ends that. One server serves a whole test binary (`shared`); each
//! test has a namespace of its own in it.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::print_stderr, reason = "what it says, it says to the person who runs the tests")]

#[path = "controlplane/certificates.rs"]
mod certificates;
#[path = "controlplane/parts.rs"]
mod parts;
#[path = "controlplane/process.rs"]
pub mod process;
#[path = "controlplane/shape.rs"]
mod shape;
#[path = "controlplane/tools.rs"]
mod tools;

pub use shape::Shape;
pub use tools::Answer;

use std::{
    fs,
    net::{SocketAddrV4, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use certificates::Certificates;
use process::Process;

/// How long a control plane may take from its start to `/readyz`; 3 s on an idle machine of two cores.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// A running control plane.
pub struct ControlPlane {
    folder: PathBuf,
    programs: PathBuf,
    shape: Shape,
    certificates: Certificates,
    etcd_port: u16,
    apiserver: Mutex<Process>,
    others: Vec<Process>,
    namespaces: AtomicU32,
}

impl ControlPlane {
    /// The one control plane of this test binary, started at the first call.
    pub fn shared() -> &'static ControlPlane {
        static SHARED: OnceLock<ControlPlane> = OnceLock::new();
        SHARED.get_or_init(|| ControlPlane::start(free_port()))
    }

    /// Starts a control plane whose API server listens on `port` of 127.0.0.1, and waits until it is ready.
    ///
    /// Panics with the end of the server's log when it is not ready in time: no test can go on then.
    pub fn start(port: u16) -> ControlPlane {
        ControlPlane::start_as(Shape::light(port))
    }

    /// The same in any shape.
    pub fn start_as(shape: Shape) -> ControlPlane {
        let programs = programs();
        let folder = process::folder_that_ends_with_us("driftline-controlplane");
        let certificates = Certificates::write(folder.join("pki"), shape);
        certificates.client_kubeconfig(&folder.join("admin.kubeconfig"), "admin", Some("system:masters"));

        let etcd_port = free_port();
        let etcd = parts::etcd(&programs, &folder, etcd_port);
        let apiserver = parts::apiserver(&programs, &folder, shape, etcd_port);
        let mut plane = ControlPlane {
            folder,
            programs,
            shape,
            certificates,
            etcd_port,
            apiserver: Mutex::new(apiserver),
            others: vec![etcd],
            namespaces: AtomicU32::new(0),
        };
        plane.wait_until_ready();
        let kubeconfig = plane.client_kubeconfig("system:kube-controller-manager", None);
        plane.others.push(parts::controller_manager(&plane.programs, &plane.folder, shape, &kubeconfig));
        if shape.nodes {
            let kubeconfig = plane.client_kubeconfig("system:kube-scheduler", None);
            plane.others.push(parts::scheduler(&plane.programs, &plane.folder, &kubeconfig));
        }
        plane
    }

    /// A new namespace whose name starts with `prefix`, with its `default` ServiceAccount.
    pub fn namespace(&self, prefix: &str) -> String {
        let name = format!("{prefix}-{}", self.namespaces.fetch_add(1, Ordering::Relaxed));
        self.kubectl(["create", "namespace", &name]).ok();
        name
    }

    /// One of the control plane's own programs: `kubectl`, `helm`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// A kubeconfig of `system:masters`, for the person in the test; never for a controller.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    /// A kubeconfig with a token of a ServiceAccount, valid for one hour, as a pod of it would have one.
    pub fn account_kubeconfig(&self, namespace: &str, account: &str) -> PathBuf {
        let token = self.kubectl(["create", "token", account, "-n", namespace, "--duration=1h"]).ok();
        let path = self.folder.join(format!("{namespace}.{account}.kubeconfig"));
        self.certificates.token_kubeconfig(&path, token.trim());
        path
    }

    /// A kubeconfig with a client certificate of its own: for a part of the cluster, as which the API server knows it.
    pub fn client_kubeconfig(&self, user: &str, group: Option<&str>) -> PathBuf {
        let path = self.folder.join(format!("{}.kubeconfig", user.replace(':', ".")));
        self.certificates.client_kubeconfig(&path, user, group);
        path
    }

    /// The certificate of the authority that has signed all others.
    pub fn authority(&self) -> PathBuf {
        self.folder.join("pki/ca.crt")
    }

    /// Where the API server listens.
    pub fn server(&self) -> SocketAddrV4 {
        self.shape.server
    }

    /// What the pods' accounts have asked the API server for, one JSON object per line; of a plane with nodes alone.
    pub fn audit_log(&self) -> PathBuf {
        parts::audit_log(&self.folder)
    }

    /// A client with the rights of `kubeconfig`. It belongs to the runtime that it is made on.
    pub async fn client(&self, kubeconfig: &Path) -> kube::Client {
        let config = kube::config::Kubeconfig::read_from(kubeconfig).expect("The kubeconfig is readable");
        let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await.expect("It has a context");
        kube::Client::try_from(config).expect("A client can be made from it")
    }

    /// Kills the API server: connections are refused until `restart_apiserver`.
    pub fn kill_apiserver(&self) {
        self.apiserver().kill();
    }

    /// Starts the API server again on its port, with the same data, and waits until it is ready.
    pub fn restart_apiserver(&self) {
        *self.apiserver() = parts::apiserver(&self.programs, &self.folder, self.shape, self.etcd_port);
        self.wait_until_ready();
    }

    fn apiserver(&self) -> std::sync::MutexGuard<'_, Process> {
        self.apiserver.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn wait_until_ready(&self) {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let answer = self.kubectl(["get", "--raw", "/readyz", "--request-timeout=2s"]);
            if answer.succeeded() {
                return;
            }
            let mut server = self.apiserver();
            assert!(
                server.is_alive() && Instant::now() < deadline,
                "The API server is not ready: {answer}\nThe end of its log:\n{}\nThe end of etcd's log:\n{}",
                server.log_tail(),
                self.others[0].log_tail()
            );
            drop(server);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The end of what every part has logged, for a test's complaint.
    pub fn logs(&self) -> String {
        let apiserver = self.apiserver().log_tail();
        let others = self.others.iter().map(|part| format!("--- {part:?}\n{}", part.log_tail()));
        format!("--- kube-apiserver\n{apiserver}\n{}", others.collect::<Vec<_>>().join("\n"))
    }
}

/// The folder of the control plane's programs, built at the first use by `tests/controlplane/build`.
fn programs() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/controlplane/build");
    let output = Command::new(&script)
        .stderr(std::process::Stdio::inherit())
        .output()
        .unwrap_or_else(|error| panic!("{} cannot be run: {error}", script.display()));
    assert!(output.status.success(), "{} failed: {}", script.display(), output.status);
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

/// A port of 127.0.0.1 that nobody listens on now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("A free port can be bound");
    listener.local_addr().expect("A bound listener has an address").port()
}

/// Writes a file of the harness; a test cannot go on without it.
fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("{} cannot be written: {error}", path.display()));
}
