//! The socket's side: one client at a time, lines in, replies and events out, faults in between.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    sync::{Arc, PoisonError},
    thread,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::{Map, Value, json};

use super::{ABORTED, Connection, Fault, Inner, Logged, Pace, model::Answer};
use crate::qmp::wire::{Lines, MAX_LINE};

/// Serves clients, one after the other, until QEMU is gone.
pub(super) fn serve(inner: &Arc<Inner>, listener: &UnixListener) {
    for number in 1.. {
        let Ok((stream, _)) = listener.accept() else { return };
        // Ends of connections are normal; so are those that a fault made.
        let _ = serve_client(inner, stream, number);
        let mut state = inner.lock();
        state.cut();
        state.model.client_is_gone();
        if state.gone {
            return;
        }
    }
}

fn serve_client(inner: &Arc<Inner>, stream: UnixStream, number: usize) -> io::Result<()> {
    {
        let mut state = inner.lock();
        if state.gone {
            return Ok(());
        }
        state.connection = Some(Connection::new(stream.try_clone()?)?);
        let version = state.model.version_answer();
        state.say(&json!({"QMP": {"version": version, "capabilities": ["oob"]}}));
    }
    let mut lines = Lines::new(MAX_LINE);
    let mut passed = None;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = receive(&stream, &mut buffer, &mut passed)?;
        if read == 0 {
            return Ok(());
        }
        lines.feed(&buffer[..read]);
        while let Some(line) = lines.next_line().map_err(io::Error::other)? {
            take(inner, number, &line, &mut passed)?;
        }
    }
}

/// Reads; a descriptor that comes along replaces the one before, as in QEMU.
fn receive(stream: &UnixStream, buffer: &mut [u8], passed: &mut Option<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(buffer)];
    let received = rustix::net::recvmsg(stream, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            *passed = fds.last().or(passed.take());
        }
    }
    Ok(received.bytes)
}

/// Does one command; an error ends the connection.
fn take(inner: &Arc<Inner>, connection: usize, line: &[u8], passed: &mut Option<OwnedFd>) -> io::Result<()> {
    let mut state = inner.lock();
    let Ok(request) = serde_json::from_slice::<Value>(line) else {
        let error = json!({"class": "GenericError", "desc": "JSON parse error"});
        state.say(&json!({"error": error}));
        return Ok(());
    };
    let name = request["execute"].as_str().or(request["exec-oob"].as_str()).unwrap_or_default().to_owned();
    let arguments = request.get("arguments").cloned().unwrap_or_else(|| json!({}));
    let logged = Logged { connection, command: name.clone(), arguments: arguments.clone(), done: false };
    state.log.push(logged);
    let cut = || io::Error::from(io::ErrorKind::ConnectionAborted);
    let fault = state.fault();
    match &fault {
        Some(Fault::CutBefore) => return Err(cut()),
        Some(Fault::KillBefore) => {
            drop(state);
            inner.kill(false);
            return Err(cut());
        }
        Some(Fault::Hang) => {
            while !state.gone {
                state = inner.gone.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            return Err(cut());
        }
        _ => {}
    }
    let result = match &fault {
        Some(Fault::Refuse { class, description }) => Err((class.clone(), description.clone())),
        _ if name == "qmp_capabilities" => {
            state.negotiated = true;
            Ok(Answer::from(json!({})))
        }
        _ if !state.negotiated => {
            Err(("CommandNotFound".to_owned(), "Expecting capabilities negotiation with 'qmp_capabilities'".to_owned()))
        }
        _ => {
            let (events, result) = state.model.execute(&name, &arguments, passed);
            state.emit_all(events);
            result
        }
    };
    if matches!(&result, Err((class, _)) if class == ABORTED) {
        drop(state);
        inner.kill(false);
        return Err(cut());
    }
    if let (Ok(_), Some(logged)) = (&result, state.log.last_mut()) {
        logged.done = true;
    }
    let (mut reply, started, cancelled) = match result {
        Ok(Answer { value, started, cancelled }) => {
            (Map::from_iter([("return".to_owned(), value)]), started, cancelled)
        }
        Err((class, desc)) => {
            let error = json!({"class": class, "desc": desc});
            (Map::from_iter([("error".to_owned(), error)]), Vec::new(), Vec::new())
        }
    };
    if let Some(id) = request.get("id") {
        reply.insert("id".to_owned(), id.clone());
    }
    let reply = Value::Object(reply);
    let mut stays = true;
    match fault {
        Some(Fault::CutAfter) => {
            state.cut();
            stays = false;
        }
        Some(Fault::KillAfter) => {
            drop(state);
            inner.kill(false);
            return Err(cut());
        }
        Some(Fault::DropReply) => {}
        Some(Fault::DelayReply(pause)) => {
            drop(state);
            thread::sleep(pause);
            state = inner.lock();
            state.say(&reply);
        }
        _ => state.say(&reply),
    }
    if name == "quit" {
        drop(state);
        inner.kill(true);
        return Err(cut());
    }
    for job in cancelled {
        state.end_job(&job, Some("Operation canceled"));
    }
    match state.pace {
        Pace::After(pause) if !started.is_empty() => {
            let inner = inner.clone();
            thread::spawn(move || {
                thread::sleep(pause);
                let mut state = inner.lock();
                for job in started {
                    state.end_job(&job, None);
                }
            });
        }
        Pace::AtOnce => {
            for job in started {
                state.end_job(&job, None);
            }
        }
        Pace::Manual | Pace::After(_) => {}
    }
    if stays { Ok(()) } else { Err(cut()) }
}
