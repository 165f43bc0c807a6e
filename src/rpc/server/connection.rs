//! The open connections of controllers (edge): how many there are, which has been silent longest, and its end when a
//! new one needs the place.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

/// All open connections of one server.
#[derive(Clone)]
pub(super) struct Connections {
    limit: usize,
    born: Instant,
    open: Arc<Mutex<Vec<Arc<Entry>>>>,
}

struct Entry {
    /// Milliseconds after the server's start when something was last read.
    heard: AtomicU64,
    close: CancellationToken,
}

impl Connections {
    pub(super) fn new(limit: usize) -> Connections {
        Connections { limit, born: Instant::now(), open: Arc::default() }
    }

    pub(super) fn is_full(&self) -> bool {
        self.entries().len() >= self.limit
    }

    /// Adds a connection; where there are too many, the most silent one is closed.
    pub(super) fn add(&self, stream: TlsStream<TcpStream>) -> Connection {
        let entry = Arc::new(Entry { heard: AtomicU64::new(self.now()), close: CancellationToken::new() });
        let mut open = self.entries();
        if open.len() >= self.limit
            && let Some(silent) = open.iter().min_by_key(|entry| entry.heard.load(Ordering::Relaxed)).cloned()
        {
            silent.close.cancel();
            open.retain(|other| !Arc::ptr_eq(other, &silent));
        }
        open.push(entry.clone());
        Connection { stream, closed: Box::pin(entry.close.clone().cancelled_owned()), entry, all: self.clone() }
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Arc<Entry>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// A controller's connection.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    entry: Arc<Entry>,
    all: Connections,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.all.entries().retain(|entry| !Arc::ptr_eq(entry, &self.entry));
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.closed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            self.entry.heard.store(self.all.now(), Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}
