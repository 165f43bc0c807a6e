//! Who may write: one at a time, a dead holder is replaced, a stalled one notices.

use std::{fs, time::Duration};

use driftline::repo::LeaseTimes;

use super::support::{Place, guest, point_id};

const QUICK: LeaseTimes = LeaseTimes { renew: Duration::from_millis(20), expiry: Duration::from_millis(400) };

#[test]
fn a_second_writer_is_told_who_holds_the_lease_and_gets_it_when_it_is_given_back() {
    let place = Place::new();
    let (one, two) = (place.initialise().unwrap(), place.open().unwrap());
    let lease = one.writer_lease_timed(&guest(), "agent on node-1", QUICK).unwrap();
    let error = two.writer_lease_timed(&guest(), "agent on node-2", QUICK).err().unwrap();
    assert_eq!(error.reason(), "GuestInUse");
    assert!(error.to_string().contains("agent on node-1"), "{error}");
    drop(lease);
    two.writer_lease_timed(&guest(), "agent on node-2", QUICK).unwrap();
}

#[test]
fn a_lease_whose_counter_stands_still_is_taken_over_after_its_expiry() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    let folder = place.path.join("guests").join(guest().as_str());
    fs::create_dir_all(&folder).unwrap();
    let foreign =
        r#"{"holder":"node-9","token":"x","counter":7,"process":{"boot":"b","namespace":"n","pid":1,"start":"1"}}"#;
    fs::write(folder.join("writer.lease"), foreign).unwrap();
    let begun = std::time::Instant::now();
    let lease = repository.writer_lease_timed(&guest(), "node-1", QUICK).unwrap();
    assert!(begun.elapsed() >= QUICK.expiry, "{:?}", begun.elapsed());
    lease.check().unwrap();
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["writer.lease"]);
}

#[test]
fn the_lease_of_a_process_of_this_boot_that_is_gone_is_taken_over_at_once() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    let slow = LeaseTimes { renew: Duration::from_millis(50), expiry: Duration::from_secs(3600) };
    let lease = repository.writer_lease_timed(&guest(), "killed", slow).unwrap();
    let file = place.path.join("guests").join(guest().as_str()).join("writer.lease");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    drop(lease);
    // A process that has ended: a child that was waited for.
    let mut child = std::process::Command::new("true").spawn().unwrap();
    record["process"]["pid"] = child.id().into();
    record["process"]["start"] = "1".into();
    child.wait().unwrap();
    fs::write(&file, record.to_string()).unwrap();
    repository.writer_lease_timed(&guest(), "next", slow).unwrap().check().unwrap();
}

#[test]
fn a_holder_whose_lease_was_taken_over_writes_nothing_any_longer() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    let lease = repository.writer_lease_timed(&guest(), "stalled", QUICK).unwrap();
    let file = place.path.join("guests").join(guest().as_str()).join("writer.lease");
    let other =
        r#"{"holder":"node-9","token":"x","counter":0,"process":{"boot":"","namespace":"","pid":1,"start":""}}"#;
    // Twice, because a renewal that had looked at the token already may still come through.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while lease.check().is_ok() {
        assert!(std::time::Instant::now() < deadline);
        fs::write(&file, other).unwrap();
    }
    assert_eq!(repository.create_point(&guest(), &point_id(1)).err().unwrap().reason(), "LeaseLost");
    fs::write(&file, other).unwrap();
    drop(lease);
    assert_eq!(fs::read_to_string(&file).unwrap(), other, "the other's lease is left alone");
}
