//! The processes of a control plane and their arguments.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::{Shape, free_port, process::Process, shape, write};

/// What pods' accounts ask for, without the bodies: `users` knows no patterns, and every account is in this group.
const AUDIT_POLICY: &str = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
"rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}]}"#;

pub(super) fn etcd(programs: &Path, folder: &Path, port: u16) -> Process {
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

pub(super) fn apiserver(programs: &Path, folder: &Path, shape: Shape, etcd_port: u16) -> Process {
    let pki = folder.join("pki");
    let file = |name: &str| pki.join(name).display().to_string();
    let mut command = Command::new(programs.join("kube-apiserver"));
    command
        .arg(format!("--etcd-servers=http://127.0.0.1:{etcd_port}"))
        .arg(format!("--cert-dir={}", folder.join("apiserver").display()))
        .arg(format!("--tls-cert-file={}", file("server.crt")))
        .arg(format!("--tls-private-key-file={}", file("server.key")))
        .arg(format!("--client-ca-file={}", file("ca.crt")))
        .arg(format!("--service-account-issuer=https://{}/", shape.server))
        .arg(format!("--service-account-key-file={}", file("accounts.pub")))
        .arg(format!("--service-account-signing-key-file={}", file("accounts.key")))
        .arg(format!("--secure-port={}", shape.server.port()))
        .arg(format!("--bind-address={}", shape.server.ip()))
        .arg(format!("--advertise-address={}", shape.server.ip()))
        .args(["--allow-privileged=true", "--profiling=false"]);
    if shape.nodes {
        let policy = folder.join("audit-policy.json");
        write(&policy, AUDIT_POLICY);
        command
            .args(["--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"])
            .arg(format!("--service-cluster-ip-range={}", shape::SERVICES))
            .arg(format!("--kubelet-client-certificate={}", file("kubelet-client.crt")))
            .arg(format!("--kubelet-client-key={}", file("kubelet-client.key")))
            // No DNS knows the nodes' names.
            .arg("--kubelet-preferred-address-types=InternalIP")
            .arg(format!("--audit-policy-file={}", policy.display()))
            .arg(format!("--audit-log-path={}", audit_log(folder).display()));
    } else {
        command
            .args(["--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/24"])
            .arg("--endpoint-reconciler-type=none");
    }
    Process::start("kube-apiserver", command, folder)
}

pub(super) fn audit_log(folder: &Path) -> PathBuf {
    folder.join("audit.log")
}

pub(super) fn controller_manager(programs: &Path, folder: &Path, shape: Shape, kubeconfig: &Path) -> Process {
    let mut command = Command::new(programs.join("kube-controller-manager"));
    command
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .arg(format!("--root-ca-file={}", folder.join("pki/ca.crt").display()))
        // Each controller with the rights of its own account: the bootstrap roles give the manager itself few.
        .arg("--use-service-account-credentials=true")
        .args(["--leader-elect=false", "--secure-port=0", "--profiling=false"]);
    if shape.nodes {
        command
            // kubelets of the bench renew their lease every 2 s: a node is missed soon, and not for a slow moment.
            .args(["--node-monitor-grace-period=12s", "--node-monitor-period=1s"])
            // Each controller first asks for its account and token: at the default rate that alone takes 4 s.
            .args(["--kube-api-qps=500", "--kube-api-burst=1000"])
            // Its default lies in /usr, and it would be made there.
            .arg(format!("--flex-volume-plugin-dir={}", folder.join("volume-plugins").display()));
    } else {
        command.arg(
            "--controllers=garbage-collector-controller,namespace-controller,serviceaccount-controller,\
             root-ca-certificate-publisher-controller",
        );
    }
    Process::start("kube-controller-manager", command, folder)
}

pub(super) fn scheduler(programs: &Path, folder: &Path, kubeconfig: &Path) -> Process {
    let mut command = Command::new(programs.join("kube-scheduler"));
    command.arg(format!("--kubeconfig={}", kubeconfig.display())).args([
        "--leader-elect=false",
        "--secure-port=0",
        "--profiling=false",
    ]);
    Process::start("kube-scheduler", command, folder)
}
