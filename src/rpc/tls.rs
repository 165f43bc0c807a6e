//! Mutual TLS (edge): certificate, key and authorities as rustls configurations. An agent's come from files, which are
//! read again whenever one changes; the controller makes its own and sets them anew. An agent serves only `controller.driftline`; a controller talks only to the node that it means,
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
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::NoServerSessionStorage,
    version::TLS13,
};

use crate::{
    certs::authority::{Pair, facts_of},
    retry::Retry,
};

mod verify;

pub use verify::is_agents;
use verify::{AnyServer, OnlyController};

/// The name in the certificate of every controller, and the audience of the tokens that agents show it.
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
    /// A text has no certificate or key in it.
    #[error("{whose} has no {what} in PEM form")]
    Empty {
        /// The file, or whose it is.
        whose: String,
        /// What was looked for.
        what: &'static str,
    },
    /// The parts do not make an identity, for instance because the key is another certificate's.
    #[error("The certificate, key and authorities of {whose} cannot be used together")]
    Unusable {
        /// Whose: the file of the certificate, or a name.
        whose: String,
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

/// Where the parts of an identity are. Certificate and key may be in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authorities that are trusted.
    pub authorities: PathBuf,
}

impl Files {
    /// As cert-manager and `driftline certs` name them.
    pub fn in_folder(dir: &Path) -> Files {
        let file = |name: &str| dir.join(name);
        Files { certificate: file("tls.crt"), key: file("tls.key"), authorities: file("ca.crt") }
    }

    fn all(&self) -> [&Path; 3] {
        [&self.certificate, &self.key, &self.authorities]
    }
}

/// One end's certificate, key and authorities.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    loaded: ArcSwap<Loaded>,
    /// Where it comes from, where that is files.
    files: Option<Watched>,
}

struct Watched {
    files: Files,
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

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?})", self.0.files.as_ref().map(|watched| &watched.files))
    }
}

impl Identity {
    /// Reads files.
    ///
    /// # Errors
    /// When one is missing or unusable. Later changes for the worse are logged, and the last good ones stay in use.
    pub fn load(files: Files) -> Result<Identity, TlsError> {
        let tried = Mutex::new(stamp(&files));
        let loaded = ArcSwap::from_pointee(Loaded::read(&files)?);
        Ok(Identity(Arc::new(Inner { loaded, files: Some(Watched { files, tried }) })))
    }

    /// One of PEM texts, for whom its name is in errors.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn of(whose: &str, pair: &Pair, authorities: &str) -> Result<Identity, TlsError> {
        let loaded = ArcSwap::from_pointee(Loaded::parse(whose, pair, authorities)?);
        Ok(Identity(Arc::new(Inner { loaded, files: None })))
    }

    /// Uses other PEM texts from the next handshake on.
    ///
    /// # Errors
    /// When they cannot be used; then nothing changes.
    pub fn set(&self, whose: &str, pair: &Pair, authorities: &str) -> Result<(), TlsError> {
        self.0.loaded.store(Arc::new(Loaded::parse(whose, pair, authorities)?));
        Ok(())
    }

    /// For an agent's next handshake: demands a controller's certificate, offers HTTP/2 only.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.fresh().server.clone()
    }

    /// For a controller's next handshake: shows its certificate, offers HTTP/2 only.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        self.fresh().client.clone()
    }

    /// The same, but whoever answers is taken for an agent: for giving it a certificate, and nothing else.
    pub fn untrusting_client_config(&self) -> Arc<ClientConfig> {
        let mut config = ClientConfig::clone(&self.fresh().client);
        let provider = config.crypto_provider().clone();
        config.dangerous().set_certificate_verifier(Arc::new(AnyServer(provider)));
        Arc::new(config)
    }

    /// When our own certificate ends, in seconds since 1970.
    pub fn expires(&self) -> i64 {
        self.fresh().expires
    }

    fn fresh(&self) -> arc_swap::Guard<Arc<Loaded>> {
        if let Some(Watched { files, tried }) = &self.0.files {
            let now = stamp(files);
            // A poisoned lock only means that another thread panicked while it compared stamps.
            let mut tried = tried.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if *tried != now {
                match Loaded::read(files) {
                    Ok(loaded) => {
                        self.0.loaded.store(Arc::new(loaded));
                        tracing::info!(certificate = %files.certificate.display(), "Certificates were read again");
                    }
                    Err(error) => tracing::error!(
                        reason = error.reason(),
                        error = &error as &dyn std::error::Error,
                        "Changed certificates cannot be used, the ones before stay in use"
                    ),
                }
                *tried = now;
            }
        }
        self.0.loaded.load()
    }
}

fn stamp(files: &Files) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    files.all().map(|path| {
        let meta = fs::metadata(path).ok()?;
        Some((meta.modified().ok()?, meta.len(), meta.ino()))
    })
}

impl Loaded {
    fn read(files: &Files) -> Result<Loaded, TlsError> {
        let texts = (read(&files.certificate)?, read(&files.key)?, read(&files.authorities)?);
        let whose = files.all().map(|path| path.display().to_string());
        Self::new([&whose[0], &whose[1], &whose[2]], &texts.0, &texts.1, &texts.2)
    }

    fn parse(whose: &str, pair: &Pair, authorities: &str) -> Result<Loaded, TlsError> {
        Self::new([whose; 3], pair.certificate.as_bytes(), pair.key.as_bytes(), authorities.as_bytes())
    }

    fn new(whose: [&str; 3], chain: &[u8], key: &[u8], authorities: &[u8]) -> Result<Loaded, TlsError> {
        let unusable = |source| TlsError::Unusable { whose: whose[0].to_owned(), source };
        let chain = certificates(whose[0], chain)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| TlsError::Empty { whose: whose[1].to_owned(), what: "private key" })?;
        let roots = roots(whose[2], authorities)?;
        let facts = chain.first().and_then(|leaf| facts_of(leaf));
        let expires = facts.and_then(|facts| i64::try_from(facts.validity.until).ok()).unwrap_or_default();
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

/// Whether a file has authorities to trust.
///
/// # Errors
/// When it cannot be read, or has none.
pub fn check_authorities(path: &Path) -> Result<(), TlsError> {
    let text = read(path)?;
    roots(&path.display().to_string(), &text).map(drop)
}

fn roots(whose: &str, authorities: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for root in certificates(whose, authorities)? {
        roots.add(root).map_err(|source| TlsError::Unusable { whose: whose.to_owned(), source })?;
    }
    Ok(roots)
}

fn certificates(whose: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let empty = || TlsError::Empty { whose: whose.to_owned(), what: "certificate" };
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| empty())?;
    if found.is_empty() { Err(empty()) } else { Ok(found) }
}
