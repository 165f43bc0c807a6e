//! The agent's own files: missing, wrong and changed ones are named by the probe, and never end the process.

use driftline::agent::{Args, run_until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;

/// A port that nobody has now.
fn free() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Status and body of an answer.
async fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut tcp = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.ok()?;
    let mut text = String::new();
    tcp.read_to_string(&mut text).await.ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

async fn readyz_until(address: SocketAddr, status: u16, words: &str) -> String {
    eventually(async || match get(address, "/readyz").await {
        Some((now, body)) if now == status && body.contains(words) => Some(body),
        _ => None,
    })
    .await
}

fn write_config(host: &Host, more: &str) {
    let text = format!(
        "state = {:?}\nlocks = {:?}\nguests = {:?}\nrepositoryRoots = [{:?}]\n{more}",
        host.path("state"),
        host.path("locks"),
        host.path("guests.d"),
        host.path("repos")
    );
    fs::write(host.path("host.toml"), text).unwrap();
}

#[tokio::test]
async fn wrong_and_changed_files_are_named_and_taken_up_without_a_new_process() {
    let host = Host::new();
    let (listen, admin) = (free(), free());
    let args = Args {
        node_name: NODE.to_owned(),
        listen,
        tls_dir: host.path("tls"),
        token: None,
        authorities: None,
        admin_listen: admin,
        config: host.path("host.toml"),
    };
    let end = CancellationToken::new();
    let task = tokio::spawn(run_until(args, end.clone()));
    // Not there yet.
    readyz_until(admin, 503, "host.toml").await;
    assert_eq!(get(admin, "/healthz").await.unwrap().0, 200);
    // A misspelt bound is no bound: refused, with the word.
    write_config(&host, "restoreRoot = 1\n");
    readyz_until(admin, 503, "restoreRoot").await;
    write_config(&host, "");
    readyz_until(admin, 200, "ready").await;
    let agent = Agent::new(NODE, vec![listen], host.identity("controller"));
    let first = eventually(async || agent.describe().await.ok()).await;
    // It becomes wrong: what was there before is in force, and a person and the controller hear of it.
    write_config(&host, "user = 7\n");
    let body = readyz_until(admin, 200, "HostFileInvalid").await;
    assert!(body.contains("in force"), "{body}");
    let told = async {
        let mut answers = agent.watch_guests().await.unwrap();
        while let Some(Ok(answer)) = answers.next().await {
            if answer.problems.iter().any(|problem| problem.reason == "HostFileInvalid") {
                return;
            }
        }
        panic!("not told")
    };
    tokio::time::timeout(PATIENCE, told).await.unwrap();
    assert_eq!(agent.describe().await.unwrap().session, first.session);
    // And another right one: a new life of the agent.
    write_config(&host, "reserve = \"1Gi\"\n");
    eventually(async || agent.describe().await.ok().filter(|now| now.session != first.session)).await;
    let (status, body) = get(admin, "/metrics").await.unwrap();
    assert_eq!(status, 200);
    assert!(body.contains("driftline_agent_calls_total{method=\"Describe\",result=\"OK\"}"), "{body}");
    assert!(body.contains("driftline_agent_certificate_expiry_timestamp_seconds"), "{body}");
    end.cancel();
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn connections_to_the_probes_that_say_something_now_and_then_keep_nobody_out() {
    let (listener, end) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), CancellationToken::new());
    let address = listener.local_addr().unwrap();
    let (_ready, readiness) = tokio::sync::watch::channel(driftline::admin::Readiness::default());
    tokio::spawn(driftline::admin::serve(listener, Registry::default().into(), readiness, end));
    let mut others = Vec::new();
    for _ in 0..200 {
        let mut other = TcpStream::connect(address).await.unwrap();
        // It may have given way already.
        let _ = other.write_all(b"GET /healthz HTTP/1.1\r\nX: ").await;
        others.push(other);
    }
    let slowly = async {
        loop {
            for other in &mut others {
                let _ = other.write_all(b"a").await;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let asked = async {
        for _ in 0..5 {
            let answer = tokio::time::timeout(Duration::from_secs(1), get(address, "/healthz")).await;
            assert_eq!(answer.expect("it is answered at once").unwrap().0, 200);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::select! {
        () = asked => {}
        () = slowly => {}
    }
}
