//! What an agent sees is shown (out): Guest objects, and Events on the Node for what has no object of its own.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType};

use crate::{
    api::words::Reason,
    controller::{context::Context, guest, write},
    rpc::v1,
    sentence::sentence,
};

/// Makes the Guest objects that are missing; one that cannot be made stops none of the others. What the API server refuses
/// for good, such as a namespace that is not there, is told once: there is no object to tell it on.
pub(super) async fn make(context: &Arc<Context>, node: &str, guests: &[v1::Guest], refused: &mut BTreeSet<String>) {
    for said in guests {
        let name = format!("{}/{}", said.namespace, said.name);
        let Err(error) = guest::ensure(context, said).await else {
            refused.remove(&name);
            continue;
        };
        tracing::warn!(namespace = said.namespace, guest = said.name, "{}", sentence(&error));
        context.metrics.failed("Guest", error.reason());
        if error.is_refusal() && refused.insert(name.clone()) {
            let message = match error.field_conflict() {
                Some(said) => format!(
                    "Another manager holds a label that the guest's file sets: {said}. Remove that manager's label, or the one in the file"
                ),
                None => format!("{}. Make the namespace, or correct the guest's file on the node", sentence(&error)),
            };
            let problem = v1::Problem { subject: name, reason: error.reason().to_owned(), message };
            report(context, node, &problem).await;
        }
    }
}

/// A host file that cannot be used has no object of its own: the Event stands on the Node.
pub(super) async fn report(context: &Context, node: &str, problem: &v1::Problem) {
    tracing::warn!(node, subject = problem.subject, reason = problem.reason, "{}", problem.message);
    let regarding = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(node.to_owned()),
        uid: Some(node.to_owned()),
        ..ObjectReference::default()
    };
    let event = Event {
        type_: EventType::Warning,
        reason: Reason::HostFileRefused.as_str().to_owned(),
        note: Some(
            format!("{} ({}): {}", problem.subject, problem.reason, problem.message).chars().take(1000).collect(),
        ),
        action: "ReadHostFile".to_owned(),
        secondary: None,
    };
    write::publish(context, event, regarding).await;
}
