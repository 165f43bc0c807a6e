//! A Guest's status (pure): what its agent says of it, and what the plan is.

use jiff::Timestamp;

use super::plan::{Plan, World, words};
use crate::{
    api::{
        GuestStatus, condition,
        guest::{DiskBitmap, GuestDisk, LastRestorePoint},
    },
    controller::{begin_to_wait, signed},
    rpc::v1,
};

/// The status from what is known. Where nobody answers, what was said last stays.
pub fn report(
    plan: &Plan,
    world: &World,
    old: Option<&GuestStatus>,
    last: Option<LastRestorePoint>,
    generation: Option<i64>,
    now: Timestamp,
) -> GuestStatus {
    let mut status = match (plan, world.claims.as_slice()) {
        (Plan::NotDiscovered, _) => {
            GuestStatus { conditions: old.map(|o| o.conditions.clone()).unwrap_or_default(), ..GuestStatus::default() }
        }
        (_, [(node, guest)]) => facts(node, guest, old),
        (_, _) => old.cloned().unwrap_or_default(),
    };
    if *plan != Plan::NotDiscovered {
        status.last_restore_point = last.or(status.last_restore_point);
    }
    status.observed_generation = generation;
    let (stage, reason, message) = words(plan);
    if matches!(plan, Plan::NodeGone { .. } | Plan::Forget { .. }) {
        // From now on its time counts, also where it was not ready before.
        begin_to_wait(&mut status.conditions, &reason, now);
    }
    condition::set_stage(&mut status.conditions, stage, (&reason, &message), generation.unwrap_or(0), now);
    status
}

fn facts(node: &str, guest: &v1::Guest, old: Option<&GuestStatus>) -> GuestStatus {
    let disks: Vec<_> = guest.disks.iter().map(disk).collect();
    let eligible = disks.iter().filter(|d| d.eligible).count();
    let known = |new: &str, old: Option<&String>| {
        if new.is_empty() { old.cloned().unwrap_or_default() } else { new.to_owned() }
    };
    GuestStatus {
        conditions: old.map(|o| o.conditions.clone()).unwrap_or_default(),
        last_restore_point: old.and_then(|o| o.last_restore_point.clone()),
        // A monitor that does not answer takes away neither the identity nor the disks that were known.
        uuid: known(&guest.uuid, old.map(|o| &o.uuid)),
        qemu_version: known(&guest.qemu_version, old.map(|o| &o.qemu_version)),
        node: node.to_owned(),
        power_state: match guest.power_state() {
            v1::PowerState::Unspecified => String::new(),
            v1::PowerState::Running => "Running".to_owned(),
            v1::PowerState::Paused => "Paused".to_owned(),
            v1::PowerState::Off => "Off".to_owned(),
            v1::PowerState::IoError => "IOError".to_owned(),
            v1::PowerState::Migrating => "Migrating".to_owned(),
        },
        connection: match guest.connection() {
            v1::Connection::Unspecified => String::new(),
            v1::Connection::Qmp => "QMP".to_owned(),
        },
        capabilities: guest.capabilities.clone(),
        quirks: guest.quirks.clone(),
        eligible_disks: if disks.is_empty() { String::new() } else { format!("{eligible}/{}", disks.len()) },
        disks,
        observed_generation: None,
    }
}

fn disk(disk: &v1::Disk) -> GuestDisk {
    let bitmaps = disk.bitmaps.iter();
    GuestDisk {
        name: disk.name.clone(),
        qdev: disk.qdev.clone(),
        node_name: disk.node_name.clone(),
        driver: disk.driver.clone(),
        format: disk.format.clone(),
        file: disk.file.clone(),
        virtual_size: signed(disk.virtual_size),
        eligible: disk.eligible,
        ineligible_reason: disk.ineligible_reason.clone(),
        bitmaps: bitmaps.map(|b| DiskBitmap { name: b.name.clone(), bytes: signed(b.bytes), ours: b.ours }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::guest::plan::End;

    fn seen(guest: v1::Guest) -> World {
        World { claims: vec![("n1".to_owned(), guest)], agent_answers: true, ..World::default() }
    }

    fn running() -> v1::Guest {
        v1::Guest { uuid: "u".to_owned(), power_state: v1::PowerState::Running.into(), ..v1::Guest::default() }
    }

    #[test]
    fn a_forged_status_of_a_guest_made_by_hand_does_not_stay() {
        let old = GuestStatus { uuid: "u".to_owned(), qemu_version: "9".to_owned(), ..GuestStatus::default() };
        let status = report(&Plan::NotDiscovered, &World::default(), Some(&old), None, Some(1), Timestamp::UNIX_EPOCH);
        assert!(status.uuid.is_empty() && status.qemu_version.is_empty());
        assert_eq!(condition::find(&status.conditions, "Ready").unwrap().reason, "NotDiscovered");
    }

    #[test]
    fn a_monitor_that_does_not_answer_takes_no_identity_away() {
        let old = report(&Plan::Discovered, &seen(running()), None, None, Some(1), Timestamp::UNIX_EPOCH);
        let silent = seen(v1::Guest::default());
        let new = report(&Plan::Discovered, &silent, Some(&old), None, Some(1), Timestamp::UNIX_EPOCH);
        assert_eq!(new.uuid, "u");
    }

    #[test]
    fn the_condition_says_since_when_the_node_is_gone_whatever_was_shown_before() {
        let at = |second| Timestamp::from_second(second).unwrap();
        for before in [Plan::Vanished, Plan::AgentUnavailable(String::new()), Plan::Discovered] {
            let mut status = report(&before, &seen(running()), None, None, Some(1), at(10));
            for second in [20, 30] {
                let gone = Plan::NodeGone { node: "n1".to_owned(), since: at(20), end: End::At(at(99)) };
                status = report(&gone, &World::default(), Some(&status), None, Some(1), at(second));
            }
            let ready = condition::find(&status.conditions, "Ready").unwrap();
            assert_eq!((ready.reason.as_str(), ready.last_transition_time.0), ("NodeGone", at(20)), "{before:?}");
            assert!(condition::is_true(&status.conditions, "Stalled"));
            assert_eq!(status.uuid, "u", "what was known stays readable");
        }
    }
}
