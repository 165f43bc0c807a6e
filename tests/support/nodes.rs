//! A bench of real nodes: kubelet, containerd with runc, and kube-proxy, each set in network, mount and process
//! namespaces of its own, joined to a control plane of their own. Pods are real, reach each other and the API server,
//! and each node has its own /etc, /var, /srv, /opt and /run. The kernel, /dev, /tmp and /usr are the machine's.
//!
//! It needs root and the programs of `tests/install-tools`, and runs inside of `tests/in-netns`. All of it ends
//! with the process that started it. `DRIFTLINE_KEEP=1` keeps the logs.
// `pub` is for the binary that includes this.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

#[path = "nodes/cgroups.rs"]
mod cgroups;
#[path = "nodes/daemons.rs"]
mod daemons;
#[path = "nodes/image.rs"]
pub mod image;
#[path = "nodes/needs.rs"]
mod needs;
#[path = "nodes/network.rs"]
mod network;
#[path = "nodes/node.rs"]
mod node;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddrV4,
    panic,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

pub use node::Node;

use crate::controlplane::{ControlPlane, Shape, free_port, process};

/// A control plane with its nodes. Dropped, all of it is gone but the folder, which goes with the process.
pub struct Nodes {
    // In this order: nodes end before what they need.
    nodes: Mutex<BTreeMap<String, Arc<Node>>>,
    started: AtomicU8,
    bench: Arc<Bench>,
}

/// What the nodes of a bench share.
struct Bench {
    plane: ControlPlane,
    cgroups: cgroups::Cgroups,
    folder: PathBuf,
    /// The archive of `image::PROBE`, which every node has.
    image: PathBuf,
    proxy_kubeconfig: PathBuf,
    _bridge: network::Bridge,
}

impl Nodes {
    /// Starts a control plane and a worker for each name; returns when all are Ready and pods can be made.
    ///
    /// All of it is in the network namespace of the calling thread, which has room for one bench: see `lab::netns`.
    pub fn start(names: &[&str]) -> Nodes {
        let folder = process::folder_that_ends_with_us("driftline-nodes");
        needs::check(&folder);
        let bridge = network::Bridge::start();
        let name = folder.file_name().and_then(|name| name.to_str()).expect("The folder has a name").to_owned();
        let cgroups = cgroups::Cgroups::named(name);
        let image = image::probe(&folder);
        let server = SocketAddrV4::new(network::GATEWAY, free_port());
        let plane = ControlPlane::start_as(Shape::for_nodes(server));
        let proxy_kubeconfig = plane.client_kubeconfig("system:kube-proxy", None);
        let bench = Arc::new(Bench { plane, cgroups, folder, image, proxy_kubeconfig, _bridge: bridge });
        let nodes = Nodes { nodes: Mutex::default(), started: AtomicU8::new(0), bench };
        nodes.add_all(names);
        nodes.wait_for_accounts();
        nodes
    }

    /// The control plane.
    pub fn plane(&self) -> &ControlPlane {
        &self.bench.plane
    }

    /// The node called `name`.
    pub fn node(&self, name: &str) -> Arc<Node> {
        self.all().get(name).cloned().unwrap_or_else(|| panic!("There is no node {name}"))
    }

    /// Starts one more node and waits until it is Ready.
    pub fn add(&self, name: &str) -> Arc<Node> {
        self.add_all(&[name]);
        self.node(name)
    }

    /// Takes a node away for good: its processes, its disk and its object.
    pub fn remove(&self, name: &str) {
        let node = self.all().remove(name).unwrap_or_else(|| panic!("There is no node {name}"));
        node.power_cut();
        self.plane().kubectl(["delete", "node", name]).ok();
        fs::remove_dir_all(self.bench.folder.join(name)).expect("A node's disk can be removed");
    }

    /// The end of everybody's log, for a test's complaint.
    pub fn logs(&self) -> String {
        let nodes: Vec<_> = self.all().values().cloned().collect();
        let nodes = nodes.iter().map(|node| node.logs()).collect::<Vec<_>>();
        format!("{}\n{}", self.plane().logs(), nodes.join("\n"))
    }

    /// The bench's folders among the machine's cgroups.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        self.bench.cgroups.roots()
    }

    /// The bench's own folder: logs in `<node>/<daemon>.log`, a node's disk in `<node>/disk`.
    pub fn folder(&self) -> &Path {
        &self.bench.folder
    }

    /// No pod can be made before its account is there.
    fn wait_for_accounts(&self) {
        let account = ["get", "serviceaccount", "default", "--namespace", "default"];
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.plane().kubectl(account).succeeded() {
            assert!(Instant::now() < deadline, "There is no account `default`:\n{}", self.plane().logs());
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Node>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_all(&self, names: &[&str]) {
        for name in names {
            let started = self.started.fetch_add(1, Ordering::Relaxed) + 1;
            assert!(started < 254, "A bench has at most 253 nodes");
            let node = Arc::new(Node::new(name, network::Place(started), self.bench.clone()));
            let before = self.all().insert((*name).to_owned(), node);
            assert!(before.is_none(), "There is a node {name} already");
        }
        thread::scope(|scope| {
            let starts: Vec<_> = names.iter().map(|name| scope.spawn(|| self.node(name).power_on())).collect();
            for start in starts {
                start.join().unwrap_or_else(|why| panic::resume_unwind(why));
            }
        });
    }
}
