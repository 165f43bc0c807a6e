//! The main job, once, with every object and every phase in plain lines; ends with EQUAL, or fails.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    Parts,
    installation::{API_VERSION, NODES, Tenant},
    lab::{machine::Format, reference::Reference},
};

const WITHIN: Duration = Duration::from_secs(120);

pub(crate) fn show(parts: Parts) {
    let Parts { installation, tenant, machine, .. } = parts;
    let node = NODES[0];

    println!("\nThe host's own file names the guest, and the agent finds it:");
    let file = tenant.declare_guest(node, "db-1", &machine.qmp(), "");
    print_file(&file);
    tenant.wait_for("guests.driftline.dev/db-1", "Ready", WITHIN);
    kubectl(&tenant, &["get", "guests.driftline.dev"]);

    let folder = tenant.repository_folder(node, "local");
    apply(&tenant, "BackupRepository", "local", json!({ "filesystem": { "path": folder, "nodeName": node } }));
    tenant.wait_for("backuprepositories.driftline.dev/local", "Ready", WITHIN);
    kubectl(&tenant, &["get", "backuprepositories.driftline.dev"]);

    println!(
        "\nThe guest's writer stands still while its disks are copied for the comparison. Then the run is applied:"
    );
    machine.console().stop();
    let reference = Reference::take(&machine);
    let mut spec = tenant.backup_spec("db-1", "local");
    // Slow enough to watch, and for the guest to write while QEMU copies.
    spec["transfer"] = json!({ "bandwidth": "8Mi" });
    apply(&tenant, "BackupRun", "first", spec);
    tenant.wait_for("backuprun.driftline.dev/first", "CheckpointCreated", WITHIN);
    machine.console().go();
    println!("The checkpoint stands; the guest writes again while QEMU copies.");
    follow(&tenant, "backuprun.driftline.dev/first");
    kubectl(&tenant, &["get", "backupruns.driftline.dev"]);

    let point = tenant.point_of("first");
    tenant.wait_for(&format!("restorepoint.driftline.dev/{point}"), "Available", WITHIN);
    kubectl(&tenant, &["get", "restorepoints.driftline.dev"]);

    let disks = ["system", "data"];
    let files = disks.map(|disk| tenant.restore_folder(node).join(format!("{disk}.raw")));
    let targets: Vec<Value> =
        disks.iter().zip(&files).map(|(disk, file)| json!({ "name": disk, "path": file })).collect();
    let target = json!({ "nodeName": node, "disks": targets });
    let spec = json!({
        "restorePointRef": { "name": point }, "mode": "Flatten", "target": target, "format": "Raw", "verify": "Digest",
    });
    apply(&tenant, "RestoreRun", "back", spec);
    follow(&tenant, "restorerun.driftline.dev/back");
    kubectl(&tenant, &["get", "restoreruns.driftline.dev"]);

    println!("\nEach restored image, compared with the disk at the checkpoint, byte by byte:");
    for (disk, file) in disks.iter().zip(&files) {
        if let Some(difference) = reference.difference(disk, file, Format::Raw) {
            panic!("{disk} DIFFERS: {difference}\n{}", installation.logs());
        }
        let bytes = std::fs::metadata(file).map(|data| data.len()).unwrap_or_default();
        println!("  {disk}: {bytes} bytes");
    }
    let writer = machine.console().status();
    println!("The guest has written {} times since it was started, with {} errors.", writer.writes, writer.errors);
    println!("\nEQUAL");
}

fn print_file(file: &Path) {
    println!("  {}", file.display());
    for line in std::fs::read_to_string(file).unwrap_or_default().lines() {
        println!("    {line}");
    }
}

/// Applies an object, and shows what is applied.
fn apply(tenant: &Tenant, kind: &str, name: &str, spec: Value) {
    let object = json!({ "apiVersion": API_VERSION, "kind": kind, "metadata": { "name": name }, "spec": spec });
    println!("\n$ kubectl apply -f - <<EOF");
    print!("{}", serde_saphyr::to_string(&object).unwrap_or_else(|_| object.to_string()));
    println!("EOF");
    print!("{}", tenant.create(kind, name, spec).ok());
}

fn kubectl(tenant: &Tenant, args: &[&str]) {
    println!("$ kubectl {}", args.join(" "));
    let args = ["-n", &tenant.namespace].into_iter().chain(args.iter().copied());
    print!("{}", tenant.installation.plane.kubectl(args).ok());
}

/// Prints each phase as it comes, until the run has ended well.
fn follow(tenant: &Tenant, run: &str) {
    let began = Instant::now();
    let mut last = String::new();
    loop {
        let is = |condition| tenant.condition(run, condition).is_some_and(|found| found["status"] == "True");
        let complete = is("Complete");
        let status = tenant.kubectl(["get", run, "-o", "jsonpath={.status.phase} {.status.progress}"]).stdout();
        if status != last {
            println!("  {:5.1} s  {}", began.elapsed().as_secs_f64(), status.trim_end());
            last = status;
        }
        if complete {
            return;
        }
        let failed = is("Failed") || began.elapsed() > WITHIN;
        assert!(!failed, "{}\n{}", tenant.kubectl(["get", run, "-o", "yaml"]), tenant.installation.logs());
        std::thread::sleep(Duration::from_millis(50));
    }
}
