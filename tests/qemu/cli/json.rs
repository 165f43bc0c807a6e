//! The documents of `-o json`: a contract. New fields may come; none changes or goes without a note in the changelog.

use super::*;

#[test]
fn backup_and_points_give_the_documents_of_the_contract() {
    let host = Host::new();
    let machine = Plan::new().disk(Disk::qcow2("disk0", 4 * MIB)).arguments(&["-name", "db-1"]).paused().start();
    machine.write("disk0", 1, 0, 65536);
    let backup = host.backup(&machine);
    let (point, time, stored) =
        (&backup["restorePoint"], &backup["checkpointTime"], &backup["disks"][0]["storedBytes"]);
    assert!(stored.as_u64().unwrap() > 65536, "{backup}");
    let chain = json!({ "root": point, "length": 1, "bytes": stored });
    assert_eq!(
        backup,
        json!({
            "restorePoint": point,
            "chain": chain,
            "type": "Full",
            "checkpointTime": time,
            "dataPath": "Direct",
            "fleeced": false,
            "disks": [{
                "name": "disk0",
                "type": "Full",
                "typeReason": "FirstBackup",
                "virtualSize": 4 * MIB,
                "storedBytes": stored,
            }],
        })
    );
    let points = host.json(&["points", "--repository", &host.repository(), "--guest", "db-1"]);
    let (lineage, digest) = (&points["points"][0]["disks"][0]["lineage"], &points["points"][0]["manifestDigest"]);
    assert_eq!((lineage.as_str().unwrap().len(), digest.as_str().unwrap().len()), (8, 64));
    let expected = json!({
        "pointID": point,
        "guest": { "uuid": machine.uuid(), "name": "db-1" },
        "checkpointTime": time,
        "requestedType": "Auto",
        "type": "Full",
        "consistency": "Crash",
        "sequence": 1,
        "manifestDigest": digest,
        "chainIntact": true,
        "disks": [{
            "name": "disk0",
            "lineage": lineage,
            "chain": chain,
            "virtualSize": 4 * MIB,
            "storedBytes": stored,
            "format": "qcow2",
            "type": "Full",
            "typeReason": "FirstBackup",
        }],
    });
    assert_eq!(points, json!({ "repositoryID": points["repositoryID"], "points": [expected] }));
    let shown = host.json(&["points", "show", point.as_str().unwrap(), "--repository", &host.repository()]);
    assert_eq!(shown, expected);
    let words = ["points", "show", "latest", "--repository", &host.repository(), "--definition"];
    assert!(host.json(&words)["blockGraph"].is_object() || host.json(&words)["blockGraph"].is_array());
}

#[test]
fn an_increment_says_what_it_builds_on() {
    let host = Host::new();
    let machine = Plan::new().disk(Disk::qcow2("disk0", 4 * MIB)).arguments(&["-name", "db-1"]).paused().start();
    machine.write("disk0", 1, 0, MIB);
    let first = host.backup(&machine);
    machine.write("disk0", 2, 65536, 512);
    let second = host.backup(&machine);
    let disk = &second["disks"][0];
    assert_eq!((&second["type"], &disk["typeReason"]), (&json!("Incremental"), &json!("CheckpointFound")));
    let stored = disk["storedBytes"].as_u64().unwrap();
    assert!(stored < MIB, "{second}");
    let bytes = stored + first["disks"][0]["storedBytes"].as_u64().unwrap();
    assert_eq!(second["chain"], json!({ "root": first["restorePoint"], "length": 2, "bytes": bytes }));
    let point = second["restorePoint"].as_str().unwrap();
    let shown = host.json(&["points", "show", point, "--repository", &host.repository()]);
    assert_eq!((&shown["disks"][0]["chain"], &shown["disks"][0]["parent"]), (&second["chain"], &first["restorePoint"]));
    assert_eq!(shown["requestedType"], "Auto");
}

#[test]
fn the_machines_of_the_hosts_files_are_listed_with_what_keeps_them_from_a_backup() {
    let host = Host::new();
    let machine = Plan::new().disk(Disk::raw("disk0", MIB)).disk(Disk::qcow2("disk1", MIB)).paused().start();
    for (name, socket) in [("a", machine.qmp()), ("b", host.path("no-such-socket"))] {
        let file = format!("name = {name:?}\nnamespace = \"team-a\"\nqmp = {:?}\n", socket.display().to_string());
        std::fs::write(host.path("guests.d").join(format!("{name}.toml")), file).unwrap();
    }
    let guests = host.json(&["guests"]);
    let guests = guests["guests"].as_array().unwrap();
    assert_eq!(guests.len(), 2);
    assert_eq!(guests[0]["uuid"], json!(machine.uuid()));
    assert_eq!((&guests[0]["namespace"], &guests[0]["powerState"]), (&json!("team-a"), &json!("Paused")));
    let disks = guests[0]["disks"].as_array().unwrap();
    let named: Vec<_> = disks.iter().map(|disk| (disk["name"].as_str().unwrap(), &disk["eligible"])).collect();
    assert_eq!(named, [("disk0", &json!(true)), ("disk1", &json!(true))]);
    assert_eq!((&guests[1]["name"], &guests[1]["problem"]["reason"]), (&json!("b"), &json!("MonitorNotThere")));

    // The file's name and namespace are those of the points, as the agent would store them.
    host.backup(&machine);
    let points = host.json(&["points", "--repository", &host.repository(), "--guest", "a"]);
    assert_eq!(points["points"][0]["guest"]["namespace"], json!("team-a"));
    let text = text(&host.run(&["guests"]).stdout);
    assert!(text.lines().next().unwrap().starts_with("NAME"), "{text}");
    assert!(text.contains("can be backed up") && text.contains("MonitorNotThere"), "{text}");
}
