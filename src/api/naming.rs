//! Computed names of objects that the controller makes, and the id under which an agent knows a run. Pure.
//!
//! Never random, never over 63 characters, never ambiguous: a readable prefix, cut, and 8 hex digits of a hash over
//! the parts with their lengths, so that `a-b` + `c` is not `a` + `b-c`.

use crate::ids::{GuestId, PointId, RepositoryId};

/// The longest name that is made: it fits a label's value too.
pub const LIMIT: usize = 63;

/// A name from a readable prefix and the parts that make it unique.
pub fn name(prefix: &str, parts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let hash = hex::encode(&hasher.finalize().as_bytes()[..4]);
    let readable: String =
        prefix.to_ascii_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let readable = readable.trim_start_matches('-');
    let cut = readable[..readable.len().min(LIMIT - 9)].trim_end_matches('-');
    if cut.is_empty() { format!("x-{hash}") } else { format!("{cut}-{hash}") }
}

/// The name of a point's object: guest and instant to read, repository, guest and point to be unique.
pub fn restore_point(guest_name: &str, guest: &GuestId, repository: &RepositoryId, point: &PointId) -> String {
    // The guest's part gives way to the instant, without which a list of points tells nothing.
    let mut guest_part: String = guest_name.chars().filter(char::is_ascii).take(LIMIT - 9 - 16).collect();
    guest_part.truncate(guest_part.trim_end_matches(['-', '.']).len());
    let instant = i64::try_from(point.unix_ms())
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| "0".to_owned(), |t| t.strftime("%Y%m%d-%H%M%S").to_string());
    name(&format!("{guest_part}-{instant}"), &[repository.as_str(), guest.as_str(), point.as_str()])
}

/// The id under which an agent knows one try of a run. The first try has the run's own UID; an agent answers a known
/// id with the state that it finds, so a new try needs a new id.
pub fn agent_run(uid: &str, attempt: i32) -> String {
    if attempt <= 1 { uid.to_owned() } else { format!("{uid}-{attempt}") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_that_join_to_the_same_text_give_different_names() {
        assert_ne!(name("x", &["a-b", "c"]), name("x", &["a", "b-c"]));
        assert_ne!(name("x", &["ab", ""]), name("x", &["a", "b"]));
    }

    #[test]
    fn a_point_is_named_by_guest_and_instant() {
        let point = PointId::new(1_700_000_000_000, None, 7);
        let guest = "11111111-2222-3333-4444-555555555555".parse().unwrap();
        let repository = "9f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10".parse().unwrap();
        let text = restore_point("db-1", &guest, &repository, &point);
        assert!(text.starts_with("db-1-20231114-221320-"), "{text}");
        let long = restore_point(&"g".repeat(200), &guest, &repository, &point);
        assert!(long.len() <= LIMIT && long.contains("20231114-221320"), "{long}");
    }

    #[test]
    fn each_try_of_a_run_has_its_own_id_and_the_first_the_runs_own() {
        assert_eq!(agent_run("u", 1), "u");
        assert_eq!(agent_run("u", 2), "u-2");
    }

    proptest! {
        #[test]
        fn every_name_is_one_that_kubernetes_takes(prefix in ".{0,100}", part in ".{0,100}") {
            let text = name(&prefix, &[&part]);
            prop_assert!(text.len() <= LIMIT);
            prop_assert!(text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
            prop_assert!(!text.starts_with('-') && !text.ends_with('-'));
        }
    }
}
