//! What the documentation tells people to type about the release itself, typed in on a real cluster: helm really
//! installs, upgrades and uninstalls, and what is to be done on each node is done on each.
//!
//! What stands for what: a namespace and a machine of the test for those of the documents, and the bench's image, which
//! its nodes have, for the one in the documents' registry. The release is the one that tests have in turn: each test
//! here leaves a new one.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    guides::{Fence, Runner, copy_tree, documents_for, fences, path_with, programs, script},
    lab::{
        child::Guarded,
        machine::{Disk, Plan},
    },
    release::{IMAGE, NAMESPACE, NODES, Release, TAGS, Team, image},
};

const MIB: u64 = 1 << 20;
const NODE: &str = NODES[0];
const WITHIN: Duration = Duration::from_secs(120);
const KINDS: [&str; 5] = ["backuprepositories", "backupruns", "guests", "restorepoints", "restoreruns"];

/// A folder like the tree's root, in which an administrator types.
struct Shell<'a> {
    release: &'static Release,
    folder: tempfile::TempDir,
    others: Vec<(String, String)>,
    /// Whatever became of it, the next test finds a release and hosts as ours were.
    _whole: Whole<'a>,
}

struct Whole<'a>(&'a Release);

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        uninstall(self.0);
        self.0.give_host_files();
        let answer = self.0.install(&[]);
        if !std::thread::panicking() {
            assert!(answer.succeeded(), "{answer}");
        }
    }
}

impl Shell<'_> {
    fn new(team: &Team) -> Shell<'_> {
        let folder = tempfile::Builder::new().prefix("docs-").tempdir().unwrap();
        let others = [
            ("--set image.tag=0.1.0", format!("--set-string image.tag={}", TAGS[0])),
            ("--set image.tag=0.2.0", format!("--set-string image.tag={}", TAGS[1])),
            ("registry.example/driftline", IMAGE.to_owned()),
            ("driftline.tar", image(TAGS[0]).display().to_string()),
            ("node-1", NODE.to_owned()),
            ("team-a", team.namespace.clone()),
        ];
        let others: Vec<_> = others.map(|(this, that)| (this.to_owned(), that)).into();
        copy_tree(folder.path(), &others);
        let release = team.release;
        let (kubectl, helm) = (release.plane().program("kubectl"), release.plane().program("helm"));
        programs(&folder.path().join("bin"), &[], &[("kubectl", kubectl.as_path()), ("helm", helm.as_path())]);
        Shell { release, folder, others, _whole: Whole(release) }
    }

    /// Types in what stands in a document, in its order; gives what was said on stdout.
    fn document(&self, document: &str) -> String {
        self.fences(&fences(document))
    }

    fn fences(&self, fences: &[Fence]) -> String {
        let mut said = String::new();
        // As it is read: what follows each other for the same place is one script, so that names stay.
        for part in fences.chunk_by(|one, other| one.runner() == other.runner()) {
            match part[0].runner() {
                Some(Runner::Node) => NODES.iter().for_each(|node| said += &self.on(node, part)),
                Some(Runner::Pods) => said += &self.here(part),
                other => panic!("{other:?} is not for this test: {part:?}"),
            }
        }
        said
    }

    fn script(&self, fences: &[Fence]) -> std::path::PathBuf {
        let path = self.folder.path().join("script");
        fs::write(&path, script(fences, &self.others)).unwrap();
        path
    }

    /// As a process of the node, whose /etc, /var and /srv are its own.
    fn on(&self, node: &str, fences: &[Fence]) -> String {
        let mut command: Command = self.release.nodes.node(node).enter("sh");
        let output = command.arg(self.script(fences)).output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}{}", said(&output.stdout), said(&output.stderr));
        said(&output.stdout)
    }

    fn here(&self, fences: &[Fence]) -> String {
        let path = |name: &str| self.folder.path().join(name);
        let output = |name: &str| Stdio::from(fs::File::create(path(name)).unwrap());
        let script = self.script(fences);
        let mut shell = Guarded::start("sh", |command| {
            command.arg(script).current_dir(self.folder.path()).stdin(Stdio::null());
            command.env("PATH", path_with(&path("bin"))).env("HOME", self.folder.path());
            command.env("KUBECONFIG", self.release.plane().admin_kubeconfig());
            command.stdout(output("stdout")).stderr(output("stderr"));
        });
        let status = shell.wait(Duration::from_secs(600));
        let said = |name: &str| fs::read_to_string(path(name)).unwrap_or_default();
        assert!(status.success(), "{status}\n{}{}\n{}", said("stdout"), said("stderr"), self.release.logs());
        said("stdout")
    }
}

/// Takes away the release, where it is there, to its last pod.
fn uninstall(release: &Release) {
    release.helm("uninstall", &["--ignore-not-found", "--wait"]);
    let pods = "--selector=app.kubernetes.io/instance=driftline,app.kubernetes.io/component!=test";
    release.plane().kubectl(["wait", "--for=delete", "pods", pods, "-n", NAMESPACE, "--timeout=60s"]);
}

/// Takes away the release, its kinds and its namespace: a cluster that has never heard of Driftline.
fn forget_everything(release: &Release) {
    // What a test before has left going would hold its kind.
    let runs = "backupruns.driftline.dev,restoreruns.driftline.dev";
    release.plane().kubectl(["delete", runs, "--all", "--all-namespaces", "--timeout=60s"]).ok();
    uninstall(release);
    delete_kinds(release);
    release.plane().kubectl(["delete", "--ignore-not-found", "--timeout=60s", "namespace", NAMESPACE]).ok();
    for node in NODES {
        let root = release.nodes.node(node).root();
        for folder in ["etc/driftline", "var/lib/driftline"] {
            fs::remove_dir_all(root.join(folder)).unwrap();
        }
    }
}

fn delete_kinds(release: &Release) {
    let kinds = KINDS.map(|kind| format!("{kind}.driftline.dev"));
    let words = ["delete", "--ignore-not-found", "--timeout=60s", "customresourcedefinitions"];
    release.plane().kubectl(words.into_iter().chain(kinds.iter().map(String::as_str))).ok();
}

fn plan() -> Plan {
    Plan::new().disk(Disk::qcow2("disk0", 32 * MIB))
}

#[test]
fn no_document_for_pods_is_left_out() {
    let all = [documents_for(Runner::Pods), documents_for(Runner::Node)].concat();
    for document in all {
        let here = ["docs/installation.md", "docs/upgrade.md", "docs/uninstall.md", "docs/security.md"];
        assert!(here.contains(&document), "type in {document} here too");
    }
}

#[test]
fn a_cluster_that_has_never_heard_of_driftline_has_it_when_the_installation_was_followed() {
    let (release, _turn) = Release::take();
    let team = release.team();
    let shell = Shell::new(&team);
    forget_everything(release);
    let said = shell.document("docs/installation.md");
    assert_eq!(said.matches("Phase:          Succeeded").count(), 2, "helm test, twice: {said}");
    release.wait_until_ready();
    let trusted = ["get", "configmap", "driftline-authority", "-n", NAMESPACE, "-o", r"jsonpath={.data.ca\.crt}"];
    let ours = fs::read_to_string(shell.folder.path().join("ca.crt")).unwrap();
    assert!(
        release.plane().kubectl(trusted).ok().contains(ours.trim()),
        "the agents trust the authority that was given"
    );
    let secret = release.plane().kubectl(["get", "secret", "driftline-authority", "-n", NAMESPACE]);
    assert!(secret.refused().contains("NotFound"), "there is one authority");
}

#[test]
fn what_the_page_about_security_says_to_type_can_be_typed() {
    let (release, _turn) = Release::take();
    let team = release.team();
    let said = Shell::new(&team).document("docs/security.md");
    assert!(said.contains("tokenreviews.authentication.k8s.io"), "{said}");
    release.wait_until_ready();
}

#[test]
fn a_backup_that_is_going_outlives_the_upgrade_and_the_rollback_that_the_page_says_to_type() {
    let (release, _turn) = Release::take();
    let team = release.team();
    let shell = Shell::new(&team);
    let machine = release.machine_on(NODE, plan()).start();
    machine.write("disk0", 0x5a, 0, 32 * MIB);
    team.guest(NODE, "db-1", &machine.qmp());
    team.repository(NODE, "local");
    let mut spec = team.backup_spec("db-1", "local");
    spec["transfer"] = serde_json::json!({ "bandwidth": "1Mi" });
    team.create("BackupRun", "slow", spec).ok();
    team.wait_for("backuprun.driftline.dev/slow", "CheckpointCreated", WITHIN);
    // However long the page takes, the job goes on until it is let go.
    let job = machine.execute("query-jobs", serde_json::json!({}))[0]["id"].clone();
    let speed =
        |speed: u32| machine.execute("block-job-set-speed", serde_json::json!({ "device": job, "speed": speed }));
    speed(65536);
    let said = shell.document("docs/upgrade.md");
    assert_eq!(said.matches("Phase:          Succeeded").count(), 2, "helm test, twice: {said}");
    let slow = said.lines().find(|line| line.contains("backuprun.driftline.dev/slow")).unwrap();
    assert!(slow.starts_with(&team.namespace) && slow.contains("Copying"), "it was to be going still: {slow}");
    speed(0);
    team.wait_for("backuprun.driftline.dev/slow", "Complete", WITHIN);
    assert_eq!(team.get("backuprun.driftline.dev", "slow")["status"]["disks"][0]["jobID"], job);
}

#[test]
fn points_come_back_after_an_uninstall_and_nothing_but_them_is_left_in_the_end() {
    let (release, _turn) = Release::take();
    let team = release.team();
    let shell = Shell::new(&team);
    let machine = release.machine_on(NODE, plan()).start();
    machine.write("disk0", 0x5a, 0, MIB);
    team.guest(NODE, "db-1", &machine.qmp());
    // The folder of the example.
    let folder = format!("/srv/backup/{}", team.namespace);
    fs::create_dir_all(team.seen(NODE, Path::new(&folder))).unwrap();
    let spec = serde_json::json!({ "filesystem": { "path": folder, "nodeName": NODE } });
    team.create("BackupRepository", "local", spec).ok();
    team.back_up("first", "db-1", "local");
    team.wait_for("backuprun.driftline.dev/first", "Complete", WITHIN);
    let point = team.point_of("first");

    let all = fences("docs/uninstall.md");
    let back = all.iter().position(|fence| fence.heading == "Coming back").unwrap();
    let said = shell.fences(&all[..back]);
    assert!(said.contains(&point), "its object stays: {said}");
    let pods = release.plane().kubectl(["get", "pods", "-n", NAMESPACE, "-o", "name"]).ok();
    assert_eq!(pods, "", "pods are left");
    // As in another cluster: the objects are gone.
    delete_kinds(release);
    let end = all.iter().position(|fence| fence.heading == "The kinds").unwrap();
    shell.fences(&all[back..end]);
    team.wait_for(&format!("restorepoint.driftline.dev/{point}"), "Available", WITHIN);

    uninstall(release);
    shell.fences(&all[end..]);
    let left = release.plane().kubectl(["api-resources", "--api-group=driftline.dev", "-o", "name"]).stdout();
    assert_eq!(left, "", "kinds are left");
    let found = Command::new("find").arg(team.seen(NODE, Path::new(&folder))).args(["-name", "manifest.json"]).output();
    let found = found.unwrap();
    assert!(!found.stdout.is_empty(), "the point is still in the repository");
}
