//! How an agent is served (edge): an own accept loop, because handshakes must be concurrent, bounded and timed, and
//! because the certificates change while the agent runs. Whoever is not a controller of our authority is refused here,
//! before any code of the service runs.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::{
    MAX_ANSWER, MAX_REQUEST,
    tls::Identity,
    v1::agent_server::{Agent, AgentServer},
};
use crate::retry::Retry;

mod connection;

use connection::{Connection, Connections};

/// The bounds of a server.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long a handshake may take.
    pub handshake: Duration,
    /// Handshakes at once; beyond, the one that has waited longest is dropped.
    pub handshakes: usize,
    /// Connections of controllers at once; beyond, the one that has been silent longest is dropped.
    pub connections: usize,
    /// A connection is renewed after this, so that no certificate is used long after it was changed.
    pub age: Duration,
    /// How long the streams of such a connection may go on.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            handshake: Duration::from_secs(5),
            handshakes: 256,
            connections: 64,
            age: Duration::from_secs(600),
            grace: Duration::from_secs(30),
        }
    }
}

/// Told of each refused connection, with a PascalCase reason.
pub type OnRefused = Arc<dyn Fn(&'static str) + Send + Sync>;

/// The server ended by itself.
#[derive(Debug, thiserror::Error)]
#[error("Serving the agent's calls failed")]
pub struct ServeError {
    #[source]
    source: tonic::transport::Error,
}

impl ServeError {
    /// The word for logs.
    pub fn reason(&self) -> &'static str {
        "ServerFailed"
    }

    /// A new start can help.
    pub fn retry(&self) -> Retry {
        Retry::Backoff
    }
}

/// Serves until `end` is cancelled; streams of the service have to end by themselves then.
///
/// # Errors
/// When the HTTP/2 server fails as a whole; a single connection's failure is only counted.
pub async fn serve<S: Agent>(
    listener: TcpListener,
    identity: Identity,
    service: S,
    limits: Limits,
    on_refused: OnRefused,
    end: CancellationToken,
) -> Result<(), ServeError> {
    let (sender, connections) = mpsc::channel(16);
    let accepting = tokio::spawn(accept(listener, identity, limits.clone(), on_refused, sender, end.clone()));
    let agent = AgentServer::new(service).max_decoding_message_size(MAX_REQUEST).max_encoding_message_size(MAX_ANSWER);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<AgentServer<S>>().await;
    let served = Server::builder()
        .max_connection_age(limits.age)
        .max_connection_age_grace(limits.grace)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .http2_max_header_list_size(16 << 10)
        .max_concurrent_streams(4096)
        .add_service(health)
        .add_service(agent)
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), end.clone().cancelled_owned())
        .await;
    accepting.abort();
    served.map_err(|source| ServeError { source })
}

async fn accept(
    listener: TcpListener,
    identity: Identity,
    limits: Limits,
    on_refused: OnRefused,
    sender: mpsc::Sender<io::Result<Connection>>,
    end: CancellationToken,
) {
    let open = Connections::new(limits.connections);
    let mut handshakes = JoinSet::new();
    let mut waiting: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = handshakes.join_next() => continue,
            () = end.cancelled() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, as a rule: it passes when somebody closes one.
                tracing::warn!(%error, "Accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        waiting.retain(|handshake| !handshake.is_finished());
        if waiting.len() >= limits.handshakes
            && let Some(oldest) = waiting.pop_front()
        {
            oldest.abort();
            on_refused("TooManyHandshakes");
        }
        let (acceptor, sender, on_refused) =
            (TlsAcceptor::from(identity.server_config()), sender.clone(), on_refused.clone());
        let (open, patience) = (open.clone(), limits.handshake);
        waiting.push_back(handshakes.spawn(async move {
            match tokio::time::timeout(patience, handshake(acceptor, stream)).await {
                Ok(Ok(stream)) => {
                    if open.is_full() {
                        on_refused("TooManyConnections");
                    }
                    // The receiver is gone only when the server has ended.
                    let _ = sender.send(Ok(open.add(stream))).await;
                }
                Ok(Err(error)) => {
                    let reason = reason(&error);
                    tracing::debug!(%peer, reason, %error, "A connection was refused");
                    on_refused(reason);
                }
                Err(_) => on_refused("HandshakeTimedOut"),
            }
        }));
    }
}

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream) -> io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    acceptor.accept(stream).await
}

fn reason(error: &io::Error) -> &'static str {
    use rustls::{CertificateError, Error};
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::NoCertificatesPresented) => "NoClientCertificate",
        Some(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
            "ClientCertificateExpired"
        }
        Some(Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => "NotTheController",
        Some(Error::InvalidCertificate(_)) => "ClientCertificateInvalid",
        Some(Error::InvalidMessage(_)) => "NotTLS",
        Some(_) => "HandshakeFailed",
        None => "ConnectionLost",
    }
}
