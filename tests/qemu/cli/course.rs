//! A person steers a run that another process drives, and looks at what QEMU has.

use super::*;

/// A machine with a second monitor, for the backup's own holds the first one.
fn machine(host: &Host) -> (Machine, String) {
    let second = host.path("second.qmp").display().to_string();
    let monitor = format!("unix:{second},server=on,wait=off");
    let machine = Plan::new().disk(Disk::qcow2("disk0", 16 * MIB)).arguments(&["-qmp", &monitor]).start();
    machine.write("disk0", 0x66, 0, 16 * MIB);
    (machine, second)
}

fn start(host: &Host, machine: &Machine, more: &[&str]) -> Guarded {
    let qmp = machine.qmp().display().to_string();
    let words = ["backup", "--qmp", &qmp, "--repository", &host.repository(), "--bandwidth", "1Mi", "-o", "json"];
    let backup = host.start(&[&words, more].concat());
    wait_for_jobs(machine, 1);
    backup
}

fn job(host: &Host, second: &str) -> Value {
    let listed = host.json(&["jobs", "--qmp", second]);
    listed["jobs"][0].clone()
}

fn refused(host: &Host, words: &[&str], status: i32, reason: &str) {
    let output = host.run(&[words, &["-o", "json"]].concat());
    assert_eq!(output.status.code(), Some(status), "{words:?}: {}", text(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["error"]["reason"], json!(reason), "{words:?}");
}

#[test]
fn a_run_is_slowed_down_suspended_where_it_is_fleeced_and_cancelled_while_its_command_holds_the_monitor() {
    let host = Host::new();
    let (machine, second) = machine(&host);
    let config = std::fs::read_to_string(host.path("host.toml")).unwrap();
    std::fs::create_dir(host.path("scratch")).unwrap();
    let scratch = format!("[scratch]\ndirectory = {:?}\nbudget = \"1Gi\"\nreserve = \"0\"\n", host.path("scratch"));
    std::fs::write(host.path("host.toml"), format!("{config}{scratch}")).unwrap();
    let mut backup = start(&host, &machine, &[]);
    let qmp = machine.qmp().display().to_string();
    let running = job(&host, &second);
    assert_eq!(
        (&running["ours"], &running["status"], &running["speed"]),
        (&json!(true), &json!("running"), &json!(MIB))
    );
    let course = host.json(&["bandwidth", "2Mi", "--qmp", &qmp]);
    assert_eq!((&course["bandwidth"], &course["suspended"]), (&json!(2 * MIB), &json!(false)));
    wait_for("the job is faster", Duration::from_secs(10), || {
        (job(&host, &second)["speed"] == json!(2 * MIB)).then_some(())
    });
    if machine.can_fleece() {
        assert_eq!(host.json(&["suspend", "--qmp", &qmp])["suspended"], json!(true));
        wait_for("the job stands", Duration::from_secs(10), || {
            (job(&host, &second)["status"] == "paused").then_some(())
        });
        let stands = job(&host, &second);
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(job(&host, &second)["offset"], stands["offset"]);
        assert_eq!(host.json(&["resume", "--qmp", &qmp])["suspended"], json!(false));
    } else {
        refused(&host, &["suspend", "--qmp", &qmp], 1, "SuspendNeedsFleecing");
        assert_eq!(job(&host, &second)["paused"], json!(false));
    }
    let cancelled = host.json(&["cancel", "--qmp", &qmp]);
    assert!(cancelled["message"].as_str().unwrap().contains("nothing of it is left"), "{cancelled}");
    assert_eq!(backup.wait(Duration::from_secs(30)).code(), Some(1));
    let said: Value = serde_json::from_str(&host.said("stdout")).unwrap();
    assert_eq!(said["error"]["reason"], json!("Cancelled"), "{said}");
    assert_eq!(point_folders(Path::new(&host.repository()), &machine), Vec::<PathBuf>::new());
    refused(&host, &["cancel", "--qmp", &qmp], 1, "NoRun");
    assert_eq!(host.backup(&machine)["type"], json!("Full"));
}

#[test]
fn a_run_whose_command_was_killed_is_cancelled_by_the_next_one() {
    let host = Host::new();
    let (machine, second) = machine(&host);
    let mut backup = start(&host, &machine, &[]);
    backup.kill();
    let qmp = machine.qmp().display().to_string();
    host.json(&["bandwidth", "2Mi", "--qmp", &qmp]);
    assert_eq!(job(&host, &second)["speed"], json!(2 * MIB));
    host.json(&["cancel", "--qmp", &qmp]);
    assert_eq!(host.json(&["jobs", "--qmp", &second]), json!({ "jobs": [] }));
    let recovered = host.json(&["recover", "--qmp", &qmp, "--repository", &host.repository()]);
    assert_eq!(recovered, json!({ "found": false }));
}

#[test]
fn bitmaps_are_listed_and_changed_but_not_what_a_backup_builds_on() {
    let host = Host::new();
    let machine = Plan::new().disk(Disk::qcow2("disk0", MIB)).disk(Disk::raw("disk1", MIB)).start();
    let qmp = machine.qmp().display().to_string();
    host.backup(&machine);
    machine.write("disk0", 1, 0, 4096);
    let at = |words: &[&str], disk: &str| -> Vec<String> {
        let more = ["--disk", disk, "--qmp", &qmp];
        words.iter().chain(&more).map(|word| (*word).to_owned()).collect()
    };
    let json = |words: Vec<String>| host.json(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let no = |words: Vec<String>, reason: &str| {
        refused(&host, &words.iter().map(String::as_str).collect::<Vec<_>>(), 2, reason);
    };
    json(at(&["bitmaps", "add", "mine", "--persistent", "--granularity", "4Ki"], "disk0"));
    no(at(&["bitmaps", "add", "mine"], "disk0"), "BitmapExists");
    no(at(&["bitmaps", "add", "mine", "--persistent"], "disk1"), "BitmapNotStored");
    machine.write("disk0", 2, 65536, 4096);
    let list = host.json(&["bitmaps", "list", "--qmp", &qmp]);
    let of = |name: &str| {
        let all = list["bitmaps"].as_array().unwrap();
        all.iter().find(|bitmap| bitmap["disk"] == "disk0" && bitmap["name"] == name).cloned().unwrap()
    };
    assert_eq!(
        (&of("mine")["bytes"], &of("mine")["ours"], &of("mine")["persistent"]),
        (&json!(4096), &json!(false), &json!(true))
    );
    let ours = list["bitmaps"]
        .as_array()
        .unwrap()
        .iter()
        .find(|bitmap| bitmap["disk"] == "disk0" && bitmap["ours"] == true && bitmap["recording"] == true);
    let ours = ours.unwrap()["name"].as_str().unwrap().to_owned();
    assert_eq!(of(&ours)["bytes"], json!(2 * 65536));
    no(at(&["bitmaps", "clear", "mine"], "disk0"), "BitmapForeign");
    json(at(&["bitmaps", "clear", "mine", "--foreign"], "disk0"));
    json(at(&["bitmaps", "remove", "mine", "--foreign"], "disk0"));
    no(at(&["bitmaps", "remove", "mine", "--foreign"], "disk0"), "BitmapNotFound");
    no(at(&["bitmaps", "clear", &ours, "--foreign"], "disk0"), "BitmapNeeded");
    json(at(&["bitmaps", "remove", &ours], "disk0"));
    let types = host.backup(&machine)["disks"].clone();
    let kinds: Vec<_> =
        types.as_array().unwrap().iter().map(|disk| disk["type"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["Full", "Incremental"], "{types}");
}

#[test]
fn events_are_told_one_or_as_long_as_one_likes() {
    let host = Host::new();
    let (machine, second) = machine(&host);
    let mut all = host.start(&["events", "--qmp", &second, "--event", "stop", "--timestamp", "--loop"]);
    // It listens once it is connected.
    wait_for("the events are told", Duration::from_secs(20), || {
        machine.execute("stop", json!({}));
        machine.execute("cont", json!({}));
        (host.said("stdout").lines().count() >= 2).then_some(())
    });
    all.signal(rustix::process::Signal::INT);
    assert!(all.wait(Duration::from_secs(10)).success());
    let said = host.said("stdout");
    assert!(said.lines().all(|line| line.ends_with("Z STOP") && line.starts_with("20")), "{said}");
}
