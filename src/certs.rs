//! `driftline certs`: a development authority and its leaves, for a first try and for tests. In a cluster cert-manager
//! or the like does this; the names that it must put into the certificates are the ones used here.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::{
    retry::Retry,
    rpc::tls::{CONTROLLER, agent_name},
};

/// The subject of every authority of ours; a folder with another one is not ours to sign for.
const SUBJECT: &str = "Driftline development authority";
/// Clocks of nodes differ; a leaf is valid this long before it was made.
const BACKDATE: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// Makes certificates for development and tests.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Writes ca.crt and ca.key; an authority that is there already stays.
    Authority {
        /// The authority's folder.
        #[arg(long)]
        out: PathBuf,
    },
    /// Writes tls.crt, tls.key and ca.crt for a controller.
    Controller(Leaf),
    /// Writes tls.crt, tls.key and ca.crt for the agent of a node.
    Agent {
        /// The node's name, as Kubernetes has it.
        #[arg(long)]
        node: String,
        #[command(flatten)]
        leaf: Leaf,
    },
}

#[derive(Debug, clap::Args)]
struct Leaf {
    /// The authority's folder.
    #[arg(long)]
    authority: PathBuf,
    /// The folder to write to; files there are replaced.
    #[arg(long)]
    out: PathBuf,
    /// For how many days.
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
}

/// A certificate that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A file could not be read.
    #[error("Reading {} failed", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file could not be written.
    #[error("Writing {} failed", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The authority's folder holds something else.
    #[error("{} is no authority that `driftline certs authority` made: {why}", dir.display())]
    NotOurs {
        /// The folder.
        dir: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
    /// Making the key or the certificate failed, for instance because the node's name is none.
    #[error("Making a certificate for {name} failed")]
    Make {
        /// Whose.
        name: String,
        /// What the library said.
        #[source]
        source: rcgen::Error,
    },
}

impl CertsError {
    /// The word for logs.
    pub fn reason(&self) -> &'static str {
        match self {
            CertsError::Read { .. } => "CertificateUnreadable",
            CertsError::Write { .. } => "CertificateNotWritten",
            CertsError::NotOurs { .. } => "AuthorityForeign",
            CertsError::Make { .. } => "CertificateNotMade",
        }
    }

    /// A person has to look.
    pub fn retry(&self) -> Retry {
        Retry::OnChange
    }
}

/// Does what the arguments say.
///
/// # Errors
/// When a file cannot be read or written, or the authority is not ours.
pub fn run(args: &Args) -> Result<(), CertsError> {
    match &args.what {
        What::Authority { out } => Authority::create(out).map(drop),
        What::Controller(leaf) => Authority::open(&leaf.authority)?.controller(&leaf.out, Validity::days(leaf.days)),
        What::Agent { node, leaf } => {
            Authority::open(&leaf.authority)?.agent(node, &leaf.out, Validity::days(leaf.days))
        }
    }
}

/// From when until when, in seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub struct Validity {
    /// The first second.
    pub from: u64,
    /// The last second.
    pub until: u64,
}

impl Validity {
    /// From now, for some days.
    pub fn days(days: u32) -> Validity {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Validity { from: now.saturating_sub(BACKDATE).as_secs(), until: (now + DAY * days).as_secs() }
    }

    fn apply(self, params: &mut CertificateParams) {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + Duration::from_secs(self.from);
        params.not_after = epoch + Duration::from_secs(self.until);
    }
}

/// A development authority.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes an authority in a folder, or opens the one that is there.
    ///
    /// # Errors
    /// When the folder cannot be written, or holds half an authority or somebody else's.
    pub fn create(dir: &Path) -> Result<Authority, CertsError> {
        if dir.join("ca.crt").exists() || dir.join("ca.key").exists() {
            return Self::open(dir);
        }
        let make = |source| CertsError::Make { name: SUBJECT.to_owned(), source };
        let key = KeyPair::generate().map_err(make)?;
        let mut params = Self::params();
        Validity::days(3650).apply(&mut params);
        let certificate = params.self_signed(&key).map_err(make)?;
        write(dir, "ca.key", &key.serialize_pem(), 0o600)?;
        write(dir, "ca.crt", &certificate.pem(), 0o644)?;
        Self::open(dir)
    }

    /// Opens an authority that `create` made.
    ///
    /// # Errors
    /// When it is not there or not ours.
    pub fn open(dir: &Path) -> Result<Authority, CertsError> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(|source| CertsError::Read { path, source })
        };
        let (certificate, key) = (read("ca.crt")?, read("ca.key")?);
        let not_ours = |why| CertsError::NotOurs { dir: dir.to_owned(), why };
        let key = KeyPair::from_pem(&key).map_err(|_| not_ours("ca.key has no key"))?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.as_bytes())
            .map_err(|_| not_ours("ca.crt has no certificate"))?;
        let parsed = pem.parse_x509().map_err(|_| not_ours("ca.crt has no certificate"))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(not_ours("ca.key is another certificate's"));
        }
        // What is signed names its issuer by this subject, which is rebuilt and not read.
        if !parsed.subject().iter_common_name().any(|name| name.as_str() == Ok(SUBJECT)) {
            return Err(not_ours("its subject is another one"));
        }
        Ok(Authority { certificate, issuer: Issuer::new(Self::params(), key) })
    }

    fn params() -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, SUBJECT);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    /// Writes a controller's identity: a client certificate for `controller.driftline`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn controller(&self, out: &Path, validity: Validity) -> Result<(), CertsError> {
        self.leaf(CONTROLLER, ExtendedKeyUsagePurpose::ClientAuth, out, validity)
    }

    /// Writes a node's agent's identity: a server certificate for `<node>.agent.driftline`.
    ///
    /// # Errors
    /// When the node's name is none, or the folder cannot be written.
    pub fn agent(&self, node: &str, out: &Path, validity: Validity) -> Result<(), CertsError> {
        self.leaf(&agent_name(node), ExtendedKeyUsagePurpose::ServerAuth, out, validity)
    }

    fn leaf(
        &self,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
        out: &Path,
        validity: Validity,
    ) -> Result<(), CertsError> {
        let make = |source| CertsError::Make { name: name.to_owned(), source };
        let key = KeyPair::generate().map_err(make)?;
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(make)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Driftline");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        validity.apply(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).map_err(make)?;
        write(out, "ca.crt", &self.certificate, 0o644)?;
        write(out, "tls.key", &key.serialize_pem(), 0o600)?;
        write(out, "tls.crt", &certificate.pem(), 0o644)
    }
}

/// Replaces a file in one step, so that a reader never sees half of it.
fn write(dir: &Path, name: &str, text: &str, mode: u32) -> Result<(), CertsError> {
    let path = dir.join(name);
    let temporary = dir.join(format!(".{name}.{}", std::process::id()));
    let written = (|| {
        fs::create_dir_all(dir)?;
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&temporary, &path)
    })();
    written.map_err(|source| CertsError::Write { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::tls::Identity;

    #[test]
    fn leaves_of_a_new_authority_are_identities() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(&dir.path().join("ca")).unwrap();
        let validity = Validity::days(1);
        authority.controller(&dir.path().join("c"), validity).unwrap();
        authority.agent("node-1", &dir.path().join("a"), validity).unwrap();
        Identity::load(&dir.path().join("c")).unwrap();
        let agent = Identity::load(&dir.path().join("a")).unwrap();
        assert_eq!(agent.expires(), i64::try_from(validity.until).unwrap());
    }

    #[test]
    fn an_authority_that_is_there_stays_and_its_key_is_for_the_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        Authority::create(dir.path()).unwrap();
        let before = fs::read(dir.path().join("ca.crt")).unwrap();
        Authority::create(dir.path()).unwrap();
        assert_eq!(fs::read(dir.path().join("ca.crt")).unwrap(), before);
        let mode = fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_key_of_another_authority_is_refused() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Authority::create(one.path()).unwrap();
        Authority::create(other.path()).unwrap();
        fs::copy(other.path().join("ca.key"), one.path().join("ca.key")).unwrap();
        assert!(matches!(Authority::open(one.path()), Err(CertsError::NotOurs { .. })));
    }
}
