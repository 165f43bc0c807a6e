//! Driftline on real nodes, as a person has it: the image, `helm install`, pods. A few clusters serve the whole binary; its
//! tests drain nodes and stop daemons, so one test has a cluster at a time, and leaves it whole.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

#[path = "release/turn.rs"]
mod turn;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

pub use self::turn::Turn;

use crate::{
    bench::{Node, Nodes},
    controlplane::{Answer, ControlPlane},
    lab::{child::pause, machine::Plan, netns::Netns},
    objects::Objects,
};

/// The namespace of the release.
pub const NAMESPACE: &str = "driftline-system";
/// The workers, the first called as in the documentation: what it says to type works in the sandbox.
pub const NODES: [&str; 2] = ["node-1", "node-2"];
/// The image's repository; its tags are one program under several names, so that there is something to upgrade to.
pub const IMAGE: &str = "driftline.test/driftline";
/// The image's tags.
pub const TAGS: [&str; 2] = ["1", "2"];
/// Where the nodes have machines' sockets and disks.
const MACHINES: &str = "/run/qemu";
/// What host.toml of every node says.
const HOST: &str = r#"repositoryRoots = ["/srv/backup"]
[restoreRoots]
"#;
/// Namespaces that the hosts' files give a place for restores: `team-a`, as in the documentation, and so on.
const TEAMS: u8 = 26;

/// A release, installed or not.
pub struct Release {
    /// The cluster.
    pub nodes: Nodes,
    teams: AtomicU8,
    machines: PathBuf,
}

impl Release {
    /// A cluster for one test, with the chart installed; there are a few, and another test waits until one is given back.
    pub fn take() -> (&'static Release, Turn) {
        let mut turn = Turn::wait();
        let (release, _) = turn.cluster.get_or_insert_with(|| {
            let network = Netns::new();
            turn.inside = Some(network.enter());
            (Box::leak(Box::new(Release::prepare())), network)
        });
        let release = *release;
        if !release.helm("status", &[]).succeeded() {
            release.install(&[]).ok();
        }
        release.wait_until_ready();
        (release, turn)
    }

    /// Every file below a folder of a node, with size and content.
    pub fn listing(&self, node: &str, folder: &Path) -> String {
        let script = "cd \"$1\" && find . -type f -print0 | sort -z | xargs -0 -r sha256sum";
        let output = self.nodes.node(node).enter("sh").args(["-c", script, "sh"]).arg(folder).output();
        let output = output.expect("A node runs programs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A cluster whose nodes have the image and the files that a person gives each host; nothing is installed yet.
    pub fn prepare() -> Release {
        let image = image(TAGS[0]);
        let nodes = Nodes::start(&NODES);
        std::thread::scope(|scope| {
            for node in NODES {
                let (image, nodes) = (&image, &nodes);
                scope.spawn(move || load(&nodes.node(node), image));
            }
        });
        Release::on(nodes)
    }

    /// On a cluster whose nodes have the image already: makes the files that a person gives each host.
    pub fn on(nodes: Nodes) -> Release {
        let machines = nodes.folder().join("machines");
        fs::create_dir_all(&machines).expect("A folder for machines can be made");
        let release = Release { nodes, teams: AtomicU8::new(0), machines };
        NODES.iter().for_each(|node| release.make_host(node));
        release
    }

    /// One more worker, with all that the others have.
    pub fn add_node(&self, name: &str) {
        load(&self.nodes.add(name), &image(TAGS[0]));
        self.make_host(name);
    }

    /// What a person brings to each host.
    fn make_host(&self, node: &str) {
        make_host(&self.nodes.node(node).root());
        self.mount_machines(node);
    }

    /// Gives each host its files anew, as `on` did: after a test that has taken them away.
    pub fn give_host_files(&self) {
        NODES.iter().for_each(|node| make_host(&self.nodes.node(node).root()));
    }

    /// The control plane.
    pub fn plane(&self) -> &ControlPlane {
        self.nodes.plane()
    }

    /// `helm install`, which waits until all pods are ready.
    pub fn install(&self, more: &[&str]) -> Answer {
        self.with_chart("install", TAGS[0], &[&["--create-namespace"], more].concat())
    }

    /// `helm install` of another release beside this one.
    pub fn second(&self, more: &[&str]) -> Answer {
        let (chart, values) = (chart(), values(TAGS[0]));
        let words = ["install", "second", &chart, "--namespace=second", "--create-namespace"];
        self.plane().helm(words.into_iter().chain(values.iter().map(String::as_str)).chain(more.iter().copied()))
    }

    /// `helm upgrade` to a tag of the image, which waits until all pods are ready.
    pub fn upgrade(&self, tag: &str, more: &[&str]) {
        let upgraded = self.with_chart("upgrade", tag, more);
        assert!(upgraded.succeeded(), "{upgraded}\n{}", self.logs());
    }

    /// `helm upgrade` that changes one value, and waits for nothing.
    pub fn change(&self, value: &str) -> Answer {
        self.helm("upgrade", &[&chart(), "--reuse-values", &format!("--set={}", value.replace(',', "\\,"))])
    }

    fn with_chart(&self, verb: &str, tag: &str, more: &[&str]) -> Answer {
        let (chart, values) = (chart(), values(tag));
        let given = [chart.as_str(), "--wait", "--timeout=120s"].into_iter().chain(values.iter().map(String::as_str));
        self.helm(verb, &given.chain(more.iter().copied()).collect::<Vec<_>>())
    }

    /// A helm command about the release: `install`, `upgrade`, `rollback`, `test`, `status`, `uninstall`.
    pub fn helm(&self, verb: &str, more: &[&str]) -> Answer {
        let words = [verb, "driftline"].into_iter().chain(more.iter().copied());
        self.plane().helm(words.chain(["--namespace", NAMESPACE]))
    }

    /// Waits until every pod is ready, and every agent answers.
    pub fn wait_until_ready(&self) {
        for workload in ["deployment/driftline-controller", "daemonset/driftline-agent"] {
            let answer = self.plane().kubectl(["rollout", "status", workload, "-n", NAMESPACE, "--timeout=120s"]);
            assert!(answer.succeeded(), "{answer}\n{}", self.logs());
        }
        let began = Instant::now();
        loop {
            let text = self.controller_metrics();
            let answers =
                |node: &&str| text.contains(&format!("driftline_controller_agent_connected{{node=\"{node}\"}} 1"));
            if NODES.iter().all(answers) {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "not every agent answers:\n{text}\n{}", self.logs());
            pause(began);
        }
    }

    /// The controller's metrics, through the API server.
    pub fn controller_metrics(&self) -> String {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/services/driftline-controller:admin/proxy/metrics");
        self.plane().kubectl(["get", "--raw", &path]).stdout()
    }

    /// The name of the pod of a node's agent.
    pub fn agent_pod(&self, node: &str) -> String {
        let pod = self.pod("agent", |pod| pod["spec"]["nodeName"] == node);
        pod["metadata"]["name"].as_str().expect("A pod has a name").to_owned()
    }

    /// The node that the controller runs on.
    pub fn controllers_node(&self) -> String {
        let pod = self.pod("controller", |pod| pod["spec"]["nodeName"].is_string());
        pod["spec"]["nodeName"].as_str().expect("It has one").to_owned()
    }

    /// A pod of a component that is to stay.
    fn pod(&self, component: &str, is_meant: impl Fn(&Value) -> bool) -> Value {
        let selector = format!("app.kubernetes.io/component={component}");
        let pods = self.plane().kubectl(["get", "pods", "-n", NAMESPACE, "-l", &selector, "-o", "json"]).ok();
        let pods: Value = serde_json::from_str(&pods).expect("kubectl prints JSON");
        let mut pods = pods["items"].as_array().expect("A list has items").iter();
        let pod = pods.find(|pod| pod["metadata"]["deletionTimestamp"].is_null() && is_meant(pod));
        pod.unwrap_or_else(|| panic!("There is no such pod of the {component}:\n{}", self.logs())).clone()
    }

    /// A new namespace for a test.
    pub fn team(&'static self) -> Team {
        let name = team_name(self.teams.fetch_add(1, Ordering::Relaxed));
        self.plane().kubectl(["create", "namespace", &name]).ok();
        Team { release: self, objects: Objects::new(self.plane(), name, || self.logs()) }
    }

    /// A machine that is to run on a node as a process of the host.
    pub fn machine_on(&self, node: &str, plan: Plan) -> Plan {
        plan.launched_by(self.nodes.node(node).launcher(), &self.machines)
    }

    /// What machines have at `/run/qemu`, the same on all nodes, as a shared file system would be: after a power cut it has
    /// to be mounted anew, as by a unit of the host. Agents that run already see it.
    pub fn mount_machines(&self, node: &str) {
        self.mount(node, &self.machines, Path::new(MACHINES));
    }

    /// Mounts a folder of the test's on a node.
    pub fn mount(&self, node: &str, folder: &Path, at: &Path) {
        let script = "mkdir -p \"$2\" && mount --bind \"$1\" \"$2\"";
        let status = self.nodes.node(node).enter("sh").args(["-c", script, "sh"]).arg(folder).arg(at).status();
        assert!(status.is_ok_and(|status| status.success()), "{} of {node} cannot be mounted", at.display());
    }

    /// Takes away what `mount` has made.
    pub fn unmount(&self, node: &str, at: &Path) {
        let status = self.nodes.node(node).enter("umount").arg("--lazy").arg(at).status();
        assert!(status.is_ok_and(|status| status.success()), "{} of {node} cannot be unmounted", at.display());
    }

    /// A machine's socket, as every node has it.
    pub fn socket_on_node(&self, qmp: &Path) -> PathBuf {
        Path::new(MACHINES).join(qmp.strip_prefix(&self.machines).expect("It is a machine of the release"))
    }

    /// The end of what all pods and nodes have logged, for a test's complaint.
    pub fn logs(&self) -> String {
        let pods = self.plane().kubectl(["get", "pods", "-A", "-o", "wide"]).stdout();
        let events = self.plane().kubectl(["get", "events", "-n", NAMESPACE, "--sort-by=.lastTimestamp"]).stdout();
        let log = |component: &str| {
            let selector = format!("app.kubernetes.io/component={component}");
            let words = ["logs", "-n", NAMESPACE, "-l", &selector, "--prefix", "--tail=40"];
            self.plane().kubectl(words).stdout()
        };
        format!("{pods}{events}\n{}\n{}\n{}", log("controller"), log("agent"), self.nodes.logs())
    }
}

/// A namespace of a test, with a place of its own on each node.
pub struct Team {
    /// What it is in.
    pub release: &'static Release,
    /// Its objects.
    pub objects: Objects,
}

impl std::ops::Deref for Team {
    type Target = Objects;
    fn deref(&self) -> &Objects {
        &self.objects
    }
}

impl Team {
    /// Writes the host's file for a guest, whose socket the node has at `qmp`.
    pub fn declare_guest(&self, node: &str, name: &str, qmp: &Path) {
        let namespace = &self.namespace;
        let text = format!("name = \"{name}\"\nnamespace = \"{namespace}\"\nqmp = \"{}\"\n", qmp.display());
        let file = self.file(node, name);
        // Renamed when complete: the agent may look at any time.
        let temporary = file.with_extension("new");
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, &file))
            .expect("A guest's file can be written");
    }

    /// Takes the host's file of a guest away.
    pub fn forget_guest(&self, node: &str, name: &str) {
        fs::remove_file(self.file(node, name)).expect("A guest's file can be removed");
    }

    /// Declares a machine that runs on the node, by its socket as the test sees it, and waits until its Guest is ready.
    pub fn guest(&self, node: &str, name: &str, qmp: &Path) {
        self.declare_guest(node, name, &self.release.socket_on_node(qmp));
        self.wait_for(&format!("guests.driftline.dev/{name}"), "Ready", Duration::from_secs(60));
    }

    /// A BackupRepository in a new folder of the node, ready.
    pub fn repository(&self, node: &str, name: &str) {
        let path = Path::new("/srv/backup").join(&self.namespace).join(name);
        fs::create_dir_all(self.seen(node, &path)).expect("A repository's folder can be made");
        self.create("BackupRepository", name, json!({ "filesystem": { "path": path, "nodeName": node } })).ok();
        self.wait_for(&format!("backuprepositories.driftline.dev/{name}"), "Ready", Duration::from_secs(60));
    }

    /// Restores disks of a point to raw files of a node; the files as the test sees them.
    pub fn restore(&self, run: &str, point: &str, node: &str, disks: &[&str]) -> Vec<PathBuf> {
        let place = Path::new("/var/lib/machines").join(&self.namespace);
        let files: Vec<PathBuf> = disks.iter().map(|disk| place.join(format!("{run}-{disk}"))).collect();
        let targets: Vec<_> = disks.iter().copied().zip(files.iter().map(PathBuf::as_path)).collect();
        self.create("RestoreRun", run, self.restore_spec(point, node, &targets, "Raw")).ok();
        files.iter().map(|file| self.seen(node, file)).collect()
    }

    /// A path of a node, as the test sees it.
    pub fn seen(&self, node: &str, path: &Path) -> PathBuf {
        let below = path.strip_prefix("/").expect("A path of a node is absolute");
        self.release.nodes.node(node).root().join(below)
    }

    fn file(&self, node: &str, name: &str) -> PathBuf {
        self.seen(node, &Path::new("/etc/driftline/guests.d").join(format!("{}.{name}.toml", self.namespace)))
    }
}

fn team_name(index: u8) -> String {
    assert!(index < TEAMS, "There are more teams than the hosts' files name");
    format!("team-{}", char::from(b'a' + index))
}

/// Gives a node the image, under both of its tags.
pub fn load(node: &Node, archive: &Path) {
    node.load_image(archive);
    let [first, second] = TAGS.map(|tag| format!("{IMAGE}:{tag}"));
    let output = node.enter("ctr").args(["--namespace", "k8s.io", "images", "tag", &first, &second]).output();
    assert!(output.as_ref().is_ok_and(|output| output.status.success()), "{output:?}");
}

/// What a person brings to each host.
fn make_host(root: &Path) {
    for folder in ["etc/driftline/guests.d", "srv/backup"] {
        fs::create_dir_all(root.join(folder)).expect("A node's folder can be made");
    }
    let mut text = HOST.to_owned();
    for team in (0..TEAMS).map(team_name) {
        let place = Path::new("/var/lib/machines").join(&team);
        text.push_str(&format!("{team} = [\"{}\"]\n", place.display()));
        let below = place.strip_prefix("/").expect("It is absolute");
        fs::create_dir_all(root.join(below)).expect("A node's folder can be made");
    }
    fs::write(root.join("etc/driftline/host.toml"), text).expect("A node's file can be written");
}

fn chart() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/driftline").display().to_string()
}

/// The values that a person with an image of their own gives.
fn values(tag: &str) -> [String; 5] {
    [
        format!("--set=image.repository={IMAGE}"),
        format!("--set-string=image.tag={tag}"),
        "--set=image.pullPolicy=Never".to_owned(),
        "--set=agent.hostPaths.restores={/var/lib/machines}".to_owned(),
        "--set=agent.hostPaths.sockets={/run/qemu,/var/lib/kubelet/pods}".to_owned(),
    ]
}

/// The archive of the image under a tag.
pub fn image(tag: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/image/build");
    let output = Command::new(&script).arg(env!("CARGO_BIN_EXE_driftline")).arg(format!("{IMAGE}:{tag}")).output();
    let output = output.unwrap_or_else(|error| panic!("{} cannot be run: {error}", script.display()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}
