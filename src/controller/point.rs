//! Kind RestorePoint: views of what repositories hold. Objects are made from the catalogue and come back when they are
//! deleted; deleting one deletes no data, and one that the catalogue does not know shows that and does nothing.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{ResourceExt, core::ObjectMeta, runtime::controller::Action, runtime::events::EventType};
use serde::Serialize;

use super::{
    catalogue::{PointName, Shelf},
    context::Context,
    error::Error,
    write,
};
use crate::{
    api::{
        BackupRepository, Guest, RestorePoint, RestorePointSpec, RestorePointStatus,
        condition::{self, Stage},
        naming,
        point::{Chain, PointGuest, StoredDisk},
        quantity,
        run::RepositoryRef,
        words::{self, Reason},
    },
    rpc::v1,
    sentence::sentence,
};

#[cfg(test)]
mod tests;

/// How often a point is looked at without a reason.
const RESYNC: Duration = Duration::from_secs(1800);

/// How soon a point is looked at again whose repository has not been listed yet.
const SOON: Duration = Duration::from_secs(10);

/// Why a repository's points are not known now.
#[derive(Debug, Clone, PartialEq)]
pub enum Unknown {
    /// It has not been listed since this controller started.
    NotListed(String),
    /// It is not there, or cannot be used.
    Unusable(String),
}

/// What to show.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Plan {
    /// What an earlier controller showed is the best that is known, until the repository is listed.
    Keep,
    /// The repository's points are not known now, with why.
    Unknown(String),
    /// The repository holds no such point for this namespace and name.
    NotInRepository,
    /// The controller made the object, and the repository no longer lists its point.
    NoLongerInRepository,
    /// It does, but a parent is missing; with the agent's words.
    ChainBroken(String),
    /// All is there.
    Available,
}

/// Decides what to show. `unknown`: why the repository's points are not known now; `shown`: whether there is a status;
/// `ours`: whether the controller made the object.
pub fn plan(
    unknown: Option<Unknown>,
    (shown, ours): (bool, bool),
    spec: &RestorePointSpec,
    point: Option<&v1::Point>,
) -> Plan {
    match unknown {
        Some(Unknown::NotListed(_)) if shown => return Plan::Keep,
        Some(Unknown::NotListed(why) | Unknown::Unusable(why)) => return Plan::Unknown(why),
        None => {}
    }
    match point {
        Some(point) if point.id == spec.point_id && !point.chain_intact => {
            Plan::ChainBroken(point.chain_problem.clone())
        }
        Some(point) if point.id == spec.point_id => Plan::Available,
        Some(_) | None if ours => Plan::NoLongerInRepository,
        Some(_) | None => Plan::NotInRepository,
    }
}

/// The status from what the repository holds.
pub fn report(
    plan: &Plan,
    point: Option<&v1::Point>,
    old: Option<&RestorePointStatus>,
    generation: Option<i64>,
    now: Timestamp,
) -> RestorePointStatus {
    let mut status = match (plan, point) {
        (Plan::Available | Plan::ChainBroken(_), Some(point)) => facts(point),
        (Plan::NotInRepository | Plan::NoLongerInRepository, _) => RestorePointStatus::default(),
        (Plan::Keep | Plan::Unknown(_) | Plan::Available | Plan::ChainBroken(_), _) => old.cloned().unwrap_or_default(),
    };
    status.conditions = old.map(|o| o.conditions.clone()).unwrap_or_default();
    status.observed_generation = generation;
    let observed = generation;
    let generation = generation.unwrap_or(0);
    let (stage, available, chain, reason, message) = match plan {
        Plan::Keep => {
            super::seen(&mut status.conditions, observed);
            return status;
        }
        Plan::Unknown(why) => (Stage::Unknown, "Unknown", "Unknown", Reason::RepositoryUnknown, why.clone()),
        Plan::NotInRepository => (
            Stage::Stalled,
            "False",
            "Unknown",
            Reason::NotInRepository,
            "The repository holds no such point under this name. RestorePoints are made by the controller; one made by hand does nothing and can be deleted.".to_owned(),
        ),
        Plan::NoLongerInRepository => (
            Stage::Stalled,
            "False",
            "Unknown",
            Reason::NotInRepository,
            "The repository holds the point no longer, or its manifest is damaged: `driftline verify` on the node tells which. If the point is gone for good, delete this object.".to_owned(),
        ),
        Plan::ChainBroken(problem) => (Stage::Stalled, "True", "False", Reason::ChainBroken, problem.clone()),
        Plan::Available => (
            Stage::Ready,
            "True",
            "True",
            Reason::InRepository,
            "The repository holds the point and all that it builds on.".to_owned(),
        ),
    };
    let why = (reason.as_str(), message.as_str());
    condition::set(&mut status.conditions, condition::AVAILABLE, available, why, generation, now);
    condition::set(&mut status.conditions, condition::CHAIN_INTACT, chain, why, generation, now);
    condition::set_stage(&mut status.conditions, stage, why, generation, now);
    status
}

fn facts(point: &v1::Point) -> RestorePointStatus {
    let stored = point.disks.iter().map(|d| d.stored_bytes).sum();
    RestorePointStatus {
        observed_generation: None,
        conditions: vec![],
        checkpoint_time: super::time(point.checkpoint_time).map(Time),
        backup_type: super::backup_type(point.r#type()).to_owned(),
        consistency: point.consistency.clone(),
        sequence: Some(super::signed(point.sequence)),
        manifest_digest: point.manifest_digest.clone(),
        size: quantity::show(stored),
        chain_length: point.disks.iter().map(|d| super::small(d.chain_length)).max(),
        disks: point.disks.iter().map(stored_disk).collect(),
    }
}

fn stored_disk(disk: &v1::PointDisk) -> StoredDisk {
    StoredDisk {
        name: disk.name.clone(),
        lineage: disk.lineage.clone(),
        parent: disk.parent.clone(),
        chain: Chain {
            root: disk.chain_root.clone(),
            length: super::small(disk.chain_length),
            bytes: super::signed(disk.chain_bytes),
        },
        virtual_size: super::signed(disk.virtual_size),
        stored_bytes: super::signed(disk.stored_bytes),
        format: disk.format.clone(),
        backup_type: super::backup_type(disk.r#type()).to_owned(),
        type_reason: disk.type_reason.clone(),
    }
}

/// Brings one RestorePoint's status up to date.
///
/// # Errors
/// When the API server does not take the status.
pub async fn reconcile(context: Arc<Context>, object: Arc<RestorePoint>) -> Result<Action, Error> {
    let name: PointName = (object.namespace().unwrap_or_default(), object.name_any());
    let reference = &object.spec.repository_ref;
    let repository = context.repositories.get(reference.namespace_or(&name.0), &reference.name);
    let unknown = unknown(&context, &name.0, &object.spec, repository.as_ref());
    let shown = object.status.as_ref().is_some_and(|status| !status.conditions.is_empty());
    let id = repository.as_ref().and_then(|r| r.status.as_ref()?.repository_id.clone());
    let ours = id.is_some_and(|id| is_ours(&object, &id));
    let uid = repository.and_then(|r| r.metadata.uid.clone());
    let point = uid.as_deref().and_then(|uid| context.catalogue.point(uid, &name));
    let plan = plan(unknown, (shown, ours), &object.spec, point.as_deref());
    tracing::debug!(namespace = name.0, point = name.1, ?plan, "RestorePoint");
    let status = report(&plan, point.as_deref(), object.status.as_ref(), object.metadata.generation, context.now());
    write::status(&context, &mut object.as_ref().clone(), &status, "Show").await?;
    Ok(Action::requeue(if plan == Plan::Keep { SOON } else { RESYNC }))
}

/// Why the points of the repository are not known now; None: they are. An agent that is away for a while changes nothing.
fn unknown(
    context: &Context,
    own: &str,
    spec: &RestorePointSpec,
    repository: Option<&BackupRepository>,
) -> Option<Unknown> {
    let reference = &spec.repository_ref;
    let name = format!("{}/{}", reference.namespace_or(own), reference.name);
    let Some(repository) = repository else {
        return Some(Unknown::Unusable(format!(
            "There is no BackupRepository {name} any more. The data is where it was: make one with the same folder, under any name, and the point is shown again; or delete this object."
        )));
    };
    let conditions = repository.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let stalled = condition::find(conditions, condition::STALLED).filter(|stalled| stalled.status == "True");
    if let Some(stalled) = stalled {
        let why = format!("BackupRepository {name} cannot be used ({}): {}", stalled.reason, stalled.message);
        return Some(Unknown::Unusable(why));
    }
    let known = context.catalogue.knows(repository.metadata.uid.as_deref().unwrap_or_default());
    let unread = format!("BackupRepository {name} has not been read yet: see its conditions.");
    (!known).then_some(Unknown::NotListed(unread))
}

/// Where a point is shown: with its guest where that is known and may use the repository, else with the repository.
pub fn place(context: &Context, repository: &BackupRepository, id: &str, point: &v1::Point) -> Option<PointName> {
    let guest = point.guest.as_ref()?;
    let name =
        naming::restore_point(&guest.name, &guest.uuid.parse().ok()?, &id.parse().ok()?, &point.id.parse().ok()?);
    let own = repository.namespace().unwrap_or_default();
    // The Guest object is a view that may be gone for a moment; one without an agent is known by its object alone.
    let shown = |g: &Guest| {
        g.metadata.namespace.as_deref() == Some(&guest.namespace)
            && g.status.as_ref().is_some_and(|s| s.uuid == guest.uuid)
    };
    let known = repository.spec.allows(&own, &guest.namespace)
        && (context.inventory.has(&guest.namespace, &guest.uuid) || !context.guests.find(shown).is_empty());
    Some((if known { guest.namespace.clone() } else { own }, name))
}

/// Takes the list of a repository's points as the truth about it.
pub async fn sync(context: &Context, repository: &BackupRepository, id: &str, points: Vec<v1::Point>) {
    let mut shelf = Shelf { repository_id: id.to_owned(), points: BTreeMap::new() };
    for point in points {
        match place(context, repository, id, &point) {
            Some(name) => drop(shelf.points.insert(name, Arc::new(point))),
            None => tracing::warn!(
                repository = write::full_name(&repository.metadata),
                point = point.id,
                "A point's names cannot be read"
            ),
        }
    }
    context.catalogue.set(repository.metadata.uid.as_deref().unwrap_or_default(), shelf.clone());
    show(context, repository, &shelf).await;
}

/// Makes the objects that are missing, and takes away those of points that are shown elsewhere now.
pub async fn show(context: &Context, repository: &BackupRepository, shelf: &Shelf) {
    let ids: BTreeMap<_, _> = shelf.points.iter().map(|(name, p)| (p.id.as_str(), name)).collect();
    for (name, point) in &shelf.points {
        match context.points.get(&name.0, &name.1) {
            Some(there) if there.spec == spec(repository, name, point) => {
                context.points.wake(&name.0, &name.1);
                continue;
            }
            // Its repository has an object of another name now. What the old one says cannot be changed, only made anew.
            Some(there) if is_ours(&there, &shelf.repository_id) && there.spec.point_id == point.id => {
                if let Err(error) = write::delete(context, &there).await {
                    tracing::warn!("{}", sentence(&error));
                    continue;
                }
            }
            Some(_) => {
                let note = format!(
                    "RestorePoint {}/{} was not made by the controller: delete it, and the point is shown.",
                    name.0, name.1
                );
                let reason = Reason::ForeignObject.as_str();
                write::event(context, repository, EventType::Warning, reason, "ShowPoint", &note).await;
                continue;
            }
            None => {}
        }
        if let Err(error) = make(context, repository, name, point, &shelf.repository_id).await {
            tracing::warn!(point = point.id, "{}", sentence(&error));
            let note = format!(
                "RestorePoint {}/{}: {}. The point itself is safe in the repository.",
                name.0,
                name.1,
                sentence(&error)
            );
            let reason = Reason::PointNotShown.as_str();
            write::event(context, repository, EventType::Warning, reason, "ShowPoint", &note).await;
        }
    }
    for object in context.points.find(|object| is_ours(object, &shelf.repository_id)) {
        let name = (object.namespace().unwrap_or_default(), object.name_any());
        let moved = ids.get(object.spec.point_id.as_str()).is_some_and(|now| **now != name && now.1 == name.1);
        if moved && let Err(error) = write::delete(context, &object).await {
            tracing::warn!("{}", sentence(&error));
        }
        if !shelf.points.contains_key(&name) {
            context.points.wake(&name.0, &name.1);
        }
    }
}

/// Whether the controller made the object, for the repository of this id.
fn is_ours(object: &RestorePoint, repository_id: &str) -> bool {
    let labels = object.labels();
    labels.get(words::LABEL_REPOSITORY_ID).is_some_and(|id| id == repository_id)
        && labels.get(words::LABEL_MANAGED_BY).is_some_and(|by| by == words::MANAGED_BY)
}

fn spec(repository: &BackupRepository, (namespace, _): &PointName, point: &v1::Point) -> RestorePointSpec {
    let guest = point.guest.clone().unwrap_or_default();
    let own = repository.namespace().filter(|own| own != namespace);
    RestorePointSpec {
        point_id: point.id.clone(),
        guest: PointGuest { uuid: guest.uuid, name: guest.name },
        repository_ref: RepositoryRef { name: repository.name_any(), namespace: own },
    }
}

/// Makes the object of a point.
///
/// # Errors
/// When the API server does not take it.
pub async fn make(
    context: &Context,
    repository: &BackupRepository,
    name: &PointName,
    point: &v1::Point,
    id: &str,
) -> Result<(), Error> {
    let guest = point.guest.clone().unwrap_or_default();
    let mut object = RestorePoint::new(&name.1, spec(repository, name, point));
    let labels = [
        (words::LABEL_MANAGED_BY, words::MANAGED_BY),
        (words::LABEL_GUEST_UUID, &guest.uuid),
        (words::LABEL_REPOSITORY_ID, id),
        (words::LABEL_POINT_ID, &point.id),
    ];
    object.metadata = ObjectMeta {
        namespace: Some(name.0.clone()),
        name: Some(name.1.clone()),
        labels: Some(labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
        ..ObjectMeta::default()
    };
    write::apply(context, &object).await
}
