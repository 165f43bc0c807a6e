//! What a guest agent answers, and what it does not.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixListener,
    sync::mpsc,
};

use super::*;

/// An agent that answers each line with what the test says, to one client; hands the commands on.
fn agent(
    answer: impl Fn(&str) -> Option<Vec<u8>> + Send + 'static,
) -> (tempfile::TempDir, PathBuf, mpsc::Receiver<String>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qga");
    let (listener, (heard, commands)) = (UnixListener::bind(&path).unwrap(), mpsc::channel());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        for line in BufReader::new(stream.try_clone().unwrap()).split(b'\n') {
            let line = line.unwrap();
            let message: Value = serde_json::from_slice(line.strip_prefix(&[DELIMITER]).unwrap_or(&line)).unwrap();
            let command = message["execute"].as_str().unwrap().to_owned();
            let _ = heard.send(command.clone());
            if command == "guest-sync-delimited" {
                // What a client before us left unread comes first.
                let id = message["arguments"]["id"].clone();
                let synced = format!("{{\"return\": 7}}\n\u{0}{}\n", json!({ "return": id }));
                let bytes: Vec<u8> = synced.bytes().map(|byte| if byte == 0 { DELIMITER } else { byte }).collect();
                stream.write_all(&bytes).unwrap();
            } else if let Some(bytes) = answer(&command) {
                stream.write_all(&bytes).unwrap();
            }
        }
    });
    (folder, path, commands)
}

#[tokio::test]
async fn it_freezes_tells_and_thaws_whatever_was_left_unread() {
    let (_folder, path, commands) = agent(|command| {
        Some(match command {
            "guest-fsfreeze-status" => b"{\"return\": \"frozen\"}\n".to_vec(),
            "guest-fsfreeze-thaw" => b"{\"return\": 0}\n".to_vec(),
            _ => b"{\"return\": 2}\n".to_vec(),
        })
    });
    let mut agent = GuestAgent::connect(&path).await.unwrap();
    assert_eq!(agent.freeze(DEADLINE).await.unwrap(), 2);
    assert_eq!(agent.status().await.unwrap(), FreezeStatus::Frozen);
    assert_eq!(agent.thaw().await.unwrap(), 0);
    let heard: Vec<_> = commands.try_iter().collect();
    let wanted = ["guest-sync-delimited", "guest-fsfreeze-freeze", "guest-fsfreeze-status", "guest-fsfreeze-thaw"];
    assert_eq!(heard, wanted);
}

#[tokio::test]
async fn a_refusal_keeps_the_agents_words_and_nonsense_is_told_as_such() {
    let (_folder, path, _commands) = agent(|command| {
        Some(match command {
            "guest-fsfreeze-freeze" => {
                b"{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"Command has been disabled\"}}\n".to_vec()
            }
            "guest-fsfreeze-status" => b"{\"return\": \"melting\"}\n".to_vec(),
            _ => b"thawed\n".to_vec(),
        })
    });
    let mut agent = GuestAgent::connect(&path).await.unwrap();
    let refused = agent.freeze(DEADLINE).await.unwrap_err();
    assert_eq!((refused.reason(), refused.retry()), ("GuestAgentRefused", Retry::OnChange));
    assert!(refused.to_string().contains("Command has been disabled"), "{refused}");
    for error in [agent.status().await.unwrap_err(), agent.thaw().await.unwrap_err()] {
        assert_eq!(error.reason(), "GuestAgentNotUnderstood");
    }
}

#[tokio::test]
async fn a_freeze_that_is_answered_too_late_does_not_answer_for_the_next_command() {
    let (_folder, path, _commands) = agent(|command| match command {
        // Comes when the status is asked for: the agent was busy.
        "guest-fsfreeze-freeze" => None,
        "guest-fsfreeze-status" => Some(b"{\"return\": \"frozen\"}\n".to_vec()),
        _ => Some(b"{\"return\": 1}\n".to_vec()),
    });
    let mut agent = GuestAgent::connect(&path).await.unwrap();
    let silent = agent.freeze(Duration::from_millis(50)).await.unwrap_err();
    assert_eq!((silent.reason(), silent.retry()), ("GuestAgentSilent", Retry::Backoff));
    agent.sync().await.unwrap();
    assert_eq!(agent.status().await.unwrap(), FreezeStatus::Frozen);
    assert_eq!(agent.thaw().await.unwrap(), 1);
}

#[tokio::test]
async fn nobody_there_and_nobody_who_answers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qga");
    let unreachable = GuestAgent::connect(&path).await.unwrap_err();
    assert!(unreachable.to_string().contains("qga"), "{unreachable}");
    assert_eq!(unreachable.reason(), "GuestAgentUnreachable");
    // QEMU's socket, and no agent in the guest: the clock is turned, nothing waits.
    let _listener = UnixListener::bind(&path).unwrap();
    tokio::time::pause();
    assert_eq!(GuestAgent::connect(&path).await.unwrap_err().reason(), "GuestAgentSilent");
}
