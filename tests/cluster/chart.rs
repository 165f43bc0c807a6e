//! The chart: it lints, the real API server takes all that it renders without a warning, and each right has its reason.

use std::path::Path;

use crate::{
    controlplane::ControlPlane,
    installation::{Installation, NAMESPACE},
};

fn chart() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/driftline").to_str().unwrap().to_owned()
}

/// Everything that the chart can render.
const ALL: [&str; 6] = [
    "--set=argocd.healthScripts=true",
    "--set=imagePullSecrets[0].name=registry",
    "--set=agent.hostPaths.restores[0]=/var/lib/machines",
    "--set=agent.tolerations[0].operator=Exists",
    "--set=agent.nodeSelector.role=hypervisor",
    "--set=controller.nodeSelector.role=infra",
];

#[test]
fn the_chart_lints_with_its_defaults_and_with_every_value_used() {
    let plane = ControlPlane::shared();
    plane.helm(["lint", "--strict", &chart()]).ok();
    plane.helm(["lint", "--strict", &chart()].into_iter().chain(ALL)).ok();
}

#[test]
fn the_server_takes_all_that_the_chart_renders_without_a_warning() {
    let installation = Installation::shared();
    let rendered = ["template", "driftline", &chart(), "--namespace", NAMESPACE];
    let rendered = installation.plane.helm(rendered.into_iter().chain(ALL)).ok();
    // The dry run goes through admission as the real one does, and leaves the shared installation as it is.
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), rendered).unwrap();
    let file = path.path().to_str().unwrap();
    let answer =
        installation.plane.kubectl(["apply", "--dry-run=server", "--validate=strict", "-n", NAMESPACE, "-f", file]);
    assert!(answer.succeeded(), "{answer}");
    assert_eq!(answer.stderr(), "", "the server warned");
    for kind in ["customresourcedefinition", "deployment.apps", "daemonset.apps", "clusterrole.rbac", "configmap/"] {
        assert!(answer.stdout().contains(kind), "no {kind} was rendered:\n{}", answer.stdout());
    }
}

#[test]
fn every_right_has_its_reason_beside_it() {
    let text = std::fs::read_to_string(format!("{}/templates/rbac.yaml", chart())).unwrap();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let rules: Vec<usize> = (0..lines.len()).filter(|&at| lines[at].starts_with("- apiGroups:")).collect();
    assert!(rules.len() >= 5, "the rules were not found");
    for at in rules {
        assert!(lines[at - 1].starts_with("# "), "rule {:?} has no reason above it", lines[at + 1]);
    }
}

#[test]
fn the_controllers_account_may_do_its_work_and_nothing_beside() {
    let plane = Installation::shared().plane;
    let account = format!("--as=system:serviceaccount:{NAMESPACE}:driftline-controller");
    let may = |verb: &str, what: &str| {
        let answer = plane.kubectl(["auth", "can-i", verb, what, "-n", NAMESPACE, &account]);
        answer.stdout().trim() == "yes"
    };
    for (verb, what) in [("patch", "backupruns.driftline.dev/status"), ("create", "guests.driftline.dev")] {
        assert!(may(verb, what), "it may not {verb} {what}");
    }
    for (verb, what) in [
        ("get", "secrets"),
        ("create", "pods"),
        ("create", "backupruns.driftline.dev"),
        ("delete", "guests.driftline.dev"),
        ("patch", "backuprepositories.driftline.dev"),
        ("patch", "leases.coordination.k8s.io"),
        ("delete", "backuprepositories.driftline.dev"),
        ("delete", "namespaces"),
    ] {
        assert!(!may(verb, what), "it may {verb} {what}");
    }
}
