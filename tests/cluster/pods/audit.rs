//! A node that is removed for good, and with it the last of what the controller needs a right for: then the API server's
//! own record of requests says whether each right is used, and whether one was missing.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{certificates::chart, underway::SOON};
use crate::{
    lab::machine::{Disk, Plan},
    release::{NAMESPACE, NODES, Release},
};

const MIB: u64 = 1 << 20;
const CONTROLLER: &str = "system:serviceaccount:driftline-system:driftline-controller";
const AGENT: &str = "system:serviceaccount:driftline-system:driftline-agent";

/// A verb on a resource of a group.
type Right = (String, String, String);

#[test]
fn a_removed_nodes_guests_go_by_a_rule_and_each_right_of_the_controller_has_been_used() {
    let (release, _turn) = Release::take();
    // A controller whose release is being uninstalled loses its rights before it ends: that was before us.
    let before = requests(release).len();
    // Folders that no node has are made, or the pods would wait for them for ever.
    let missing = [
        "--set=agent.hostPaths.repositories={/srv/backup,/srv/missing}",
        "--set=agent.hostPaths.sockets={/run/qemu,/run/missing}",
    ];
    chart(release, &["--set=controller.forgetGuestsAfter=10s", missing[0], missing[1]]);
    a_removed_nodes_guests_go_and_its_points_stay(release);
    whatever_else_needs_a_right(release);
    // The record of the last request may still be on its way.
    let given = given(release);
    let used = |asked: &[(String, Right, u64)]| -> BTreeSet<Right> {
        asked.iter().filter(|(user, ..)| user == CONTROLLER).map(|(_, right, _)| right.clone()).collect()
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while !given.is_subset(&used(&requests(release))) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(500));
    }
    let asked = requests(release);
    let since = asked.iter().skip(before);
    let refused: Vec<_> = since.filter(|(user, _, code)| user == CONTROLLER && *code == 403).collect();
    assert!(refused.is_empty(), "the controller needs a right that the chart does not give: {refused:?}");
    let used = used(&asked);
    let unused: Vec<_> = given.difference(&used).collect();
    assert!(unused.is_empty(), "the chart gives rights that nothing uses: {unused:?}");
    let agents: Vec<_> = asked.iter().filter(|(user, ..)| user == AGENT).collect();
    assert!(agents.is_empty(), "an agent has asked the API server: {agents:?}");
    chart(release, &[]);
}

fn a_removed_nodes_guests_go_and_its_points_stay(release: &'static Release) {
    let node = "node-c";
    release.add_node(node);
    let shared = Path::new("/srv/backup/shared");
    let folder = release.nodes.folder().join("shared");
    fs::create_dir_all(&folder).unwrap();
    // Mounted while the agents run: they see it.
    for name in NODES.iter().chain(&[node]) {
        release.mount(name, &folder, shared);
    }
    let team = release.team();
    let machine = release.machine_on(node, Plan::new().disk(Disk::raw("disk0", 8 * MIB))).start();
    machine.write("disk0", 0x66, MIB, MIB);
    fs::create_dir_all(folder.join(&team.namespace)).unwrap();
    team.create("BackupRepository", "shared", json!({ "filesystem": { "path": shared.join(&team.namespace) } })).ok();
    team.wait_for("backuprepositories.driftline.dev/shared", "Ready", SOON);
    team.guest(node, "g", &machine.qmp());
    team.back_up("run", "g", "shared");
    team.wait_for("backuprun.driftline.dev/run", "Complete", SOON);
    let point = format!("restorepoint.driftline.dev/{}", team.point_of("run"));
    team.wait_for(&point, "Available", SOON);

    drop(machine);
    release.nodes.remove(node);
    team.wait_until("guests.driftline.dev/g", "told of as gone", SOON, || {
        team.condition("guests.driftline.dev/g", "Ready").filter(|ready| ready["reason"] == "NodeGone")
    });
    team.wait_until("guests.driftline.dev/g", "deleted", SOON, || {
        (!team.kubectl(["get", "guests.driftline.dev/g"]).succeeded()).then_some(())
    });
    team.wait_for(&point, "Available", SOON);
    team.kubectl(["delete", "backuprepositories.driftline.dev", "shared"]).ok();
    NODES.iter().for_each(|name| release.unmount(name, shared));
}

fn whatever_else_needs_a_right(release: &'static Release) {
    let team = release.team();
    let node = NODES[0];
    let mut machine = release.machine_on(node, Plan::new().disk(Disk::raw("disk0", 8 * MIB))).start();
    team.repository(node, "local");
    team.guest(node, "g", &machine.qmp());
    // A folder that is not there is named, and nothing waits.
    let nowhere = json!({ "filesystem": { "path": "/srv/backup/nowhere", "nodeName": node } });
    team.create("BackupRepository", "nowhere", nowhere).ok();
    let refusal = team.refusal("backuprepositories.driftline.dev/nowhere", "Ready", SOON);
    assert_eq!(refusal["reason"], "FolderMissing", "{refusal}");
    assert!(refusal["message"].as_str().unwrap().contains("/srv/backup/nowhere"), "{refusal}");
    // A finished run that goes by itself.
    let mut spec = team.backup_spec("g", "local");
    spec["ttlAfterFinished"] = "1s".into();
    team.create("BackupRun", "short", spec).ok();
    team.wait_until("backuprun.driftline.dev/short", "deleted", SOON, || {
        (!team.kubectl(["get", "backuprun.driftline.dev/short"]).succeeded()).then_some(())
    });
    assert!(team.event("short", "Expired", SOON).contains("ttlAfterFinished"));
    // A restore has a finalizer while it goes.
    let point = team.kubectl(["get", "restorepoints.driftline.dev", "-o", "jsonpath={.items[0].metadata.name}"]).ok();
    team.restore("back", &point, node, &["disk0"]);
    team.wait_for("restorerun.driftline.dev/back", "Complete", SOON);
    // Its points are shown with the name that their repository has now.
    team.kubectl(["delete", "backuprepositories.driftline.dev", "local"]).ok();
    let path = Path::new("/srv/backup").join(&team.namespace).join("local");
    let spec = json!({ "filesystem": { "path": path, "nodeName": node } });
    team.create("BackupRepository", "renamed", spec).ok();
    team.wait_until(&format!("restorepoint.driftline.dev/{point}"), "of the new name", SOON, || {
        let path = "jsonpath={.items[0].spec.repositoryRef.name}";
        let name = team.kubectl(["get", "restorepoints.driftline.dev", "-o", path]).stdout();
        (name == "renamed").then_some(())
    });
    // The same Event twice.
    for _ in 0..2 {
        machine.quit();
        team.refusal("guests.driftline.dev/g", "Ready", SOON);
        machine.start_again();
        team.wait_for("guests.driftline.dev/g", "Ready", SOON);
    }
}

/// Every request of an account: who, what, and the answer's code. A patch that makes an object needs the right to create it
/// too.
fn requests(release: &Release) -> Vec<(String, Right, u64)> {
    let text = fs::read_to_string(release.plane().audit_log()).unwrap();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    lines
        .filter(|line| line["stage"] == "ResponseComplete" || line["stage"] == "ResponseStarted")
        .filter(|line| line["objectRef"].is_object())
        .flat_map(|line| {
            let about = &line["objectRef"];
            let resource = match about["subresource"].as_str() {
                Some(sub) => format!("{}/{sub}", word(&about["resource"])),
                None => word(&about["resource"]),
            };
            let code = line["responseStatus"]["code"].as_u64().unwrap_or_default();
            let right = |verb: &str| (verb.to_owned(), word(&about["apiGroup"]), resource.clone());
            let verb = word(&line["verb"]);
            let made = (verb == "patch" && code == 201).then(|| right("create"));
            let who = word(&line["user"]["username"]);
            [Some(right(&verb)), made].into_iter().flatten().map(|right| (who.clone(), right, code)).collect::<Vec<_>>()
        })
        .collect()
}

/// What the chart gives to the controller.
fn given(release: &Release) -> BTreeSet<Right> {
    let mut all = BTreeSet::new();
    for words in [["get", "clusterrole", "driftline-controller"], ["get", "role", "driftline-controller"]] {
        let words = words.into_iter().chain(["-n", NAMESPACE, "-o", "json"]);
        let role: Value = serde_json::from_str(&release.plane().kubectl(words).ok()).unwrap();
        let list = |value: &Value| -> Vec<String> {
            value.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
        };
        for rule in role["rules"].as_array().unwrap() {
            for group in list(&rule["apiGroups"]) {
                for resource in list(&rule["resources"]) {
                    let verbs = list(&rule["verbs"]).into_iter();
                    all.extend(verbs.map(|verb| (verb, group.clone(), resource.clone())));
                }
            }
        }
    }
    all
}
