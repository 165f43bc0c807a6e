//! Whether a node is in the cluster (in). Asked only about nodes whose agents are away, and each at most once in a while,
//! however many guests it had. Nodes are not watched: a fleet's are rewritten every few seconds, and few are ever missed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use kube::Api;

use super::{
    context::{Context, locked},
    error::Error,
    guest::plan::Node,
    write,
};
use crate::sentence::sentence;

/// How long an answer counts, or that there was none.
const COUNTS: Duration = Duration::from_secs(10);

/// The API server's own word for what is not there. A proxy in front of it has a 404 too, which says nothing of the node.
const NOT_FOUND: &str = "NotFound";

/// What was said of one node, and when; locked while it is asked for, so that whoever comes meanwhile waits for it.
type Answer = Arc<tokio::sync::Mutex<Option<(Timestamp, Node)>>>;

/// What the API server said last of each node.
#[derive(Default)]
pub struct Nodes(Mutex<HashMap<String, Answer>>);

impl Nodes {
    /// Whether the node has a Node object, as the API server says now or said a moment ago.
    pub async fn look_up(&self, context: &Context, node: &str) -> Node {
        let answer = self.answer(node, context.now());
        let mut answer = answer.lock().await;
        if let Some((_, said)) = answer.filter(|(at, _)| counts(*at, context.now())) {
            return said;
        }
        let said = ask(context, node).await.unwrap_or_else(|error| {
            tracing::warn!(node, reason = error.reason(), "{}", sentence(&error));
            context.metrics.failed("Guest", error.reason());
            Node::Unknown
        });
        *answer = Some((context.now(), said));
        said
    }

    /// The node's answer, without those that count no longer.
    fn answer(&self, node: &str, now: Timestamp) -> Answer {
        let mut answers = locked(&self.0);
        if let Some(answer) = answers.get(node) {
            return answer.clone();
        }
        // One that is locked is being asked for.
        answers.retain(|_, a| a.try_lock().map_or(true, |a| a.is_none_or(|(at, _)| counts(at, now))));
        answers.entry(node.to_owned()).or_default().clone()
    }
}

/// Whether what was said then counts now; not when the clock went back since.
fn counts(at: Timestamp, now: Timestamp) -> bool {
    at <= now && super::since(at, now) < COUNTS
}

async fn ask(context: &Context, node: &str) -> Result<Node, Error> {
    let nodes: Api<v1::Node> = Api::all(context.client.clone());
    match write::answer(nodes.get_metadata(node)).await {
        Ok(_) => Ok(Node::There),
        Err(kube::Error::Api(status)) if status.code == 404 && status.reason == NOT_FOUND => Ok(Node::Gone),
        Err(source) => Err(Error::LookUpNode { node: node.to_owned(), source: Box::new(source) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_for_a_while_and_is_then_no_longer_kept() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(counts(at(100), at(109)) && !counts(at(100), at(110)) && !counts(at(100), at(99)));
        let nodes = Nodes::default();
        for (node, second) in [("old", 100), ("new", 105)] {
            *nodes.answer(node, at(second)).try_lock().unwrap() = Some((at(second), Node::Gone));
        }
        nodes.answer("other", at(112));
        let mut kept: Vec<_> = locked(&nodes.0).keys().cloned().collect();
        kept.sort();
        assert_eq!(kept, ["new", "other"]);
    }
}
