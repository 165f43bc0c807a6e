//! Who is fleeced, with how much, and the word for who is not.

use super::*;
use crate::{
    chain::next::{BackupType, Choice, TypeReason},
    engine::graph::{DiskFacts, fixture},
    qmp::Version,
};

const MIB: u64 = 1 << 20;

fn guest(major: u32, minor: u32, filters: &[&str]) -> GuestFacts {
    let disk = |name: &str, filters: &[&str]| DiskFacts {
        filters: filters.iter().map(|f| (*f).to_owned()).collect(),
        ..fixture::disk(name)
    };
    GuestFacts {
        uuid: None,
        name: None,
        power_state: PowerState::Running,
        version: Version { major, minor, micro: 0, package: String::new() },
        disks: vec![disk("a", filters), disk("b", &[]), disk("left-out", &["copy-on-read"])],
        capabilities: Vec::new(),
        quirks: Vec::new(),
    }
}

fn chosen(sizes: &[u64]) -> Vec<Chosen> {
    let disk = |(name, size): (&str, &u64)| Chosen {
        name: name.parse().unwrap(),
        node: format!("n-{name}"),
        virtual_size: *size,
        persistent: true,
        choice: Choice { kind: BackupType::Full, reason: TypeReason::FirstBackup, base: None },
    };
    ["a", "b"].into_iter().zip(sizes).map(disk).collect()
}

fn always(guest: &GuestFacts, sizes: &[u64], room: Option<u64>) -> Result<Vec<u64>, Unfleeced> {
    decide(RequestedFleecing::Always, guest, &chosen(sizes), true, room)
}

#[test]
fn each_disk_gets_all_it_can_need_or_its_share_of_the_room() {
    let guest = guest(8, 2, &["throttle"]);
    let needed = [100 * MIB, 300 * MIB].map(space::upper_bound);
    assert_eq!(always(&guest, &[100 * MIB, 300 * MIB], Some(1 << 40)), Ok(needed.to_vec()));
    let shares = always(&guest, &[100 * MIB, 300 * MIB], Some(40 * MIB)).unwrap();
    assert!(shares[0] >= 9 * MIB && shares[1] >= 29 * MIB && shares.iter().sum::<u64>() <= 40 * MIB, "{shares:?}");
    assert_eq!(always(&guest, &[512], Some(MIB)), Ok(vec![space::upper_bound(512)]), "a small disk needs little");
}

#[test]
fn every_refusal_has_its_word() {
    let fine = guest(10, 0, &[]);
    let sizes = [100 * MIB];
    let word = |result: Result<Vec<u64>, Unfleeced>| result.unwrap_err().reason();
    assert_eq!(word(decide(RequestedFleecing::Never, &fine, &chosen(&sizes), true, Some(1 << 40))), "NotRequested");
    for (major, minor) in [(6, 0), (7, 2), (8, 1)] {
        assert_eq!(word(always(&guest(major, minor, &[]), &sizes, Some(1 << 40))), "FleecingUnsafe");
    }
    let unsupported = decide(RequestedFleecing::Always, &fine, &chosen(&sizes), false, Some(1 << 40));
    assert_eq!(word(unsupported), "FleecingUnsupported");
    assert_eq!(word(always(&guest(10, 0, &["copy-on-read"]), &sizes, Some(1 << 40))), "CopyOnRead");
    let two = chosen(&[MIB, MIB]);
    let auto =
        |guest: &GuestFacts, chosen: &[Chosen]| decide(RequestedFleecing::Auto, guest, chosen, true, Some(1 << 40));
    assert_eq!(word(auto(&fine, &two)), "SeveralDisks");
    assert!(auto(&fine, &two[..1]).is_ok(), "one disk needs no stop");
    let paused = GuestFacts { power_state: PowerState::Paused, ..fine.clone() };
    assert!(auto(&paused, &two).is_ok(), "it stands still anyway");
    assert_eq!(word(always(&fine, &sizes, None)), "ScratchMissing");
    assert_eq!(word(always(&fine, &sizes, Some(MIB))), "ScratchFull");
    assert_eq!(word(always(&fine, &sizes, Some(0))), "ScratchFull");
}
