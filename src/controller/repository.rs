//! Kind BackupRepository: made into a repository once, by one agent, under an id that was written down before; then
//! looked at by every agent again and again. A folder of another id, or of none, is never used.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::{StreamExt, future};
use kube::{ResourceExt, runtime::controller::Action};

use super::{context::Context, error::Error, guest::plan::Node, point, write};
use crate::{
    api::{BackupRepository, duration, repository::AccessMode, words::Reason},
    ids::RepositoryId,
    retry::Retry,
    rpc::{
        client::RpcError,
        v1::{self, repository_request::Action as Ask},
    },
    sentence::sentence,
};

pub mod plan;
pub mod report;
#[cfg(test)]
mod tests;

pub use plan::View;
use plan::{Answer, Plan, SOON, World};
use report::Trouble;

/// More steps than any reconcile needs; what is left goes on at the next.
const STEPS: usize = 8;

fn observe(context: &Context, repository: &BackupRepository) -> World {
    let spec = &repository.spec;
    let status = repository.status.clone().unwrap_or_default();
    let uid = repository.metadata.uid.clone().unwrap_or_default();
    let frequency = duration::parse(&spec.validation_frequency);
    let mut sessions = context.inventory.sessions();
    if let Some(only) = &spec.filesystem.node_name {
        sessions.retain(|node, _| node == only);
    }
    let mut absent: BTreeSet<_> = context.agents.nodes().into_iter().filter(|n| !sessions.contains_key(n)).collect();
    if let Some(only) = &spec.filesystem.node_name {
        absent.retain(|node| node == only);
    }
    World {
        absent,
        invalid: frequency.as_ref().err().map(|e| format!("validationFrequency: {e}")),
        read_only: spec.access_mode == AccessMode::ReadOnly,
        owner: owner(context, repository, status.repository_id.as_deref()),
        id: status.repository_id,
        initialised: status.initialised,
        only_node: spec.filesystem.node_name.clone(),
        node: Node::default(),
        sessions,
        view: context.views().get(&uid).cloned(),
        generation: repository.metadata.generation.unwrap_or(0),
        frequency: frequency.unwrap_or(Duration::from_secs(300)).max(Duration::from_secs(10)),
    }
}

/// The oldest of the older objects that show the repository of this id: the others among them are refused as this one is.
fn owner(context: &Context, own: &BackupRepository, id: Option<&str>) -> Option<String> {
    let id = id?;
    let age = |r: &BackupRepository| (r.metadata.creation_timestamp.as_ref().map(|t| t.0), r.metadata.uid.clone());
    let same = |r: &BackupRepository| {
        r.metadata.uid != own.metadata.uid
            && r.status.as_ref().is_some_and(|s| s.initialised && s.repository_id.as_deref() == Some(id))
            && age(r) < age(own)
    };
    context.repositories.find(same).iter().min_by_key(|r| age(r)).map(|r| write::full_name(&r.metadata))
}

/// Brings one repository on its way, step by step, and its status up to date.
///
/// # Errors
/// When the API server does not take a status.
pub async fn reconcile(context: Arc<Context>, repository: Arc<BackupRepository>) -> Result<Action, Error> {
    let uid = repository.metadata.uid.clone().unwrap_or_default();
    let mut repository = repository.as_ref().clone();
    let mut world = observe(&context, &repository);
    if let Some(only) = world.only_node.as_deref().filter(|_| world.sessions.is_empty()) {
        world.node = context.nodes.look_up(&context, only).await;
    }
    for _ in 0..STEPS {
        let next = plan::plan(&world, context.now());
        tracing::debug!(repository = write::full_name(&repository.metadata), ?next, "BackupRepository");
        // A controller that has just started has not heard of every agent yet.
        if context.is_young() && matches!(next, Plan::NoAgent(_) | Plan::Unfit { .. }) {
            return Ok(Action::requeue(Duration::from_secs(1)));
        }
        let mut trouble = None;
        let mut rest = None;
        match next {
            Plan::Refuse(reason, message) => {
                trouble = Some(Trouble { reason: reason.as_str().to_owned(), message });
                rest = Some(SOON);
            }
            Plan::Unfit { reason, message } => {
                trouble = Some(Trouble { reason, message });
                rest = Some(SOON);
            }
            Plan::NoAgent(message) => {
                trouble = Some(Trouble { reason: Reason::NoAgent.as_str().to_owned(), message });
                rest = Some(SOON);
            }
            Plan::Look => world.view = Some(ask(&context, &repository, &world, None).await),
            Plan::Adopt(id) => {
                world.id = Some(id);
                world.initialised = true;
                world.owner = owner(&context, &repository, world.id.as_deref());
            }
            Plan::Choose => world.id = Some(RepositoryId::from(uuid::Uuid::new_v4()).to_string()),
            Plan::Initialise { node, id } => match initialise(&context, &repository, &node, &id).await {
                Ok(is) => {
                    world.id = Some(is);
                    world.initialised = true;
                }
                // Another repository came to be there since its id was chosen: it is the one that is meant.
                Err(why) if why.reason == "RepositoryIdMismatch" => {
                    world.id = None;
                    world.view = None;
                }
                Err(why) => {
                    trouble = Some(why);
                    rest = Some(SOON);
                }
            },
            Plan::Validate(id) => {
                let mut view = ask(&context, &repository, &world, Some(id.clone())).await;
                view.unlisted = list(&context, &repository, &id, &view).await;
                world.view = Some(view);
            }
            Plan::Rest { after } => rest = Some(after),
        }
        if let Some(view) = &world.view {
            context.views().insert(uid.clone(), view.clone());
        }
        let status = report::report(
            &world,
            trouble.as_ref(),
            repository.status.as_ref(),
            context.catalogue.count(&uid),
            context.now(),
        );
        write::status(&context, &mut repository, &status, "Validate").await?;
        repository.status = Some(status);
        if let Some(after) = rest {
            // An older object of the same repository shows its points.
            if world.owner.is_none()
                && let Some(shelf) = context.catalogue.shelf(&uid)
            {
                point::show(&context, &repository, &shelf).await;
            }
            wake_waiting(&context, &repository);
            return Ok(Action::requeue(after));
        }
    }
    Ok(Action::requeue(Duration::from_secs(1)))
}

/// Asks for a look at the repository, above all at its count of points.
pub(super) fn wake(context: &Context, repository: &BackupRepository) {
    context.repositories.wake(&repository.namespace().unwrap_or_default(), &repository.name_any());
}

/// Runs and restores that may have waited for this repository.
fn wake_waiting(context: &Context, repository: &BackupRepository) {
    let (namespace, name) = (repository.namespace().unwrap_or_default(), repository.name_any());
    for run in context.runs.find(|r| !super::run::is_settled(r)) {
        let own = run.namespace().unwrap_or_default();
        if run.spec.repository_ref.name == name && run.spec.repository_ref.namespace_or(&own) == namespace {
            context.runs.wake(&own, &run.name_any());
        }
    }
}

/// Asks all agents at once: about the repository of this id, or (None) whether there is any.
async fn ask(context: &Context, repository: &BackupRepository, world: &World, id: Option<String>) -> View {
    let action = Ask::Validate(id.clone().unwrap_or_default());
    let calls = world.sessions.keys().map(|node| async {
        (node.clone(), call(context, node, &repository.spec.filesystem.path, action.clone()).await)
    });
    let answers = future::join_all(calls).await.into_iter().collect();
    View {
        answers,
        id,
        sessions: world.sessions.clone(),
        generation: world.generation,
        at: context.now(),
        unlisted: None,
    }
}

async fn call(context: &Context, node: &str, path: &str, action: Ask) -> Answer {
    let Some(agent) = context.agents.get(node) else {
        return Answer::Silent(Reason::AgentUnavailable.as_str().to_owned(), format!("Node {node} has no agent"));
    };
    let request = v1::RepositoryRequest { path: path.to_owned(), action: Some(action) };
    match agent.repository(request).await {
        Ok(said) => Answer::Said(said),
        // A refusal for good is an answer about the folder; a hung file system or a busy agent leaves it open.
        Err(RpcError::Refused { reason, message, retry: Retry::OnChange, .. }) => {
            Answer::Said(v1::RepositoryResponse {
                problem: Some(v1::Problem { subject: path.to_owned(), reason, message }),
                ..v1::RepositoryResponse::default()
            })
        }
        Err(error) => Answer::Silent(error.reason().to_owned(), sentence(&error)),
    }
}

/// Has one agent initialise the folder; answers with the id that it has then.
async fn initialise(context: &Context, repository: &BackupRepository, node: &str, id: &str) -> Result<String, Trouble> {
    let answer = call(context, node, &repository.spec.filesystem.path, Ask::Initialise(id.to_owned())).await;
    match (answer.problem(), answer) {
        (None, Answer::Said(said)) if said.id == id || said.id.is_empty() => Ok(id.to_owned()),
        (None, Answer::Said(said)) => Ok(said.id),
        (Some((reason, message)), _) => Err(Trouble { reason, message: format!("Node {node}: {message}") }),
        (None, Answer::Silent(reason, message)) => Err(Trouble { reason, message }),
    }
}

/// Lists the points through the first agent that sees the repository; answers with why that failed.
async fn list(context: &Context, repository: &BackupRepository, id: &str, view: &View) -> Option<String> {
    let node = view.answers.iter().find(|(_, a)| a.problem().is_none())?.0;
    let agent = context.agents.get(node)?;
    let address = v1::RepositoryAddress { path: repository.spec.filesystem.path.clone(), id: id.to_owned() };
    let request = v1::ListPointsRequest { repository: Some(address), guest_uuid: String::new() };
    let mut points = vec![];
    let mut stream = match agent.list_points(request).await {
        Ok(stream) => stream,
        Err(error) => return Some(format!("Node {node}: {}", sentence(&error))),
    };
    while let Some(next) = stream.next().await {
        match next {
            Ok(point) => points.push(point),
            Err(error) => return Some(format!("Node {node}: {}", sentence(&error))),
        }
    }
    point::sync(context, repository, id, points).await;
    None
}
