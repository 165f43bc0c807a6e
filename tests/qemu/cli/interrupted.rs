//! What is left when the command is interrupted or killed: nothing, or what `recover` makes a point of.

use rustix::process::Signal;

use super::*;

/// A machine whose copy takes some seconds, with a second monitor, and a backup of it that is copying. The machine runs: QEMU 7.2 lets go of
/// removed descriptors only then (`monitor_fdset_cleanup` asks `runstate_is_running`).
fn copying(host: &Host) -> (Machine, Guarded) {
    let second = format!("unix:{},server=on,wait=off", host.path("second.qmp").display());
    let plan = Plan::new().disk(Disk::qcow2("disk0", 32 * MIB)).disk(Disk::raw("disk1", MIB));
    let machine = plan.arguments(&["-qmp", &second]).start();
    machine.write("disk0", 0x66, 0, 32 * MIB);
    machine.write("disk1", 0x77, 0, MIB);
    let qmp = machine.qmp().display().to_string();
    let words = ["backup", "--qmp", &qmp, "--repository", &host.repository(), "--bandwidth", "8Mi", "-o", "json"];
    let backup = host.start(&words);
    wait_for_jobs(&machine, 1);
    (machine, backup)
}

/// Whether QEMU holds anything of ours: jobs, nodes, bitmaps, descriptors.
fn left_in_qemu(machine: &Machine) -> String {
    let ask = |command: &str, arguments: Value| machine.execute(command, arguments).to_string();
    let all = [
        ask("query-jobs", json!({})),
        ask("query-named-block-nodes", json!({ "flat": true })),
        ask("query-fdsets", json!({})),
    ];
    let ours = |text: &&String| text.contains("driftline.") || text.contains("\"dl-");
    all.iter().filter(ours).cloned().collect()
}

#[test]
fn an_interrupted_backup_leaves_nothing_behind_and_says_so() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let host = Host::new();
        let (machine, mut backup) = copying(&host);
        backup.signal(signal);
        let status = backup.wait(Duration::from_secs(60));
        assert_eq!(status.code(), Some(130), "{signal:?}: {}", host.said("stderr"));
        let document: Value = serde_json::from_str(&host.said("stdout")).unwrap();
        assert_eq!(document["error"]["reason"], json!("Interrupted"));
        assert_eq!(point_folders(Path::new(&host.repository()), &machine), Vec::<PathBuf>::new());
        assert_eq!(left_in_qemu(&machine), "");
        let qmp = machine.qmp().display().to_string();
        let recovered = host.json(&["recover", "--qmp", &qmp, "--repository", &host.repository()]);
        assert_eq!(recovered, json!({ "found": false }));
        assert_eq!(host.backup(&machine)["type"], json!("Full"));
    }
}

#[test]
fn recover_makes_a_point_of_what_a_killed_backup_had_begun() {
    let host = Host::new();
    let (machine, mut backup) = copying(&host);
    let reference = Reference::take(&machine);
    backup.kill();
    machine.write("disk1", 0x12, 0, 4096);
    let (qmp, repository) = (machine.qmp().display().to_string(), host.repository());
    let recovered = host.json(&["recover", "--qmp", &qmp, "--repository", &repository]);
    assert_eq!((&recovered["found"], &recovered["run"]["phase"]), (&json!(true), &json!("Complete")));
    let points = host.json(&["points", "--repository", &repository]);
    assert_eq!(points["points"].as_array().unwrap().len(), 1);
    let point = points["points"][0]["pointID"].as_str().unwrap();
    assert_eq!(recovered["run"]["restorePoint"], json!(point));
    for disk in ["disk0", "disk1"] {
        let file = host.path("restored").join(disk);
        let to = format!("{disk}={}", file.display());
        host.json(&["restore", "--repository", &repository, "--point", "latest", "--to", &to]);
        reference.assert_equal(disk, &file, Format::Qcow2);
    }
}

#[test]
fn a_backup_first_finishes_what_a_killed_one_left_and_tells_so() {
    let host = Host::new();
    let (machine, mut backup) = copying(&host);
    backup.kill();
    let (qmp, repository) = (machine.qmp().display().to_string(), host.repository());
    let next = host.run(&["backup", "--qmp", &qmp, "--repository", &repository]);
    assert_eq!(next.status.code(), Some(0), "{}", text(&next.stderr));
    assert!(text(&next.stderr).contains("was cut off; it is finished first"), "{}", text(&next.stderr));
    let points = host.json(&["points", "--repository", &repository]);
    let points = points["points"].as_array().unwrap();
    let sequences: Vec<_> = points.iter().map(|point| point["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequences, [1, 2]);
}

#[test]
fn a_second_backup_of_the_machine_waits_for_the_first_and_says_so() {
    let host = Host::new();
    let (_machine, mut first) = copying(&host);
    let (qmp, repository) = (host.path("second.qmp").display().to_string(), host.repository());
    let second = host.run(&["backup", "--qmp", &qmp, "--repository", &repository]);
    assert_eq!(second.status.code(), Some(0), "{}", text(&second.stderr));
    assert!(text(&second.stderr).contains("Waits for"), "{}", text(&second.stderr));
    assert_eq!(first.wait(Duration::from_secs(1)).code(), Some(0), "the first had ended before");
    let points = host.json(&["points", "--repository", &repository]);
    assert_eq!(points["points"].as_array().unwrap().len(), 2);
}
