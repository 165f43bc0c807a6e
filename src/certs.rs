//! `driftline certs`: an authority in a folder and its leaves, for agents that run outside of a cluster's pods and for
//! tests. In a cluster the controller makes all certificates itself: see `controller::authority`.

pub mod authority;

use std::{
    fs, io,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

pub use self::authority::{Authority, AuthorityError, Pair, Validity};
use crate::retry::Retry;

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
    #[error("ca.crt and ca.key in {} are no authority", dir.display())]
    Unusable {
        /// The folder.
        dir: PathBuf,
        /// What is wrong.
        #[source]
        source: AuthorityError,
    },
    /// Making the key or the certificate failed, for instance because the node's name is none.
    #[error("Making certificates failed")]
    Make {
        /// What failed.
        #[source]
        source: AuthorityError,
    },
}

impl CertsError {
    /// The word for logs.
    pub fn reason(&self) -> &'static str {
        match self {
            CertsError::Read { .. } => "CertificateUnreadable",
            CertsError::Write { .. } => "CertificateNotWritten",
            CertsError::Unusable { source, .. } | CertsError::Make { source } => source.reason(),
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
        What::Authority { out } => Folder::create(out).map(drop),
        What::Controller(leaf) => Folder::open(&leaf.authority)?.controller(&leaf.out, Validity::days(leaf.days)),
        What::Agent { node, leaf } => Folder::open(&leaf.authority)?.agent(node, &leaf.out, Validity::days(leaf.days)),
    }
}

/// An authority in a folder.
pub struct Folder(Authority);

impl Folder {
    /// Makes an authority in a folder, or opens the one that is there.
    ///
    /// # Errors
    /// When the folder cannot be written, or holds half an authority or something else.
    pub fn create(dir: &Path) -> Result<Folder, CertsError> {
        if dir.join("ca.crt").exists() || dir.join("ca.key").exists() {
            return Self::open(dir);
        }
        let made = Authority::generate(Validity::days(3650)).map_err(|source| CertsError::Make { source })?;
        write(dir, "ca.key", &made.key, 0o600)?;
        write(dir, "ca.crt", &made.certificate, 0o644)?;
        Self::open(dir)
    }

    /// Opens an authority that is there.
    ///
    /// # Errors
    /// When it is none.
    pub fn open(dir: &Path) -> Result<Folder, CertsError> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(|source| CertsError::Read { path, source })
        };
        let authority = Authority::from_pem(&read("ca.crt")?, &read("ca.key")?);
        authority.map(Folder).map_err(|source| CertsError::Unusable { dir: dir.to_owned(), source })
    }

    /// Writes a controller's identity.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn controller(&self, out: &Path, validity: Validity) -> Result<(), CertsError> {
        self.write(out, self.0.controller(validity))
    }

    /// Writes a node's agent's identity.
    ///
    /// # Errors
    /// When the node's name is none, or the folder cannot be written.
    pub fn agent(&self, node: &str, out: &Path, validity: Validity) -> Result<(), CertsError> {
        self.write(out, self.0.agent(node, validity))
    }

    fn write(&self, out: &Path, made: Result<Pair, AuthorityError>) -> Result<(), CertsError> {
        let Pair { certificate, key } = made.map_err(|source| CertsError::Make { source })?;
        write(out, "ca.crt", self.0.certificate(), 0o644)?;
        write(out, "tls.key", &key, 0o600)?;
        write(out, "tls.crt", &certificate, 0o644)
    }
}

fn write(dir: &Path, name: &str, text: &str, mode: u32) -> Result<(), CertsError> {
    replace(dir, name, text, mode).map_err(|source| CertsError::Write { path: dir.join(name), source })
}

/// Replaces a file in one step, so that a reader never sees half of it.
///
/// # Errors
/// As the system says.
pub(crate) fn replace(dir: &Path, name: &str, text: &str, mode: u32) -> io::Result<()> {
    let temporary = dir.join(format!(".{name}.{}", std::process::id()));
    fs::create_dir_all(dir)?;
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&temporary, dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::tls::{Files, Identity};

    #[test]
    fn leaves_of_a_new_authority_are_identities() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Folder::create(&dir.path().join("ca")).unwrap();
        let validity = Validity::days(1);
        authority.controller(&dir.path().join("c"), validity).unwrap();
        authority.agent("node-1", &dir.path().join("a"), validity).unwrap();
        Identity::load(Files::in_folder(&dir.path().join("c"))).unwrap();
        let agent = Identity::load(Files::in_folder(&dir.path().join("a"))).unwrap();
        assert_eq!(agent.expires(), i64::try_from(validity.until).unwrap());
    }

    #[test]
    fn an_authority_that_is_there_stays_and_its_key_is_for_the_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        Folder::create(dir.path()).unwrap();
        let before = fs::read(dir.path().join("ca.crt")).unwrap();
        Folder::create(dir.path()).unwrap();
        assert_eq!(fs::read(dir.path().join("ca.crt")).unwrap(), before);
        let mode = fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_folder_with_the_key_of_another_authority_is_refused() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Folder::create(one.path()).unwrap();
        Folder::create(other.path()).unwrap();
        fs::copy(other.path().join("ca.key"), one.path().join("ca.key")).unwrap();
        assert!(matches!(Folder::open(one.path()), Err(CertsError::Unusable { .. })));
    }
}
