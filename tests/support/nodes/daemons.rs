//! The daemons of a node: containerd, kubelet and kube-proxy, with their configuration.
//!
//! Each is started into the node's namespaces by nsenter, whose child it is. Its configuration lies in the node's /run
//! and is written anew at each start of the node.

use std::{
    ffi::OsString,
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::json;

use super::network::{GATEWAY, PODS, Place};
use crate::controlplane::ControlPlane;

/// Where a node has what the bench writes for it.
const CONFIGURATION: &str = "/run/driftline-node";
/// Where `ctr` looks too.
const SOCKET: &str = "/run/containerd/containerd.sock";
const KUBELET_HEALTH: u16 = 10248;
const PROXY_HEALTH: u16 = 10256;

/// What a daemon's configuration depends on.
pub(super) struct Setting<'a> {
    pub(super) name: &'a str,
    pub(super) place: Place,
    pub(super) plane: &'a ControlPlane,
    pub(super) kubelet_kubeconfig: &'a Path,
    pub(super) proxy_kubeconfig: &'a Path,
    /// The node's root as this process sees it.
    pub(super) root: &'a Path,
    pub(super) cgroup_root: &'a str,
}

impl Setting<'_> {
    /// Writes the configuration of all daemons.
    pub(super) fn write(&self) {
        let network = json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [
            // Not `bridge`: there the answer of a Service's pod on the same node would pass kube-proxy's rules by,
            // unless the machine has br_netfilter.
            { "type": "ptp", "ipam": {
                "type": "host-local", "ranges": [[{ "subnet": self.place.pods() }]], "routes": [{ "dst": "0.0.0.0/0" }],
            }},
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ]});
        self.file("containerd.toml", include_str!("containerd.toml"));
        self.file("cni/10-pods.conflist", &network.to_string());
        self.file("resolv.conf", &format!("nameserver {GATEWAY}\n"));
        self.file("kubelet.json", &self.kubelet().to_string());
        self.file("proxy.json", &self.proxy().to_string());
    }

    /// The command line of a daemon.
    pub(super) fn command(&self, daemon: &str) -> Vec<OsString> {
        let file = |flag: &str, name: &str| OsString::from(format!("--{flag}={CONFIGURATION}/{name}"));
        match daemon {
            "containerd" => vec!["containerd".into(), file("config", "containerd.toml")],
            "kubelet" => vec![
                self.plane.program("kubelet").into(),
                file("config", "kubelet.json"),
                format!("--kubeconfig={}", self.kubelet_kubeconfig.display()).into(),
                format!("--hostname-override={}", self.name).into(),
                format!("--node-ip={}", self.place.address()).into(),
            ],
            "proxy" => vec![self.plane.program("kube-proxy").into(), file("config", "proxy.json")],
            other => panic!("A node has no daemon {other:?}: containerd, kubelet, proxy"),
        }
    }

    fn kubelet(&self) -> serde_json::Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "x509": { "clientCAFile": self.plane.authority() },
                "webhook": { "enabled": true },
                "anonymous": { "enabled": false },
            },
            "authorization": { "mode": "Webhook" },
            "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
            // Many a machine that tests run on still has v1.
            "failCgroupV1": false,
            "healthzBindAddress": self.place.address(),
            "healthzPort": KUBELET_HEALTH,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.cgroup_root,
            "enforceNodeAllocatable": ["pods"],
            "failSwapOn": false,
            // Another value needs CAP_SYS_RESOURCE.
            "oomScoreAdj": 0,
            "resolvConf": format!("{CONFIGURATION}/resolv.conf"),
            "clusterDomain": "cluster.local",
            "clusterDNS": ["10.96.0.10"],
            // A quarter of it is how often the lease is renewed: see the grace period of the controller manager.
            "nodeLeaseDurationSeconds": 8,
            "nodeStatusUpdateFrequency": "2s",
            // The disk is the machine's, and how full that is is none of the test's business.
            "evictionHard": { "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
            "imageGCHighThresholdPercent": 100,
            // Its default lies in /usr, and it would be made there.
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            "logging": { "verbosity": 2 },
        })
    }

    fn proxy(&self) -> serde_json::Value {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": { "kubeconfig": self.proxy_kubeconfig },
            "mode": "iptables",
            "clusterCIDR": PODS,
            "hostnameOverride": self.name,
            "healthzBindAddress": format!("{}:{PROXY_HEALTH}", self.place.address()),
            "oomScoreAdj": 0,
            // These are the machine's limits, not a namespace's.
            "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
        })
    }

    fn file(&self, name: &str, text: &str) {
        let path = self.root.join(CONFIGURATION.trim_start_matches('/')).join(name);
        fs::create_dir_all(path.parent().expect("It lies in a folder")).expect("A node's /run can be written");
        fs::write(&path, text).unwrap_or_else(|error| panic!("{} cannot be written: {error}", path.display()));
    }
}

/// True when a daemon does its work: containerd takes connections, kubelet is healthy, kube-proxy has written its rules.
pub(super) fn answers(daemon: &str, root: &Path, place: Place) -> bool {
    match daemon {
        "containerd" => UnixStream::connect(root.join(SOCKET.trim_start_matches('/'))).is_ok(),
        "kubelet" => is_healthy(place, KUBELET_HEALTH),
        _ => is_healthy(place, PROXY_HEALTH),
    }
}

fn is_healthy(place: Place, port: u16) -> bool {
    let exchange = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&(place.address(), port).into(), Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        write!(stream, "GET /healthz HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    exchange().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}
