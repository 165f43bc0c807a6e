//! The tests' own tools do what they say: machines, the proxy, references, the Linux guest.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use serde_json::json;

use crate::lab::{
    child::wait_for,
    machine::{Attach, Disk, Format, Machine, Plan},
    monitor::Monitor,
    proxy::{Action, Proxy},
    reference::Reference,
};

const MIB: u64 = 1 << 20;

#[test]
fn each_way_to_attach_a_disk_takes_writes_and_gives_its_reference() {
    let size = 2 * MIB + 512;
    let machine = Plan::new()
        .disk(Disk::raw("device", size))
        .disk(Disk::qcow2("iothread", size).attach(Attach::Iothread))
        .disk(Disk::qcow2("throttled", size).attach(Attach::Throttle))
        .disk(Disk::qcow2("scsi", size).attach(Attach::Scsi))
        .disk(Disk::qcow2("both", size).attach(Attach::DriveAndDevice))
        .disk(Disk::raw("drive", size).attach(Attach::Drive))
        .paused()
        .start();
    for disk in machine.disks() {
        machine.write(&disk.name, 0xaa, MIB, 4096);
        machine.write_zeroes(&disk.name, MIB + 1024, 512);
    }
    let reference = Reference::take(&machine);
    for disk in machine.disks() {
        let bytes = std::fs::read(reference.file(&disk.name)).unwrap();
        assert_eq!(bytes.len() as u64, size, "{}", disk.name);
        assert_eq!(bytes.iter().filter(|&&byte| byte == 0xaa).count(), 4096 - 512, "{}", disk.name);
        assert_eq!(&bytes[1 << 20..][1023..1025], [0xaa, 0], "{}", disk.name);
    }
    machine.write("drive", 1, 65536 * 3, 512);
    let image = machine.disk("drive").file.clone();
    let difference = reference.difference("drive", &image, Format::Raw).unwrap();
    assert!(difference.contains("at byte 196608 (cluster 3): 01010101"), "{difference}");
    assert!(difference.ends_with("1 of 33 clusters of 64 KiB differ"), "{difference}");
}

#[test]
fn a_machine_that_was_killed_starts_again_with_the_same_disks() {
    let mut machine = Plan::new().disk(Disk::raw("disk0", MIB)).start();
    machine.write("disk0", 7, 0, 512);
    let reference = Reference::take(&machine);
    machine.kill();
    assert!(!machine.is_alive());
    machine.start_again();
    assert_eq!(machine.status(), "running");
    reference.assert_equal("disk0", &machine.disk("disk0").file, Format::Raw);
    machine.quit();
}

#[test]
fn the_proxy_holds_a_command_until_it_is_released() {
    let machine = Plan::new().paused().start();
    let proxy = Proxy::start(&machine);
    let client = Monitor::connect(&proxy.qmp());
    proxy.on("query-status", 1, Action::Hold);
    let waiting = std::thread::spawn(move || {
        let mut client = client;
        client.execute("query-status", json!({}))
    });
    proxy.wait_held(Duration::from_secs(10));
    assert_eq!(proxy.count("query-status"), 0);
    proxy.release();
    assert_eq!(waiting.join().unwrap()["status"], "prelaunch");
    assert_eq!(proxy.count("query-status"), 1);
}

#[test]
fn the_proxy_cuts_before_or_after_a_command_was_done() {
    let machine = Plan::new().disk(Disk::qcow2("disk0", MIB)).paused().start();
    let proxy = Proxy::start(&machine);
    for (action, done) in [(Action::CutBefore, false), (Action::CutReply, true)] {
        let name = format!("{action:?}");
        let add = json!({ "execute": "block-dirty-bitmap-add", "arguments": { "node": "fmt-disk0", "name": name } });
        drop(Monitor::connect(&proxy.qmp()));
        let mut stream = UnixStream::connect(proxy.qmp()).unwrap();
        proxy.on("block-dirty-bitmap-add", 1, action);
        stream.write_all(format!("{{\"execute\":\"qmp_capabilities\"}}{add}\n").as_bytes()).unwrap();
        stream.read_to_string(&mut String::new()).unwrap();
        let nodes = machine.execute("query-named-block-nodes", json!({ "flat": true })).to_string();
        assert_eq!(nodes.contains(&name), done, "{action:?}");
    }
    assert_eq!(proxy.state().fired, 2);
}

#[test]
fn the_proxy_drops_and_delays_replies_and_lets_the_rest_through() {
    let machine = Plan::new().paused().start();
    let proxy = Proxy::start(&machine);
    let mut stream = UnixStream::connect(proxy.qmp()).unwrap();
    proxy.on("query-name", 1, Action::DropReply);
    proxy.on("query-uuid", 1, Action::DelayReply(200));
    for (id, command) in ["qmp_capabilities", "query-name", "query-uuid", "query-status"].iter().enumerate() {
        stream.write_all(format!("{}\n", json!({ "execute": command, "id": id })).as_bytes()).unwrap();
    }
    let mut text = String::new();
    wait_for("both replies that are not dropped", Duration::from_secs(10), || {
        let mut buffer = [0; 4096];
        let got = stream.read(&mut buffer).unwrap();
        text.push_str(std::str::from_utf8(&buffer[..got]).unwrap());
        (text.contains("\"id\": 2") && text.contains("\"id\": 3")).then_some(())
    });
    assert!(text.find("\"id\": 3") < text.find("\"id\": 2"), "{text}");
    assert!(!text.contains("\"id\": 1"), "{text}");
}

#[test]
fn the_proxy_ends_with_its_machine() {
    let mut machine = Plan::new().paused().start();
    let proxy = Proxy::start(&machine);
    drop(Monitor::connect(&proxy.qmp()));
    machine.kill();
    wait_for("the proxy ends", Duration::from_secs(10), || UnixStream::connect(proxy.qmp()).is_err().then_some(()));
}

#[test]
fn the_linux_guest_writes_until_it_is_stopped_and_its_reference_holds() {
    let machine =
        Plan::new().linux().disk(Disk::qcow2("disk0", 16 * MIB)).disk(Disk::raw("disk1", 8 * MIB + 4096)).start();
    let console = machine.console();
    console.wait_until_up();
    console.go();
    let writes = |machine: &Machine| machine.console().status().writes;
    let before = writes(&machine);
    wait_for("the writer writes", Duration::from_secs(30), || (writes(&machine) > before + 50).then_some(()));
    let stopped = console.stop();
    assert_eq!(stopped.errors, 0);
    let reference = Reference::take(&machine);
    let disk1 = machine.disk("disk1").file.clone();
    assert_eq!(reference.difference("disk1", &disk1, Format::Raw), None);
    assert_eq!(writes(&machine), stopped.writes);
    console.go();
    wait_for("the image moves on", Duration::from_secs(30), || reference.difference("disk1", &disk1, Format::Raw));
}
