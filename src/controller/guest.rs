//! Kind Guest: from what the agents see to objects that people see. The objects are views; backups go by the
//! inventory. The decision is `plan`, the status is `report`; this file observes and acts.

use std::{sync::Arc, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    ResourceExt,
    core::ObjectMeta,
    runtime::{controller::Action, events::EventType},
};

use super::{context::Context, error::Error, run, write};
use crate::{
    api::{
        Guest, GuestSpec,
        condition::{self, READY},
        guest::LastRestorePoint,
        words::{self, Reason},
    },
    rpc::v1,
};

pub mod plan;
pub mod report;

use plan::{End, Node, Owner, Plan, World};

/// How often a guest is looked at without a reason.
const RESYNC: Duration = Duration::from_secs(600);
/// The same where its agent is away: nobody tells of Nodes that come and go.
const LOOK: Duration = Duration::from_secs(60);

/// What is known about the guest of this name, without asking anybody.
pub fn observe(context: &Context, namespace: &str, name: &str, object: Option<&Guest>) -> World {
    let now = context.now();
    let status = object.and_then(|guest| guest.status.as_ref());
    let had = status.map(|s| s.node.clone()).unwrap_or_default();
    let claims = context.inventory.claims(namespace, name, now);
    let node = claims.first().map_or(had.as_str(), |(node, _)| node.as_str());
    let agent_answers = context.inventory.node(node).is_some_and(|v| v.connected);
    let uuid = claims.first().map(|(_, g)| g.uuid.clone()).unwrap_or_default();
    let doubles = if uuid.is_empty() { vec![] } else { context.inventory.doubles(&uuid, namespace, name, now) };
    let trouble = context.inventory.trouble(node);
    let ready = status.and_then(|s| condition::find(&s.conditions, READY));
    let gone_since = ready.filter(|c| c.reason == Reason::NodeGone.as_str()).map(|c| c.last_transition_time.0);
    // An agent in the directory may be one that has only just come back.
    let node = if context.agents.get(node).is_some() { Node::There } else { Node::Unknown };
    let going = if claims.is_empty() && gone_since.is_some() { going(context, namespace, name) } else { None };
    let owner = object.map(owner).unwrap_or_default();
    let forget_after = context.forget_guests_after;
    World { claims, doubles, had, agent_answers, trouble, node, gone_since, forget_after, owner, going }
}

/// A BackupRun of the guest that has not ended.
fn going(context: &Context, namespace: &str, name: &str) -> Option<String> {
    let of_guest = |r: &crate::api::BackupRun| {
        let ended = run::is_settled(r) || run::is_let_go(r);
        r.spec.guest_ref.name == name && r.metadata.namespace.as_deref() == Some(namespace) && !ended
    };
    context.runs.find(of_guest).iter().map(ResourceExt::name_any).min()
}

fn owner(guest: &Guest) -> Owner {
    if guest.metadata.deletion_timestamp.is_some() {
        return Owner::Deleted;
    }
    let manager = guest.labels().get(words::LABEL_MANAGED_BY);
    if manager.is_some_and(|m| m == words::MANAGED_BY) { Owner::Controller } else { Owner::Somebody }
}

/// When to look again without news.
fn next_look(plan: &Plan, now: jiff::Timestamp) -> Duration {
    match plan {
        Plan::NodeGone { end: End::At(due), .. } => super::since(now, *due).clamp(Duration::from_secs(1), LOOK),
        Plan::NodeGone { end: End::After(_) | End::Stays | End::Deleted, .. }
        | Plan::Forget { .. }
        | Plan::AgentUnavailable(_) => LOOK,
        Plan::Discovered
        | Plan::NotDiscovered
        | Plan::Vanished
        | Plan::ClaimedTwice(_)
        | Plan::DuplicateUuid(_)
        | Plan::PoweredOff(_)
        | Plan::Problem { .. } => RESYNC,
    }
}

/// Brings one Guest's status up to date, and deletes the object of one whose node has long been gone.
///
/// # Errors
/// When the API server does not take the status, or refuses to delete.
pub async fn reconcile(context: Arc<Context>, guest: Arc<Guest>) -> Result<Action, Error> {
    let namespace = guest.metadata.namespace.clone().unwrap_or_default();
    let name = guest.metadata.name.clone().unwrap_or_default();
    let mut world = observe(&context, &namespace, &name, Some(&guest));
    let away = world.claims.is_empty() && !world.had.is_empty() && !world.agent_answers;
    if away && world.node == Node::Unknown && !context.is_young() {
        world.node = context.nodes.look_up(&context, &world.had).await;
    }
    let now = context.now();
    let plan = plan::plan(&world, now);
    let may_be_heard = match plan {
        Plan::NotDiscovered | Plan::AgentUnavailable(_) | Plan::NodeGone { .. } | Plan::Forget { .. } => true,
        Plan::Discovered
        | Plan::Vanished
        | Plan::ClaimedTwice(_)
        | Plan::DuplicateUuid(_)
        | Plan::PoweredOff(_)
        | Plan::Problem { .. } => false,
    };
    if context.is_young() && may_be_heard {
        return Ok(Action::requeue(Duration::from_secs(1)));
    }
    tracing::debug!(namespace, guest = name, ?plan, "Guest");
    if let Plan::Forget { node, .. } = &plan {
        return forget(&context, &guest, node).await;
    }
    let uuid = world
        .claims
        .first()
        .map_or_else(|| guest.status.as_ref().map(|s| s.uuid.clone()).unwrap_or_default(), |(_, g)| g.uuid.clone());
    let last = context.catalogue.newest(&namespace, &uuid).and_then(|((namespace, name), point)| {
        let checkpoint_time = Time(super::time(point.checkpoint_time)?);
        Some(LastRestorePoint { name, namespace, checkpoint_time })
    });
    let status = report::report(&plan, &world, guest.status.as_ref(), last, guest.metadata.generation, now);
    write::status(&context, &mut guest.as_ref().clone(), &status, "Discover").await?;
    Ok(Action::requeue(next_look(&plan, now)))
}

/// Deletes the object as it was read. What was changed meanwhile is looked at anew.
async fn forget(context: &Context, guest: &Guest, node: &str) -> Result<Action, Error> {
    if write::delete_unchanged(context, guest).await? {
        tracing::info!(guest = write::full_name(&guest.metadata), node, "The Guest of a node that is gone was deleted");
        let note = format!(
            "The Guest was deleted, because node {node} is no longer in the cluster and no other node has the guest. Its restore points stay; where an agent has the guest again, the Guest is made anew."
        );
        write::event(context, guest, EventType::Normal, Reason::Forgotten.as_str(), "Forget", &note).await;
    }
    Ok(Action::requeue(LOOK))
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
