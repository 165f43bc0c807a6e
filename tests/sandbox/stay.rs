//! The sandbox: everything runs, a guest is there, and a person's own kubectl does the rest.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    doorway::Doorway,
    objects::API_VERSION,
    parts::{DISKS, NODE, Parts},
    release::{NAMESPACE, TAGS},
};

pub(crate) fn until_stopped(parts: Parts, doorway: Doorway) {
    let Parts { team, mut machine, monitor } = parts;
    let (release, namespace) = (team.release, &team.namespace);
    let plane = release.plane();
    let folder = release.nodes.folder();
    let port = doorway.port();
    doorway.open(plane.server());
    let config = write(folder, "kubeconfig", &outside(&plane.admin_kubeconfig(), port, namespace));

    let repository = format!("/srv/backup/{namespace}");
    fs::create_dir_all(team.seen(NODE, repository.as_ref())).expect("A node's folder can be made");
    let spec = json!({ "filesystem": { "path": repository, "nodeName": NODE } });
    let backup =
        [object("BackupRepository", "local", spec), object("BackupRun", "first", team.backup_spec("db-1", "local"))];
    let backup = write(folder, "backup.yaml", &backup.join("---\n"));
    let place = PathBuf::from(format!("/var/lib/machines/{namespace}"));
    let files = DISKS.map(|disk| (disk, place.join(format!("{disk}.raw"))));
    let disks: Vec<_> = files.iter().map(|(disk, file)| (*disk, file.as_path())).collect();
    let spec = team.restore_spec("POINT", NODE, &disks, "Raw");
    let restore = write(folder, "restore.yaml", &object("RestoreRun", "back", spec));

    let point = "kubectl get brun first -o 'jsonpath={.status.restorePointRef.name}'";
    let programs = plane.program("kubectl");
    let programs = programs.parent().unwrap_or(folder);
    let logs = |folder: &Path, below: &str| format!("{}/{below}", quoted(folder));
    println!(
        "\nIt stays until you press Ctrl-C. In another shell, where kubectl may be yours or the one of the path:\n"
    );
    println!("  export KUBECONFIG={} PATH=\"$PATH:\"{}", quoted(&config), quoted(programs));
    println!("\nFive commands to try:\n");
    println!("  kubectl get guests");
    println!("  kubectl apply -f {}", quoted(&backup));
    println!("  kubectl wait --for=condition=Complete --timeout=5m backuprun/first");
    println!("  kubectl get restorepoints");
    println!("  sed \"s/POINT/$({point})/\" {} | kubectl apply -f -", quoted(&restore));
    println!("\nPods: kubectl -n {NAMESPACE} get pods, logs, exec");
    println!(
        "The guides' node-1, team-a, db-1 and disk0 are here too. In the checkout, to another image of the same program:"
    );
    let values = format!("--reuse-values --set-string image.tag={} --wait", TAGS[1]);
    println!("  helm -n {NAMESPACE} upgrade driftline charts/driftline {values}");
    println!(
        "A shell on {NODE}, for what the guides do on a node: {} sh",
        release.nodes.node(NODE).launcher().join(" ")
    );
    println!("The guest's spare monitor, for you: {}. A guest that has ended is started again.", quoted(&monitor));
    println!("Logs of the nodes: {}", logs(folder, "*/*.log"));
    let plane_folder = plane.admin_kubeconfig();
    println!("Logs of the control plane: {}", logs(plane_folder.parent().unwrap_or(folder), "*.log"));
    loop {
        std::thread::sleep(Duration::from_secs(1));
        if !machine.is_alive() {
            println!("The guest has ended: it is started again.");
            machine.start_again();
            machine.console().wait_until_up();
            machine.console().go();
            println!("It is back.");
        }
    }
}

/// The administrator's kubeconfig, for whoever is outside of the namespace that the cluster is in.
fn outside(inside: &Path, port: u16, namespace: &str) -> String {
    let text = fs::read_to_string(inside).expect("The kubeconfig can be read");
    let mut config: Value = serde_json::from_str(&text).expect("It was written as JSON");
    config["clusters"][0]["cluster"]["server"] = format!("https://127.0.0.1:{port}").into();
    config["contexts"][0]["context"]["namespace"] = namespace.into();
    config.to_string()
}

fn object(kind: &str, name: &str, spec: Value) -> String {
    let object = json!({ "apiVersion": API_VERSION, "kind": kind, "metadata": { "name": name }, "spec": spec });
    serde_saphyr::to_string(&object).unwrap_or_else(|_| object.to_string())
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap_or_else(|error| panic!("{} cannot be written: {error}", path.display()));
    path
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c)) { text } else { format!("'{text}'") }
}
