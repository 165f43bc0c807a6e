//! QEMU in a pod of a platform: its socket and its disks are in the pod's volumes, it is another user's, with another root
//! file system. The platform writes the host's file.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;

use super::underway::SOON;
use crate::{
    lab::{
        child::wait_for,
        machine::{Disk, Plan, run},
        monitor::Monitor,
    },
    release::{NODES, Release, Team},
};

const MIB: u64 = 1 << 20;
const NODE: &str = NODES[0];
const UUID: &str = "7e1d5c2a-9b1f-4c55-8d0e-3a4b5c6d7e8f";
/// The user of the platform's pods.
const USER: u32 = 107;

/// A pod that runs QEMU from the host's own programs, on a root file system that is not the host's.
fn pod(team: &Team) -> PathBuf {
    let script = "qemu-img create -q -f qcow2 /machine/disk0.qcow2 64M && exec qemu-system-x86_64 -machine q35 \
                  -accel tcg -display none -nodefaults -uuid UUID \
                  -qmp unix:/machine/qmp,server=on,wait=off -qmp unix:/machine/test,server=on,wait=off \
                  -blockdev driver=file,filename=/machine/disk0.qcow2,node-name=f0 \
                  -blockdev driver=qcow2,file=f0,node-name=q0 -device virtio-blk-pci,drive=q0,id=disk0";
    let hosts = ["/usr", "/lib", "/lib64", "/etc/alternatives"];
    let volume = |path: &str| format!("host{}", path.replace('/', "-"));
    let mut mounts = vec![json!({ "name": "machine", "mountPath": "/machine" })];
    mounts.extend(hosts.map(|path| json!({ "name": volume(path), "mountPath": path, "readOnly": true })));
    let mut volumes = vec![json!({ "name": "machine", "emptyDir": {} })];
    volumes.extend(hosts.map(|path| json!({ "name": volume(path), "hostPath": { "path": path } })));
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "vm" },
        "spec": {
            "nodeName": NODE,
            "terminationGracePeriodSeconds": 0,
            "securityContext": { "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER },
            "containers": [{
                "name": "qemu",
                "image": crate::bench::image::PROBE,
                "imagePullPolicy": "Never",
                "command": ["/usr/bin/sh", "-c", script.replace("UUID", UUID)],
                "env": [{ "name": "PATH", "value": "/usr/bin" }],
                "volumeMounts": mounts,
            }],
            "volumes": volumes,
        },
    });
    team.apply(&pod).ok();
    let uid = team.get("pod", "vm")["metadata"]["uid"].as_str().unwrap().to_owned();
    Path::new("/var/lib/kubelet/pods").join(uid).join("volumes/kubernetes.io~empty-dir/machine")
}

#[test]
fn a_guest_in_a_pod_is_backed_up_and_nothing_is_opened_by_its_paths() {
    let (release, _turn) = Release::take();
    let team = release.team();
    let folder = pod(&team);
    let seen = team.seen(NODE, &folder);
    wait_for("QEMU in a pod opens its monitors", SOON, || seen.join("test").exists().then_some(()));
    // The path of a socket may not be longer than a hundred and some characters.
    let short = tempfile::tempdir().unwrap();
    let link = short.path().join("m");
    symlink(&seen, &link).unwrap();
    let mut monitor = Monitor::connect(&link.join("test"));
    let qemu_io = |monitor: &mut Monitor, command: &str| {
        let said = monitor.human(&format!("qemu-io -d /machine/peripheral/disk0/virtio-backend \"{command}\""));
        assert_eq!(said, "");
    };
    qemu_io(&mut monitor, "write -P 0x77 0 8M");

    team.declare_guest(NODE, "g", &folder.join("qmp"));
    team.wait_for("guests.driftline.dev/g", "Ready", SOON);
    let guest = team.get("guests.driftline.dev", "g");
    let quirks = guest["status"]["quirks"].as_array().unwrap();
    assert!(quirks.contains(&json!("OwnFileSystem")), "{guest:#}");
    team.repository(NODE, "local");

    qemu_io(&mut monitor, "flush");
    let reference = short.path().join("reference.raw");
    run(Command::new("qemu-img").args(["convert", "-U", "-O", "raw"]).arg(seen.join("disk0.qcow2")).arg(&reference));
    let mut spec = team.backup_spec("g", "local");
    spec["transfer"] = json!({ "bandwidth": "1Mi" });
    team.create("BackupRun", "run", spec).ok();
    team.wait_for("backuprun.driftline.dev/run", "CheckpointCreated", SOON);
    qemu_io(&mut monitor, "write -P 0x11 0 4M");
    let jobs = monitor.execute("query-jobs", json!({}));
    assert_eq!(jobs[0]["status"], "running", "it copies while the guest writes: {jobs}");
    monitor.execute("block-job-set-speed", json!({ "device": jobs[0]["id"], "speed": 0 }));
    team.wait_for("backuprun.driftline.dev/run", "Complete", SOON);
    let files = team.restore("back", &team.point_of("run"), NODE, &["disk0"]);
    team.wait_for("restorerun.driftline.dev/back", "Complete", SOON);
    run(Command::new("cmp").arg(&reference).arg(&files[0]));
    // Whoever writes the volume reaches nobody else's machine by it.
    let other = release.machine_on(NODE, Plan::new().disk(Disk::raw("disk0", MIB))).start();
    symlink(release.socket_on_node(&other.qmp()), seen.join("link")).unwrap();
    team.declare_guest(NODE, "thief", &folder.join("link"));
    let refusal = team.refusal("guests.driftline.dev/thief", "Ready", SOON);
    assert_eq!(refusal["reason"], "MonitorLinked", "{refusal}");
    team.forget_guest(NODE, "thief");
    team.kubectl(["delete", "pod", "vm", "--wait=true"]).ok();
}
