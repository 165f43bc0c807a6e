//! `/healthz`, `/readyz` and `/metrics` of both roles (edge). Plain HTTP for probes and Prometheus: it shows names and
//! numbers, and changes nothing. Connections are bounded and idle ones are closed, so that nobody can use them up.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::registry::Registry;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, Sleep},
};
use tokio_util::sync::CancellationToken;

/// Connections at once.
const CONNECTIONS: usize = 64;
/// A connection on which nothing is read or written for so long is closed.
const IDLE: Duration = Duration::from_secs(5);

/// Whether the role does its work, and what a person should know about it either way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    /// What `/readyz` answers.
    pub ready: bool,
    /// A sentence each.
    pub notes: Vec<String>,
}

struct Shown {
    registry: Arc<Registry>,
    ready: watch::Receiver<Readiness>,
}

/// Serves until `end` is cancelled.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: TcpListener,
    registry: Arc<Registry>,
    ready: watch::Receiver<Readiness>,
    end: CancellationToken,
) -> io::Result<()> {
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(Shown { registry, ready }));
    let bounded = Bounded { listener, permits: Arc::new(Semaphore::new(CONNECTIONS)) };
    tokio::select! {
        served = async { axum::serve(bounded, app).await } => served,
        () = end.cancelled() => Ok(()),
    }
}

async fn readyz(State(shown): State<Arc<Shown>>) -> impl IntoResponse {
    let readiness = shown.ready.borrow().clone();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut text = String::from(if readiness.ready { "ready\n" } else { "not ready\n" });
    for note in readiness.notes {
        text.push_str(&note);
        text.push('\n');
    }
    (status, text)
}

async fn metrics(State(shown): State<Arc<Shown>>) -> impl IntoResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &shown.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text)
        }
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], String::new()),
    }
}

/// A listener that waits while too many connections are open.
struct Bounded {
    listener: TcpListener,
    permits: Arc<Semaphore>,
}

impl axum::serve::Listener for Bounded {
    type Io = Idle;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Idle, SocketAddr) {
        loop {
            // The semaphore is never closed; without a permit there is nothing to do but to try again.
            let Ok(permit) = self.permits.clone().acquire_owned().await else { continue };
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let sleep = Box::pin(tokio::time::sleep(IDLE));
                    return (Idle { stream, sleep, _permit: permit }, peer);
                }
                // Out of descriptors, as a rule: others have to close some first.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A stream that fails when nothing happens on it.
struct Idle {
    stream: TcpStream,
    sleep: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for Idle {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            self.sleep.as_mut().reset(Instant::now() + IDLE);
        } else if self.sleep.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Idle {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        if written.is_ready() {
            self.sleep.as_mut().reset(Instant::now() + IDLE);
        } else if self.sleep.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
