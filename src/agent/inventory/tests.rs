//! What only shows when all guests are looked at at once.

use super::*;
use crate::qmp::Version;

fn file(name: &str) -> (PathBuf, Arc<GuestFile>) {
    let text = format!("name = {name:?}\nnamespace = \"t\"\nqmp = \"/run/{name}\"\n");
    (PathBuf::from(format!("/g/{name}.toml")), Arc::new(toml::from_str(&text).unwrap()))
}

fn running(uuid: &str, power_state: PowerState) -> Seen {
    let facts = GuestFacts {
        uuid: uuid.parse().ok(),
        name: None,
        power_state,
        version: Version { major: 7, minor: 2, micro: 0, package: String::new() },
        disks: Vec::new(),
        capabilities: Vec::new(),
        quirks: Vec::new(),
    };
    Seen { uuid: uuid.parse().ok(), facts: Some(Arc::new(facts)), problem: None, off: false }
}

const ONE: &str = "11111111-1111-4111-8111-111111111111";
const TWO: &str = "22222222-2222-4222-8222-222222222222";

fn reasons(guests: &[(&str, Seen)]) -> Vec<Option<&'static str>> {
    let found = Found { guests: guests.iter().map(|(n, _)| (format!("t/{n}"), file(n))).collect(), ..Found::default() };
    let seen = guests.iter().map(|(n, seen)| (format!("t/{n}"), seen.clone())).collect();
    listing(&found, &seen).guests.into_iter().map(|guest| guest.seen.problem.map(|p| p.reason)).collect()
}

#[test]
fn two_running_machines_of_one_uuid_are_both_refused_with_the_reason() {
    let guests = [
        ("a", running(ONE, PowerState::Running)),
        ("b", running(ONE, PowerState::Paused)),
        ("c", running(TWO, PowerState::Running)),
    ];
    assert_eq!(reasons(&guests), [Some("DuplicateUUID"), Some("DuplicateUUID"), None]);
}

#[test]
fn the_two_ends_of_a_migration_are_no_double() {
    let guests = [("a", running(ONE, PowerState::Running)), ("b", running(ONE, PowerState::Migrating))];
    assert_eq!(reasons(&guests), [None, None]);
}

#[test]
fn a_machine_that_is_off_is_no_double() {
    let off = Seen { uuid: ONE.parse().ok(), facts: None, problem: None, off: true };
    assert_eq!(reasons(&[("a", running(ONE, PowerState::Running)), ("b", off)]), [None, None]);
}

#[test]
fn a_guest_that_several_files_name_is_shown_with_the_files() {
    let files = vec![PathBuf::from("/g/x.toml"), PathBuf::from("/g/y.toml")];
    let found = Found { doubled: BTreeMap::from([("t/a".to_owned(), files)]), ..Found::default() };
    let guests = listing(&found, &BTreeMap::new()).guests;
    let problem = guests[0].seen.problem.as_ref().unwrap();
    assert_eq!(problem.reason, "DuplicateName");
    assert!(problem.message.contains("/g/x.toml, /g/y.toml"), "{}", problem.message);
}
