//! A proxy on a QEMU monitor, as a process of its own: it counts commands, and drops, delays, holds or cuts what the
//! test says. Descriptors (SCM_RIGHTS) pass through. It ends when its QEMU ends.
//!
//!     qemu-monitor-proxy LISTEN UPSTREAM CONTROL QEMU-PID
//!
//! A process of its own, because whoever is under test takes the listener's pid (SO_PEERCRED) for QEMU's.
#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test's helper: a panic is its way to fail")]

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    Shutdown, recvmsg, sendmsg, shutdown,
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Interest},
    net::{UnixListener, UnixStream},
    sync::Notify,
};

mod proxy_rules;
use proxy_rules::{Action, Request, Rule, Sent, State};

#[derive(Default)]
struct Proxy {
    rules: Mutex<Vec<(Rule, u32)>>,
    state: Mutex<State>,
    released: Notify,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let [listen, upstream, control, pid] = <[String; 4]>::try_from(std::env::args().skip(1).collect::<Vec<_>>())
        .expect("LISTEN UPSTREAM CONTROL QEMU-PID");
    let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    let qemu = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    std::thread::spawn(move || {
        let mut end = [PollFd::new(&qemu, PollFlags::IN)];
        while poll(&mut end, None).is_err() {}
        std::process::exit(0);
    });
    let proxy = Arc::new(Proxy::default());
    // The control socket last: it is what says that the proxy is ready.
    let clients = UnixListener::bind(&listen).unwrap();
    let tests = UnixListener::bind(&control).unwrap();
    loop {
        tokio::select! {
            Ok((test, _)) = tests.accept() => drop(tokio::spawn(obey(proxy.clone(), test))),
            Ok((client, _)) = clients.accept() => drop(tokio::spawn(serve(proxy.clone(), client, upstream.clone()))),
        }
    }
}

async fn obey(proxy: Arc<Proxy>, test: UnixStream) {
    let (input, mut output) = test.into_split();
    let mut lines = BufReader::new(input).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line).unwrap() {
            Request::Rule(rule) => proxy.rules.lock().unwrap().push((rule, 0)),
            Request::Clear => proxy.rules.lock().unwrap().clear(),
            Request::Release => proxy.released.notify_waiters(),
            Request::State => {}
        }
        // A release is seen by the one that is held before the test gets its answer.
        tokio::task::yield_now().await;
        let mut answer = serde_json::to_string(&*proxy.state.lock().unwrap()).unwrap();
        answer.push('\n');
        if output.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// One client's connection and its own connection to QEMU, which serves one at a time and lets the next one wait.
struct Link {
    proxy: Arc<Proxy>,
    number: u32,
    client: UnixStream,
    qemu: UnixStream,
    /// Ids of commands on their way, with what is to happen to the reply.
    pending: Mutex<VecDeque<(Option<Value>, Option<Action>)>>,
    writing: tokio::sync::Mutex<()>,
}

async fn serve(proxy: Arc<Proxy>, client: UnixStream, upstream: String) {
    let Ok(qemu) = UnixStream::connect(upstream).await else { return };
    let number = {
        let mut state = proxy.state.lock().unwrap();
        state.connections += 1;
        state.connections
    };
    let (pending, writing) = (Mutex::default(), tokio::sync::Mutex::default());
    let link = Arc::new(Link { proxy, number, client, qemu, pending, writing });
    tokio::select! {
        _ = forward_commands(&link) => {}
        _ = forward_replies(&link) => {}
    }
    // A delayed reply may still keep the sockets: they end for both sides now.
    let _ = shutdown(&link.client, Shutdown::Both);
    let _ = shutdown(&link.qemu, Shutdown::Both);
}

async fn forward_commands(link: &Link) -> io::Result<()> {
    let (mut buffer, mut descriptors) = (Vec::new(), VecDeque::new());
    while receive(&link.client, &mut buffer, &mut descriptors).await? > 0 {
        while let Some((command, length)) = first_document(&buffer)? {
            let bytes: Vec<u8> = buffer.drain(..length).collect();
            let name = command.get("execute").or_else(|| command.get("exec-oob"));
            let name = name.and_then(Value::as_str).unwrap_or_default().to_owned();
            let action = link.proxy.action_for(&name);
            match action {
                Some(Action::CutBefore) => return Ok(()),
                Some(Action::Hold) if !link.proxy.hold(Some(&link.client)).await => return Ok(()),
                _ => {}
            }
            let descriptor = matches!(name.as_str(), "add-fd" | "getfd").then(|| descriptors.pop_front()).flatten();
            let arguments = command.get("arguments").cloned().unwrap_or_default();
            link.pending.lock().unwrap().push_back((command.get("id").cloned(), action));
            link.proxy.state.lock().unwrap().commands.push(Sent { connection: link.number, command: name, arguments });
            send(&link.qemu, &bytes, descriptor.as_ref()).await?;
        }
    }
    Ok(())
}

async fn forward_replies(link: &Arc<Link>) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        link.qemu.readable().await?;
        match link.qemu.try_read_buf(&mut buffer) {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            read => read?,
        };
        while let Some(end) = buffer.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            match link.action_for_reply(&line) {
                Some(Action::DropReply) => continue,
                Some(Action::CutReply) => return Ok(()),
                Some(Action::HoldReply) => drop(link.proxy.hold(None).await),
                Some(Action::DelayReply(ms)) => {
                    let link = link.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(ms)).await;
                        let _ = link.answer(&line).await;
                    });
                    continue;
                }
                _ => {}
            }
            link.answer(&line).await?;
        }
    }
}

impl Link {
    async fn answer(&self, line: &[u8]) -> io::Result<()> {
        let _one_at_a_time = self.writing.lock().await;
        send(&self.client, line, None).await
    }

    fn action_for_reply(&self, line: &[u8]) -> Option<Action> {
        let reply: Value = serde_json::from_slice(line).ok()?;
        reply.get("return").or_else(|| reply.get("error"))?;
        let mut pending = self.pending.lock().unwrap();
        let at = pending.iter().position(|(id, _)| id.as_ref() == reply.get("id"))?;
        pending.remove(at)?.1
    }
}

impl Proxy {
    fn action_for(&self, command: &str) -> Option<Action> {
        let mut rules = self.rules.lock().unwrap();
        for (rule, seen) in rules.iter_mut() {
            *seen += u32::from(rule.command.as_deref().is_none_or(|name| name == command));
        }
        let at = rules.iter().position(|(rule, seen)| *seen >= rule.nth)?;
        self.state.lock().unwrap().fired += 1;
        Some(rules.remove(at).0.action)
    }

    /// Waits for the test's word; false when the client hung up meanwhile.
    async fn hold(&self, client: Option<&UnixStream>) -> bool {
        let released = self.released.notified();
        tokio::pin!(released);
        released.as_mut().enable();
        self.state.lock().unwrap().held = true;
        let goes_on = tokio::select! {
            () = &mut released => true,
            () = hung_up(client) => false,
        };
        self.state.lock().unwrap().held = false;
        goes_on
    }
}

async fn hung_up(client: Option<&UnixStream>) {
    let Some(client) = client else { return std::future::pending().await };
    // Unread bytes keep the socket readable, so its end is looked for now and then.
    while !client.ready(Interest::READABLE).await.is_ok_and(|ready| ready.is_read_closed()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The first whole JSON document of the buffer and the number of bytes that it took.
fn first_document(buffer: &[u8]) -> io::Result<Option<(Value, usize)>> {
    let mut documents = serde_json::Deserializer::from_slice(buffer).into_iter::<Value>();
    match documents.next() {
        Some(Ok(document)) => Ok(Some((document, documents.byte_offset()))),
        Some(Err(error)) if !error.is_eof() => Err(error.into()),
        _ => Ok(None),
    }
}

async fn receive(from: &UnixStream, into: &mut Vec<u8>, descriptors: &mut VecDeque<OwnedFd>) -> io::Result<usize> {
    let mut bytes = [0; 16384];
    let got = from
        .async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let got = recvmsg(from, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    descriptors.extend(received);
                }
            }
            Ok(got.bytes)
        })
        .await?;
    into.extend_from_slice(&bytes[..got]);
    Ok(got)
}

async fn send(to: &UnixStream, mut bytes: &[u8], mut descriptor: Option<&OwnedFd>) -> io::Result<()> {
    while !bytes.is_empty() {
        let sent = to
            .async_io(Interest::WRITABLE, || {
                let borrowed = descriptor.map(|descriptor| [descriptor.as_fd()]);
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                if let Some(borrowed) = &borrowed {
                    ancillary.push(SendAncillaryMessage::ScmRights(borrowed));
                }
                Ok(sendmsg(to, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
            })
            .await?;
        (bytes, descriptor) = (&bytes[sent..], None);
    }
    Ok(())
}
