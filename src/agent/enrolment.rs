//! The agent's part in getting a certificate: it makes a key, which never leaves the node, and shows a controller the
//! token of its pod, which only the controller can have checked. Until the first certificate is there it serves with one
//! that nobody trusts; whoever calls is checked all the same, so that nobody but a controller ever sees the token.
//!
//! A certificate and its key stay in one file of the host's disk: an agent that starts anew is trusted at once.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rcgen::KeyPair;

use crate::{
    certs::{
        self,
        authority::{self, AuthorityError, Pair},
    },
    retry::Retry,
    rpc::tls::{Files, Identity, TlsError, check_authorities},
};

/// The file of certificate and key.
const FILE: &str = "agent.pem";

/// Why a certificate could not be asked for or taken.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    /// The token is not there.
    #[error("Reading the token {} failed", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No key could be made.
    #[error("Making a key and its signing request failed")]
    Make {
        /// Why.
        #[source]
        source: AuthorityError,
    },
    /// The certificate is of another key, because the agent has started anew or was asked twice, or is none.
    #[error("The certificate is none of the key that was made last: ask for a new signing request")]
    OtherKey,
    /// The certificate could not be kept.
    #[error("Writing {} failed", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl EnrolmentError {
    /// The word for logs and answers.
    pub fn reason(&self) -> &'static str {
        match self {
            EnrolmentError::Token { .. } => "TokenUnreadable",
            EnrolmentError::Make { source } => source.reason(),
            EnrolmentError::OtherKey => "CertificateOfAnotherKey",
            EnrolmentError::Write { .. } => "CertificateNotWritten",
        }
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            EnrolmentError::Token { .. } | EnrolmentError::Write { .. } => Retry::Backoff,
            EnrolmentError::Make { source } => source.retry(),
            EnrolmentError::OtherKey => Retry::Now,
        }
    }
}

/// One agent's certificate, as the controller gives it.
#[derive(Clone)]
pub struct Enrolment(Arc<Inner>);

struct Inner {
    node: String,
    folder: PathBuf,
    token: PathBuf,
    /// The key that was made last and has no certificate yet.
    pending: Mutex<Option<KeyPair>>,
}

impl Enrolment {
    /// The certificate of `node` is kept in `folder`; `token` is read each time.
    pub fn new(node: &str, folder: &Path, token: &Path) -> Enrolment {
        let (node, folder, token) = (node.to_owned(), folder.to_owned(), token.to_owned());
        Enrolment(Arc::new(Inner { node, folder, token, pending: Mutex::default() }))
    }

    /// The identity that is kept, with the authorities of a file; where there is none that can be used, one that nobody
    /// trusts is put there first.
    ///
    /// # Errors
    /// When the file of authorities is missing, or the folder cannot be written.
    pub fn identity(&self, authorities: &Path) -> Result<Identity, TlsError> {
        let file = self.0.folder.join(FILE);
        let files = Files { certificate: file.clone(), key: file.clone(), authorities: authorities.to_owned() };
        // What is wrong with the authorities is not mended by another certificate: a good one stays.
        check_authorities(authorities)?;
        Identity::load(files.clone()).or_else(|error| {
            if file.exists() {
                tracing::warn!(reason = error.reason(), "{error}: the agent waits for a new certificate");
            }
            let nobody = |source: io::Error| TlsError::Read { path: file.clone(), source };
            let pair = authority::unsigned(&self.0.node).map_err(|error| nobody(io::Error::other(error)))?;
            self.keep(&pair).map_err(nobody)?;
            Identity::load(files)
        })
    }

    /// A new key's signing request, and the token.
    ///
    /// # Errors
    /// When there is no token, or the node's name is none.
    pub fn request(&self) -> Result<(String, String), EnrolmentError> {
        let token = fs::read_to_string(&self.0.token)
            .map_err(|source| EnrolmentError::Token { path: self.0.token.clone(), source })?;
        let (key, request) = authority::request(&self.0.node).map_err(|source| EnrolmentError::Make { source })?;
        *self.pending() = Some(key);
        Ok((request, token.trim().to_owned()))
    }

    /// Keeps the certificate of the key that was made last.
    ///
    /// # Errors
    /// When it is of another key, or cannot be kept.
    pub fn install(&self, certificate: &str) -> Result<(), EnrolmentError> {
        let mut pending = self.pending();
        let key = pending.as_ref().filter(|key| authority::is_of(certificate, key));
        let key = key.ok_or(EnrolmentError::OtherKey)?.serialize_pem();
        self.keep(&Pair { certificate: certificate.to_owned(), key })
            .map_err(|source| EnrolmentError::Write { path: self.0.folder.join(FILE), source })?;
        *pending = None;
        Ok(())
    }

    fn keep(&self, pair: &Pair) -> io::Result<()> {
        certs::replace(&self.0.folder, FILE, &format!("{}{}", pair.certificate, pair.key), 0o600)
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Option<KeyPair>> {
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::certs::{Authority, Validity};

    fn authority() -> Authority {
        let pair = Authority::generate(Validity::days(2)).unwrap();
        Authority::from_pem(&pair.certificate, &pair.key).unwrap()
    }

    #[test]
    fn the_first_identity_is_trusted_by_nobody_and_the_given_one_stays_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (roots, token, state) =
            (folder.path().join("ca.crt"), folder.path().join("token"), folder.path().join("tls"));
        let enrolment = Enrolment::new("node-1", &state, &token);
        assert!(enrolment.identity(&roots).unwrap_err().to_string().contains("ca.crt"));
        let authority = authority();
        fs::write(&roots, authority.certificate()).unwrap();
        let identity = enrolment.identity(&roots).unwrap();
        assert!(matches!(enrolment.request(), Err(EnrolmentError::Token { .. })));
        fs::write(&token, "a.b.c\n").unwrap();
        let (first, said) = enrolment.request().unwrap();
        assert_eq!(said, "a.b.c");
        let (second, _) = enrolment.request().unwrap();
        let validity = Validity::starting(Validity::days(1).made(), Duration::from_secs(7200));
        let sign = |request: &str| authority.agent_of_request(request, "node-1", validity).unwrap();
        assert!(matches!(enrolment.install(&sign(&first)), Err(EnrolmentError::OtherKey)));
        enrolment.install(&sign(&second)).unwrap();
        assert!(matches!(enrolment.install(&sign(&second)), Err(EnrolmentError::OtherKey)), "it is used up");
        let until = i64::try_from(validity.until).unwrap();
        assert_eq!(identity.expires(), until, "the running agent shows it");
        assert_eq!(Enrolment::new("node-1", &state, &token).identity(&roots).unwrap().expires(), until);
        fs::write(&roots, "").unwrap();
        assert!(enrolment.identity(&roots).unwrap_err().to_string().contains("ca.crt"));
        fs::write(&roots, authority.certificate()).unwrap();
        assert_eq!(enrolment.identity(&roots).unwrap().expires(), until, "a list that is empty takes nothing away");
        fs::write(state.join(FILE), "half a cert").unwrap();
        assert_ne!(enrolment.identity(&roots).unwrap().expires(), until);
    }
}
