//! The kinds on a real API server: taken without a warning, explained to a person, and their rules refuse what can be
//! known to be wrong with words that say what to write.

use std::path::Path;

use crate::controlplane::ControlPlane;

const KINDS: [&str; 5] = ["backuprepositories", "backupruns", "guests", "restorepoints", "restoreruns"];

/// The control plane with the kinds, whether or not anything else is installed on it.
fn plane() -> &'static ControlPlane {
    static APPLIED: std::sync::Once = std::sync::Once::new();
    let plane = ControlPlane::shared();
    APPLIED.call_once(|| {
        let answer =
            plane.kubectl(["apply", "--server-side", "--field-manager=test", "--force-conflicts", "-f", crds()]);
        assert!(answer.succeeded(), "{answer}");
        assert_eq!(answer.stderr(), "", "the server warned");
        let kinds = KINDS.map(|kind| format!("crd/{kind}.driftline.dev"));
        plane
            .kubectl(
                ["wait", "--for=condition=Established", "--timeout=60s"].into_iter().map(str::to_owned).chain(kinds),
            )
            .ok();
    });
    plane
}

fn crds() -> &'static str {
    static PATH: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    PATH.get_or_init(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("crds").to_str().unwrap().to_owned())
}

#[test]
fn the_server_takes_every_kind_without_a_warning_and_serves_it() {
    let plane = plane();
    let served = plane.kubectl(["api-resources", "--api-group=driftline.dev", "-o", "name"]).ok();
    for kind in KINDS {
        assert!(served.contains(&format!("{kind}.driftline.dev")), "{kind} is not served:\n{served}");
    }
    let of_the_category = plane.kubectl(["api-resources", "--categories=driftline", "-o", "name"]).ok();
    assert_eq!(of_the_category.lines().count(), KINDS.len(), "{of_the_category}");
}

#[test]
fn kubectl_explain_describes_every_field() {
    let plane = plane();
    for kind in KINDS {
        let text = plane.kubectl([
            "explain",
            &format!("{kind}.spec"),
            "--api-version=driftline.dev/v1alpha1",
            "--recursive=false",
        ]);
        let text = text.ok();
        assert!(!text.contains("<no description>"), "a field of {kind} has no description:\n{text}");
        assert!(text.contains("DESCRIPTION:"), "{text}");
    }
}

fn repository(filesystem: &str) -> String {
    format!("{{kind: BackupRepository, spec: {{filesystem: {filesystem}}}}}")
}

fn run(more: &str) -> String {
    format!("{{kind: BackupRun, spec: {{guestRef: {{name: g}}, repositoryRef: {{name: r}}{more}}}}}")
}

fn restore(path: &str, more: &str) -> String {
    format!(
        "{{kind: RestoreRun, spec: {{restorePointRef: {{name: p}}, \
         target: {{nodeName: node-a, disks: [{{name: d, path: {path:?}}}{more}]}}}}}}"
    )
}

/// Applies an object of the group in short form: the version and a name are added.
fn apply(namespace: &str, object: &str) -> crate::controlplane::Answer {
    let object = object.replacen('{', "{apiVersion: driftline.dev/v1alpha1, metadata: {name: x}, ", 1);
    plane().apply(namespace, &object)
}

#[test]
fn what_can_be_known_to_be_wrong_is_refused_with_what_to_write() {
    let namespace = plane().namespace("refused");
    for (object, why) in [
        (repository("{path: /srv/../etc}"), "path must not contain . or .. components"),
        (repository("{path: srv/backup}"), "path must be absolute, such as /srv/backup/team-a"),
        (repository("{path: /srv/backup/}"), "path must be plain"),
        (repository("{}"), "spec.filesystem.path: Required value"),
        (repository("{path: /srv/backup}, accessMode: Sometimes"), "spec.accessMode: Unsupported value"),
        (repository("{path: /srv/backup}, validationFrequency: 1s"), "validationFrequency must be 10s or more"),
        (
            repository("{path: /srv/backup}, validationFrequency: often"),
            "is not a duration: write whole numbers with s, m, h or d",
        ),
        (
            repository("{path: /srv/backup}, usagePolicy: {allowedNamespaces: [Team]}"),
            "allowedNamespaces takes names of namespaces",
        ),
        (run(", type: Sideways"), "spec.type: Unsupported value"),
        (run(", disks: {include: [a], exclude: [a]}"), "a disk stands in include and in exclude"),
        (run(", backoffLimit: -1"), "should be greater than or equal to 0"),
        (run(", activeDeadline: soon"), "is not a duration: write whole numbers with s, m, h or d"),
        (run(", transfer: {bandwidth: fast}"), "is not an amount: write a number with k, M, G"),
        (restore("/srv/a/../b", ""), "path must not contain . or .. components"),
        (restore("b.raw", ""), "path must be absolute, such as /var/lib"),
        (restore("/srv/a", ", {name: e, path: /srv/a}"), "two disks have the same path"),
        (restore("/srv/a", ", {name: d, path: /srv/b}"), "Duplicate value"),
    ] {
        let refusal = apply(&namespace, &object).refused();
        assert!(refusal.contains(why), "{object} was refused with\n{refusal}\nand not with {why:?}");
    }
}

#[test]
fn a_key_that_does_not_exist_is_named() {
    let namespace = plane().namespace("unknown");
    let refusal = apply(&namespace, &run(", disc: [a]")).refused();
    assert!(refusal.contains("unknown field \"spec.disc\""), "{refusal}");
}

#[test]
fn a_run_cannot_be_changed_but_in_its_course_and_a_cancel_latches() {
    let namespace = plane().namespace("latch");
    apply(&namespace, &run("")).ok();
    let patch = |spec: &str| {
        let spec = format!("{{\"spec\":{spec}}}");
        plane().kubectl(["patch", "backupruns.driftline.dev", "x", "-n", &namespace, "--type=merge", "-p", &spec])
    };
    for (spec, why) in [
        (r#"{"guestRef":{"name":"h"}}"#, "make a new BackupRun under another name"),
        (r#"{"repositoryRef":{"name":"s"}}"#, "make a new BackupRun under another name"),
        (r#"{"disks":{"include":["a"]}}"#, "disks of a run cannot be changed"),
        (r#"{"transfer":{"dataPath":"Staged"}}"#, "of transfer only bandwidth can be changed"),
        (r#"{"backoffLimit":7}"#, "backoffLimit, activeDeadline and ttlAfterFinished of a run cannot be changed"),
    ] {
        let refusal = patch(spec).refused();
        assert!(refusal.contains(why), "{spec} was refused with {refusal}");
    }
    for spec in [r#"{"suspend":true}"#, r#"{"transfer":{"bandwidth":"1Mi"}}"#, r#"{"transfer":null,"suspend":false}"#] {
        patch(spec).ok();
    }
    patch(r#"{"cancel":true}"#).ok();
    let refusal = patch(r#"{"cancel":false}"#).refused();
    assert!(refusal.contains("cancel cannot be taken back"), "{refusal}");
}

#[test]
fn the_server_takes_every_example_without_a_warning() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|ending| ending == "yaml") {
            // Examples name a namespace of their own, which a dry run does not make.
            let text = std::fs::read_to_string(&path).unwrap();
            let named = text.lines().filter_map(|line| line.strip_prefix("  namespace: "));
            for name in named.map(str::trim).collect::<std::collections::BTreeSet<_>>() {
                let _ = plane().kubectl(["create", "namespace", name]);
            }
            let file = path.to_str().unwrap();
            let apply = ["apply", "--dry-run=server", "--validate=strict", "-f", file];
            let answer = plane().kubectl(apply);
            assert!(answer.succeeded(), "{answer}");
            assert_eq!(answer.stderr(), "", "the server warned about {}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 0, "there are no examples");
}
