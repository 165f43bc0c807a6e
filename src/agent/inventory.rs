//! What the node's guests are, put together (pure): the files' word, what each monitor said, and what only shows when
//! all are looked at at once, such as two machines of one UUID.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    discover::{Found, GuestKey},
    problem::Problem,
};
use crate::{
    config::GuestFile,
    engine::graph::{GuestFacts, PowerState},
    ids::GuestId,
};

/// What a guest's task knows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// Its identity, from QEMU or from its file.
    pub uuid: Option<GuestId>,
    /// What QEMU said last; nothing when the machine is off.
    pub facts: Option<Arc<GuestFacts>>,
    /// Why it cannot be backed up.
    pub problem: Option<Problem>,
    /// Whether its monitor says that there is no machine.
    pub off: bool,
}

/// One guest as it is told to the controller.
#[derive(Debug, Clone, PartialEq)]
pub struct GuestView {
    /// `namespace/name`.
    pub key: GuestKey,
    /// Its file.
    pub file: Option<Arc<GuestFile>>,
    /// What is known of it.
    pub seen: Seen,
}

/// All guests, and what cannot be used.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Listing {
    /// By key.
    pub guests: Vec<GuestView>,
    /// Files of the host with a problem.
    pub problems: Vec<Problem>,
}

impl Listing {
    /// The guest of that key.
    pub fn guest(&self, key: &str) -> Option<&GuestView> {
        self.guests.iter().find(|guest| guest.key == key)
    }
}

/// Puts the listing together.
pub fn listing(found: &Found, seen: &BTreeMap<GuestKey, Seen>) -> Listing {
    let mut running: BTreeMap<&GuestId, Vec<&str>> = BTreeMap::new();
    for (key, seen) in seen.iter().filter(|(key, seen)| found.guests.contains_key(*key) && counts(seen)) {
        if let Some(uuid) = &seen.uuid {
            running.entry(uuid).or_default().push(key);
        }
    }
    let single = found.guests.iter().map(|(key, (_, file))| {
        // Without a word a guest that nobody has looked at would pass for a healthy one without disks.
        let unseen = || Seen { problem: Some(Problem::not_seen_yet(key)), ..Seen::default() };
        let mut seen = seen.get(key).cloned().unwrap_or_else(unseen);
        let twins = seen.uuid.as_ref().filter(|_| counts(&seen)).and_then(|uuid| running.get_key_value(uuid));
        if let Some((uuid, keys)) = twins.filter(|(_, keys)| keys.len() > 1) {
            let others: Vec<&str> = keys.iter().copied().filter(|other| other != key).collect();
            seen.problem = Some(Problem::duplicate_uuid(key, uuid, &others));
        }
        GuestView { key: key.clone(), file: Some(file.clone()), seen }
    });
    let doubled = found.doubled.iter().map(|(key, files)| {
        let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
        let problem = Some(Problem::duplicate_name(key, &files));
        GuestView { key: key.clone(), file: None, seen: Seen { problem, ..Seen::default() } }
    });
    let mut guests: Vec<GuestView> = single.chain(doubled).collect();
    guests.sort_by(|a, b| a.key.cmp(&b.key));
    Listing { guests, problems: found.problems.clone() }
}

/// Whether a machine counts when doubles of a UUID are looked for: the two ends of a migration are one machine.
fn counts(seen: &Seen) -> bool {
    seen.facts.as_ref().is_some_and(|facts| !matches!(facts.power_state, PowerState::Migrating | PowerState::Off))
}

#[cfg(test)]
mod tests;
