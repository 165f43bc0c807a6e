//! The sandbox: everything runs, a guest is there, and a person's own kubectl does the rest.

use std::time::Duration;

use serde_json::json;

use crate::{
    Parts,
    installation::{API_VERSION, NODES},
};

pub(crate) fn until_stopped(parts: Parts) {
    let Parts { installation, tenant, machine, monitor } = parts;
    let node = NODES[0];
    tenant.declare_guest(node, "db-1", &machine.qmp(), "");
    tenant.wait_for("guests.driftline.dev/db-1", "Ready", Duration::from_secs(60));

    let object = |kind: &str, name: &str, spec: serde_json::Value| {
        let namespace = &tenant.namespace;
        let metadata = json!({ "name": name, "namespace": namespace });
        let object = json!({ "apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec });
        serde_saphyr::to_string(&object).unwrap_or_else(|_| object.to_string())
    };
    let write = |name: &str, text: String| {
        let path = installation.host("examples").join(name);
        let written = std::fs::create_dir_all(installation.host("examples")).and_then(|()| std::fs::write(&path, text));
        written.expect("An example can be written");
        path
    };
    let folder = tenant.repository_folder(node, "local");
    let repository = object("BackupRepository", "local", json!({ "filesystem": { "path": folder, "nodeName": node } }));
    let run = object("BackupRun", "first", tenant.backup_spec("db-1", "local"));
    let backup = write("backup.yaml", format!("{repository}---\n{run}"));
    let disks = ["system", "data"]
        .map(|disk| json!({ "name": disk, "path": tenant.restore_folder(node).join(format!("{disk}.raw")) }));
    let spec = json!({
        "restorePointRef": { "name": "POINT" }, "mode": "Flatten",
        "target": { "nodeName": node, "disks": disks }, "format": "Raw", "verify": "Digest",
    });
    let restore = write("restore.yaml", object("RestoreRun", "back", spec));

    let plane = installation.plane;
    println!(
        "\nEverything runs, in a network namespace of its own, until you press Ctrl-C (or `kill -TERM` the make). In another\nshell:\n"
    );
    println!("  export KUBECONFIG={}", quoted(&plane.admin_kubeconfig()));
    println!("  alias kubectl={}", quoted(&plane.program("kubectl")));
    println!("  kubectl config set-context --current --namespace={}", tenant.namespace);
    println!("  kubectl get guests.driftline.dev");
    println!("  kubectl apply -f {}", quoted(&backup));
    println!("  kubectl wait --for=condition=Complete backupruns.driftline.dev/first");
    println!("  kubectl get restorepoints.driftline.dev      # its name goes into the next line, for POINT");
    println!("  sed s/POINT/the-name/ {} | kubectl apply -f -", quoted(&restore));
    println!("\nA monitor of the guest for you, beside the one that the agent holds: {}", quoted(&monitor));
    println!("Logs: {}", quoted(&installation.host("").join("*.log")));
    loop {
        std::thread::park();
    }
}

/// A path as a shell takes it.
fn quoted(path: &std::path::Path) -> String {
    let text = path.display().to_string();
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-*".contains(c)) { text } else { format!("'{text}'") }
}
