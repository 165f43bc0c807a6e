//! Resident memory of a controller with many objects: Guests that two agents really have (scripted machines), and runs
//! that have ended, each with the status of one that really did.

use std::time::Duration;

use driftline::{
    api::{BackupRun, Guest},
    qmp::fake::{FakeDisk, FakeQemu, Setup},
};
use futures::StreamExt;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::{
    Row,
    cluster::ready,
    idle::resident_kib,
    installation::{Installation, NODES, Tenant},
    lab::{
        child::wait_for,
        machine::{Disk, Plan},
    },
};

const MIB: u64 = 1 << 20;
const WITHIN: Duration = Duration::from_secs(300);

/// 1,000 Guests and 1,000 finished runs: under 100 MiB.
pub fn controller(quick: bool) -> Vec<Row> {
    let count = if quick { 100 } else { 1000 };
    let installation = Installation::shared();
    let tenant = installation.tenant();
    let machine = Plan::new().disk(Disk::raw("disk0", 4 * MIB)).start();
    ready(&tenant, &machine);
    tenant.back_up("first", "g", "local");
    tenant.wait_for("backupruns.driftline.dev/first", "Complete", Duration::from_secs(60));
    let first = tenant.get("backupruns.driftline.dev", "first");

    let folder = tempfile::Builder::new().prefix("bench-").tempdir().unwrap();
    let machines: Vec<FakeQemu> = (0..count).map(|number| scripted(&tenant, folder.path(), number)).collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(installation.plane.client(&installation.plane.admin_kubeconfig()));
    let guests: Api<Guest> = Api::namespaced(client.clone(), &tenant.namespace);
    wait_for("every Guest is ready", WITHIN, || {
        std::thread::sleep(Duration::from_millis(500));
        let all = runtime.block_on(guests.list(&ListParams::default())).unwrap();
        let conditions = all.items.iter().flat_map(|guest| guest.status.iter().flat_map(|status| &status.conditions));
        let ready = conditions.filter(|condition| condition.type_ == "Ready" && condition.status == "True").count();
        (ready > count).then_some(())
    });

    // A run whose status is not there yet would be started.
    installation.kill_controller();
    let runs: Api<BackupRun> = Api::namespaced(client, &tenant.namespace);
    runtime.block_on(async {
        let made = (0..count).map(|number| finished(&runs, &first, number));
        futures::stream::iter(made).buffer_unordered(16).collect::<()>().await;
    });
    installation.start_controller();
    installation.wait_until_ready();
    // Idle: what the start needed once is freed or not, but no longer grows.
    let reconciles =
        || sum(&installation.metrics("controller"), "driftline_controller_reconcile_duration_seconds_count");
    let mut last = -1.0;
    wait_for("the controller has nothing to do", WITHIN, || {
        std::thread::sleep(Duration::from_secs(5));
        let before = std::mem::replace(&mut last, reconciles());
        (last >= 2.0 * count as f64 && last - before < count as f64 / 10.0).then_some(())
    });
    let resident = resident_kib(installation.controller_pid().as_raw_pid().unsigned_abs());
    drop(machines);
    vec![Row::promised(
        &format!("Controller with {count} Guests and {count} finished runs: resident memory"),
        format!("{:.1} MiB", resident as f64 / 1024.0),
        "under 100 MiB",
        resident < 100 * 1024,
    )]
}

/// A scripted machine that a node's host file names.
fn scripted(tenant: &Tenant, folder: &std::path::Path, number: usize) -> FakeQemu {
    let (socket, image) = (folder.join(format!("{number}.qmp")), folder.join(format!("{number}.raw")));
    std::fs::File::create(&image).unwrap().set_len(MIB).unwrap();
    let uuid = uuid::Uuid::new_v4().to_string();
    let machine = Setup::new(socket.clone()).uuid(&uuid).disk(FakeDisk::raw("disk0", image)).start().unwrap();
    tenant.declare_guest(NODES[number % NODES.len()], &format!("g{number}"), &socket, "");
    machine
}

/// A run like the one that has ended, of another guest.
async fn finished(runs: &Api<BackupRun>, first: &Value, number: usize) {
    let name = format!("run-{number}");
    let mut object = json!({
        "apiVersion": first["apiVersion"],
        "kind": first["kind"],
        "metadata": { "name": name },
        "spec": first["spec"],
    });
    object["spec"]["guestRef"]["name"] = json!(format!("g{number}"));
    runs.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    let status = Patch::Merge(json!({ "status": first["status"] }));
    runs.patch_status(&name, &PatchParams::default(), &status).await.unwrap();
}

/// The sum of a metric's values.
fn sum(metrics: &str, name: &str) -> f64 {
    let values = metrics.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit(' ').next());
    values.filter_map(|value| value.parse::<f64>().ok()).sum()
}
