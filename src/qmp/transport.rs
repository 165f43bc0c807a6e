//! The socket beneath: where a monitor is, how it is reached, and how bytes and file descriptors cross.
//! Edge; knows nothing of messages. Descriptors travel beside the first byte of their command (`SCM_RIGHTS`).

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
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

/// The longest path that fits into a socket's address on Linux, without its final zero.
const MAX_SOCKET_PATH: usize = 107;

/// Connects; the caller sets the deadline. The third answer is the process at the other end, where the kernel tells.
pub(super) async fn connect(address: &Address) -> io::Result<(Reader, Writer, Option<i32>)> {
    let Address::Unix(path) = address;
    let stream = connect_unix(path).await?;
    let pid = stream.peer_cred().ok().and_then(|credentials| credentials.pid()).filter(|pid| *pid > 0);
    let (reader, writer) = stream.into_split();
    Ok((Reader(reader), Writer(writer), pid))
}

async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().as_bytes().len() <= MAX_SOCKET_PATH {
        return UnixStream::connect(path).await;
    }
    // A longer path goes by a descriptor of its folder.
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let folder = rustix::fs::open(
        folder,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&folder);
    UnixStream::connect(Path::new("/proc/self/fd").join(number.to_string()).join(name)).await
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
