//! What the other tests of this binary rely on: the control plane is a real one, with the controllers that matter.

use std::time::{Duration, Instant};

use crate::controlplane::{ControlPlane, process};

#[test]
fn a_custom_kind_is_served_as_soon_as_its_definition_is_established() {
    let plane = ControlPlane::shared();
    let namespace = plane.namespace("kinds");
    let definition = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: probes.test.driftline.dev}
spec:
  group: test.driftline.dev
  scope: Namespaced
  names: {kind: Probe, plural: probes, singular: probe}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, properties: {size: {type: integer, maximum: 3}}}
"#;
    plane.apply(&namespace, definition).ok();
    plane.kubectl(["wait", "--for=condition=Established", "--timeout=60s", "crd/probes.test.driftline.dev"]).ok();
    let probe = |size: u8| {
        format!("{{apiVersion: test.driftline.dev/v1, kind: Probe, metadata: {{name: p}}, spec: {{size: {size}}}}}")
    };
    plane.apply(&namespace, &probe(3)).ok();
    let why = plane.apply(&namespace, &probe(4)).refused();
    assert!(why.contains("should be less than or equal to 3"), "{why}");
}

#[test]
fn an_account_without_a_role_may_read_nothing() {
    let plane = ControlPlane::shared();
    let namespace = plane.namespace("rbac");
    let account = plane.account_kubeconfig(&namespace, "default");
    let why = plane.kubectl_as(&account, ["get", "secrets", "-n", &namespace]).refused();
    assert!(why.contains("Forbidden"), "{why}");
}

#[test]
fn an_owned_object_goes_with_its_owner() {
    let plane = ControlPlane::shared();
    let namespace = plane.namespace("owned");
    plane.kubectl(["create", "configmap", "owner", "-n", &namespace]).ok();
    let uid = plane.kubectl(["get", "configmap", "owner", "-n", &namespace, "-o", "jsonpath={.metadata.uid}"]).ok();
    let owned = format!(
        "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: owned, ownerReferences: [\
         {{apiVersion: v1, kind: ConfigMap, name: owner, uid: {uid}}}]}}}}"
    );
    plane.apply(&namespace, &owned).ok();
    plane.kubectl(["delete", "configmap", "owner", "-n", &namespace]).ok();
    plane.kubectl(["wait", "--for=delete", "--timeout=60s", "configmap/owned", "-n", &namespace]).ok();
}

#[test]
fn a_deleted_namespace_is_emptied_and_gone() {
    let plane = ControlPlane::shared();
    let namespace = plane.namespace("gone");
    plane.kubectl(["create", "configmap", "c", "-n", &namespace]).ok();
    plane.kubectl(["delete", "namespace", &namespace, "--timeout=60s"]).ok();
    let why = plane.kubectl(["get", "namespace", &namespace]).refused();
    assert!(why.contains("NotFound"), "{why}");
}

#[test]
fn a_child_and_its_folder_end_with_a_process_that_is_killed() {
    // The victim is this very program with one test, told by the environment to say what it has and then to wait.
    const TELL: &str = "DRIFTLINE_TEST_VICTIM";
    if let Some(report) = std::env::var_os(TELL) {
        let folder = process::folder_that_ends_with_us("driftline-victim");
        let mut sleep = std::process::Command::new("sleep");
        sleep.arg("600");
        let child = process::Process::start("sleep", sleep, &folder);
        // Until it is the program itself, the kernel has not been told yet to end it with us.
        let comm = format!("/proc/{}/comm", child.pid().as_raw_nonzero());
        while std::fs::read_to_string(&comm).unwrap() != "sleep\n" {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::fs::write(&report, format!("{}\n{}", child.pid().as_raw_nonzero(), folder.display())).unwrap();
        std::thread::park();
    }
    let place = tempfile::tempdir().unwrap();
    let report = place.path().join("report");
    let mut victim = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "plane::a_child_and_its_folder_end_with_a_process_that_is_killed", "--nocapture"])
        .env(TELL, &report)
        .env_remove("DRIFTLINE_KEEP")
        .spawn()
        .unwrap();
    let until = |what: &str, mut holds: Box<dyn FnMut() -> bool + '_>| {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !holds() {
            assert!(Instant::now() < deadline, "{what} did not come about within 30 s");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    until("The victim's report", Box::new(|| std::fs::read_to_string(&report).is_ok_and(|text| text.contains('\n'))));
    victim.kill().unwrap();
    victim.wait().unwrap();
    let text = std::fs::read_to_string(&report).unwrap();
    let (pid, folder) = text.split_once('\n').unwrap();
    until("The child's end", Box::new(|| !std::path::Path::new("/proc").join(pid).exists()));
    until("The folder's end", Box::new(|| !std::path::Path::new(folder).exists()));
}
