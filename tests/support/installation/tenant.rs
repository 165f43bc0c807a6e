//! One test's own namespace in an installation: its repositories, guests and objects, by kubectl as a person would.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Installation, NODES};
use crate::{controlplane::Answer, lab::child::wait_for};

/// The version of the kinds.
pub const API_VERSION: &str = "driftline.dev/v1alpha1";

/// A namespace with a place of its own on each node.
pub struct Tenant {
    /// What it is in.
    pub installation: &'static Installation,
    /// Its name.
    pub namespace: String,
}

impl Tenant {
    /// A new empty folder below the node's repository roots.
    pub fn repository_folder(&self, node: &str, name: &str) -> PathBuf {
        let folder = self.installation.host(node).join("repositories").join(&self.namespace).join(name);
        fs::create_dir_all(&folder).expect("A repository's folder can be made");
        folder
    }

    /// The folder on a node that the hosts' files allow for this namespace's restores.
    pub fn restore_folder(&self, node: &str) -> PathBuf {
        self.installation.host(node).join("restores").join(&self.namespace)
    }

    /// Writes the host's file for a guest; does not wait for the Guest.
    pub fn declare_guest(&self, node: &str, name: &str, qmp: &Path, more: &str) -> PathBuf {
        let qmp = toml::Value::from(qmp.display().to_string());
        let namespace = &self.namespace;
        let file = self.installation.host(node).join("guests.d").join(format!("{namespace}.{name}.toml"));
        let text = format!("name = \"{name}\"\nnamespace = \"{namespace}\"\nqmp = {qmp}\n{more}");
        // Renamed when complete: the agent may look at any time.
        let temporary = file.with_extension("new");
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, &file))
            .expect("A guest's file can be written");
        file
    }

    /// Declares a guest and waits until its Guest is ready.
    pub fn guest(&self, node: &str, name: &str, qmp: &Path) {
        self.declare_guest(node, name, qmp, "");
        self.wait_for(&format!("guests.driftline.dev/{name}"), "Ready", Duration::from_secs(30));
    }

    /// A BackupRepository in a new folder of the node, ready. Returns the folder.
    pub fn repository(&self, node: &str, name: &str) -> PathBuf {
        let folder = self.repository_folder(node, name);
        self.create("BackupRepository", name, json!({ "filesystem": { "path": folder, "nodeName": node } })).ok();
        self.wait_for(&format!("backuprepositories.driftline.dev/{name}"), "Ready", Duration::from_secs(30));
        folder
    }

    /// The one image of a repository on the first node that holds one point of one disk.
    pub fn stored_image(&self, repository: &str) -> PathBuf {
        let mut folders = vec![self.repository_folder(NODES[0], repository)];
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder).expect("It can be listed").flatten().map(|entry| entry.path()) {
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|ending| ending == "qcow2") {
                    return path;
                }
            }
        }
        panic!("There is no image in repository {repository}");
    }

    /// Applies a full BackupRun of a guest into a repository of this namespace.
    pub fn back_up(&self, run: &str, guest: &str, repository: &str) {
        self.create("BackupRun", run, self.backup_spec(guest, repository)).ok();
    }

    /// The spec of a full BackupRun.
    pub fn backup_spec(&self, guest: &str, repository: &str) -> Value {
        json!({
            "guestRef": { "name": guest },
            "repositoryRef": { "name": repository },
            "type": "Full",
        })
    }

    /// The name of the RestorePoint of a run that is Complete.
    pub fn point_of(&self, run: &str) -> String {
        let run = self.get("backuprun.driftline.dev", run);
        run["status"]["restorePointRef"]["name"].as_str().unwrap_or_else(|| panic!("No point in {run:#}")).to_owned()
    }

    /// Applies a RestoreRun of all `disks` of a point to new files named `<run>-<disk>`. Returns the files.
    pub fn restore(&self, run: &str, point: &str, node: &str, disks: &[&str], format: &str) -> Vec<PathBuf> {
        let files: Vec<PathBuf> =
            disks.iter().map(|disk| self.restore_folder(node).join(format!("{run}-{disk}"))).collect();
        let targets: Vec<Value> =
            disks.iter().zip(&files).map(|(disk, file)| json!({ "name": disk, "path": file })).collect();
        let spec = json!({
            "restorePointRef": { "name": point },
            "mode": "Flatten",
            "target": { "nodeName": node, "disks": targets },
            "format": format,
            "verify": "Digest",
        });
        self.create("RestoreRun", run, spec).ok();
        files
    }

    /// `kubectl apply` of an object of one of our kinds.
    pub fn create(&self, kind: &str, name: &str, spec: Value) -> Answer {
        let object = json!({ "apiVersion": API_VERSION, "kind": kind, "metadata": { "name": name }, "spec": spec });
        self.installation.plane.apply(&self.namespace, &object.to_string())
    }

    /// `kubectl wait --for=condition=…`, with the logs when it does not come.
    #[track_caller]
    pub fn wait_for(&self, object: &str, condition: &str, within: Duration) {
        self.wait_until(object, condition, within, || {
            self.condition(object, condition).filter(|found| found["status"] == "True")
        });
    }

    /// Waits until a condition is False, and gives it: reason and message are for the test to look at.
    #[track_caller]
    pub fn refusal(&self, object: &str, condition: &str, within: Duration) -> Value {
        self.wait_until(object, &format!("{condition}=False"), within, || {
            self.condition(object, condition).filter(|found| found["status"] == "False")
        })
    }

    /// Waits until a run has failed, and gives its condition `Failed`. Panics when it completes.
    #[track_caller]
    pub fn end_of(&self, run: &str, within: Duration) -> Value {
        let end = self.ended(run, within);
        assert_eq!(end["type"], "Failed", "{run} should have failed:\n{}", self.kubectl(["get", run, "-o", "yaml"]));
        end
    }

    /// Waits until a run has ended either way, and gives the condition that says so.
    #[track_caller]
    pub fn ended(&self, run: &str, within: Duration) -> Value {
        self.wait_until(run, "Complete or Failed", within, || {
            let of = |name| self.condition(run, name).filter(|found| found["status"] == "True");
            of("Complete").or_else(|| of("Failed"))
        })
    }

    /// Asks until there is an answer; panics with the object, the Events and the logs when none comes.
    #[track_caller]
    pub fn wait_until<T>(&self, object: &str, what: &str, within: Duration, ask: impl Fn() -> Option<T>) -> T {
        let deadline = Instant::now() + within;
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            assert!(
                Instant::now() < deadline,
                "{object} is not {what} within {within:?}:\n{}\n{}\n{}",
                self.kubectl(["get", object, "-o", "yaml"]),
                self.kubectl(["get", "events.events.k8s.io"]),
                self.installation.logs()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A condition of an object, once it is there.
    pub fn condition(&self, object: &str, condition: &str) -> Option<Value> {
        let answer = self.kubectl(["get", object, "-o", "json"]);
        let object: Value = serde_json::from_str(&answer.stdout()).ok()?;
        object["status"]["conditions"].as_array()?.iter().find(|found| found["type"] == condition).cloned()
    }

    /// An object as it is now.
    #[track_caller]
    pub fn get(&self, resource: &str, name: &str) -> Value {
        let text = self.kubectl(["get", resource, name, "-o", "json"]).ok();
        serde_json::from_str(&text).expect("kubectl prints JSON")
    }

    /// Waits until an Event of `reason` about the object says something; returns what.
    pub fn event(&self, object: &str, reason: &str, within: Duration) -> String {
        wait_for(&format!("an Event {reason} about {object}"), within, || {
            let events = self.kubectl(["get", "events.events.k8s.io", "-o", "json"]).stdout();
            let events: Value = serde_json::from_str(&events).ok()?;
            let found = events["items"]
                .as_array()?
                .iter()
                .find(|event| event["reason"] == reason && event["regarding"]["name"] == object)?;
            Some(found["note"].as_str().unwrap_or_default().to_owned())
        })
    }

    /// kubectl as the administrator, in this namespace.
    pub fn kubectl<const N: usize>(&self, args: [&str; N]) -> Answer {
        self.installation.plane.kubectl(["-n", &self.namespace].into_iter().chain(args))
    }
}
