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
const ALL: [&str; 15] = [
    "--set=argocd.healthScripts=true",
    "--set=imagePullSecrets[0].name=registry",
    "--set=image.digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "--set=certificates.authoritySecret=ours",
    "--set=agent.hostPaths.restores[0]=/srv/backup",
    "--set=agent.hostPaths.config=/var/lib/driftline/etc",
    "--set=agent.seLinuxOptions.type=spc_t",
    "--set=agent.tolerations[0].operator=Exists",
    "--set=agent.nodeSelector.role=hypervisor",
    "--set=agent.priorityClassName=system-node-critical",
    "--set=agent.podLabels.team=storage",
    "--set=agent.podAnnotations.seen=yes",
    "--set=agent.maxUnavailable=10%",
    "--set=controller.nodeSelector.role=infra",
    "--set=controller.podAnnotations.seen=yes",
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
    for kind in [
        "customresourcedefinition",
        "deployment.apps",
        "daemonset.apps",
        "clusterrole.rbac",
        "configmap/",
        "networkpolicy.networking",
        "poddisruptionbudget.policy",
        "service/",
        "pod/driftline-test",
    ] {
        assert!(answer.stdout().contains(kind), "no {kind} was rendered:\n{}", answer.stdout());
    }
}

#[test]
fn wrong_values_are_refused_with_their_names() {
    let plane = ControlPlane::shared();
    for (value, named) in [
        ("agent.port=grpc", "/agent/port"),
        ("agent.port=70000", "/agent/port"),
        ("agent.port=7444", "agent.adminPort"),
        ("agent.hostPaths=null", "hostPaths"),
        ("agent=null", "agent"),
        ("agent.hostPaths.sockets={/tmp}", "/agent/hostPaths/sockets/0"),
        ("agent.hostPaths.sockets={/run/../etc}", "/agent/hostPaths/sockets/0"),
        ("controller.adminPort=80", "/controller/adminPort"),
        ("image.repository=example.org/Driftline", "/image/repository"),
        ("agent.hostPaths.repositories={backup}", "/agent/hostPaths/repositories/0"),
        ("agent.hostPaths.repositories={/srv/backup/}", "/agent/hostPaths/repositories/0"),
        ("agent.hostPath.sockets={/run/qemu}", "'hostPath'"),
        ("agent.hostPaths.config=etc", "/agent/hostPaths/config"),
        ("agent.seLinuxOptions.typ=spc_t", "'typ'"),
        ("agent.maxUnavailable=0", "/agent/maxUnavailable"),
        ("agent.terminationGracePeriodSeconds=1", "/agent/terminationGracePeriodSeconds"),
        ("agent.tolerations=all", "/agent/tolerations"),
        ("certificates.lifetime=1y", "/certificates/lifetime"),
        ("certificates.lifetime=59s", "/certificates/lifetime"),
        ("certificates.authoritySecret=Mine", "/certificates/authoritySecret"),
        ("certificates.authoritySecret=driftline-authority", "certificates.authoritySecret"),
        ("controller.forgetGuestsAfter=never", "/controller/forgetGuestsAfter"),
        ("controller.replicas=3", "'replicas'"),
        ("controller.podDisruptionBudget=perhaps", "/controller/podDisruptionBudget"),
        ("image.repository=registry/driftline:1.0", "/image/repository"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("networkPolicy=true", "/networkPolicy"),
    ] {
        let said = plane.helm(["template", "driftline", &chart(), "--set", value]).refused();
        assert!(said.contains(named), "{value}: {said}");
    }
}

#[test]
fn names_that_yaml_takes_for_something_else_stay_names() {
    let plane = ControlPlane::shared();
    for (release, namespace) in [("on", "2024"), ("7e3", "y")] {
        let words = ["template", release, &chart(), "--namespace", namespace];
        let values =
            ["--set-string=controller.priorityClassName=1000", "--set-string=certificates.authoritySecret=123"];
        let rendered = plane.helm(words.into_iter().chain(values)).ok();
        for line in [&format!("namespace: \"{namespace}\""), &format!("instance: \"{release}\""), "\"1000\"", "\"123\""]
        {
            assert!(rendered.contains(line), "{line} is not in\n{rendered}");
        }
    }
    let said = plane.helm(["template", "my.driftline", &chart()]).refused();
    assert!(said.contains("my.driftline") && said.contains("no dot"), "{said}");
}

#[test]
fn every_value_is_described_and_checked() {
    let text = std::fs::read_to_string(format!("{}/values.yaml", chart())).unwrap();
    let schema = std::fs::read_to_string(format!("{}/values.schema.json", chart())).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let values: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    fn compare(at: &str, value: &serde_json::Value, schema: &serde_json::Value) {
        let Some(properties) = schema["properties"].as_object() else { return };
        assert_eq!(schema["additionalProperties"], false, "{at}: a misspelt value would be taken");
        for (name, value) in value.as_object().unwrap() {
            let known = properties.get(name).unwrap_or_else(|| panic!("the schema does not know {at}{name}"));
            compare(&format!("{at}{name}."), value, known);
        }
        for name in properties.keys().filter(|name| *name != "global") {
            assert!(value.get(name).is_some(), "values.yaml does not show {at}{name}");
        }
    }
    compare("", &values, &schema);
    // A comment right above each value; what is inside of one is Kubernetes' own.
    let lines: Vec<&str> = text.lines().collect();
    let mut inside = "";
    for (at, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        if line.trim_start().starts_with('#') || line.is_empty() {
            continue;
        }
        let described = at > 0 && lines[at - 1].trim_start().starts_with('#');
        match indent {
            // The name of a group says what it is.
            0 if line.ends_with(':') => {}
            0 | 2 => assert!(described, "line {}: {line}", at + 1),
            _ => assert!(described || inside == "resources:", "line {}: {line}", at + 1),
        }
        if indent == 2 {
            inside = line.trim();
        }
    }
}

#[test]
fn the_controllers_pod_passes_the_level_restricted_and_the_agents_does_not_have_to() {
    let plane = ControlPlane::shared();
    let namespace = plane.namespace("restricted");
    let label = "pod-security.kubernetes.io/enforce=restricted";
    plane.kubectl(["label", "namespace", &namespace, label]).ok();
    let rendered = |template: &str| {
        let template = format!("templates/{template}.yaml");
        plane.helm(["template", "driftline", &chart(), "--namespace", &namespace, "-s", &template]).ok()
    };
    let pod = |template: &str| {
        let text = rendered(template);
        let object = text.split("\n---\n").find(|o| o.contains("kind: Deployment") || o.contains("kind: DaemonSet"));
        let object: serde_json::Value = serde_saphyr::from_str(object.unwrap()).unwrap();
        let mut spec = object["spec"]["template"]["spec"].clone();
        spec["serviceAccountName"] = "default".into();
        let pod = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "it", "namespace": namespace }, "spec": spec,
        });
        plane.kubectl_with(["apply", "--dry-run=server", "-f", "-"], &pod.to_string())
    };
    pod("controller").ok();
    let test = rendered("tests/ready");
    plane.kubectl_with(["apply", "--dry-run=server", "-n", &namespace, "-f", "-"], &test).ok();
    let refused = pod("agent").refused();
    assert!(refused.contains("hostPID"), "{refused}");
    assert!(!refused.contains("privileged=true") && !refused.contains("hostNetwork"), "{refused}");
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
    for (verb, what) in [
        ("patch", "backupruns.driftline.dev/status"),
        ("create", "guests.driftline.dev"),
        ("delete", "guests.driftline.dev"),
        ("get", "nodes"),
    ] {
        assert!(may(verb, what), "it may not {verb} {what}");
    }
    for (verb, what) in [
        ("get", "secrets"),
        ("create", "pods"),
        ("create", "backupruns.driftline.dev"),
        ("list", "nodes"),
        ("patch", "nodes"),
        ("delete", "nodes"),
        ("patch", "backuprepositories.driftline.dev"),
        ("patch", "leases.coordination.k8s.io"),
        ("delete", "backuprepositories.driftline.dev"),
        ("delete", "namespaces"),
    ] {
        assert!(!may(verb, what), "it may {verb} {what}");
    }
}
