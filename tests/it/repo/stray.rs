//! What stands among the guests' folders and is none, or cannot be opened, hides no other guest, and is never taken
//! for a guest without points.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, fs::symlink},
};

use driftline::{
    chain::finding::{Finding, Kind, Severity},
    ids::GuestId,
    repo::{Repository, check},
};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::support::{Place, commit, guest};

const OTHER: &str = "00000000-9a51-4c7e-8f2b-0d9f2f6f3a12";

fn other() -> GuestId {
    OTHER.parse().unwrap()
}

fn place_with_point() -> (Place, Repository) {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    commit(&place, &repository, 1, 1 << 20, None, &[]);
    (place, repository)
}

fn kinds(findings: &[Finding]) -> Vec<(Severity, Kind)> {
    findings.iter().map(|finding| (finding.severity, finding.kind)).collect()
}

#[test]
fn entries_that_are_no_guests_folder_are_told_and_hide_no_guest() {
    let (place, repository) = place_with_point();
    let guests = place.path.join("guests");
    fs::write(guests.join(OTHER), b"x").unwrap();
    fs::write(guests.join("notes.txt"), b"x").unwrap();
    fs::create_dir(guests.join("0F0C7E1E-9A51-4C7E-8F2B-0D9F2F6F3A10")).unwrap();
    symlink("/", guests.join("0f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10")).unwrap();
    assert_eq!(repository.guests().unwrap(), [guest()]);
    let found = check::verify(&repository, None, None, &mut |_| (), &Default::default()).unwrap();
    assert_eq!(kinds(&found), [(Severity::Notice, Kind::UnknownFile); 4], "{found:#?}");
    assert_eq!(repository.points(&guest()).unwrap().len(), 1);
    // Asked for that very guest, it is no guest without points.
    repository.points(&other()).unwrap_err();
    repository.next_sequence(&other()).unwrap_err();
    check::verify(&repository, Some(&other()), None, &mut |_| (), &Default::default()).unwrap_err();
}

#[test]
fn a_guests_folder_that_cannot_be_opened_is_damage_of_that_guest_alone() {
    let (place, repository) = place_with_point();
    let closed = place.path.join("guests").join(OTHER);
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    // Root opens everything; this thread, which is the test's alone, no longer does.
    let mut sets = capabilities(None).unwrap();
    sets.effective.remove(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
    set_capabilities(None, sets).unwrap();
    assert_eq!(repository.points(&other()).unwrap_err().reason(), "RepositoryAccessDenied");
    repository.next_sequence(&other()).unwrap_err();
    let found = check::verify(&repository, None, None, &mut |_| (), &Default::default()).unwrap();
    assert_eq!(kinds(&found), [(Severity::Damage, Kind::Unchecked)], "{found:#?}");
    assert_eq!(found[0].guest, Some(other()));
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
}
