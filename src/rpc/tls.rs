//! Mutual TLS (edge): a folder with `tls.crt`, `tls.key` and `ca.crt` as rustls configurations, read again whenever a
//! file changes. An agent serves only `controller.driftline`; a controller talks only to the node that it means,
//! because the node's name is the name that the certificate is checked against.
//!
//! Sessions are never resumed: a resumed one would skip the check of a certificate that has expired or changed since.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::{Resumption, danger::HandshakeSignatureValid, verify_server_name},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{
        NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};

use crate::retry::Retry;

/// The name in the certificate of every controller.
pub const CONTROLLER: &str = "controller.driftline";

/// The name in the certificate of one node's agent.
pub fn agent_name(node: &str) -> String {
    format!("{node}.agent.driftline")
}

/// Why a folder cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not there or cannot be read.
    #[error("Reading {} for TLS failed", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file has no certificate or key in it.
    #[error("{} has no {what} in PEM form", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// The three files do not make an identity, for instance because the key is another certificate's.
    #[error("tls.crt, tls.key and ca.crt in {} cannot be used together", dir.display())]
    Unusable {
        /// The folder.
        dir: PathBuf,
        /// What rustls said.
        #[source]
        source: rustls::Error,
    },
}

impl TlsError {
    /// The word for conditions, logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            TlsError::Read { .. } => "CertificateUnreadable",
            TlsError::Empty { .. } | TlsError::Unusable { .. } => "CertificateInvalid",
        }
    }

    /// Somebody must put right files there.
    pub fn retry(&self) -> Retry {
        Retry::OnChange
    }
}

/// One end's certificate, key and authority, as fresh as the files are.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    loaded: ArcSwap<Loaded>,
    /// The files as they were at the last attempt to load them, good or bad: one attempt and one log line per change.
    tried: Mutex<Stamp>,
}

struct Loaded {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    expires: i64,
}

/// Modification time, length and inode of the three files.
type Stamp = [Option<(SystemTime, u64, u64)>; 3];

const FILES: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.0.dir.display())
    }
}

impl Identity {
    /// Reads the folder.
    ///
    /// # Errors
    /// When a file is missing or unusable. Later changes for the worse are logged, and the last good ones stay in use.
    pub fn load(dir: &Path) -> Result<Identity, TlsError> {
        let stamp = stamp(dir);
        let loaded = Loaded::read(dir)?;
        Ok(Identity(Arc::new(Inner {
            dir: dir.to_owned(),
            loaded: ArcSwap::from_pointee(loaded),
            tried: Mutex::new(stamp),
        })))
    }

    /// For an agent's next handshake: demands a controller's certificate, offers HTTP/2 only.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.fresh().server.clone()
    }

    /// For a controller's next handshake: shows its certificate, offers HTTP/2 only.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        self.fresh().client.clone()
    }

    /// When our own certificate ends, in seconds since 1970.
    pub fn expires(&self) -> i64 {
        self.fresh().expires
    }

    fn fresh(&self) -> arc_swap::Guard<Arc<Loaded>> {
        let now = stamp(&self.0.dir);
        // A poisoned lock only means that another thread panicked while it compared stamps.
        let mut tried = self.0.tried.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *tried != now {
            match Loaded::read(&self.0.dir) {
                Ok(loaded) => {
                    self.0.loaded.store(Arc::new(loaded));
                    tracing::info!(dir = %self.0.dir.display(), "Certificates were read again");
                }
                Err(error) => tracing::error!(
                    reason = error.reason(),
                    error = &error as &dyn std::error::Error,
                    "Changed certificates cannot be used, the ones before stay in use"
                ),
            }
            *tried = now;
        }
        self.0.loaded.load()
    }
}

fn stamp(dir: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    FILES.map(|name| {
        let meta = fs::metadata(dir.join(name)).ok()?;
        Some((meta.modified().ok()?, meta.len(), meta.ino()))
    })
}

impl Loaded {
    fn read(dir: &Path) -> Result<Loaded, TlsError> {
        let [chain_path, key_path, roots_path] = FILES.map(|name| dir.join(name));
        let chain = certificates(&chain_path)?;
        let key = PrivateKeyDer::from_pem_slice(&read(&key_path)?)
            .map_err(|_| TlsError::Empty { path: key_path, what: "private key" })?;
        let mut roots = RootCertStore::empty();
        let unusable = |source| TlsError::Unusable { dir: dir.to_owned(), source };
        for root in certificates(&roots_path)? {
            roots.add(root).map_err(unusable)?;
        }
        let expires = chain
            .first()
            .and_then(|leaf| x509_parser::parse_x509_certificate(leaf).ok())
            .map_or(0, |(_, leaf)| leaf.validity().not_after.timestamp());
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(Arc::new(OnlyController::new(roots.clone(), &provider).map_err(unusable)?))
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(unusable)?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(unusable)?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        client.resumption = Resumption::disabled();
        Ok(Loaded { server: Arc::new(server), client: Arc::new(client), expires })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let empty = || TlsError::Empty { path: path.to_owned(), what: "certificate" };
    let found: Vec<_> = CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<_, _>>().map_err(|_| empty())?;
    if found.is_empty() { Err(empty()) } else { Ok(found) }
}

/// Accepts a client certificate of our authority that is made for clients and names a controller, and nothing else.
#[derive(Debug)]
struct OnlyController {
    chain: Arc<dyn ClientCertVerifier>,
    name: ServerName<'static>,
}

impl OnlyController {
    fn new(roots: Arc<RootCertStore>, provider: &Arc<CryptoProvider>) -> Result<Self, rustls::Error> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let name = ServerName::try_from(CONTROLLER).map_err(|error| rustls::Error::General(error.to_string()))?;
        Ok(Self { chain, name })
    }
}

impl ClientCertVerifier for OnlyController {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(leaf, between, now)?;
        verify_server_name(&ParsedCertificate::try_from(leaf)?, &self.name)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
