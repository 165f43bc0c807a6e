//! Gives agents their certificates (out): each agent is visited when it is first seen, when it cannot be talked to, when
//! another authority signs, and when its certificate is about to end. What it says of itself counts for nothing: it has to
//! show the token of its pod, which the API server checks, and gets a certificate for the node that this pod is on.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, Client, api::PostParams};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{
    agents,
    authority::{
        is_due,
        keep::{Kept, Signer},
        renewal,
    },
    metrics::ControllerMetrics,
    write::answer,
};
use crate::{
    certs::authority::{AuthorityError, Validity, facts_of},
    clock::Clock,
    retry::Retry,
    rpc::{
        client::{Agents, RpcError},
        tls::{CONTROLLER, is_agents},
    },
    sentence::sentence,
};

/// How long to wait before an agent is visited again that got no certificate.
/// An address that changes, as with a pod that was replaced, ends the pause.
const PAUSES: [Duration; 8] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(5),
    Duration::from_secs(5),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
];
/// How often it is looked whether an agent can still be talked to. Costs nothing: the connection's state is known.
const LOOK: Duration = Duration::from_secs(1);
/// An agent whose certificate is nobody's affair here is asked again after this.
const LATER: Duration = Duration::from_secs(60);
/// Agents that are visited at once.
const VISITS: usize = 16;
/// What the API server says of the pod that a token is bound to.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
/// What it says of the node that this pod is on (Kubernetes 1.32 and later).
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Why an agent got no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The agent did not answer, or has no token.
    #[error("The agent of node {node} was given no certificate")]
    Agent {
        /// The node.
        node: String,
        /// What the call failed with.
        #[source]
        source: RpcError,
    },
    /// The API server did not review the token.
    #[error("The token of node {node}'s agent could not be reviewed")]
    Review {
        /// The node.
        node: String,
        /// What the client says.
        #[source]
        source: Box<kube::Error>,
    },
    /// The token proves something else.
    #[error("Who answers as the agent of node {node} is given no certificate: {why}")]
    Refused {
        /// The node.
        node: String,
        /// What the token proves.
        why: String,
    },
    /// Signing failed.
    #[error("The agent of node {node} was given no certificate")]
    Sign {
        /// The node.
        node: String,
        /// Why.
        #[source]
        source: AuthorityError,
    },
}

impl EnrolError {
    /// The word for metrics.
    fn label(&self) -> &str {
        match self {
            EnrolError::Agent { .. } => WORDS.into_iter().find(|word| *word == self.reason()).unwrap_or("Refused"),
            _ => self.reason(),
        }
    }

    /// The word for logs.
    pub fn reason(&self) -> &str {
        match self {
            EnrolError::Agent { source, .. } => source.reason(),
            EnrolError::Review { .. } => "TokenNotReviewed",
            EnrolError::Refused { .. } => "TokenRefused",
            EnrolError::Sign { source, .. } => source.reason(),
        }
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            EnrolError::Agent { source, .. } => source.retry(),
            EnrolError::Review { .. } => Retry::Backoff,
            EnrolError::Refused { .. } => Retry::OnChange,
            EnrolError::Sign { source, .. } => source.retry(),
        }
    }
}

/// Words of an agent that are counted as they are. Whoever answers on a visit is not known yet, and may say anything.
const WORDS: [&str; 6] = [
    "CertificateOfFiles",
    "CertificateOfAnotherKey",
    "CertificateNotWritten",
    "TokenUnreadable",
    "AgentUnreachable",
    "AgentNotResponding",
];

/// What gives certificates.
pub struct Enroller {
    /// The API server, for reviews of tokens.
    pub client: Client,
    /// The agents.
    pub agents: Agents,
    /// Who signs.
    pub kept: Kept,
    /// The ServiceAccount of the agents' pods, as `system:serviceaccount:NAMESPACE:NAME`.
    pub account: String,
    /// The time.
    pub clock: Clock,
    /// Numbers.
    pub metrics: ControllerMetrics,
}

/// Keeps the certificates of all agents in the directory good, until `end`.
pub async fn keep(enroller: Enroller, end: CancellationToken) {
    let enroller = Arc::new(enroller);
    let visits = Arc::new(Semaphore::new(VISITS));
    let nodes = || enroller.agents.nodes();
    let one = |node: String, end: CancellationToken| {
        let (enroller, visits) = (enroller.clone(), visits.clone());
        async move {
            end.run_until_cancelled(one(&enroller, &node, &visits)).await;
        }
    };
    agents::each(nodes, end, one).await;
}

/// Keeps one agent's certificate good.
async fn one(enroller: &Enroller, node: &str, visits: &Semaphore) {
    let (mut failures, mut said) = (0, String::new());
    let mut kept = enroller.kept.clone();
    loop {
        let signer = kept.signer.borrow_and_update().clone();
        let visited = {
            // The semaphore is never closed.
            let _place = visits.acquire().await;
            enroller.visit(node, &signer).await
        };
        let pause = match visited {
            Ok(pause) => {
                (failures, said) = (0, String::new());
                pause
            }
            Err(error) => {
                let text = sentence(&error);
                if said != text {
                    tracing::warn!(node, reason = error.reason(), "{text}");
                    said = text;
                }
                failures += 1;
                enroller.metrics.certificate(error.label());
                let theirs = error.reason() == "CertificateOfFiles";
                if theirs { LATER } else { PAUSES[(failures - 1).min(PAUSES.len() - 1)] }
            }
        };
        let addresses = enroller.addresses(node);
        let lost = async {
            loop {
                tokio::time::sleep(LOOK).await;
                let silent = enroller.agents.get(node).is_some_and(|agent| agent.state().problem.is_some());
                if (failures == 0 && silent) || enroller.addresses(node) != addresses {
                    return;
                }
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = lost => {}
            // An error says that the controller ends.
            _ = kept.signer.changed() => {}
        }
    }
}

impl Enroller {
    fn addresses(&self, node: &str) -> Option<Vec<SocketAddr>> {
        self.agents.get(node).map(|agent| agent.addresses().to_vec())
    }

    /// Looks at the agent's certificate and gives it another one where that is due. Answers with when to come again.
    async fn visit(&self, node: &str, signer: &Signer) -> Result<Duration, EnrolError> {
        let Some(agent) = self.agents.get(node) else { return Ok(LATER) };
        let failed = |source| EnrolError::Agent { node: node.to_owned(), source };
        let mut visit = agent.visit().await.map_err(failed)?;
        let now = u64::try_from((self.clock)().as_second()).unwrap_or_default();
        let good = is_agents(&visit.shown, node, signer.authority.certificate(), now);
        let shown = facts_of(&visit.shown).map(|facts| facts.validity);
        if let Some(validity) = shown.filter(|validity| good && !is_due(*validity, now)) {
            return Ok(Duration::from_secs(renewal(validity) - now));
        }
        let asked = visit.request_certificate().await.map_err(failed)?;
        self.review(node, asked.token).await?;
        let validity = Validity::starting(now, signer.lifetime).within(signer.authority.validity());
        let certificate = signer
            .authority
            .agent_of_request(&asked.signing_request, node, validity)
            .map_err(|source| EnrolError::Sign { node: node.to_owned(), source })?;
        visit.install_certificate(certificate).await.map_err(failed)?;
        tracing::info!(node, "The agent was given a certificate");
        self.metrics.certificate("OK");
        Ok(Duration::from_secs(renewal(validity).saturating_sub(now).max(1)))
    }

    async fn review(&self, node: &str, token: String) -> Result<(), EnrolError> {
        let spec = TokenReviewSpec { audiences: Some(vec![CONTROLLER.to_owned()]), token: Some(token) };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let review = TokenReview { spec, ..TokenReview::default() };
        let review = answer(reviews.create(&PostParams::default(), &review))
            .await
            .map_err(|source| EnrolError::Review { node: node.to_owned(), source: Box::new(source) })?;
        proves(&review.status.unwrap_or_default(), &self.account, node)
            .map_err(|why| EnrolError::Refused { node: node.to_owned(), why })
    }
}

/// Whether a reviewed token is that of the agent's pod on this node; else what it is.
fn proves(status: &TokenReviewStatus, account: &str, node: &str) -> Result<(), String> {
    if status.authenticated != Some(true) {
        let error = status.error.as_deref().filter(|error| !error.is_empty()).unwrap_or("no reason is given");
        return Err(format!("the API server does not know its token ({error})"));
    }
    // A server that does not know audiences answers without them, and has not looked at them.
    if !status.audiences.iter().flatten().any(|audience| audience == CONTROLLER) {
        return Err(format!("its token was not made for {CONTROLLER}"));
    }
    let user = status.user.clone().unwrap_or_default();
    let name = user.username.unwrap_or_default();
    if name != account {
        return Err(format!("its token is of {name}, not of {account}"));
    }
    let mut extra = user.extra.unwrap_or_default();
    let is_of_a_pod = extra.contains_key(POD_NAME);
    match extra.remove(NODE_NAME).unwrap_or_default().as_slice() {
        [own] if own == node && is_of_a_pod => Ok(()),
        own if own.is_empty() || !is_of_a_pod => Err("its token is not bound to a pod on a node".to_owned()),
        other => Err(format!("its token is of a pod on node {}", other.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: &str = "system:serviceaccount:driftline-system:driftline-agent";

    fn status(change: serde_json::Value) -> TokenReviewStatus {
        let mut status = serde_json::json!({
            "authenticated": true,
            "audiences": [CONTROLLER],
            "user": { "username": ACCOUNT, "extra": { POD_NAME: ["agent"], NODE_NAME: ["node-1"] } },
        });
        for (key, value) in change.as_object().unwrap() {
            status[key] = value.clone();
        }
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn only_the_token_of_the_agents_pod_on_the_node_counts() {
        assert_eq!(proves(&status(serde_json::json!({})), ACCOUNT, "node-1"), Ok(()));
        let user =
            |name: &str, extra: serde_json::Value| serde_json::json!({ "user": { "username": name, "extra": extra } });
        for (change, says) in [
            (serde_json::json!({ "authenticated": false, "error": "token has expired" }), "token has expired"),
            (serde_json::json!({ "audiences": null }), "not made for controller.driftline"),
            (
                serde_json::json!({ "audiences": ["https://kubernetes.default.svc"] }),
                "not made for controller.driftline",
            ),
            (
                user("system:serviceaccount:x:y", serde_json::json!({ NODE_NAME: ["node-1"] })),
                "is of system:serviceaccount:x:y",
            ),
            (user(ACCOUNT, serde_json::json!({})), "not bound to a pod"),
            // Bound to the node itself.
            (user(ACCOUNT, serde_json::json!({ NODE_NAME: ["node-1"] })), "not bound to a pod"),
            (user(ACCOUNT, serde_json::json!({ POD_NAME: ["agent"], NODE_NAME: ["node-2"] })), "on node node-2"),
            (
                user(ACCOUNT, serde_json::json!({ POD_NAME: ["agent"], NODE_NAME: ["node-1", "node-2"] })),
                "on node node-1, node-2",
            ),
        ] {
            let why = proves(&status(change), ACCOUNT, "node-1").unwrap_err();
            assert!(why.contains(says), "{why}");
        }
    }
}
