//! Wrong input: refused with the thing, the reason and the way out, and nothing is written.

use super::*;

#[test]
fn wrong_words_are_refused_with_status_2_and_what_to_write() {
    let host = Host::new();
    let machine = Plan::new().disk(Disk::raw("disk0", MIB)).paused().start();
    host.backup(&machine);
    let repository = host.repository();
    let other = uuid::Uuid::new_v4().to_string();
    let qmp = machine.qmp().display().to_string();
    let to = format!("nodisk={}", host.path("restored/x").display());
    for (words, says) in [
        (vec!["backup", "--qmp", &qmp], "--repository"),
        (vec!["backup", "--qmp", &qmp, "--repository", &repository, "--type", "Weekly"], "Full"),
        (vec!["backup", "--qmp", &qmp, "--repository", &repository, "--uuid", &other], "leave --uuid out"),
        (vec!["points", "--repository", &repository, "--guest", "nobody"], machine.uuid()),
        (vec!["points", "show", "01j00000000000000000000000", "--repository", &repository], "has no point"),
        (vec!["verify", "--repository", &repository, "--point", "01j00000000000000000000000"], "has no point"),
        (vec!["restore", "--repository", &repository, "--point", "latest", "--to", &to], "it has disk0"),
        (vec!["backup", "--qmp", &qmp, "--repository", &repository, "--disk", "nodisk"], "it has disk0"),
        (vec!["frobnicate"], "unrecognized"),
    ] {
        let output = host.run(&words);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(says), "{words:?}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "", "{words:?}");
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_status_1_its_reason_and_the_way_out() {
    let host = Host::new();
    let machine = Plan::new().disk(Disk::raw("disk0", MIB)).paused().start();
    let qmp = machine.qmp().display().to_string();
    let repository = host.path("repository");
    let (full, outside) = (repository.join("full"), host.path("outside"));
    for folder in [&full, &outside] {
        std::fs::create_dir(folder).unwrap();
    }
    std::fs::write(full.join("somebody.txt"), "else's").unwrap();
    std::os::unix::fs::symlink(&outside, repository.join("link")).unwrap();
    let path = |path: &Path| path.display().to_string();
    let (full, outside, link) = (path(&full), path(&outside), path(&repository.join("link")));
    let (missing, no_socket) = (path(&repository.join("missing")), path(&host.path("nothing")));
    let _held = std::os::unix::net::UnixStream::connect(machine.qmp()).unwrap();
    // A second monitor socket would do; this one is held by the test.
    for (words, reason, says) in [
        (["--qmp", &no_socket, "--repository", &full], "MonitorNotThere", "start QEMU with -qmp"),
        (["--qmp", &qmp, "--repository", &full], "MonitorBusy", "second -qmp socket"),
    ] {
        refused(&host, &[&["backup"][..], &words].concat(), reason, says);
    }
    drop(_held);
    for (repository, reason, says) in [
        (&full, "RepositoryNotEmpty", "somebody.txt"),
        (&outside, "OutsideRoots", "host.toml"),
        (&link, "OutsideRoots", "symbolic link"),
        (&missing, "FolderMissing", "make the folder"),
    ] {
        refused(&host, &["backup", "--qmp", &qmp, "--repository", repository], reason, says);
    }
    refused(&host, &["points", "--repository", &full], "RepositoryNotMounted", "is not a repository");
    assert_eq!(std::fs::read_dir(host.path("outside")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(repository.join("full")).unwrap().count(), 1);
    let jobs = machine.execute("query-jobs", json!({}));
    assert_eq!(jobs, json!([]));
}

#[test]
fn restores_stay_beneath_the_hosts_roots() {
    let host = Host::new();
    let machine = Plan::new().disk(Disk::raw("disk0", MIB)).paused().start();
    host.backup(&machine);
    std::os::unix::fs::symlink(host.folder.path(), host.path("restored/link")).unwrap();
    for target in ["outside.qcow2", "restored/../outside.qcow2", "restored/link/outside.qcow2"] {
        let to = format!("disk0={}", host.path(target).display());
        let words = ["restore", "--repository", &host.repository(), "--point", "latest", "--to", &to];
        refused(&host, &words, "OutsideRoots", "roots");
        refused(&host, &[&words[..], &["--dry-run"]].concat(), "OutsideRoots", "roots");
        assert!(!host.path("outside.qcow2").exists(), "{target}");
    }
}

#[test]
fn a_folder_is_no_target_under_any_policy_and_what_to_write_is_said() {
    let host = Host::new();
    let machine = Plan::new().disk(Disk::raw("disk0", MIB)).disk(Disk::raw("disk1", MIB)).paused().start();
    host.backup(&machine);
    let (folder, repository) = (host.path("restored/folder"), host.repository());
    std::fs::create_dir(&folder).unwrap();
    let folder = folder.display().to_string();
    let new = host.path("restored/new").display().to_string();
    let cases = [
        (vec![format!("disk0={folder}")], format!("such as \"{folder}/disk0.qcow2\"")),
        (vec![format!("disk0={folder}/")], "must be the absolute path of a file".to_owned()),
        (vec![format!("disk0={new}/")], "must be the absolute path of a file".to_owned()),
        (vec![format!("disk0={new}"), format!("disk1={new}")], "for two disks, disk0 and disk1".to_owned()),
        (vec![format!("disk0={new}"), format!("disk0={folder}/x")], "Disk disk0 is named twice".to_owned()),
    ];
    for (targets, says) in &cases {
        for overwrite in ["Never", "IfSameGuest", "Always"] {
            let mut words = vec!["restore", "--repository", &repository, "--point", "latest", "--overwrite", overwrite];
            words.extend(targets.iter().flat_map(|target| ["--to", target.as_str()]));
            let output = host.run(&words);
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{words:?}: {said}");
            assert!(said.contains("[RestoreInvalid]") && said.contains(says) && said.contains("way out: "), "{said}");
        }
    }
    let left: Vec<_> =
        std::fs::read_dir(host.path("restored")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["folder"]);
    assert_eq!(std::fs::read_dir(host.path("restored/folder")).unwrap().count(), 0);
}

#[test]
fn a_relative_target_is_shown_as_the_path_that_it_is() {
    let host = Host::new();
    let machine = Plan::new().disk(Disk::raw("disk0", MIB)).paused().start();
    host.backup(&machine);
    let mut command = Command::new(env!("CARGO_BIN_EXE_driftline"));
    command.args([
        "restore",
        "--repository",
        &host.repository(),
        "--point",
        "latest",
        "--to",
        "disk0=new.raw",
        "--dry-run",
    ]);
    command.env("DRIFTLINE_CONFIG", host.path("host.toml")).current_dir(host.path("restored"));
    let output = command.output().unwrap();
    let said = text(&output.stdout);
    assert!(said.contains(&host.path("restored/new.raw").display().to_string()), "{said}{}", text(&output.stderr));
}

#[test]
fn a_dry_run_refuses_what_the_restore_would_and_changes_nothing() {
    let host = Host::new();
    let machine = Plan::new().disk(Disk::raw("disk0", MIB)).paused().start();
    host.backup(&machine);
    let leftover = host.path("restored/.driftline-00000000deadbeef.partial");
    for file in [&host.path("restored/there"), &leftover] {
        std::fs::write(file, "somebody's").unwrap();
    }
    for (target, reason, says) in [
        ("restored/there", "TargetExists", "--overwrite Always"),
        ("restored/missing/new", "TargetFolderMissing", "make the folder"),
    ] {
        let to = format!("disk0={}", host.path(target).display());
        let words = ["restore", "--repository", &host.repository(), "--point", "latest", "--to", &to, "--dry-run"];
        refused(&host, &words, reason, says);
    }
    let to = format!("disk0={}", host.path("restored/new").display());
    let words = ["restore", "--repository", &host.repository(), "--point", "latest", "--to", &to, "--dry-run"];
    assert_eq!(host.run(&words).status.code(), Some(0));
    assert!(leftover.exists() && !host.path("restored/new").exists());
}

#[test]
fn one_wrong_file_hides_no_other_machine() {
    let host = Host::new();
    let machine = Plan::new().disk(Disk::raw("disk0", MIB)).paused().start();
    let good = format!("name = \"db-1\"\nnamespace = \"team-a\"\nqmp = {:?}\n", machine.qmp());
    std::fs::write(host.path("guests.d/good.toml"), good).unwrap();
    std::fs::write(host.path("guests.d/bad.toml"), "name = ").unwrap();
    let guests = host.json(&["guests"]);
    assert_eq!(guests["guests"][0]["problem"]["reason"], "HostFileInvalid", "{guests}");
    assert_eq!(guests["guests"][1]["disks"][0]["name"], "disk0", "{guests}");
    assert_eq!(guests["guests"][1]["problem"], Value::Null, "{guests}");
}

#[test]
fn two_files_of_one_machine_are_both_told() {
    let host = Host::new();
    let machine = Plan::new().disk(Disk::raw("disk0", MIB)).paused().start();
    for name in ["db-1", "db-2"] {
        let file = format!("name = {name:?}\nnamespace = \"team-a\"\nqmp = {:?}\n", machine.qmp());
        std::fs::write(host.path("guests.d").join(format!("{name}.toml")), file).unwrap();
    }
    let guests = host.json(&["guests"]);
    for (at, other) in [(0, "db-2"), (1, "db-1")] {
        let problem = &guests["guests"][at]["problem"];
        assert_eq!(problem["reason"], "DuplicateUUID", "{guests}");
        assert!(problem["message"].as_str().unwrap().contains(other), "{guests}");
    }
    // Where nobody answers there is no machine.
    let dead = format!(
        "name = \"db-2\"\nnamespace = \"team-a\"\nqmp = {:?}\nuuid = {:?}\n",
        host.path("dead"),
        machine.uuid()
    );
    std::fs::write(host.path("guests.d/db-2.toml"), dead).unwrap();
    let guests = host.json(&["guests"]);
    assert_eq!(guests["guests"][0]["problem"], Value::Null, "{guests}");
}

#[test]
fn errors_are_documents_too_where_a_script_asks_for_them() {
    let host = Host::new();
    let output = host.run(&["points", "--repository", &host.repository(), "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["error"]["reason"], json!("RepositoryNotMounted"));
    assert!(document["error"]["wayOut"].as_str().unwrap().contains("empty folder"), "{document}");
}

fn refused(host: &Host, words: &[&str], reason: &str, says: &str) {
    let output = host.run(words);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
    assert!(said.contains(&format!("[{reason}]")), "{words:?}: {said}");
    assert!(said.contains(says), "{words:?}: {said}");
    assert_eq!(text(&output.stdout), "", "{words:?}");
}
