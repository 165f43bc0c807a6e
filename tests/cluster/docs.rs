//! What the documentation tells people to type in a cluster, typed in against the real API server: each document with a
//! namespace, a guest and a node's folders of its own.
//!
//! What stands for what: the controller and the agents of this binary's installation for the chart's pods, so that
//! `helm install` renders the chart with the same arguments and has the server look at it (a dry run) instead of
//! installing it a second time; a folder for the node's file system; the installation's own `host.toml`, which says the
//! same, for the one that a document shows (`tests/it/docs.rs` reads that one).

use std::{fs, path::Path, process::Stdio, time::Duration};

use crate::{
    guides::{Fence, Runner, copy_tree, documents_for, fences_for, path_with, programs, script},
    installation::{Installation, NODES, Tenant},
    lab::{
        child::Guarded,
        machine::{Disk, Format, Machine, Plan},
        reference::Reference,
    },
};

const MIB: u64 = 1 << 20;
const NODE: &str = NODES[0];

const HELM: &str = r#"#!/bin/sh
set -eu
[ "$1" = install ] || { echo "nothing stands for helm $1" >&2; exit 2; }
shift
for word; do shift; [ "$word" = --create-namespace ] || set -- "$@" "$word"; done
real-helm template "$@" >rendered.yaml
kubectl apply --dry-run=server --validate=strict -f rendered.yaml
"#;

/// A folder like the tree's root, in which a person types.
struct Shell {
    folder: tempfile::TempDir,
    others: Vec<(String, String)>,
}

impl Shell {
    /// With the names and paths of this tenant.
    fn new(tenant: &Tenant, machine: &Machine) -> Shell {
        let folder = tempfile::Builder::new().prefix("docs-").tempdir().unwrap();
        let (namespace, host) = (&tenant.namespace, tenant.installation.host(NODE));
        let place = |path: &Path| path.display().to_string();
        let others = [
            ("/etc/driftline/guests.d/", format!("{}/guests.d/{namespace}.", host.display())),
            ("/etc/driftline", place(&folder.path().join("etc"))),
            ("/run/qemu/db-1.qmp", place(&machine.qmp())),
            ("/srv/backup/team-a", place(&host.join("repositories").join(namespace).join("local"))),
            ("/var/lib/machines/team-a", place(&tenant.restore_folder(NODE))),
            ("node-1", NODE.to_owned()),
            ("team-a", namespace.clone()),
        ];
        let shell = Shell { folder, others: others.map(|(this, that)| (this.to_owned(), that)).into() };
        copy_tree(shell.folder.path(), &shell.others);
        let plane = tenant.installation.plane;
        let (kubectl, helm) = (plane.program("kubectl"), plane.program("helm"));
        let driftline = Path::new(env!("CARGO_BIN_EXE_driftline"));
        let real = [("kubectl", kubectl.as_path()), ("real-helm", helm.as_path()), ("driftline", driftline)];
        programs(&shell.folder.path().join("bin"), &[("helm", HELM)], &real);
        shell
    }

    /// Types it all in; gives what was said on stdout.
    fn run(&self, tenant: &Tenant, fences: &[Fence]) -> String {
        let path = |name: &str| self.folder.path().join(name);
        let output = |name: &str| Stdio::from(fs::File::create(path(name)).unwrap());
        fs::write(path("script"), script(fences, &self.others)).unwrap();
        let mut shell = Guarded::start("sh", |command| {
            command.arg(path("script")).current_dir(self.folder.path()).stdin(Stdio::null());
            command.env("PATH", path_with(&path("bin"))).env("HOME", self.folder.path());
            command.env("KUBECONFIG", tenant.installation.plane.admin_kubeconfig());
            command.stdout(output("stdout")).stderr(output("stderr"));
        });
        let status = shell.wait(Duration::from_secs(180));
        let said = |name: &str| fs::read_to_string(path(name)).unwrap_or_default();
        let logs = || tenant.installation.logs();
        assert!(status.success(), "{status}\n{}{}\n{}", said("stdout"), said("stderr"), logs());
        said("stdout")
    }
}

fn machine() -> Machine {
    let machine = Plan::new().disk(Disk::qcow2("disk0", 8 * MIB)).start();
    machine.write("disk0", 0x5a, MIB, MIB);
    machine
}

#[test]
fn no_document_for_a_cluster_is_left_out() {
    let all = ["README.md", "docs/guide-cluster.md", "docs/operations.md"];
    assert_eq!(documents_for(Runner::Cluster), all, "type in the new one here too");
}

#[test]
fn the_readme_makes_a_restore_point_where_the_nodes_have_their_files() {
    let installation = Installation::shared();
    let (machine, tenant) = (machine(), installation.tenant());
    tenant.guest(NODE, "db-1", &machine.qmp());
    tenant.repository_folder(NODE, "local");
    let said = Shell::new(&tenant, &machine).run(&tenant, &fences_for("README.md", Runner::Cluster));
    assert!(said.contains("backuprun.driftline.dev/db-1-first condition met"), "{said}");
}

#[test]
fn the_guide_leads_from_nothing_to_a_restored_image_that_is_equal() {
    let installation = Installation::shared();
    let (machine, tenant) = (machine(), installation.tenant_to_be());
    let reference = Reference::take(&machine);
    let shell = Shell::new(&tenant, &machine);
    let mut fences = fences_for("docs/guide-cluster.md", Runner::Cluster);
    // What operations.md says to type is about the same run.
    fences.extend(fences_for("docs/operations.md", Runner::Cluster));
    let said = shell.run(&tenant, &fences);
    assert!(said.contains("restorerun.driftline.dev/db-1-back condition met"), "{said}");
    reference.assert_equal("disk0", &tenant.restore_folder(NODE).join("db-1-disk0.qcow2"), Format::Qcow2);
}
