//! One node's connection (edge): dials its addresses in turn, checks that the certificate names the node, and keeps
//! what is known about the connection for whoever asks.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::io::InspectReader;
use tonic::transport::{Channel, Endpoint};

use crate::rpc::tls::{Identity, agent_name};

/// One address's part: TCP and TLS together.
pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// A peer that says nothing is asked after this long, and given up after `PING_ANSWER`.
const PING: Duration = Duration::from_secs(10);
const PING_ANSWER: Duration = Duration::from_secs(5);

/// What is known about the connection to one agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Whether there is a connection.
    pub connected: bool,
    /// Why the last attempt to connect failed; None after a success and before the first attempt.
    pub problem: Option<String>,
}

/// The connection to one agent.
pub(super) struct Link {
    node: String,
    addresses: Vec<SocketAddr>,
    identity: Identity,
    open: Arc<AtomicUsize>,
    problem: Mutex<Option<String>>,
}

impl Link {
    pub(super) fn new(node: &str, addresses: Vec<SocketAddr>, identity: Identity) -> Link {
        Link { node: node.to_owned(), addresses, identity, open: Arc::default(), problem: Mutex::default() }
    }

    pub(super) fn node(&self) -> &str {
        &self.node
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(super) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub(super) fn state(&self) -> LinkState {
        let problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        LinkState { connected: self.open.load(Ordering::Relaxed) > 0, problem }
    }

    /// A channel that connects by `dial` when it is used and has no connection.
    pub(super) fn channel(self: &Arc<Self>) -> Channel {
        let link = self.clone();
        // tonic needs an address to write into the requests; where they go is up to `dial`.
        Endpoint::from_static("http://agent.driftline")
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING_ANSWER)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(tower::service_fn(move |_| {
                let link = link.clone();
                async move { link.dial().await.map(TokioIo::new) }
            }))
    }

    async fn dial(&self) -> Result<Counted, io::Error> {
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "it has no address");
        for address in &self.addresses {
            match tokio::time::timeout(CONNECT, self.dial_one(*address)).await {
                Ok(Ok(stream)) => {
                    self.note(None);
                    return Ok(stream);
                }
                Ok(Err(error)) => failed = io::Error::new(error.kind(), format!("{address}: {error}")),
                Err(_) => {
                    let text = format!("{address}: no TLS connection within {} s", CONNECT.as_secs());
                    failed = io::Error::new(io::ErrorKind::TimedOut, text);
                }
            }
        }
        self.note(Some(failed.to_string()));
        Err(failed)
    }

    async fn dial_one(&self, address: SocketAddr) -> io::Result<Counted> {
        let name = ServerName::try_from(agent_name(&self.node)).map_err(io::Error::other)?;
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let stream = TlsConnector::from(self.identity.client_config()).connect(name, tcp).await?;
        Ok(counted(stream, &self.open))
    }

    fn note(&self, problem: Option<String>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

/// A stream that counts as open until it is dropped.
type Counted = InspectReader<TlsStream<TcpStream>, Box<dyn FnMut(&[u8]) + Send + Sync>>;

fn counted(stream: TlsStream<TcpStream>, open: &Arc<AtomicUsize>) -> Counted {
    let place = Place::take(open);
    InspectReader::new(stream, Box::new(move |_| place.is_held()))
}

/// One of the open connections.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(open: &Arc<AtomicUsize>) -> Place {
        open.fetch_add(1, Ordering::Relaxed);
        Place(open.clone())
    }

    /// Keeps the place with whoever may call this.
    fn is_held(&self) {}
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
