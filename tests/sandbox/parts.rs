//! What demo and sandbox have in common: the cluster, the image, the release and the guest, each step with its cost.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Instant,
};

use crate::{
    bench::Nodes,
    lab::machine::{Disk, Machine, Plan},
    release::{NAMESPACE, NODES, Release, TAGS, Team, image, load},
};

/// The worker with the guest.
pub(crate) const NODE: &str = NODES[0];
/// Disks of the guest: one of each format, and one whose size is no multiple of a cluster.
pub(crate) const DISKS: [&str; 2] = ["disk0", "disk1"];
const MIB: u64 = 1 << 20;

/// All that is there for a person to play with.
pub(crate) struct Parts {
    pub(crate) team: Team,
    pub(crate) machine: Machine,
    /// A monitor of the guest that nobody holds.
    pub(crate) monitor: PathBuf,
}

impl Parts {
    pub(crate) fn start() -> Parts {
        let image = step("Building the image of the Dockerfile, without a registry", || image(TAGS[0]));
        let nodes =
            step("Starting a control plane and two workers: kubelet, containerd, kube-proxy", || Nodes::start(&NODES));
        // Ctrl-C runs no destructors: what else is kept in temporary folders goes with this one.
        tempfile::env::override_temp_dir(nodes.folder()).expect("It is given once");
        step("Giving both workers the image, and the files that a person gives each host", || {
            std::thread::scope(|scope| {
                for node in NODES {
                    let (nodes, image) = (&nodes, &image);
                    scope.spawn(move || load(&nodes.node(node), image));
                }
            });
        });
        let release: &'static Release = Box::leak(Box::new(Release::on(nodes)));
        step(&format!("helm install driftline charts/driftline --namespace {NAMESPACE} --wait"), || {
            let answer = release.install(&[]);
            assert!(answer.succeeded(), "{answer}\n{}", release.logs());
            release.wait_until_ready();
        });
        let words = ["get", "pods", "--namespace", NAMESPACE, "--no-headers", "-o", PODS];
        print!("{}", indented(&release.plane().kubectl(words).ok()));
        let monitor = release.nodes.folder().join("monitor.qmp");
        let machine = step(&format!("Booting Linux in QEMU on {NODE}, which writes to two disks all the time"), || {
            let machine = machine(release, &monitor);
            machine.console().wait_until_up();
            machine.console().go();
            machine
        });
        let team = release.team();
        step("Naming the guest in the host's own file, where the agent finds it", || {
            team.guest(NODE, "db-1", &machine.qmp())
        });
        Parts { team, machine, monitor }
    }
}

const PODS: &str = "custom-columns=:metadata.name,:spec.nodeName,:status.podIP,:status.phase";

/// With a monitor for the person, beside the one that the agent holds.
fn machine(release: &Release, person: &Path) -> Machine {
    let monitor = format!("unix:{},server=on,wait=off", person.display());
    let plan = Plan::new()
        .arguments(&["-qmp", &monitor])
        .disk(Disk::qcow2(DISKS[0], 64 * MIB))
        .disk(Disk::raw(DISKS[1], 32 * MIB + 512))
        .linux();
    release.machine_on(NODE, plan).start()
}

/// Says what begins, does it, and says what it took.
pub(crate) fn step<T>(what: &str, act: impl FnOnce() -> T) -> T {
    print!("{what:<89}");
    // Whoever reads it is waiting for the rest of the line.
    let _ = std::io::stdout().flush();
    let began = Instant::now();
    let done = act();
    println!("{:7.1} s", began.elapsed().as_secs_f64());
    done
}

/// What a program has said, below the line that says why.
pub(crate) fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {}\n", line.trim_end())).collect()
}
