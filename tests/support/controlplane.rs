//! A real Kubernetes control plane for tests, `make demo` and `make sandbox`: etcd, kube-apiserver with RBAC, and
//! kube-controller-manager with the garbage collector, namespaces and service accounts. No kubelet and no scheduler:
//! the roles of Driftline are started as plain processes by whoever uses this.
//!
//! It listens on free ports of 127.0.0.1, signs its own certificates, keeps everything in one temporary folder, and
//! ends with the process that started it, whatever ends that. One server serves a whole test binary (`shared`); each
//! test has a namespace of its own in it.
// Each binary that includes this uses its own part of it, and `pub` is for the one that includes it. What it
// says, it says to the person who runs the tests.
#![allow(dead_code, unreachable_pub, clippy::print_stderr)]

#[path = "controlplane/certificates.rs"]
mod certificates;
#[path = "controlplane/process.rs"]
pub mod process;
#[path = "controlplane/tools.rs"]
mod tools;

pub use tools::Answer;

use std::{
    fs,
    net::TcpListener,
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
    port: u16,
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

    /// Starts a control plane whose API server listens on `port`, and waits until it is ready.
    ///
    /// Panics with the end of the server's log when it is not ready in time: no test can go on then.
    pub fn start(port: u16) -> ControlPlane {
        let programs = programs();
        let folder = process::folder_that_ends_with_us("driftline-controlplane");
        let pki = folder.join("pki");
        let certificates = Certificates::write(&pki);
        certificates.kubeconfig(&folder.join("admin.kubeconfig"), port, "admin");
        certificates.kubeconfig(&folder.join("kcm.kubeconfig"), port, "kcm");

        let etcd_port = free_port();
        let etcd = start_etcd(&programs, &folder, etcd_port);
        let apiserver = start_apiserver(&programs, &folder, port, etcd_port);
        let plane = ControlPlane {
            folder,
            programs,
            port,
            etcd_port,
            apiserver: Mutex::new(apiserver),
            others: vec![etcd],
            namespaces: AtomicU32::new(0),
        };
        plane.wait_until_ready();
        let manager = plane.start_controller_manager();
        ControlPlane { others: plane.others.into_iter().chain([manager]).collect(), ..plane }
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
        certificates::kubeconfig_with_token(&path, &self.folder.join("pki"), self.port, token.trim());
        path
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
        *self.apiserver() = start_apiserver(&self.programs, &self.folder, self.port, self.etcd_port);
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

    fn start_controller_manager(&self) -> Process {
        let pki = self.folder.join("pki");
        let mut command = Command::new(self.programs.join("kube-controller-manager"));
        command
            .arg(format!("--kubeconfig={}", self.folder.join("kcm.kubeconfig").display()))
            .arg(format!("--root-ca-file={}", pki.join("ca.crt").display()))
            .arg(
                "--controllers=garbage-collector-controller,namespace-controller,serviceaccount-controller,\
                 root-ca-certificate-publisher-controller",
            )
            // Each controller with the rights of its own account: the bootstrap roles give the manager itself few.
            .arg("--use-service-account-credentials=true")
            .args(["--leader-elect=false", "--secure-port=0", "--profiling=false"]);
        Process::start("kube-controller-manager", command, &self.folder)
    }
}

fn start_etcd(programs: &Path, folder: &Path, port: u16) -> Process {
    let url = format!("http://127.0.0.1:{port}");
    let mut command = Command::new(programs.join("etcd"));
    command
        .arg(format!("--data-dir={}", folder.join("etcd").display()))
        .arg(format!("--listen-client-urls={url}"))
        .arg(format!("--advertise-client-urls={url}"))
        .arg(format!("--listen-peer-urls=http://127.0.0.1:{}", free_port()))
        // The data lives as long as the test: nothing is worth a sync.
        .arg("--unsafe-no-fsync=true")
        .arg("--log-level=warn");
    Process::start("etcd", command, folder)
}

fn start_apiserver(programs: &Path, folder: &Path, port: u16, etcd_port: u16) -> Process {
    let pki = folder.join("pki");
    let file = |name: &str| pki.join(name).display().to_string();
    let mut command = Command::new(programs.join("kube-apiserver"));
    command
        .arg(format!("--etcd-servers=http://127.0.0.1:{etcd_port}"))
        .arg(format!("--cert-dir={}", folder.join("apiserver").display()))
        .arg(format!("--tls-cert-file={}", file("server.crt")))
        .arg(format!("--tls-private-key-file={}", file("server.key")))
        .arg(format!("--client-ca-file={}", file("ca.crt")))
        .arg(format!("--service-account-issuer=https://127.0.0.1:{port}/"))
        .arg(format!("--service-account-key-file={}", file("accounts.pub")))
        .arg(format!("--service-account-signing-key-file={}", file("accounts.key")))
        .arg(format!("--secure-port={port}"))
        .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none"])
        .args(["--service-cluster-ip-range=10.0.0.0/24", "--allow-privileged=true", "--profiling=false"])
        .arg("--authorization-mode=RBAC");
    Process::start("kube-apiserver", command, folder)
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
