//! Certificates as the controller gives them, with tokens that the real API server made and checks.

use std::{
    fs,
    time::{Duration, Instant},
};

use base64::Engine as _;
use driftline::certs::{Authority, Validity, authority::facts};

use crate::installation::{Installation, NAMESPACE, NODES};

const NODE: &str = NODES[1];

/// The value of a metric of the controller; 0 where it is not there.
fn number(installation: &Installation, name: &str) -> f64 {
    let text = installation.metrics("controller");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    line.map_or(0.0, |value| value.parse().unwrap())
}

fn given(installation: &Installation, result: &str) -> f64 {
    number(installation, &format!("driftline_controller_agent_certificates_total{{result=\"{result}\"}}"))
}

fn is_connected(installation: &Installation, node: &str) -> bool {
    number(installation, &format!("driftline_controller_agent_connected{{node=\"{node}\"}}")) == 1.0
}

#[track_caller]
fn eventually(installation: &Installation, what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come:\n{}", installation.logs());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The authority of the installation, from its Secret.
fn authority(installation: &Installation) -> Authority {
    let read = |key: &str| {
        let path = format!("jsonpath={{.data.tls\\.{key}}}");
        let text =
            installation.plane.kubectl(["get", "secret", "driftline-authority", "-n", NAMESPACE, "-o", &path]).ok();
        String::from_utf8(base64::engine::general_purpose::STANDARD.decode(text).unwrap()).unwrap()
    };
    Authority::from_pem(&read("crt"), &read("key")).unwrap()
}

fn certificate(installation: &Installation, node: &str) -> String {
    fs::read_to_string(installation.host(node).join("tls/agent.pem")).unwrap()
}

#[test]
fn an_expired_certificate_is_made_anew_when_its_agent_starts() {
    let (installation, _turn) = Installation::to_kill();
    eventually(installation, "a connection", || is_connected(installation, NODE));
    installation.kill_agent(NODE);
    let old = Validity { from: 1_000_000_000, until: 1_000_086_400 };
    let expired = authority(installation).agent(NODE, old).unwrap();
    fs::write(installation.host(NODE).join("tls/agent.pem"), format!("{}{}", expired.certificate, expired.key))
        .unwrap();
    let before = given(installation, "OK");
    installation.start_agent(NODE);
    eventually(installation, "a new certificate", || given(installation, "OK") > before);
    assert!(facts(&certificate(installation, NODE)).unwrap().validity.until > Validity::days(20).until);
    eventually(installation, "a connection", || is_connected(installation, NODE));
}

#[test]
fn a_token_of_another_account_or_of_another_node_gets_no_certificate() {
    let (installation, _turn) = Installation::to_kill();
    let account = ["create", "token", "default", "-n", NAMESPACE, "--audience=controller.driftline"];
    let account = installation.plane.kubectl(account).ok();
    let unbound = ["create", "token", "driftline-agent", "-n", NAMESPACE, "--audience=controller.driftline"];
    let unbound = installation.plane.kubectl(unbound).ok();
    let apis = installation.plane.kubectl(["create", "token", "driftline-agent", "-n", NAMESPACE]).ok();
    for token in [account, unbound, apis, installation.token(NODES[0])] {
        installation.kill_agent(NODE);
        fs::remove_file(installation.host(NODE).join("tls/agent.pem")).unwrap();
        let (refused, ok) = (given(installation, "TokenRefused"), given(installation, "OK"));
        installation.start_agent_with_token(NODE, &token);
        eventually(installation, "a refusal", || given(installation, "TokenRefused") > refused);
        assert_eq!(given(installation, "OK"), ok);
        assert!(!facts(&certificate(installation, NODE)).unwrap().signs);
    }
    eventually(installation, "the end of the connection", || !is_connected(installation, NODE));
    installation.kill_agent(NODE);
    installation.start_agent(NODE);
    eventually(installation, "a connection", || is_connected(installation, NODE));
}

#[test]
fn a_new_authority_is_taken_up_and_the_old_one_is_trusted_until_it_ends() {
    let (installation, _turn) = Installation::to_kill();
    eventually(installation, "connections", || NODES.iter().all(|node| is_connected(installation, node)));
    let old = authority(installation);
    let patch = r#"{"data":{"tls.crt":null,"tls.key":null}}"#;
    let certificates = |text: &str| text.matches("BEGIN CERTIFICATE").count();
    let before = certificates(&installation.trusted_authorities());
    installation.plane.kubectl(["patch", "secret", "driftline-authority", "-n", NAMESPACE, "-p", patch]).ok();
    eventually(installation, "a second authority", || certificates(&installation.trusted_authorities()) == before + 1);
    assert!(installation.trusted_authorities().contains(old.certificate().trim()));
    // Every agent is given another certificate while the controller still shows the one that all of them trust.
    let new = authority(installation);
    let signed = |node: &str| {
        let pem = certificate(installation, node);
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap();
        driftline::rpc::tls::is_agents(&pem.contents.into(), node, new.certificate(), now)
    };
    eventually(installation, "certificates of the new authority", || NODES.iter().all(|node| signed(node)));
    installation.hand_out_authorities();
    // A new controller shows a certificate of the new authority from its start.
    installation.kill_controller();
    installation.start_controller();
    installation.wait_until_ready();
    eventually(installation, "connections", || NODES.iter().all(|node| is_connected(installation, node)));
}

#[test]
fn trouble_with_the_authority_is_said_and_ends_no_connection() {
    let (installation, _turn) = Installation::to_kill();
    eventually(installation, "connections", || NODES.iter().all(|node| is_connected(installation, node)));
    let map = ["configmap", "driftline-authority", "-n", NAMESPACE];
    let before = installation.plane.kubectl(["get"].into_iter().chain(map).chain(["-o", "json"])).ok();
    let mut before: serde_json::Value = serde_json::from_str(&before).unwrap();
    before["metadata"] = serde_json::json!({
        "name": before["metadata"]["name"], "labels": before["metadata"]["labels"], "namespace": NAMESPACE,
    });
    installation.plane.kubectl(["delete"].into_iter().chain(map)).ok();
    eventually(installation, "a word of it", || {
        installation
            .readiness("controller")
            .contains("AuthorityUnavailable: Reading ConfigMap driftline-system/driftline")
    });
    assert!(NODES.iter().all(|node| is_connected(installation, node)));
    let ends = |of: &str| {
        number(installation, &format!("driftline_controller_certificate_expiry_timestamp_seconds{{of=\"{of}\"}}"))
    };
    assert!(Validity::days(29).until as f64 <= ends("controller") && ends("controller") < ends("authority"));
    installation.plane.apply(NAMESPACE, &before.to_string()).ok();
    eventually(installation, "the end of it", || !installation.readiness("controller").contains("Authority"));
}
