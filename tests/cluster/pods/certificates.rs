//! Certificates that change in the middle of a run, and who is served.

use std::{fs, net::SocketAddr, time::Duration};

use base64::Engine as _;
use driftline::{
    certs::{
        Authority, Validity,
        authority::{self, Pair},
    },
    rpc::{
        client::Agent,
        tls::{Files, Identity, is_agents},
    },
};
use serde_json::json;

use super::underway::{SOON, Underway};
use crate::{
    lab::child::wait_for,
    release::{NAMESPACE, NODES, Release, TAGS},
};

/// Of the successor that this test puts there: it is trusted for an eighth of it before it signs.
const LIFETIME: Duration = Duration::from_secs(600);

/// The release as it was installed, but for `more`.
pub(super) fn chart(release: &Release, more: &[&str]) {
    release.upgrade(TAGS[0], more);
    release.wait_until_ready();
}

fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap()
}

/// The certificate that a node's agent keeps.
fn certificate(release: &Release, node: &str) -> String {
    fs::read_to_string(release.nodes.node(node).root().join("var/lib/driftline/tls/agent.pem")).unwrap()
}

fn is_signed_by(release: &Release, node: &str, authority: &str) -> bool {
    let text = certificate(release, node);
    let (_, pem) = x509_parser::pem::parse_x509_pem(text.as_bytes()).unwrap();
    is_agents(&pem.contents.into(), node, authority, now())
}

#[test]
fn certificates_and_their_authority_change_under_a_run_that_goes_on() {
    let (release, _turn) = Release::take();
    chart(release, &["--set=certificates.lifetime=60s"]);
    let run = Underway::at_half(release, NODES[0]);
    let first = NODES.map(|node| certificate(release, node));
    let next = Authority::generate(Validity::starting(now(), LIFETIME)).unwrap();
    let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let patch = json!({ "data": { "next.crt": encoded(&next.certificate), "next.key": encoded(&next.key) } });
    let words = ["patch", "secret", "driftline-authority", "-n", NAMESPACE, "-p", &patch.to_string()];
    release.plane().kubectl(words).ok();
    wait_for("agents have other certificates", SOON, || {
        NODES.iter().zip(&first).all(|(node, first)| certificate(release, node) != *first).then_some(())
    });
    wait_for("agents have certificates of the successor", LIFETIME / 4, || {
        NODES.iter().all(|node| is_signed_by(release, node, &next.certificate)).then_some(())
    });
    // Every connection is made anew, with a controller's certificate of the successor.
    release.plane().kubectl(["delete", "pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=controller"]).ok();
    release.wait_until_ready();
    run.goes_on();
    run.let_go();
    run.ends_exactly();
    // The successor ends in minutes: the tests that come after this one get an authority of their own.
    let gone = release.helm("uninstall", &["--wait", "--timeout=120s"]);
    assert!(gone.succeeded(), "{gone}");
    let back = release.install(&[]);
    assert!(back.succeeded(), "{back}");
    release.wait_until_ready();
}

#[test]
fn nobody_but_the_controller_is_served_by_an_agent() {
    let (release, _turn) = Release::take();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let [asked, other] = NODES;
    let path = "jsonpath={.status.podIP}";
    let pod = release.agent_pod(asked);
    let address = release.plane().kubectl(["get", "pod", "-n", NAMESPACE, &pod, "-o", path]).ok();
    let address = SocketAddr::new(address.parse().unwrap(), 7443);
    let place = tempfile::tempdir().unwrap();
    let words = ["get", "configmap", "driftline-authority", "-n", NAMESPACE, "-o", "jsonpath={.data.ca\\.crt}"];
    let trusted = release.plane().kubectl(words).ok();
    fs::write(place.path().join("ca.crt"), &trusted).unwrap();
    let of_agent = place.path().join("agent.pem");
    fs::write(&of_agent, certificate(release, other)).unwrap();
    let authorities = place.path().join("ca.crt");
    let another = Identity::load(Files { certificate: of_agent.clone(), key: of_agent, authorities }).unwrap();
    // What a pod of any account can make for itself.
    let Pair { certificate, key } = authority::unsigned("controller").unwrap();
    let own = Identity::of("a pod", &Pair { certificate, key }, &trusted).unwrap();
    let metrics = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}:7444/proxy/metrics");
    let refused = || -> u64 {
        let text = release.plane().kubectl(["get", "--raw", &metrics]).ok();
        let name = "driftline_agent_connections_refused_total{reason=\"ClientCertificateInvalid\"} ";
        text.lines().find_map(|line| line.strip_prefix(name)).map_or(0, |number| number.parse().unwrap())
    };
    let before = refused();
    for (who, identity) in [("another agent", another), ("another pod", own)] {
        let asking = async { Agent::new(asked, vec![address], identity).describe().await };
        let error = runtime.block_on(asking).unwrap_err();
        assert_eq!(error.reason(), "AgentUnreachable", "{who}: {error}");
    }
    assert!(refused() >= before + 2, "{before} and then {}", refused());
}
