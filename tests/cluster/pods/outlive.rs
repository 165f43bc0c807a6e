//! What happens to pods, nodes and the cluster in the middle of a run: it goes on, and ends with the jobs that it began
//! with.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::json;

use super::underway::{SOON, Underway};
use crate::{
    lab::child::wait_for,
    release::{NAMESPACE, NODES, Release, TAGS},
};

fn images(release: &Release) -> String {
    let path = "jsonpath={.items[*].spec.containers[*].image}";
    release.plane().kubectl(["get", "pods", "-n", NAMESPACE, "-o", path]).ok()
}

#[test]
fn runs_outlive_an_upgrade_and_a_rollback() {
    let (release, _turn) = Release::take();
    let runs = NODES.map(|node| Underway::at_half(release, node));
    release.upgrade(TAGS[1], &[]);
    release.wait_until_ready();
    runs.iter().for_each(Underway::goes_on);
    assert!(!images(release).contains(&format!(":{}", TAGS[0])), "{}", images(release));
    let back = release.helm("rollback", &["--wait", "--timeout=120s"]);
    assert!(back.succeeded(), "{back}\n{}", release.logs());
    release.wait_until_ready();
    runs.iter().for_each(Underway::goes_on);
    assert!(!images(release).contains(&format!(":{}", TAGS[1])), "{}", images(release));
    runs.iter().for_each(Underway::let_go);
    runs.iter().for_each(Underway::ends_exactly);
}

#[test]
fn a_run_outlives_whatever_happens_to_pods_nodes_and_the_api_server() {
    let (release, _turn) = Release::take();
    let node = NODES[0];
    let run = Underway::at_half(release, node);
    for (what, happens) in [
        ("the agent's pod is deleted", delete_agent as fn(&Release, &str)),
        ("the agent is killed for its memory", kill_for_memory),
        ("the agent's pod is evicted", evict_agent),
        ("the controller's node is drained", drain_controllers_node),
        ("kubelet is restarted", |release, node| release.nodes.node(node).restart("kubelet")),
        ("containerd is restarted", |release, node| release.nodes.node(node).restart("containerd")),
        ("the API server is gone for 30 s", lose_the_api_server),
    ] {
        let began = Instant::now();
        happens(release, node);
        release.wait_until_ready();
        run.goes_on();
        println(&format!("{:5.1} s: {what}", began.elapsed().as_secs_f64()));
    }
    run.let_go();
    run.ends_exactly();
}

#[expect(clippy::print_stdout, reason = "it is for the person who runs the test")]
fn println(line: &str) {
    println!("{line}");
}

fn delete_agent(release: &Release, node: &str) {
    release.plane().kubectl(["delete", "pod", "-n", NAMESPACE, &release.agent_pod(node)]).ok();
}

/// The limit is set to a little more than what is used, and another process of the pod wants more than that: the kernel
/// ends the largest, which is the agent.
fn kill_for_memory(release: &Release, node: &str) {
    let pod = release.agent_pod(node);
    let folder = memory_folder(release, &pod);
    let number = |file: &str| -> u64 { fs::read_to_string(folder.join(file)).unwrap().trim().parse().unwrap() };
    let (limit, usage) = match folder.join("memory.max").exists() {
        true => ("memory.max", number("memory.current")),
        false => ("memory.limit_in_bytes", number("memory.usage_in_bytes")),
    };
    let before = fs::read_to_string(folder.join(limit)).unwrap();
    fs::write(folder.join(limit), (usage + (6 << 20)).to_string()).unwrap();
    // Two megabytes at a time, each less than the agent has.
    let script = "for i in 1 2 3 4 5 6 7 8; do (x=$(head -c 2000000 /dev/zero | tr '\\0' x); sleep 2) & done; wait";
    let path = "jsonpath={.status.containerStatuses[0].lastState.terminated.reason}";
    wait_for("the agent is OOMKilled", Duration::from_secs(60), || {
        // It may fail in any way, and something else than the agent may be ended instead: then again.
        release.plane().kubectl(["exec", "-n", NAMESPACE, &pod, "--", "bash", "-c", script]);
        let reason = release.plane().kubectl(["get", "pod", "-n", NAMESPACE, &pod, "-o", path]).stdout();
        (reason == "OOMKilled").then_some(())
    });
    // A new container has a new group with the old limit; this one is gone as a rule.
    let _ = fs::write(folder.join(limit), before);
}

/// The memory group of the pod's container.
fn memory_folder(release: &Release, pod: &str) -> PathBuf {
    let path = "jsonpath={.status.containerStatuses[0].containerID}";
    let id = release.plane().kubectl(["get", "pod", "-n", NAMESPACE, pod, "-o", path]).ok();
    let id = id.trim_start_matches("containerd://").to_owned();
    let roots = release.nodes.cgroups();
    let roots = roots.iter().filter(|root| root.starts_with("/sys/fs/cgroup/memory") || is_unified(root));
    roots.into_iter().find_map(|root| find(root, &id)).unwrap_or_else(|| panic!("There is no group of {id}"))
}

fn is_unified(root: &Path) -> bool {
    root.join("memory.max").exists()
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let folders = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    folders.into_iter().find_map(|path| if path.ends_with(name) { Some(path) } else { find(&path, name) })
}

fn evict_agent(release: &Release, node: &str) {
    let pod = release.agent_pod(node);
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": pod, "namespace": NAMESPACE },
    });
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction");
    release.plane().kubectl_with(["create", "--raw", &path, "-f", "-"], &eviction.to_string()).ok();
    wait_for("the pod is gone", SOON, || {
        (!release.plane().kubectl(["get", "pod", "-n", NAMESPACE, &pod]).succeeded()).then_some(())
    });
}

fn drain_controllers_node(release: &Release, _: &str) {
    let node = release.controllers_node();
    let words = ["drain", &node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s"];
    release.plane().kubectl(words).ok();
    release.wait_until_ready();
    assert_ne!(release.controllers_node(), node, "the controller is where it was");
    release.plane().kubectl(["uncordon", &node]).ok();
}

fn lose_the_api_server(release: &Release, _: &str) {
    release.plane().kill_apiserver();
    std::thread::sleep(Duration::from_secs(30));
    release.plane().restart_apiserver();
}
