//! `/healthz`, `/readyz` and `/metrics` of both roles (edge). Plain HTTP for probes and Prometheus: it shows names and
//! numbers, and changes nothing. Connections are short and bounded, and the oldest one gives way, so that nobody can use them
//! up.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Weak},
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
    sync::watch,
};
use tokio_util::sync::CancellationToken;

/// Connections at once.
const CONNECTIONS: usize = 64;
/// No connection lives longer, whatever happens on it: every answer is there in a moment.
const AGE: Duration = Duration::from_secs(10);

/// Whether the role does its work, and what a person should know about it either way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    /// What `/readyz` answers.
    pub ready: bool,
    /// A sentence each.
    pub notes: Vec<String>,
    /// Whether only another start mends it: what `/healthz` denies, so that a liveness probe sees to it.
    pub ended: bool,
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
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(Shown { registry, ready }));
    let bounded = Bounded { listener, open: VecDeque::new() };
    tokio::select! {
        served = async { axum::serve(bounded, app).await } => served,
        () = end.cancelled() => Ok(()),
    }
}

async fn healthz(State(shown): State<Arc<Shown>>) -> impl IntoResponse {
    let readiness = shown.ready.borrow();
    match readiness.ended {
        true => (StatusCode::SERVICE_UNAVAILABLE, readiness.notes.join("\n") + "\n"),
        false => (StatusCode::OK, "ok\n".to_owned()),
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

/// A listener that closes the oldest connection where too many are open.
struct Bounded {
    listener: TcpListener,
    /// In their order; what cannot be upgraded is closed.
    open: VecDeque<(Weak<()>, CancellationToken)>,
}

impl axum::serve::Listener for Bounded {
    type Io = Short;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Short, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    self.open.retain(|(lives, _)| lives.strong_count() > 0);
                    if self.open.len() >= CONNECTIONS
                        && let Some((_, oldest)) = self.open.pop_front()
                    {
                        oldest.cancel();
                    }
                    let (lives, closed) = (Arc::new(()), CancellationToken::new());
                    self.open.push_back((Arc::downgrade(&lives), closed.clone()));
                    let end = Box::pin(async move {
                        let _ = tokio::time::timeout(AGE, closed.cancelled()).await;
                    });
                    return (Short { stream, end, ended: false, _lives: lives }, peer);
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

/// A stream that fails when it is old, or when another one needs its place.
struct Short {
    stream: TcpStream,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    ended: bool,
    _lives: Arc<()>,
}

impl Short {
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Option<io::Error> {
        self.ended = self.ended || self.end.as_mut().poll(cx).is_ready();
        self.ended.then(|| io::ErrorKind::TimedOut.into())
    }
}

impl AsyncRead for Short {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.poll_end(cx) {
            Some(end) => Poll::Ready(Err(end)),
            None => Pin::new(&mut self.stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Short {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.poll_end(cx) {
            Some(end) => Poll::Ready(Err(end)),
            None => Pin::new(&mut self.stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
