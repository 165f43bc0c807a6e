//! Who is stored, and who is refused with which word.

use super::*;
use crate::{
    engine::{
        graph::{Ineligible, fixture},
        journal::request,
    },
    qmp::Version,
};

fn disk(name: &str, ineligible: Option<Ineligible>) -> DiskFacts {
    DiskFacts { ineligible, ..fixture::disk(name) }
}

fn guest(disks: Vec<DiskFacts>) -> GuestFacts {
    GuestFacts {
        uuid: Some(request().guest.uuid),
        name: None,
        power_state: PowerState::Running,
        version: Version { major: 7, minor: 2, micro: 0, package: String::new() },
        disks,
        capabilities: Vec::new(),
        quirks: Vec::new(),
    }
}

fn names(request: &BackupRequest, guest: &GuestFacts) -> Result<Vec<String>, &'static str> {
    let chosen = choose(request, guest, &Graph::new(vec![])).map_err(|refusal| refusal.reason())?;
    Ok(chosen.into_iter().map(|disk| disk.name.to_string()).collect())
}

#[test]
fn all_eligible_disks_are_stored_unless_the_request_says_otherwise() {
    let guest = guest(vec![disk("a", None), disk("cd", Some(Ineligible::Cdrom)), disk("b", None)]);
    let mut all = request();
    assert_eq!(names(&all, &guest), Ok(vec!["a".into(), "b".into()]));
    // One that is gone, too.
    all.disks.exclude = ["a", "cd", "x"].map(|name| name.parse().unwrap()).to_vec();
    assert_eq!(names(&all, &guest), Ok(vec!["b".into()]));
    let mut one = request();
    one.disks.include = vec!["a".parse().unwrap()];
    assert_eq!(names(&one, &guest), Ok(vec!["a".into()]));
}

#[test]
fn a_guest_without_a_uuid_of_its_own_is_taken_at_the_requests_word() {
    let mut guest = guest(vec![disk("a", None)]);
    guest.uuid = None;
    assert_eq!(names(&request(), &guest), Ok(vec!["a".into()]));
}

#[test]
fn each_refusal_has_its_word_and_names_the_thing() {
    let include = |name: &str| {
        let mut request = request();
        request.disks.include = vec![name.parse().unwrap()];
        request
    };
    let fine = || guest(vec![disk("a", None), disk("cd", Some(Ineligible::Cdrom))]);
    let mut migrating = fine();
    migrating.power_state = PowerState::Migrating;
    let mut stranger = fine();
    stranger.uuid = Some("11111111-2222-3333-4444-666666666666".parse().unwrap());
    let mut busy = fine();
    busy.disks[0].foreign_job = Some("mirror-1".to_owned());
    for (request, guest, reason, named, retry) in [
        (include("x"), fine(), "DiskNotFound", "a, cd", Retry::OnChange),
        (include("cd"), fine(), "DiskIneligible", "Cdrom", Retry::OnChange),
        (request(), guest(vec![disk("cd", Some(Ineligible::Cdrom))]), "NoEligibleDisk", "cd is Cdrom", Retry::OnChange),
        (request(), guest(vec![]), "NoEligibleDisk", "no disks", Retry::OnChange),
        (request(), migrating, "GuestMigrating", "migrated", Retry::Backoff),
        (request(), stranger, "WrongGuest", "666666666666", Retry::OnChange),
        (request(), busy, "ForeignJob", "mirror-1", Retry::Backoff),
    ] {
        let refusal = choose(&request, &guest, &Graph::new(vec![])).unwrap_err();
        assert_eq!((refusal.reason(), refusal.retry()), (reason, retry));
        assert!(refusal.to_string().contains(named), "{refusal}");
    }
}

#[test]
fn a_job_on_a_disk_that_is_not_stored_is_nobodys_concern() {
    let mut guest = guest(vec![disk("a", None), disk("b", None)]);
    guest.disks[1].foreign_job = Some("mirror-1".to_owned());
    let mut request = request();
    request.disks.exclude = vec!["b".parse().unwrap()];
    assert_eq!(names(&request, &guest), Ok(vec!["a".into()]));
}
