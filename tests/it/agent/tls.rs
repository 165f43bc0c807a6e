//! Who is served: the controller of our authority, and nobody else, whatever they send or do not send.

use std::sync::Arc;

use driftline::rpc::{MAX_REQUEST, client::RpcError};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::*;

fn unreachable(error: &RpcError) -> String {
    assert_eq!(error.reason(), "AgentUnreachable", "{error}");
    error.to_string()
}

fn as_client(host: &Host, folder: &str, agent: &Running) -> Agent {
    Agent::new(NODE, vec![agent.address], host.identity(folder))
}

async fn refused(agent: &Running, reason: &str) {
    let name = format!("driftline_agent_connections_refused_total{{reason=\"{reason}\"}}");
    eventually(async || agent.metric(&name)).await;
}

#[tokio::test]
async fn the_controller_is_served_and_learns_node_and_session() {
    let host = Host::new();
    let running = host.start().await;
    let agent = host.controller(&running);
    assert!(!agent.state().connected);
    let first = agent.describe().await.unwrap();
    assert_eq!((first.node.as_str(), agent.state().connected), (NODE, true));
    assert_eq!(agent.session(), Some(first.session.clone()));
    running.stop().await;
    let again = host.start().await;
    let second = host.controller(&again).describe().await.unwrap();
    assert_ne!(first.session, second.session);
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let (host, other) = (Host::new(), Host::new());
    let running = host.start().await;
    // Trusts our authority, but its own certificate is signed by another.
    fs::copy(host.path("ca/ca.crt"), other.path("controller/ca.crt")).unwrap();
    unreachable(&as_client(&other, "controller", &running).describe().await.unwrap_err());
    refused(&running, "ClientCertificateInvalid").await;
    host.controller(&running).describe().await.unwrap();
}

#[tokio::test]
async fn an_agents_certificate_is_no_controllers() {
    let host = Host::new();
    let running = host.start().await;
    unreachable(&as_client(&host, "tls", &running).describe().await.unwrap_err());
    // It is made for servers, which is noticed before its name is.
    refused(&running, "ClientCertificateInvalid").await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let host = Host::new();
    let running = host.start().await;
    host.authority.controller(&host.path("old"), Validity { from: 1_000_000_000, until: 1_000_086_400 }).unwrap();
    unreachable(&as_client(&host, "old", &running).describe().await.unwrap_err());
    refused(&running, "ClientCertificateExpired").await;
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let host = Host::new();
    let running = host.start().await;
    let mut roots = rustls::RootCertStore::empty();
    let pem = fs::read(host.path("ca/ca.crt")).unwrap();
    use rustls::pki_types::pem::PemObject;
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("node-1.agent.driftline").unwrap();
    let tcp = TcpStream::connect(running.address).await.unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    // With TLS 1.3 the client hears of the refusal when it reads.
    let answer = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 16])).await.unwrap();
    assert!(answer.is_err(), "{answer:?}");
    refused(&running, "NoClientCertificate").await;
}

#[tokio::test]
async fn a_plain_text_client_is_refused() {
    let host = Host::new();
    let running = host.start().await;
    let mut tcp = TcpStream::connect(running.address).await.unwrap();
    tcp.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    // An alert, or a reset; never HTTP/2.
    let _ = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.len() < 16, "{rest:?}");
    refused(&running, "NotTLS").await;
    host.controller(&running).describe().await.unwrap();
}

#[tokio::test]
async fn an_agent_of_another_node_is_not_talked_to() {
    let host = Host::new();
    let running = host.start().await;
    let other = Agent::new("node-2", vec![running.address], host.identity("controller"));
    let text = unreachable(&other.describe().await.unwrap_err());
    assert!(text.contains("not valid for name"), "{text}");
}

#[tokio::test]
async fn an_oversized_request_is_refused_and_the_connection_goes_on() {
    let host = Host::new();
    let running = host.start().await;
    let agent = host.controller(&running);
    let request = v1::StartBackupRequest { run_name: "x".repeat(MAX_REQUEST + 1), ..Default::default() };
    let error = agent.start_backup(request).await.unwrap_err();
    assert_eq!(error.reason(), "AgentProtocolError", "{error}");
    agent.describe().await.unwrap();
}

#[tokio::test]
async fn a_thousand_connections_that_say_nothing_keep_nobody_out() {
    let host = Host::new();
    let running = host.start().await;
    let mut idle = Vec::new();
    for _ in 0..1000 {
        idle.push(TcpStream::connect(running.address).await.unwrap());
    }
    let describe = async || host.controller(&running).describe().await;
    tokio::time::timeout(PATIENCE, describe()).await.unwrap().unwrap();
    refused(&running, "TooManyHandshakes").await;
    drop(idle);
}

#[tokio::test]
async fn idle_connections_of_a_controller_keep_no_other_out() {
    let host = Host::new();
    let running = host.start_with(Limits { connections: 3, ..Limits::default() }).await;
    let mut idle = Vec::new();
    for _ in 0..10 {
        let config = host.identity("controller").client_config();
        let name = ServerName::try_from("node-1.agent.driftline").unwrap();
        let tcp = TcpStream::connect(running.address).await.unwrap();
        idle.push(TlsConnector::from(config).connect(name, tcp).await.unwrap());
    }
    host.controller(&running).describe().await.unwrap();
    refused(&running, "TooManyConnections").await;
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_ended() {
    let host = Host::new();
    let running = host.start_with(Limits { handshake: Duration::from_millis(100), ..Limits::default() }).await;
    let mut tcp = TcpStream::connect(running.address).await.unwrap();
    let read = tokio::time::timeout(PATIENCE, tcp.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    refused(&running, "HandshakeTimedOut").await;
}

#[tokio::test]
async fn changed_certificates_are_taken_up_without_a_restart() {
    let host = Host::new();
    let running = host.start().await;
    host.controller(&running).describe().await.unwrap();
    // A new authority: the agent must follow its files, or the new controller and it refuse each other.
    let new = Folder::create(&host.path("ca2")).unwrap();
    new.agent(NODE, &host.path("tls"), Validity::days(1)).unwrap();
    new.controller(&host.path("controller2"), Validity::days(1)).unwrap();
    as_client(&host, "controller2", &running).describe().await.unwrap();
    unreachable(&host.controller(&running).describe().await.unwrap_err());
    // A key that belongs to another certificate: the good pair stays in use.
    host.authority.agent(NODE, &host.path("other"), Validity::days(1)).unwrap();
    fs::copy(host.path("other/tls.key"), host.path("tls/tls.key")).unwrap();
    as_client(&host, "controller2", &running).describe().await.unwrap();
}

#[tokio::test]
async fn an_old_connection_is_renewed_and_calls_go_on() {
    let host = Host::new();
    let limits = Limits { age: Duration::from_millis(200), grace: Duration::from_millis(100), ..Limits::default() };
    let running = host.start_with(limits).await;
    let agent = host.controller(&running);
    let mut guests = agent.watch_guests().await.unwrap();
    guests.next().await.unwrap().unwrap();
    // The stream ends with the connection; the next call gets a new one by itself.
    let ended = tokio::time::timeout(PATIENCE, guests.next()).await.unwrap();
    assert!(matches!(ended, Some(Err(_)) | None), "{ended:?}");
    eventually(async || agent.describe().await.ok()).await;
}

#[tokio::test]
async fn a_client_finds_the_agent_again_after_a_restart() {
    let host = Host::new();
    let first = host.start().await;
    let address = first.address;
    let agent = host.controller(&first);
    let before = agent.describe().await.unwrap();
    first.stop().await;
    unreachable(&agent.describe().await.unwrap_err());
    assert!(!agent.state().connected);
    let mut registry = Registry::default();
    let metrics = AgentMetrics::register(&mut registry);
    let parts = Parts::new(NODE, &host.config(), Path::new("host.toml"), metrics).unwrap();
    let listener = TcpListener::bind(address).await.unwrap();
    let (identity, end) = (host.identity("tls"), CancellationToken::new());
    tokio::spawn(parts.serve(listener, identity, Limits::default(), end));
    let after = eventually(async || agent.describe().await.ok()).await;
    assert_ne!(before.session, after.session);
}
