//! Conditions as kstatus and `kubectl wait` read them. Pure: the time comes in.
//!
//! Every kind carries `Ready`, `Reconciling` and `Stalled` from its first status on; runs carry `Complete` and
//! `Failed` as well. One function sets them all, so that no kind forgets one.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// True once the object does what it says.
pub const READY: &str = "Ready";
/// True while the controller is still on its way.
pub const RECONCILING: &str = "Reconciling";
/// True when nothing more happens until a person changes something.
pub const STALLED: &str = "Stalled";
/// A run that ended well.
pub const COMPLETE: &str = "Complete";
/// A run that ended without its result.
pub const FAILED: &str = "Failed";
/// A run whose instant has come: what the guest writes from now on is in the next backup. Never goes back.
pub const CHECKPOINT_CREATED: &str = "CheckpointCreated";
/// A run at whose instant the guest's file systems stood still.
pub const QUIESCED: &str = "Quiesced";
/// A run that stands still, by its spec or by people at its host.
pub const SUSPENDED: &str = "Suspended";
/// A repository that takes new points.
pub const WRITABLE: &str = "Writable";
/// A point whose data is in its repository.
pub const AVAILABLE: &str = "Available";
/// A point all of whose parents are there, and are those that it was made on.
pub const CHAIN_INTACT: &str = "ChainIntact";
/// A restore whose every cluster was compared with its stored digest.
pub const VERIFIED: &str = "Verified";

/// The longest message that a condition carries, in bytes (the API's limit is 32768; a message is one sentence or two).
const MESSAGE_LIMIT: usize = 1024;

/// Where an object stands, in kstatus' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Done, or as it should be.
    Ready,
    /// On its way; goes on by itself.
    Reconciling,
    /// As it should not be, and the controller keeps looking whether that has changed.
    NotReady,
    /// Ended, or waiting for a person.
    Stalled,
    /// Nobody can tell, because whoever knows does not answer.
    Unknown,
}

/// Sets one condition; `lastTransitionTime` moves only when `status` changes. Longer messages are cut.
pub fn set(list: &mut Vec<Condition>, kind: &str, status: &str, why: (&str, &str), generation: i64, now: Timestamp) {
    let (reason, message) = why;
    let new = Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: cut(message),
        observed_generation: Some(generation),
        last_transition_time: Time(now),
    };
    match list.iter_mut().find(|c| c.type_ == kind) {
        Some(old) if old.status == new.status => {
            *old = Condition { last_transition_time: old.last_transition_time.clone(), ..new }
        }
        Some(old) => *old = new,
        None => list.push(new),
    }
}

/// Sets `Ready`, `Reconciling` and `Stalled` to what `stage` means, all with the same reason and message.
pub fn set_stage(list: &mut Vec<Condition>, stage: Stage, why: (&str, &str), generation: i64, now: Timestamp) {
    let (ready, reconciling, stalled) = match stage {
        Stage::Ready => ("True", "False", "False"),
        Stage::Reconciling => ("False", "True", "False"),
        Stage::NotReady => ("False", "False", "False"),
        Stage::Stalled => ("False", "False", "True"),
        Stage::Unknown => ("Unknown", "False", "False"),
    };
    set(list, READY, ready, why, generation, now);
    set(list, RECONCILING, reconciling, why, generation, now);
    set(list, STALLED, stalled, why, generation, now);
}

/// The condition of that type.
pub fn find<'a>(list: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    list.iter().find(|c| c.type_ == kind)
}

/// Whether the condition of that type is True.
pub fn is_true(list: &[Condition], kind: &str) -> bool {
    find(list, kind).is_some_and(|c| c.status == "True")
}

fn cut(message: &str) -> String {
    if message.len() <= MESSAGE_LIMIT {
        return message.to_owned();
    }
    let end = (0..=MESSAGE_LIMIT - 4).rev().find(|&i| message.is_char_boundary(i)).unwrap_or(0);
    format!("{} ...", &message[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_transition_time_moves_only_when_the_status_changes() {
        let mut list = vec![];
        set(&mut list, READY, "False", ("Waiting", "a"), 1, at(10));
        set(&mut list, READY, "False", ("Waiting", "b"), 2, at(20));
        assert_eq!(list[0].last_transition_time.0, at(10));
        assert_eq!((list[0].message.as_str(), list[0].observed_generation), ("b", Some(2)));
        set(&mut list, READY, "True", ("Done", ""), 2, at(30));
        assert_eq!(list[0].last_transition_time.0, at(30));
    }

    #[test]
    fn every_stage_sets_all_three_conditions_of_kstatus() {
        for stage in [Stage::Ready, Stage::Reconciling, Stage::NotReady, Stage::Stalled, Stage::Unknown] {
            let mut list = vec![];
            set_stage(&mut list, stage, ("R", "m"), 1, at(1));
            let types: Vec<_> = list.iter().map(|c| c.type_.as_str()).collect();
            assert_eq!(types, [READY, RECONCILING, STALLED]);
            assert_eq!(is_true(&list, READY), stage == Stage::Ready);
        }
    }

    #[test]
    fn a_long_message_is_cut_at_a_whole_character() {
        let mut list = vec![];
        set(&mut list, READY, "False", ("R", &"ä".repeat(2000)), 1, at(1));
        assert!(list[0].message.len() <= MESSAGE_LIMIT && list[0].message.ends_with(" ..."));
    }
}
