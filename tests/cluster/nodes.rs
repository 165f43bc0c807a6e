//! What tests on real nodes rely on: the bench has pods that run, a network between them, nodes that fail and come back,
//! and an end that leaves nothing on the machine.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    bench::{Nodes, image::PROBE},
    lab::{child::wait_for, netns::Netns},
};

/// Says its node's name to whoever asks, and notes each of its starts on the node's own disk.
const PODS: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: hello}
spec:
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: hello
        image: IMAGE
        imagePullPolicy: Never
        args: [serve, $(NODE), /host/starts]
        env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        volumeMounts: [{name: host, mountPath: /host}]
      volumes: [{name: host, hostPath: {path: /srv/driftline-hello, type: DirectoryOrCreate}}]
---
apiVersion: v1
kind: Service
metadata: {name: hello}
spec: {selector: {app: hello}, ports: [{port: 80, targetPort: 8080}]}
"#;
/// Where the pods note their starts.
const STARTS: &str = "srv/driftline-hello/starts";
/// The pods as the API server knows them, by the address that every pod has it at.
const PODS_URL: &str = "https://10.96.0.1/api/v1/namespaces/default/pods";

/// This very program with one test, in a network of its own.
fn alone(test: &str) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/in-netns"));
    command.arg(std::env::current_exe().unwrap()).args(["--exact", &format!("nodes::{test}"), "--nocapture"]);
    command.env_remove("DRIFTLINE_NETNS");
    command
}

#[test]
fn pods_on_real_nodes_run_reach_each_other_and_come_back_after_a_power_cut() {
    let _inside = Netns::new().enter();
    let before = Machine::now();
    let mut lap = Lap::start();
    let nodes = Nodes::start(&["node-a", "node-b"]);
    lap.says("two nodes are Ready");

    nodes.plane().apply("default", &PODS.replace("IMAGE", PROBE)).ok();
    rolled_out(&nodes);
    lap.says("the pods run");

    let (a, b) = (Pod::on("node-a", &nodes), Pod::on("node-b", &nodes));
    assert_eq!(nodes.plane().kubectl(["logs", &b.name]).ok(), "hello from node-b\n");
    assert_eq!(a.get(&nodes, &format!("http://{}:8080/", b.address)).ok(), "node-b\n");
    assert!(page(&a.address).ends_with("node-a\n"), "The test itself reaches a pod");
    a_service_leads_to_both(&nodes, &a);
    an_account_is_who_it_says(&nodes, &a);
    the_disk_is_the_nodes_own(&nodes);
    lap.says("the network, the accounts and the disks are as they should be");

    let node = nodes.node("node-b");
    node.power_cut();
    nodes.plane().kubectl(["wait", "--for=condition=Ready=Unknown", "--timeout=60s", "node/node-b"]).ok();
    lap.says("a node without power is missed");
    node.power_on();
    drop(node);
    lap.says("it is Ready again");
    wait_for("the pod's second start", Duration::from_secs(60), || (starts(&nodes) == 2).then_some(()));
    rolled_out(&nodes);
    assert!(page(&Pod::on("node-b", &nodes).address).ends_with("node-b\n"));
    lap.says("its pod is back");

    nodes.add("node-c");
    rolled_out(&nodes);
    assert!(page(&Pod::on("node-c", &nodes).address).ends_with("node-c\n"));
    nodes.remove("node-c");
    lap.says("a third node came and went");
    pods_outlive_their_daemons(&nodes);
    lap.says("killed daemons are back, and no pod ended with them");

    let cgroups = nodes.cgroups();
    assert!(cgroups.iter().any(|folder| folder.is_dir()), "{cgroups:?}");
    drop(nodes);
    assert!(!cgroups.iter().any(|folder| folder.exists()), "cgroups are left of {cgroups:?}");
    assert_eq!(before, Machine::now());
    lap.says("nothing is left");
}

#[test]
fn a_bench_whose_test_is_killed_leaves_nothing() {
    // The victim is this very program with one test, told by the environment to say what it has and then to wait.
    const TELL: &str = "DRIFTLINE_TEST_VICTIM";
    if let Some(report) = std::env::var_os(TELL) {
        let nodes = Nodes::start(&["victim"]);
        let mut daemon = nodes.node("victim").enter("sh");
        let mut daemon = daemon.args(["-c", "echo up; exec sleep 600"]).stdout(Stdio::piped()).spawn().unwrap();
        daemon.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
        let mut left = nodes.cgroups();
        left.retain(|folder| folder.is_dir());
        left.extend([nodes.folder().to_owned(), Path::new("/proc").join(daemon.id().to_string())]);
        let left: Vec<_> = left.iter().map(|path| path.display().to_string()).collect();
        fs::write(&report, left.join("\n") + "\n").unwrap();
        daemon.wait().unwrap();
    }
    let place = tempfile::tempdir().unwrap();
    let report = place.path().join("report");
    let mut victim = alone("a_bench_whose_test_is_killed_leaves_nothing")
        .env(TELL, &report)
        .env_remove("DRIFTLINE_KEEP")
        .spawn()
        .unwrap();
    let told = || fs::read_to_string(&report).ok().filter(|text| text.ends_with('\n'));
    let ready = wait_for("the victim's report, or its end", Duration::from_secs(120), || {
        told().map(Ok).or_else(|| victim.try_wait().unwrap().map(Err))
    });
    let left = ready.expect("The victim has nodes");
    assert!(left.lines().all(|path| Path::new(path).exists()), "{left}");
    victim.kill().unwrap();
    victim.wait().unwrap();
    for path in left.lines() {
        wait_for(&format!("the end of {path}"), Duration::from_secs(20), || (!Path::new(path).exists()).then_some(()));
    }
}

fn a_service_leads_to_both(nodes: &Nodes, pod: &Pod) {
    let path = "jsonpath={.spec.clusterIP}";
    let service = nodes.plane().kubectl(["get", "service", "hello", "-o", path]).ok();
    // Its own node too, which the answer must not reach by a shorter way than the question.
    let url = format!("http://{service}/");
    for wanted in ["node-a\n", "node-b\n"] {
        // Refused while kube-proxy has not heard of the pods yet.
        let answer = || Some(pod.get(nodes, &url).stdout()).filter(|answer| answer == wanted);
        wait_for(&format!("an answer of {wanted}"), Duration::from_secs(20), answer);
    }
}

fn an_account_is_who_it_says(nodes: &Nodes, pod: &Pod) {
    let bind = ["create", "rolebinding", "view", "--clusterrole=view", "--serviceaccount=default:default"];
    nodes.plane().kubectl(bind).ok();
    // The authorizer learns of the binding from a watch.
    let pods = wait_for("the account may see pods", Duration::from_secs(10), || {
        Some(pod.get(nodes, PODS_URL)).filter(crate::controlplane::Answer::succeeded)
    });
    assert!(pods.stdout().contains("\"PodList\""), "{pods}");
    let audit = fs::read_to_string(nodes.plane().audit_log()).unwrap();
    assert!(audit.contains("\"system:serviceaccount:default:default\""), "{audit}");
}

fn the_disk_is_the_nodes_own(nodes: &Nodes) {
    assert_eq!(starts(nodes), 1);
    assert!(!Path::new("/").join(STARTS).exists(), "A node has written to the machine's own /srv");
    let inside = nodes.node("node-b").enter("cat").arg(Path::new("/").join(STARTS)).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&inside.stdout), "start\n", "{inside:?}");
}

fn pods_outlive_their_daemons(nodes: &Nodes) {
    let node = nodes.node("node-a");
    node.signal("kubelet", Signal::STOP);
    node.signal("kubelet", Signal::CONT);
    for daemon in ["containerd", "kubelet", "proxy"] {
        node.restart(daemon);
    }
    // exec needs kubelet and containerd; the pod was started once.
    let pod = Pod::on("node-a", nodes);
    wait_for("kubelet and containerd run programs again", Duration::from_secs(30), || {
        pod.get(nodes, "http://127.0.0.1:8080/").succeeded().then_some(())
    });
    node.wait_until_ready();
    assert_eq!(fs::read_to_string(node.root().join(STARTS)).unwrap(), "start\n");
}

fn rolled_out(nodes: &Nodes) {
    let answer = nodes.plane().kubectl(["rollout", "status", "daemonset/hello", "--timeout=60s"]);
    assert!(answer.succeeded(), "{answer}\n{}\n{}", nodes.plane().kubectl(["describe", "pods"]), nodes.logs());
}

/// How often the pod of node-b has started, from the test's side of its disk.
fn starts(nodes: &Nodes) -> usize {
    fs::read_to_string(nodes.node("node-b").root().join(STARTS)).unwrap().lines().count()
}

/// A GET of a pod's page from the test's own network.
fn page(address: &str) -> String {
    let mut stream = TcpStream::connect((address, 8080)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(stream, "GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The pod of the DaemonSet on a node.
struct Pod {
    name: String,
    address: String,
}

impl Pod {
    fn on(node: &str, nodes: &Nodes) -> Pod {
        let selector = format!("--field-selector=spec.nodeName={node}");
        let path = "jsonpath={.items[0].metadata.name} {.items[0].status.podIP}";
        let answer = nodes.plane().kubectl(["get", "pods", "-l", "app=hello", &selector, "-o", path]).ok();
        let (name, address) = answer.split_once(' ').unwrap();
        Pod { name: name.to_owned(), address: address.to_owned() }
    }

    /// What the pod gets from a URL.
    fn get(&self, nodes: &Nodes, url: &str) -> crate::controlplane::Answer {
        nodes.plane().kubectl(["exec", &self.name, "--", "/bin/probe", "get", url])
    }
}

/// What a bench could leave behind in the network and the mounts that the test runs in.
#[derive(Debug, PartialEq, Eq)]
struct Machine {
    interfaces: Vec<String>,
    routes: String,
    mounts: String,
}

impl Machine {
    fn now() -> Machine {
        // /sys shows the network that it was mounted in, /proc/net the one of the first thread.
        let interfaces = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let names = interfaces.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
        let interfaces = names.collect();
        Machine {
            interfaces,
            routes: fs::read_to_string("/proc/thread-self/net/route").unwrap(),
            mounts: fs::read_to_string("/proc/self/mounts").unwrap(),
        }
    }
}

/// Prints how long each part of a test took.
struct Lap(Instant);

impl Lap {
    fn start() -> Lap {
        Lap(Instant::now())
    }

    #[expect(clippy::print_stdout, reason = "it is for the person who runs the test")]
    fn says(&mut self, what: &str) {
        println!("{:5.1} s: {what}", self.0.elapsed().as_secs_f64());
        self.0 = Instant::now();
    }
}
