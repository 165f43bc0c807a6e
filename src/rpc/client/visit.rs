//! A connection to an agent whose certificate is not trusted, or not any more (edge), to give it another one. The agent
//! checks the controller as ever; the controller makes no other call here, and believes only what the token proves.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;

use super::{Agent, RpcError, deepest, link::CONNECT, once};
use crate::rpc::{
    tls::agent_name,
    v1::{self, agent_client::AgentClient},
};

/// An open connection, and the certificate that was shown on it.
pub struct Visit {
    agent: Agent,
    client: AgentClient<tonic::transport::Channel>,
    /// The certificate, DER.
    pub shown: CertificateDer<'static>,
}

impl Agent {
    /// Connects to whoever answers at the agent's addresses.
    ///
    /// # Errors
    /// When nobody does.
    pub async fn visit(&self) -> Result<Visit, RpcError> {
        const CALL: &str = "Visit";
        let unreachable = |why: String| RpcError::Unreachable { node: self.node().to_owned(), call: CALL, why };
        let mut why = "it has no address".to_owned();
        for address in self.0.link.addresses() {
            let shown = Arc::new(Mutex::new(None));
            let (noted, config) = (shown.clone(), self.0.link.identity().untrusting_client_config());
            let (name, address) = (agent_name(self.node()), *address);
            let dial = move || async move {
                let tcp = TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                let name = ServerName::try_from(name).map_err(io::Error::other)?;
                let stream = TlsConnector::from(config).connect(name, tcp).await?;
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
                *noted.lock().unwrap_or_else(PoisonError::into_inner) = chain.first().map(|c| c.clone().into_owned());
                Ok::<_, io::Error>(TokioIo::new(stream))
            };
            let mut dial = Some(dial);
            // Once: a connection that is cut is another visit.
            let connector = tower::service_fn(move |_| {
                let dialled = dial.take().map(|dial| dial());
                async move {
                    match dialled {
                        Some(dialled) => dialled.await,
                        None => Err(io::Error::from(io::ErrorKind::NotConnected)),
                    }
                }
            });
            let endpoint = Endpoint::from_static("http://agent.driftline");
            match tokio::time::timeout(CONNECT, endpoint.connect_with_connector(connector)).await {
                Ok(Ok(channel)) => {
                    let shown = shown.lock().unwrap_or_else(PoisonError::into_inner).take();
                    let shown = shown.ok_or_else(|| unreachable(format!("{address} shows no certificate")))?;
                    return Ok(Visit { agent: self.clone(), client: AgentClient::new(channel), shown });
                }
                Ok(Err(error)) => why = format!("{address}: {}", deepest(&error).unwrap_or_else(|| error.to_string())),
                Err(_) => why = format!("{address}: no TLS connection within {} s", CONNECT.as_secs()),
            }
        }
        Err(unreachable(why))
    }
}

impl Visit {
    /// A new key's signing request, and the token of the agent's pod.
    ///
    /// # Errors
    /// When the agent has no token, or its certificate is none of the controller's making.
    pub async fn request_certificate(&mut self) -> Result<v1::RequestCertificateResponse, RpcError> {
        let call = self.client.request_certificate(v1::RequestCertificateRequest {});
        once(&self.agent.0.link, "RequestCertificate", call).await
    }

    /// Gives the certificate of that key.
    ///
    /// # Errors
    /// When the agent has made another key since, or cannot keep it.
    pub async fn install_certificate(&mut self, certificate: String) -> Result<(), RpcError> {
        let call = self.client.install_certificate(v1::InstallCertificateRequest { certificate });
        once(&self.agent.0.link, "InstallCertificate", call).await.map(drop)
    }
}
