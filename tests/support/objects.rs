//! The objects of one namespace, by kubectl as a person would make and watch them.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    controlplane::{Answer, ControlPlane},
    lab::child::{pause, wait_for},
};

/// The version of the kinds.
pub const API_VERSION: &str = "driftline.dev/v1alpha1";

/// A namespace.
pub struct Objects {
    /// Its name.
    pub namespace: String,
    plane: &'static ControlPlane,
    /// What everybody has logged, for a test's complaint.
    logs: Box<dyn Fn() -> String + Send + Sync>,
}

impl Objects {
    /// The objects of a namespace that is there or will be.
    pub fn new(
        plane: &'static ControlPlane,
        namespace: String,
        logs: impl Fn() -> String + Send + Sync + 'static,
    ) -> Objects {
        Objects { namespace, plane, logs: Box::new(logs) }
    }

    /// Applies a BackupRun of a guest into a repository of this namespace.
    pub fn back_up(&self, run: &str, guest: &str, repository: &str) {
        self.create("BackupRun", run, self.backup_spec(guest, repository)).ok();
    }

    /// The spec of a BackupRun, of the default type.
    pub fn backup_spec(&self, guest: &str, repository: &str) -> Value {
        json!({
            "guestRef": { "name": guest },
            "repositoryRef": { "name": repository },
        })
    }

    /// The name of the RestorePoint of a run that is Complete.
    pub fn point_of(&self, run: &str) -> String {
        let run = self.get("backuprun.driftline.dev", run);
        run["status"]["restorePointRef"]["name"].as_str().unwrap_or_else(|| panic!("No point in {run:#}")).to_owned()
    }

    /// The spec of a RestoreRun of disks of a point to files of a node.
    pub fn restore_spec(&self, point: &str, node: &str, disks: &[(&str, &Path)], format: &str) -> Value {
        let disks: Vec<Value> = disks.iter().map(|(disk, file)| json!({ "name": disk, "path": file })).collect();
        json!({
            "restorePointRef": { "name": point },
            "mode": "Flatten",
            "target": { "nodeName": node, "disks": disks },
            "format": format,
            "verify": "Digest",
        })
    }

    /// `kubectl apply` of an object of one of our kinds.
    pub fn create(&self, kind: &str, name: &str, spec: Value) -> Answer {
        let object = json!({ "apiVersion": API_VERSION, "kind": kind, "metadata": { "name": name }, "spec": spec });
        self.plane.apply(&self.namespace, &object.to_string())
    }

    /// `kubectl apply` of any object.
    pub fn apply(&self, object: &Value) -> Answer {
        self.plane.apply(&self.namespace, &object.to_string())
    }

    /// `kubectl wait --for=condition=…`, with the logs when it does not come.
    #[track_caller]
    pub fn wait_for(&self, object: &str, condition: &str, within: Duration) {
        self.wait_until(object, condition, within, || self.comes(object, condition));
    }

    /// Waits until a condition is False, and gives it: reason and message are for the test to look at.
    #[track_caller]
    pub fn refusal(&self, object: &str, condition: &str, within: Duration) -> Value {
        let what = format!("{condition}=False");
        self.wait_until(object, &what, within, || self.comes(object, &what));
        self.condition(object, condition).unwrap_or_else(|| panic!("{object} has lost its condition {condition}"))
    }

    /// Whether it comes in a while: the server tells of it, where to ask again and again would keep the machine busy.
    fn comes(&self, object: &str, condition: &str) -> Option<()> {
        // Not for longer: what is not there yet, or a server that is gone, ends it at once.
        self.kubectl(["wait", &format!("--for=condition={condition}"), object, "--timeout=20s"])
            .succeeded()
            .then_some(())
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
        let began = Instant::now();
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            assert!(
                began.elapsed() < within,
                "{object} is not {what} within {within:?}:\n{}\n{}\n{}",
                self.kubectl(["get", object, "-o", "yaml"]),
                self.kubectl(["get", "events.events.k8s.io"]),
                (self.logs)()
            );
            pause(began);
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
        self.plane.kubectl(["-n", &self.namespace].into_iter().chain(args))
    }
}
