//! Whether a BackupRun can start now, and where (in): guest, disks and repository as they are known, each no with what
//! to do about it.

use jiff::Timestamp;
use kube::ResourceExt;

use super::plan::Blocker;
use crate::{
    api::{BackupRepository, BackupRun, condition, repository::AccessMode, words::Reason},
    controller::{
        context::Context,
        guest::{
            self,
            plan::{Plan, World},
        },
    },
    rpc::v1,
};

/// Everything that is asked of the agent about one run.
pub(super) struct Target {
    pub(super) repository: Option<(BackupRepository, String)>,
    pub(super) guest_uuid: String,
}

/// Whether the run can start, and where; what the world has to look like for it.
pub(super) fn check(context: &Context, run: &BackupRun) -> (Result<String, Blocker>, Target) {
    let namespace = run.namespace().unwrap_or_default();
    let name = &run.spec.guest_ref.name;
    let reference = &run.spec.repository_ref;
    let found = context.repositories.get(reference.namespace_or(&namespace), &reference.name);
    let usable = found.clone().and_then(|r| {
        let id = r.status.as_ref()?.repository_id.clone()?;
        Some((r, id))
    });
    let object = context.guests.get(&namespace, name);
    let world = guest::observe(context, &namespace, name, object.as_ref());
    let uuid = world.claims.first().map(|(_, g)| g.uuid.clone()).unwrap_or_default();
    let ready = check_guest(run, object.is_some(), &world, context.now())
        .and_then(|node| check_repository(context, run, found.as_ref(), &node).map(|()| node));
    (ready, Target { repository: usable, guest_uuid: uuid })
}

fn check_guest(run: &BackupRun, object: bool, world: &World, now: Timestamp) -> Result<String, Blocker> {
    let name = &run.spec.guest_ref.name;
    if !object && world.claims.is_empty() {
        return Err(Blocker::stays(
            Reason::GuestNotFound,
            format!(
                "There is no Guest {name} in this namespace: see `kubectl get guests.driftline.dev` for those that the agents see."
            ),
        ));
    }
    let plan = guest::plan::plan(world, now);
    let (_, reason, message) = guest::plan::words(&plan);
    match &plan {
        Plan::Discovered => {}
        Plan::PoweredOff(_) => return Err(Blocker::problem(Reason::GuestPoweredOff, message)),
        Plan::NotDiscovered
        | Plan::Vanished
        | Plan::NodeGone { .. }
        | Plan::Forget { .. }
        | Plan::ClaimedTwice(_)
        | Plan::DuplicateUuid(_) => {
            return Err(Blocker {
                reason,
                ..Blocker::stays(Reason::GuestNotReady, format!("Guest {name}: {message}"))
            });
        }
        Plan::AgentUnavailable(_) => return Err(Blocker::away(Reason::AgentUnavailable, message)),
        Plan::Problem { .. } => {
            return Err(Blocker::problem(
                Reason::GuestNotReady,
                format!("Guest {name} is not ready ({reason}): {message}"),
            ));
        }
    }
    let Some((node, guest)) = world.claims.first() else {
        return Err(Blocker::away(Reason::GuestNotReady, format!("No agent has guest {name}")));
    };
    check_disks(run, guest).map(|()| node.clone())
}

fn check_disks(run: &BackupRun, guest: &v1::Guest) -> Result<(), Blocker> {
    let wanted = run.spec.disks.clone().unwrap_or_default();
    let names: Vec<_> = guest.disks.iter().map(|d| d.name.as_str()).collect();
    if let Some(missing) = wanted.include.iter().find(|d| !names.contains(&d.as_str())) {
        let message = format!("Guest {} has no disk {missing}; it has {}.", guest.name, names.join(", "));
        return Err(Blocker::stays(Reason::DiskNotFound, message));
    }
    let chosen: Vec<_> = guest
        .disks
        .iter()
        .filter(|d| {
            (wanted.include.is_empty() || wanted.include.contains(&d.name)) && !wanted.exclude.contains(&d.name)
        })
        .collect();
    let named_in_vain = chosen.iter().find(|d| !d.eligible && wanted.include.contains(&d.name));
    if let Some(disk) = named_in_vain {
        let message = format!(
            "Disk {} cannot be backed up ({}): leave it out of disks.include.",
            disk.name, disk.ineligible_reason
        );
        return Err(Blocker::stays(Reason::NoEligibleDisk, message));
    }
    if chosen.iter().any(|d| d.eligible) {
        return Ok(());
    }
    let why: Vec<_> = guest.disks.iter().map(|d| format!("{} ({})", d.name, why_not(d, &wanted.exclude))).collect();
    let why = if why.is_empty() { "it has none".to_owned() } else { why.join(", ") };
    Err(Blocker::stays(Reason::NoEligibleDisk, format!("Guest {} has no disk to back up: {why}.", guest.name)))
}

/// Why a disk is none of a run that has no disk.
fn why_not<'a>(disk: &'a v1::Disk, exclude: &[String]) -> &'a str {
    match (disk.eligible, exclude.contains(&disk.name)) {
        (false, _) => &disk.ineligible_reason,
        (true, true) => "left out by disks.exclude",
        (true, false) => "not named by disks.include",
    }
}

fn check_repository(
    context: &Context,
    run: &BackupRun,
    found: Option<&BackupRepository>,
    node: &str,
) -> Result<(), Blocker> {
    let namespace = run.namespace().unwrap_or_default();
    let reference = &run.spec.repository_ref;
    let at = reference.namespace_or(&namespace);
    let name = format!("{at}/{}", reference.name);
    // Whether a repository of another namespace exists is told only to those who may use it.
    let Some(repository) = found.filter(|r| r.spec.allows(at, &namespace)) else {
        return Err(if at == namespace {
            Blocker::stays(
                Reason::RepositoryNotFound,
                format!(
                    "There is no BackupRepository {name}: `kubectl get backuprepositories.driftline.dev` shows those that there are."
                ),
            )
        } else {
            let message = format!(
                "There is no BackupRepository {name} that namespace {namespace} may use: its usagePolicy.allowedNamespaces has to name it."
            );
            Blocker::stays(Reason::NamespaceNotAllowed, message)
        });
    };
    if repository.spec.access_mode == AccessMode::ReadOnly {
        return Err(Blocker::stays(
            Reason::RepositoryReadOnly,
            format!("BackupRepository {name} has accessMode ReadOnly."),
        ));
    }
    if let Some(only) = repository.spec.filesystem.node_name.as_deref().filter(|only| *only != node) {
        let message = format!(
            "BackupRepository {name} is on node {only}, the guest is on {node}: use a repository that {node} has."
        );
        return Err(Blocker::stays(Reason::RepositoryNotOnNode, message));
    }
    let status = repository.status.clone().unwrap_or_default();
    let ready = condition::find(&status.conditions, condition::READY);
    if ready.is_none_or(|c| c.status != "True") {
        let why =
            ready.map_or_else(|| "it was not looked at yet".to_owned(), |c| format!("{}: {}", c.reason, c.message));
        return Err(Blocker::away(Reason::RepositoryNotReady, format!("BackupRepository {name} is not ready ({why})")));
    }
    let uid = repository.metadata.uid.as_deref().unwrap_or_default();
    let view = context.views().get(uid).cloned();
    match view.map(|v| v.problem_on(node)) {
        None => Err(Blocker::away(Reason::RepositoryNotReady, format!("BackupRepository {name} is being looked at"))),
        Some(Some((reason, message))) => Err(Blocker::away(
            Reason::RepositoryNotOnNode,
            format!("The agent of node {node} cannot use BackupRepository {name} ({reason}): {message}"),
        )),
        Some(None) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_disk_that_is_gone_may_be_left_out_and_not_be_asked_for() {
        let disk = v1::Disk { name: "disk0".into(), eligible: true, ..v1::Disk::default() };
        let guest = v1::Guest { name: "db-1".into(), disks: vec![disk], ..v1::Guest::default() };
        let check = |disks: serde_json::Value| {
            let spec = json!({ "guestRef": { "name": "db-1" }, "repositoryRef": { "name": "r" }, "disks": disks });
            check_disks(&BackupRun::new("run", serde_json::from_value(spec).unwrap()), &guest)
        };
        assert!(check(json!({ "exclude": ["gone"] })).is_ok());
        let blocker = check(json!({ "include": ["gone"] })).unwrap_err();
        assert_eq!(blocker.reason, Reason::DiskNotFound.as_str());
    }
}
