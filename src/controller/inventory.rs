//! What the agents see on their nodes, as they said last (in), and who keeps asking them. A guest counts only when it
//! stands here: its Guest object is a view.

mod show;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::show::{make, report};
use super::{
    agents,
    context::{Context, locked},
};
use crate::{clock::Clock, rpc::v1, sentence::sentence};

/// How long to wait before an agent that did not answer is asked again.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(10)];
/// What an agent said counts for so long after it fell silent, unless nobody else says that it has the guest: a machine
/// that was started elsewhere after its node died must not wait for that node.
const CLAIM_COUNTS: Duration = Duration::from_secs(60);
/// An agent that is silent for less is not told of as lost: it ends each connection after some minutes, so that no
/// certificate is used long after it was changed, and answers on the next one at once.
const SILENCE_SHOWN: Duration = Duration::from_secs(10);
/// How often objects that could not be written are tried again.
const RESYNC: Duration = Duration::from_secs(30);

/// What one agent said last.
#[derive(Debug, Clone, Default)]
pub struct NodeView {
    /// Whether the stream of its guests is open.
    pub connected: bool,
    /// When it last said something.
    pub last_seen: Option<Timestamp>,
    /// Since when it has not answered; None while it does.
    pub lost: Option<Timestamp>,
    /// Its session.
    pub session: String,
    /// Its guests.
    pub guests: Vec<v1::Guest>,
    /// Its host files that cannot be used.
    pub problems: Vec<v1::Problem>,
}

impl NodeView {
    fn counts(&self, now: Timestamp) -> bool {
        self.connected || self.lost.is_none_or(|lost| super::since(lost, now) < CLAIM_COUNTS)
    }
}

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// What all agents said last.
#[derive(Default)]
pub struct Inventory {
    nodes: Mutex<BTreeMap<String, NodeView>>,
    /// Why an agent could not be talked to at the last attempt.
    troubles: Mutex<BTreeMap<String, String>>,
    /// The labels that were set since the start on Guests that are there, by namespace and name.
    labels: Mutex<BTreeMap<(String, String), Labels>>,
    /// Counts the Guest objects that were deleted although an agent has the guest.
    missing: watch::Sender<u64>,
}

impl Inventory {
    /// What the node's agent said last.
    pub fn node(&self, node: &str) -> Option<NodeView> {
        locked(&self.nodes).get(node).cloned()
    }

    /// Why the node's agent could not be talked to at the last attempt; empty where it could.
    pub fn trouble(&self, node: &str) -> String {
        locked(&self.troubles).get(node).cloned().unwrap_or_default()
    }

    /// Sets that; true when it is another trouble than before.
    fn set_trouble(&self, node: &str, trouble: &str) -> bool {
        let before = locked(&self.troubles).insert(node.to_owned(), trouble.to_owned());
        before.unwrap_or_default() != trouble
    }

    /// The labels that were set last on a Guest; None where none were since the start.
    pub fn labels(&self, said: &v1::Guest) -> Option<Labels> {
        locked(&self.labels).get(&(said.namespace.clone(), said.name.clone())).cloned()
    }

    /// Sets them.
    pub fn set_labels(&self, said: &v1::Guest, labels: Labels) {
        locked(&self.labels).insert((said.namespace.clone(), said.name.clone()), labels);
    }

    /// The nodes whose agents are there now, with their sessions.
    pub fn sessions(&self) -> BTreeMap<String, String> {
        let nodes = locked(&self.nodes);
        nodes.iter().filter(|(_, v)| v.connected).map(|(n, v)| (n.clone(), v.session.clone())).collect()
    }

    /// Who says that it has the guest of this name, with what it says. Whoever has long been silent is only believed
    /// where nobody else says so.
    pub fn claims(&self, namespace: &str, name: &str, now: Timestamp) -> Vec<(String, v1::Guest)> {
        let nodes = locked(&self.nodes);
        let (mut claims, mut stale) = (vec![], vec![]);
        for (node, view) in nodes.iter() {
            let own = view.guests.iter().filter(|g| g.namespace == namespace && g.name == name);
            let list = if view.counts(now) { &mut claims } else { &mut stale };
            list.extend(own.map(|g| (node.clone(), g.clone())));
        }
        if claims.is_empty() { stale } else { claims }
    }

    /// Whether some agent said last that it has a guest of this UUID in this namespace.
    pub fn has(&self, namespace: &str, uuid: &str) -> bool {
        let nodes = locked(&self.nodes);
        nodes.values().flat_map(|view| &view.guests).any(|g| g.namespace == namespace && g.uuid == uuid)
    }

    /// Forgets the labels of a guest whose object is gone, and has it made anew where an agent has the guest.
    pub fn deleted(&self, namespace: &str, name: &str) {
        locked(&self.labels).remove(&(namespace.to_owned(), name.to_owned()));
        let has = |view: &NodeView| view.guests.iter().any(|g| g.namespace == namespace && g.name == name);
        if locked(&self.nodes).values().any(has) {
            self.missing.send_modify(|count| *count += 1);
        }
    }

    /// Guests of other nodes or names with this UUID, as `node: namespace/name`.
    pub fn doubles(&self, uuid: &str, namespace: &str, name: &str, now: Timestamp) -> Vec<String> {
        let nodes = locked(&self.nodes);
        let mut doubles = vec![];
        for (node, view) in nodes.iter().filter(|(_, view)| view.counts(now)) {
            let own = view.guests.iter().filter(|g| g.uuid == uuid && (g.namespace != namespace || g.name != name));
            doubles.extend(own.map(|g| format!("{node}: {}/{}", g.namespace, g.name)));
        }
        doubles
    }

    /// Forgets a node that has no agent any more; answers with the names of all guests that it had.
    fn forget(&self, node: &str) -> BTreeSet<(String, String)> {
        locked(&self.troubles).remove(node);
        let gone = locked(&self.nodes).remove(node).unwrap_or_default();
        let names: BTreeSet<_> = gone.guests.into_iter().map(|g| (g.namespace, g.name)).collect();
        // Where another node has one of them, its labels are set once more.
        locked(&self.labels).retain(|name, _| !names.contains(name));
        names
    }

    /// Sets what an agent says; answers with the names of all guests that it said before or says now.
    pub fn set(&self, node: &str, view: NodeView) -> BTreeSet<(String, String)> {
        let mut nodes = locked(&self.nodes);
        let before = nodes.insert(node.to_owned(), view).unwrap_or_default();
        let now = nodes.get(node).map(|v| v.guests.as_slice()).unwrap_or_default();
        before.guests.iter().chain(now).map(|g| (g.namespace.clone(), g.name.clone())).collect()
    }
}

/// Keeps asking the agents of all nodes in the directory, until `end`.
pub async fn keep(context: Arc<Context>, end: CancellationToken) {
    let nodes = || context.agents.nodes();
    agents::each(nodes, end, |node, end| ask(context.clone(), node, end)).await;
}

/// Asks one agent again and again, until the node has none.
async fn ask(context: Arc<Context>, node: String, end: CancellationToken) {
    let (heard, hearing) = watch::channel(false);
    let silence = tell_silence(hearing, context.clock.clone(), |since| {
        let mut view = context.inventory.node(&node).unwrap_or_default();
        if view.connected {
            tracing::warn!(node, "The agent no longer answers");
        }
        view.connected = false;
        view.lost.get_or_insert(since);
        changed(&context, &node, view);
    });
    end.run_until_cancelled(async { tokio::join!(converse(&context, &node, &heard), silence) }).await;
    // The node has no agent any more, and nothing of it stays: a node of a fleet may never come back.
    let view = context.inventory.node(&node).unwrap_or_default();
    changed(&context, &node, NodeView { connected: false, ..view });
    context.metrics.agent_gone(&node);
    for (namespace, name) in context.inventory.forget(&node) {
        context.guests.wake(&namespace, &name);
    }
}

/// Connects again after each cut; `heard` is true while the agent talks.
async fn converse(context: &Arc<Context>, node: &str, heard: &watch::Sender<bool>) {
    let mut failures = 0;
    loop {
        listen(context, node, heard, &mut failures).await;
        heard.send_replace(false);
        tokio::time::sleep(PAUSES[failures.min(PAUSES.len() - 1)]).await;
        failures += 1;
    }
}

/// Tells once of each silence that lasts, with its beginning.
async fn tell_silence(mut hearing: watch::Receiver<bool>, clock: Clock, tell: impl Fn(Timestamp)) {
    while hearing.wait_for(|heard| !heard).await.is_ok() {
        let since = clock();
        let answered = tokio::time::timeout(SILENCE_SHOWN, hearing.wait_for(|heard| *heard)).await.is_ok();
        if !answered {
            tell(since);
            // The sender lives as long as this does.
            let _ = hearing.wait_for(|heard| *heard).await;
        }
    }
}

/// One connection's life: who the agent is, then all that it says.
async fn listen(context: &Arc<Context>, node: &str, heard: &watch::Sender<bool>, failures: &mut usize) {
    let Some(agent) = context.agents.get(node) else { return };
    let described = agent.describe().await;
    let (who, mut stream) = match (described, agent.watch_guests().await) {
        (Ok(who), Ok(stream)) => (who, stream),
        (Err(error), _) | (_, Err(error)) => {
            let trouble = sentence(&error);
            if context.inventory.set_trouble(node, &trouble) {
                tracing::warn!(node, reason = error.reason(), "{trouble}");
            }
            return;
        }
    };
    context.inventory.set_trouble(node, "");
    tracing::info!(node, session = who.session, version = who.version, "The agent answers");
    let mut shown: Vec<v1::Problem> = vec![];
    let mut refused = BTreeSet::new();
    let mut resync = tokio::time::interval(RESYNC);
    let mut missing = context.inventory.missing.subscribe();
    loop {
        let again = async {
            tokio::select! {
                _ = resync.tick() => {}
                // The inventory, which sends, lives as long as the context.
                _ = missing.changed() => {}
            }
        };
        let message = tokio::select! {
            message = stream.next() => message,
            () = again => {
                if let Some(view) = context.inventory.node(node).filter(|v| v.connected) {
                    make(context, node, &view.guests, &mut refused).await;
                }
                continue;
            }
        };
        match message {
            Some(Ok(said)) => {
                *failures = 0;
                for problem in said.problems.iter().filter(|p| !shown.contains(p)) {
                    report(context, node, problem).await;
                }
                shown.clone_from(&said.problems);
                let view = NodeView {
                    connected: true,
                    last_seen: Some(context.now()),
                    lost: None,
                    session: who.session.clone(),
                    guests: said.guests,
                    problems: said.problems,
                };
                let guests = view.guests.clone();
                changed(context, node, view);
                heard.send_replace(true);
                make(context, node, &guests, &mut refused).await;
            }
            Some(Err(error)) => {
                tracing::info!(node, reason = error.reason(), "{}", sentence(&error));
                return;
            }
            None => return,
        }
    }
}

/// Takes what an agent says and wakes everything that it may concern.
fn changed(context: &Context, node: &str, view: NodeView) {
    let before = context.inventory.node(node);
    let news = before.as_ref().is_none_or(|b| b.connected != view.connected || b.session != view.session);
    context.metrics.agent(node, view.connected);
    let names = context.inventory.set(node, view);
    for (namespace, name) in &names {
        context.guests.wake(namespace, name);
    }
    let concerns = |namespace: &str, name: &str| names.iter().any(|(ns, n)| ns == namespace && n == name);
    for run in context.runs.find(|r| !super::run::is_settled(r)) {
        let namespace = run.metadata.namespace.clone().unwrap_or_default();
        if concerns(&namespace, &run.spec.guest_ref.name) {
            context.runs.wake(&namespace, run.metadata.name.as_deref().unwrap_or_default());
        }
    }
    if news {
        for repository in context.repositories.find(|_| true) {
            let meta = &repository.metadata;
            context
                .repositories
                .wake(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(connected: bool, lost: Option<i64>) -> NodeView {
        let guest = v1::Guest { namespace: "t".into(), name: "g".into(), uuid: "u".into(), ..v1::Guest::default() };
        let lost = lost.map(|second| Timestamp::from_second(second).unwrap());
        NodeView { connected, lost, guests: vec![guest], ..NodeView::default() }
    }

    #[test]
    fn a_node_that_died_does_not_hold_a_guest_that_was_started_elsewhere() {
        let inventory = Inventory::default();
        inventory.set("dead", view(false, Some(100)));
        let at = |second| Timestamp::from_second(second).unwrap();
        let nodes = |now| inventory.claims("t", "g", at(now)).into_iter().map(|(n, _)| n).collect::<Vec<_>>();
        assert_eq!(nodes(900), ["dead"], "nobody else has it: it may come back");
        inventory.set("heir", view(true, None));
        assert_eq!(nodes(159), ["dead", "heir"], "an agent that restarts is waited for");
        assert_eq!(nodes(160), ["heir"]);
        assert!(inventory.doubles("u", "t", "other", at(160)) == ["heir: t/g"]);
        assert_eq!(inventory.forget("heir").len(), 1);
        assert_eq!(nodes(900), ["dead"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silence_is_told_of_when_it_lasts_and_one_that_a_new_connection_ends_is_not() {
        let told = Arc::new(Mutex::new(0));
        let (heard, hearing) = watch::channel(false);
        let counter = told.clone();
        let task = tokio::spawn(tell_silence(hearing, crate::clock::system(), move |_| *locked(&counter) += 1));
        let after = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
        after(9).await;
        heard.send_replace(true);
        after(600).await;
        heard.send_replace(false);
        after(9).await;
        assert_eq!(*locked(&told), 0, "the connection was renewed");
        after(2).await;
        assert_eq!(*locked(&told), 1, "the agent is lost");
        after(600).await;
        assert_eq!(*locked(&told), 1, "once");
        heard.send_replace(true);
        after(1).await;
        heard.send_replace(false);
        after(11).await;
        assert_eq!(*locked(&told), 2);
        task.abort();
    }

    #[test]
    fn a_deleted_object_is_missed_only_where_an_agent_has_its_guest() {
        let inventory = Inventory::default();
        let missing = inventory.missing.subscribe();
        inventory.deleted("t", "g");
        assert!(!missing.has_changed().unwrap() && !inventory.has("t", "u"));
        inventory.set("n1", view(true, None));
        inventory.deleted("t", "g");
        assert!(missing.has_changed().unwrap());
        assert!(inventory.has("t", "u") && !inventory.has("other", "u"));
    }

    #[test]
    fn the_labels_of_a_guest_are_kept_no_longer_than_its_object_or_its_node() {
        let inventory = Inventory::default();
        let guest = view(true, None).guests.remove(0);
        inventory.set("n1", view(true, None));
        let forget: [&dyn Fn(); 2] = [&|| inventory.deleted("t", "g"), &|| drop(inventory.forget("n1"))];
        for forget in forget {
            inventory.set_labels(&guest, Labels::new());
            forget();
            assert_eq!(inventory.labels(&guest), None);
        }
    }
}
