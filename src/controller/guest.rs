//! Kind Guest: from what the agents see to objects that people see. The objects are views; backups go by the
//! inventory.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{core::ObjectMeta, runtime::controller::Action};
use serde::Serialize;

use super::{context::Context, error::Error, write};
use crate::{
    api::{
        Guest, GuestSpec, GuestStatus,
        condition::{self, Stage},
        guest::{DiskBitmap, GuestDisk, LastRestorePoint},
        words::{self, Reason},
    },
    rpc::v1,
};

/// How often a guest is looked at without a reason.
const RESYNC: Duration = Duration::from_secs(600);

/// What is known about a guest.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Who says that it has the guest, and what it says.
    pub claims: Vec<(String, v1::Guest)>,
    /// Other guests with its UUID.
    pub doubles: Vec<String>,
    /// The node that had it, by the status of the object.
    pub had: String,
    /// Whether the agent answers that has it, or had it.
    pub agent_answers: bool,
    /// Why it could not be talked to at the last attempt.
    pub trouble: String,
}

/// What to show.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Plan {
    /// It can be backed up.
    Discovered,
    /// Nobody ever had it.
    NotDiscovered,
    /// The node that had it no longer does.
    Vanished,
    /// Its agent does not answer, with why it could not be talked to.
    AgentUnavailable(String),
    /// Several nodes say that they have it.
    ClaimedTwice(Vec<String>),
    /// Another guest has its UUID.
    DuplicateUuid(Vec<String>),
    /// It does not run, with what its agent sees.
    PoweredOff(String),
    /// Its agent says what is wrong with it.
    Problem {
        /// The agent's word.
        reason: String,
        /// The agent's sentence.
        message: String,
    },
}

/// Decides what to show; time plays no part.
pub fn plan(world: &World) -> Plan {
    let guest = match world.claims.as_slice() {
        [] if world.had.is_empty() => return Plan::NotDiscovered,
        [] if world.agent_answers => return Plan::Vanished,
        [] => return Plan::AgentUnavailable(world.trouble.clone()),
        [(_, guest)] => guest,
        several => return Plan::ClaimedTwice(several.iter().map(|(node, _)| node.clone()).collect()),
    };
    if !world.agent_answers {
        return Plan::AgentUnavailable(world.trouble.clone());
    }
    if !guest.uuid.is_empty() && !world.doubles.is_empty() {
        return Plan::DuplicateUuid(world.doubles.clone());
    }
    match (&guest.problem, guest.power_state()) {
        // Nobody listens on its monitor.
        (Some(problem), v1::PowerState::Off) if problem.reason == "QMPUnreachable" => {
            Plan::PoweredOff(problem.message.clone())
        }
        (Some(problem), _) => Plan::Problem { reason: problem.reason.clone(), message: problem.message.clone() },
        (None, v1::PowerState::Off) => {
            Plan::PoweredOff("The guest does not run: start it to have it backed up.".to_owned())
        }
        (
            None,
            v1::PowerState::Unspecified
            | v1::PowerState::Running
            | v1::PowerState::Paused
            | v1::PowerState::IoError
            | v1::PowerState::Migrating,
        ) => Plan::Discovered,
    }
}

/// Why a guest is as it is: stage, reason, message.
pub fn words(plan: &Plan) -> (Stage, String, String) {
    let (stage, reason, message) = match plan {
        Plan::Discovered => (Stage::Ready, Reason::Discovered, "An agent sees the guest and can back it up.".to_owned()),
        Plan::NotDiscovered => (
            Stage::Stalled,
            Reason::NotDiscovered,
            "No agent has a host file for this guest. Guests are made by the controller: add a file to guests.d on its node, and delete this object if it was made by hand.".to_owned(),
        ),
        Plan::Vanished => (
            Stage::NotReady,
            Reason::Vanished,
            "The node that had this guest no longer has a host file for it. Delete this object if the guest is gone for good; its restore points stay.".to_owned(),
        ),
        Plan::AgentUnavailable(trouble) => {
            let why = if trouble.is_empty() { String::new() } else { format!(" ({trouble})") };
            let message = format!(
                "The agent of the guest's node does not answer{why}: see whether its pod runs, and whether its certificate names the node. What is shown is what it said last."
            );
            (Stage::Unknown, Reason::AgentUnavailable, message)
        }
        Plan::ClaimedTwice(nodes) => (
            Stage::Stalled,
            Reason::ClaimedTwice,
            format!("Host files on the nodes {} name this guest: remove all but one of them.", nodes.join(", ")),
        ),
        Plan::DuplicateUuid(others) => (
            Stage::Stalled,
            Reason::DuplicateUUID,
            format!("Other guests have the same UUID ({}): start QEMU with a -uuid of its own.", others.join(", ")),
        ),
        Plan::PoweredOff(message) => (Stage::NotReady, Reason::GuestPoweredOff, message.clone()),
        Plan::Problem { reason, message } => return (Stage::NotReady, reason.clone(), message.clone()),
    };
    (stage, reason.as_str().to_owned(), message)
}

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
        virtual_size: super::signed(disk.virtual_size),
        eligible: disk.eligible,
        ineligible_reason: disk.ineligible_reason.clone(),
        bitmaps: bitmaps
            .map(|b| DiskBitmap { name: b.name.clone(), bytes: super::signed(b.bytes), ours: b.ours })
            .collect(),
    }
}

/// What is known about the guest of this name, which `had` says to have been on a node.
pub fn observe(context: &Context, namespace: &str, name: &str, had: &str) -> World {
    let now = context.now();
    let claims = context.inventory.claims(namespace, name, now);
    let node = claims.first().map_or(had, |(node, _)| node.as_str());
    let agent_answers = context.inventory.node(node).is_some_and(|v| v.connected);
    let uuid = claims.first().map(|(_, g)| g.uuid.clone()).unwrap_or_default();
    let doubles = if uuid.is_empty() { vec![] } else { context.inventory.doubles(&uuid, namespace, name, now) };
    let trouble = context.inventory.trouble(node);
    World { claims, doubles, had: had.to_owned(), agent_answers, trouble }
}

/// Brings one Guest's status up to date.
///
/// # Errors
/// When the API server does not take the status.
pub async fn reconcile(context: Arc<Context>, guest: Arc<Guest>) -> Result<Action, Error> {
    let namespace = guest.metadata.namespace.clone().unwrap_or_default();
    let name = guest.metadata.name.clone().unwrap_or_default();
    let had = guest.status.as_ref().map(|s| s.node.clone()).unwrap_or_default();
    let world = observe(&context, &namespace, &name, &had);
    let plan = plan(&world);
    if context.is_young() && matches!(plan, Plan::NotDiscovered | Plan::AgentUnavailable(_)) {
        return Ok(Action::requeue(Duration::from_secs(1)));
    }
    tracing::debug!(namespace, guest = name, ?plan, "Guest");
    let uuid = world
        .claims
        .first()
        .map_or_else(|| guest.status.as_ref().map(|s| s.uuid.clone()).unwrap_or_default(), |(_, g)| g.uuid.clone());
    let last = context.catalogue.newest(&namespace, &uuid).and_then(|((namespace, name), point)| {
        let checkpoint_time = Time(super::time(point.checkpoint_time)?);
        Some(LastRestorePoint { name, namespace, checkpoint_time })
    });
    let status = report(&plan, &world, guest.status.as_ref(), last, guest.metadata.generation, context.now());
    write::status(&context, &mut guest.as_ref().clone(), &status, "Discover").await?;
    Ok(Action::requeue(RESYNC))
}

/// Makes the Guest object of what an agent sees, or sets its labels.
///
/// # Errors
/// When the API server does not take it, above all when the namespace is not there.
pub async fn ensure(context: &Context, said: &v1::Guest) -> Result<(), Error> {
    let mut labels: std::collections::BTreeMap<_, _> = said.labels.clone().into_iter().collect();
    labels.insert(words::LABEL_MANAGED_BY.to_owned(), words::MANAGED_BY.to_owned());
    if let Some(there) = context.guests.get(&said.namespace, &said.name) {
        let has = there.metadata.labels.unwrap_or_default();
        let same = labels.iter().all(|(key, value)| has.get(key) == Some(value));
        // A label that is no longer in the file goes only with an apply; after a start it is not known which were.
        let applied = context.inventory.labels(said);
        if same && (applied.as_ref() == Some(&labels) || has.len() == labels.len()) {
            return Ok(());
        }
    }
    let mut guest = Guest::new(&said.name, GuestSpec {});
    guest.metadata = ObjectMeta {
        namespace: Some(said.namespace.clone()),
        name: Some(said.name.clone()),
        labels: Some(labels.clone()),
        ..ObjectMeta::default()
    };
    write::apply(context, &guest).await?;
    context.inventory.set_labels(said, labels);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(guest: v1::Guest) -> World {
        World { claims: vec![("n1".to_owned(), guest)], agent_answers: true, ..World::default() }
    }

    fn running() -> v1::Guest {
        v1::Guest { uuid: "u".to_owned(), power_state: v1::PowerState::Running.into(), ..v1::Guest::default() }
    }

    #[test]
    fn a_guest_made_by_hand_is_not_discovered() {
        assert_eq!(plan(&World::default()), Plan::NotDiscovered);
    }

    #[test]
    fn a_forged_status_of_a_guest_made_by_hand_does_not_stay() {
        let old = GuestStatus { uuid: "u".to_owned(), qemu_version: "9".to_owned(), ..GuestStatus::default() };
        let status = report(&Plan::NotDiscovered, &World::default(), Some(&old), None, Some(1), Timestamp::UNIX_EPOCH);
        assert!(status.uuid.is_empty() && status.qemu_version.is_empty());
        assert_eq!(condition::find(&status.conditions, "Ready").unwrap().reason, "NotDiscovered");
    }

    #[test]
    fn a_guest_whose_file_is_gone_has_vanished_and_one_whose_agent_is_gone_is_unknown() {
        let had = World { had: "n1".to_owned(), agent_answers: true, ..World::default() };
        assert_eq!(plan(&had), Plan::Vanished);
        assert_eq!(plan(&World { agent_answers: false, ..had }), Plan::AgentUnavailable(String::new()));
        let silent =
            World { agent_answers: false, trouble: "its certificate is another's".to_owned(), ..seen(running()) };
        let (_, reason, message) = words(&plan(&silent));
        assert_eq!(reason, "AgentUnavailable");
        assert!(message.contains("(its certificate is another's)"), "{message}");
    }

    #[test]
    fn a_name_or_a_uuid_on_two_nodes_is_refused() {
        let mut world = seen(running());
        assert_eq!(plan(&world), Plan::Discovered);
        world.doubles = vec!["n2: b/x".to_owned()];
        assert_eq!(plan(&world), Plan::DuplicateUuid(vec!["n2: b/x".to_owned()]));
        world.claims.push(("n2".to_owned(), running()));
        assert_eq!(plan(&world), Plan::ClaimedTwice(vec!["n1".to_owned(), "n2".to_owned()]));
    }

    #[test]
    fn the_agents_own_reason_is_shown() {
        let problem =
            v1::Problem { subject: "s".into(), reason: "MonitorBusy".into(), message: "Another client".into() };
        let plan = plan(&seen(v1::Guest { problem: Some(problem), ..running() }));
        assert_eq!(words(&plan), (Stage::NotReady, "MonitorBusy".to_owned(), "Another client".to_owned()));
    }

    #[test]
    fn a_guest_that_does_not_run_is_not_ready() {
        let off = v1::Guest { power_state: v1::PowerState::Off.into(), ..running() };
        assert!(matches!(plan(&seen(off)), Plan::PoweredOff(_)));
    }

    #[test]
    fn a_monitor_that_does_not_answer_takes_no_identity_away() {
        let old = report(&Plan::Discovered, &seen(running()), None, None, Some(1), Timestamp::UNIX_EPOCH);
        let silent = seen(v1::Guest::default());
        let new = report(&Plan::Discovered, &silent, Some(&old), None, Some(1), Timestamp::UNIX_EPOCH);
        assert_eq!(new.uuid, "u");
    }
}
