//! The main job, once, with every object and every phase in plain lines, on one screen; ends with EQUAL, or fails.

use std::time::{Duration, Instant};

use crate::{
    lab::{machine::Format, reference::Reference},
    parts::{DISKS, NODE, Parts, indented, step},
    release::{NODES, Team},
};

const WITHIN: Duration = Duration::from_secs(120);

pub(crate) fn show(parts: &Parts) {
    let Parts { team, .. } = parts;
    let place = format!("/srv/backup/{}", team.namespace);
    std::fs::create_dir_all(team.seen(NODE, place.as_ref())).expect("A node's folder can be made");
    kubectl(team, &["get", "guests"]);
    let spec = format!("filesystem: {{path: {place}, nodeName: {NODE}}}");
    apply(team, "BackupRepository", "local", &[&spec]);
    team.wait_for("backuprepositories.driftline.dev/local", "Ready", WITHIN);

    back_up(parts, "first");
    // What is copied now is what was written since.
    let reference = back_up(parts, "second");
    kubectl(team, &["get", "backupruns"]);
    let point = team.point_of("second");
    team.wait_for(&format!("restorepoint.driftline.dev/{point}"), "Available", WITHIN);
    kubectl(team, &["get", "restorepoints"]);

    let file = |disk: &str| format!("/var/lib/machines/{}/{disk}.raw", team.namespace);
    let disks = DISKS.map(|disk| format!("{{name: {disk}, path: {}}}", file(disk)));
    let target = format!("target: {{nodeName: {NODE}, disks: [\n           {}]}}", disks.join(",\n           "));
    let began = Instant::now();
    apply(
        team,
        "RestoreRun",
        "back",
        &[&format!("restorePointRef: {{name: {point}}}, format: Raw, verify: Digest"), &target],
    );
    follow(team, "restorerun.driftline.dev/back", began);
    let compare = |disk| {
        let restored = team.seen(NODE, file(disk).as_ref());
        if let Some(difference) = reference.difference(disk, &restored, Format::Raw) {
            panic!("{disk} DIFFERS: {difference}\n{}", team.release.logs());
        }
        let bytes = std::fs::metadata(restored).expect("It was read just now").len();
        format!("{bytes} bytes of {disk}")
    };
    let equal = step("Comparing each restored image with the disk at the checkpoint, byte by byte", || {
        DISKS.map(compare).join(", ")
    });
    step("Ending it all: nodes, pods, guest", || {
        NODES.iter().for_each(|node| team.release.nodes.node(node).power_cut());
    });
    println!("EQUAL: {equal}");
}

/// One run, while the guest writes, and what the disks were at its checkpoint.
fn back_up(parts: &Parts, name: &str) -> Reference {
    let Parts { team, machine, .. } = parts;
    let writer = machine.console().stop();
    let reference = step("Copying the disks for the comparison, while the guest's writer stands still", || {
        Reference::take(machine)
    });
    // Slow enough to watch, and for the guest to write while QEMU copies.
    let spec = "guestRef: {name: db-1}, repositoryRef: {name: local}, transfer: {bandwidth: 8Mi}";
    apply(team, "BackupRun", name, &[spec]);
    let began = Instant::now();
    let run = format!("backuprun.driftline.dev/{name}");
    team.wait_for(&run, "CheckpointCreated", WITHIN);
    machine.console().go_gently();
    println!("  {:5.1} s  checkpoint: from here on the guest writes again", began.elapsed().as_secs_f64());
    follow(team, &run, began);
    let meanwhile = machine.console().status();
    println!(
        "The guest wrote {} times meanwhile: {} errors, no write took longer than {} ms",
        meanwhile.writes - writer.writes,
        meanwhile.errors,
        meanwhile.slowest.as_millis()
    );
    reference
}

/// Applies an object, and shows it as it is applied.
fn apply(team: &Team, kind: &str, name: &str, spec: &[&str]) {
    let lines = spec.join(",\n        ");
    let text = format!(
        "{{apiVersion: driftline.dev/v1alpha1, kind: {kind}, metadata: {{name: {name}}},\n spec: {{{lines}}}}}\n"
    );
    println!("$ kubectl apply -f -");
    print!("{}", indented(&text));
    team.release.plane().apply(&team.namespace, &text).ok();
}

fn kubectl(team: &Team, args: &[&str]) {
    println!("$ kubectl {}", args.join(" "));
    let args = ["-n", &team.namespace].into_iter().chain(args.iter().copied());
    print!("{}", indented(&team.release.plane().kubectl(args).ok()));
}

/// Prints each phase as it comes, until the run has ended well.
fn follow(team: &Team, run: &str, began: Instant) {
    let mut last = String::new();
    loop {
        let is = |condition| team.condition(run, condition).is_some_and(|found| found["status"] == "True");
        let complete = is("Complete");
        let status = team.kubectl(["get", run, "-o", "jsonpath={.status.phase} {.status.progress}"]).stdout();
        let phase = status.split(' ').next().unwrap_or_default().to_owned();
        if phase != last {
            println!("  {:5.1} s  {}", began.elapsed().as_secs_f64(), status.trim_end());
            last = phase;
        }
        if complete {
            return;
        }
        let failed = is("Failed") || began.elapsed() > WITHIN;
        assert!(!failed, "{}\n{}", team.kubectl(["get", run, "-o", "yaml"]), team.release.logs());
        std::thread::sleep(Duration::from_millis(50));
    }
}
