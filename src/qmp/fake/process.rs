//! A process that stands in for QEMU's: it has listened on the socket, so that the kernel names it as the peer, and it
//! ends when the scripted QEMU is killed. It is `cat` on a pipe, which ends with the test's process too.

use std::{
    io,
    os::{fd::AsFd, fd::OwnedFd, unix::net::UnixListener, unix::process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// The process.
#[derive(Debug)]
pub(super) struct Standin(Child);

impl Standin {
    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(super) fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A socket at `path` on which a process of its own has listened. As with QEMU, one client may wait in its queue.
#[allow(unsafe_code)]
pub(super) fn listen(path: &Path) -> io::Result<(UnixListener, Standin)> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let in_child: OwnedFd = socket.as_fd().try_clone_to_owned()?;
    let mut command = Command::new("cat");
    command.arg0("qemu-standin");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: between fork and exec only the system call `listen` is made, which is async-signal-safe; the descriptor
    // is owned by the closure.
    unsafe {
        command.pre_exec(move || Ok(rustix::net::listen(&in_child, 1)?));
    }
    let child = command.spawn()?;
    Ok((UnixListener::from(socket), Standin(child)))
}
