//! What is shown of the node's machines: found, changed, gone; and monitors that refuse, hang, belong to somebody else
//! or talk nonsense.

use std::{os::unix::net::UnixListener, time::Instant};

use driftline::qmp::fake::{FakeDisk, Setup};
use tokio::{io::AsyncWriteExt, net::UnixStream};

use super::*;

const ONE: &str = "11111111-1111-4111-8111-111111111111";
const TWO: &str = "22222222-2222-4222-8222-222222222222";

fn named<'a>(guests: &'a [Guest], name: &str) -> Option<&'a Guest> {
    guests.iter().find(|guest| guest.name == name)
}

fn has(guests: &[Guest], name: &str, why: &str) -> bool {
    named(guests, name).is_some_and(|guest| guest.problem.is_some() != why.is_empty() && reason(guest) == why)
}

fn well(guests: &[Guest], name: &str) -> bool {
    has(guests, name, "") && named(guests, name).is_some_and(|guest| !guest.uuid.is_empty())
}

fn disk(host: &Host, name: &str) -> FakeDisk {
    let path = host.path(&format!("{name}.img"));
    fs::write(&path, vec![7; 1 << 20]).unwrap();
    FakeDisk::qcow2("disk0", path)
}

#[tokio::test]
async fn machines_are_noticed_when_they_come_change_and_go() {
    let host = Host::new();
    let running = host.start().await;
    let agent = host.controller(&running);
    guests_until(&agent, <[Guest]>::is_empty).await;
    let begin = Instant::now();
    let socket = host.guest("a", "db-1", "[labels]\ntier = \"gold\"\n");
    let qemu = Setup::new(&socket).uuid(ONE).disk(disk(&host, "a")).start().unwrap();
    let guests = guests_until(&agent, |guests| well(guests, "db-1")).await;
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    let guest = named(&guests, "db-1").unwrap();
    assert_eq!((guest.uuid.as_str(), guest.qemu_version.as_str()), (ONE, "7.2.22"));
    assert_eq!(guest.power_state(), v1::PowerState::Running);
    assert_eq!(guest.labels["tier"], "gold");
    assert_eq!((guest.disks[0].name.as_str(), guest.disks[0].virtual_size), ("disk0", 1 << 20));
    assert_eq!(
        running.metric("driftline_agent_guest_connected{namespace=\"team-a\",guest=\"db-1\"}").as_deref(),
        Some("1")
    );

    qemu.set_status("paused");
    qemu.emit("STOP", serde_json::Value::Null);
    guests_until(&agent, |guests| named(guests, "db-1").is_some_and(|g| g.power_state() == v1::PowerState::Paused))
        .await;
    host.guest("a", "db-1", "[labels]\ntier = \"iron\"\n");
    guests_until(&agent, |guests| {
        named(guests, "db-1").is_some_and(|g| g.labels["tier"] == "iron" && !g.uuid.is_empty())
    })
    .await;
    qemu.quit();
    let guests = guests_until(&agent, |guests| has(guests, "db-1", "QMPUnreachable")).await;
    assert_eq!(guests[0].power_state(), v1::PowerState::Off);
    fs::remove_file(host.path("guests.d/a.toml")).unwrap();
    guests_until(&agent, <[Guest]>::is_empty).await;
}

#[tokio::test]
async fn bad_monitors_are_shown_with_the_reason_and_stall_no_other_guest() {
    let host = Host::new();
    host.guest("absent", "absent", "");
    // Nobody listens any more: what a killed QEMU leaves.
    drop(UnixListener::bind(host.guest("stale", "stale", "")).unwrap());
    // Takes connections and never says a word: as a QEMU whose monitor another client holds.
    let silent = tokio::net::UnixListener::bind(host.guest("silent", "silent", "")).unwrap();
    let nonsense = tokio::net::UnixListener::bind(host.guest("nonsense", "nonsense", "")).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = nonsense.accept().await {
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\nhello\r\n").await;
        }
    });
    let mut old = Setup::new(host.guest("old", "old", ""));
    old.version = (5, 2, 0);
    let _old = old.start().unwrap();
    let _good = Setup::new(host.guest("good", "good", "")).uuid(ONE).start().unwrap();

    let running = host.start().await;
    let agent = host.controller(&running);
    let begin = Instant::now();
    guests_until(&agent, |guests| well(guests, "good")).await;
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    let guests = guests_until(&agent, |guests| {
        has(guests, "absent", "QMPUnreachable")
            && has(guests, "stale", "QMPUnreachable")
            && has(guests, "silent", "QMPBusy")
            && has(guests, "nonsense", "QMPNonsense")
            && has(guests, "old", "QEMUTooOld")
            && well(guests, "good")
    })
    .await;
    for guest in guests.iter().filter(|guest| guest.name != "good") {
        let message = &guest.problem.as_ref().unwrap().message;
        assert!(message.contains(&format!("{}.qmp", guest.name)), "{message}");
    }
    drop(silent);
}

#[tokio::test]
async fn a_monitor_that_another_client_holds_is_used_once_that_one_leaves() {
    let host = Host::new();
    let socket = host.guest("a", "db-1", "");
    let _qemu = Setup::new(&socket).uuid(ONE).start().unwrap();
    let holder = UnixStream::connect(&socket).await.unwrap();
    holder.readable().await.unwrap();
    let running = host.start().await;
    let agent = host.controller(&running);
    guests_until(&agent, |guests| has(guests, "db-1", "QMPBusy")).await;
    drop(holder);
    guests_until(&agent, |guests| well(guests, "db-1")).await;
}

#[tokio::test]
async fn a_hung_qemu_is_shown_and_keeps_what_was_known_of_it() {
    use driftline::qmp::fake::{Fault, When};
    let host = Host::new();
    let qemu = Setup::new(host.guest("a", "db-1", "")).uuid(ONE).disk(disk(&host, "a")).start().unwrap();
    let running = host.start().await;
    let agent = host.controller(&running);
    guests_until(&agent, |guests| well(guests, "db-1")).await;
    qemu.fault(When::Every("query-status"), Fault::Hang);
    qemu.emit("STOP", serde_json::Value::Null);
    let guests = guests_until(&agent, |guests| has(guests, "db-1", "QMPNotResponding")).await;
    assert_eq!(guests[0].disks.len(), 1);
}

#[tokio::test]
async fn two_running_machines_of_one_uuid_are_refused_until_one_is_gone() {
    let host = Host::new();
    let _first = Setup::new(host.guest("a", "db-1", "")).uuid(ONE).start().unwrap();
    let second = Setup::new(host.guest("b", "db-2", "")).uuid(ONE).start().unwrap();
    let running = host.start().await;
    let agent = host.controller(&running);
    let guests =
        guests_until(&agent, |guests| has(guests, "db-1", "DuplicateUUID") && has(guests, "db-2", "DuplicateUUID"))
            .await;
    assert!(guests[0].problem.as_ref().unwrap().message.contains("team-a/db-2"));
    second.quit();
    guests_until(&agent, |guests| well(guests, "db-1") && has(guests, "db-2", "QMPUnreachable")).await;
}

#[tokio::test]
async fn a_machine_without_uuid_needs_one_in_its_file() {
    let host = Host::new();
    let zeros = "00000000-0000-0000-0000-000000000000";
    let _qemu = Setup::new(host.guest("a", "db-1", "")).uuid(zeros).start().unwrap();
    let running = host.start().await;
    let agent = host.controller(&running);
    guests_until(&agent, |guests| has(guests, "db-1", "UUIDMissing")).await;
    host.guest("a", "db-1", &format!("uuid = {ONE:?}\n"));
    let guests = guests_until(&agent, |guests| well(guests, "db-1")).await;
    assert_eq!(guests[0].uuid, ONE);
}

#[tokio::test]
async fn another_machine_under_a_name_is_refused_until_a_person_decides() {
    let host = Host::new();
    let socket = host.guest("a", "db-1", "");
    let first = Setup::new(&socket).uuid(ONE).start().unwrap();
    let running = host.start().await;
    let agent = host.controller(&running);
    guests_until(&agent, |guests| well(guests, "db-1")).await;
    first.quit();
    guests_until(&agent, |guests| has(guests, "db-1", "QMPUnreachable")).await;
    drop(first);
    let _ = fs::remove_file(&socket);
    let second = Setup::new(&socket).uuid(TWO).start().unwrap();
    let guests = guests_until(&agent, |guests| has(guests, "db-1", "UUIDChanged")).await;
    let known = host.path("state/names/team-a/db-1");
    let message = &guests[0].problem.as_ref().unwrap().message;
    assert!(message.contains(&known.display().to_string()), "{message}");
    fs::remove_file(known).unwrap();
    second.emit("RESUME", serde_json::Value::Null);
    guests_until(&agent, |guests| well(guests, "db-1")).await;
}

#[tokio::test]
async fn two_files_of_one_name_are_refused_with_both_named() {
    let host = Host::new();
    host.guest("a", "db-1", "");
    host.guest("b", "db-1", "");
    let running = host.start().await;
    let agent = host.controller(&running);
    let guests = guests_until(&agent, |guests| has(guests, "db-1", "DuplicateName")).await;
    let message = &guests[0].problem.as_ref().unwrap().message;
    assert!(message.contains("a.toml") && message.contains("b.toml"), "{message}");
}
