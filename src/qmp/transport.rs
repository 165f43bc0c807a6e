//! The socket beneath: where a monitor is, how it is reached, and how bytes and file descriptors cross.
//! Edge; knows nothing of messages. Descriptors travel beside the first byte of their command (`SCM_RIGHTS`).

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::UnixStream,
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
};

/// Where a guest's monitor is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A unix socket: QEMU's `-qmp unix:PATH,server=on,wait=off`.
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The reading end.
#[derive(Debug)]
pub(super) struct Reader(OwnedReadHalf);

/// The writing end.
#[derive(Debug)]
pub(super) struct Writer(OwnedWriteHalf);

/// Connects; the caller sets the deadline. The third answer is the process at the other end, where the kernel tells.
pub(super) async fn connect(address: &Address) -> io::Result<(Reader, Writer, Option<i32>)> {
    let Address::Unix(path) = address;
    let stream = connect_unix(path).await?;
    let pid = stream.peer_cred().ok().and_then(|credentials| credentials.pid()).filter(|pid| *pid > 0);
    let (reader, writer) = stream.into_split();
    Ok((Reader(reader), Writer(writer), pid))
}

/// No part of the path may be a symbolic link. A machine in a pod has its socket in a volume that the pod's user writes: a
/// link there would lead to the monitor of another machine, which would then be backed up as that user's.
async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let socket = openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    // By its descriptor: it is the file that was looked at, and its path may be longer than a socket's address.
    UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
}

impl Reader {
    /// Reads what is there, into `buffer`; 0 at the end of the stream.
    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).await
    }
}

impl Writer {
    /// Writes all of `bytes`, with `fd` beside the first of them.
    pub(super) async fn send(&mut self, bytes: &[u8], fd: Option<OwnedFd>) -> io::Result<()> {
        let sent = match &fd {
            None => 0,
            Some(fd) => {
                let stream: &UnixStream = self.0.as_ref();
                stream.async_io(Interest::WRITABLE, || send_with_fd(stream.as_fd(), bytes, fd.as_fd())).await?
            }
        };
        self.0.write_all(&bytes[sent..]).await
    }
}

fn send_with_fd(socket: BorrowedFd<'_>, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?)
}
