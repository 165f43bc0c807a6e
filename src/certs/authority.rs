//! An authority in memory: signs the identities of controller and agents. What the names in certificates are is said in
//! `rpc::tls`; where an authority is kept is up to whoever made it: a folder (`certs`) or a Secret (`controller`).

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    retry::Retry,
    rpc::tls::{CONTROLLER, agent_name},
};

/// Clocks of nodes differ; a certificate is valid this long before it was made.
const BACKDATE: u64 = 3600;

/// Why a text is no authority, or why one could not sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The certificate cannot be read.
    #[error("There is no certificate in PEM form")]
    NoCertificate,
    /// The certificate may not sign others.
    #[error("The certificate is none of an authority (CA:TRUE): it may not sign others")]
    NotAnAuthority,
    /// The key cannot be read.
    #[error("There is no private key in PKCS #8 form (BEGIN PRIVATE KEY)")]
    NoKey,
    /// The two do not belong together.
    #[error("The key is another certificate's")]
    OtherKey,
    /// Making a key or a certificate failed, for instance because the node's name is none.
    #[error("Making a certificate for {name} failed")]
    Make {
        /// Whose.
        name: String,
        /// What the library said.
        #[source]
        source: rcgen::Error,
    },
}

impl AuthorityError {
    /// The word for logs.
    pub fn reason(&self) -> &'static str {
        match self {
            AuthorityError::Make { .. } => "CertificateNotMade",
            _ => "AuthorityInvalid",
        }
    }

    /// A person has to look.
    pub fn retry(&self) -> Retry {
        Retry::OnChange
    }
}

/// From when until when, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub from: u64,
    /// The last second.
    pub until: u64,
}

impl Validity {
    /// From an instant, in seconds since 1970, for so long. Valid a little earlier, because clocks differ.
    pub fn starting(now: u64, lifetime: Duration) -> Validity {
        Validity { from: now.saturating_sub(BACKDATE), until: now.saturating_add(lifetime.as_secs()) }
    }

    /// From now, for some days.
    pub fn days(days: u32) -> Validity {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self::starting(now.as_secs(), Duration::from_secs(86_400) * days)
    }

    /// When it was made, as `starting` was told.
    pub fn made(&self) -> u64 {
        self.from.saturating_add(BACKDATE).min(self.until)
    }

    /// How long it is valid from then on, in seconds.
    pub fn lifetime(&self) -> u64 {
        self.until - self.made()
    }

    /// No longer than another one.
    pub fn within(self, other: Validity) -> Validity {
        Validity { from: self.from.max(other.from), until: self.until.min(other.until) }
    }

    fn apply(self, params: &mut CertificateParams) {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + Duration::from_secs(self.from);
        params.not_after = epoch + Duration::from_secs(self.until);
    }
}

/// A certificate and its private key, both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays where it is.
        write!(f, "Pair({})", self.certificate)
    }
}

/// Until when a certificate is valid, and whether it may sign others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// From when until when.
    pub validity: Validity,
    /// Whether it may sign others.
    pub signs: bool,
}

/// What the first certificate of a PEM text says of itself; None where there is none.
pub fn facts(pem: &str) -> Option<Facts> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    facts_of(&pem.contents)
}

/// The same of a certificate in DER form.
pub fn facts_of(der: &[u8]) -> Option<Facts> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let second = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or_default();
    let validity = Validity { from: second(parsed.validity().not_before), until: second(parsed.validity().not_after) };
    Some(Facts { validity, signs: parsed.is_ca() })
}

/// An authority.
pub struct Authority {
    certificate: String,
    validity: Validity,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority: its certificate and its key.
    ///
    /// # Errors
    /// When the library fails.
    pub fn generate(validity: Validity) -> Result<Pair, AuthorityError> {
        // Two authorities that follow each other have names of their own.
        let name = format!("Driftline authority of {}", validity.made());
        let make = |source| AuthorityError::Make { name: name.clone(), source };
        let key = KeyPair::generate().map_err(make)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name.clone());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity.apply(&mut params);
        let certificate = params.self_signed(&key).map_err(make)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// The authority of a certificate and its key; of a chain, the first.
    ///
    /// # Errors
    /// When they are none, or do not belong together.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Authority, AuthorityError> {
        let (_, pem) =
            x509_parser::pem::parse_x509_pem(certificate.as_bytes()).map_err(|_| AuthorityError::NoCertificate)?;
        let parsed = pem.parse_x509().map_err(|_| AuthorityError::NoCertificate)?;
        if !parsed.is_ca() {
            return Err(AuthorityError::NotAnAuthority);
        }
        let key = KeyPair::from_pem(key).map_err(|_| AuthorityError::NoKey)?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(AuthorityError::OtherKey);
        }
        let first = certificate.split_inclusive("-----END CERTIFICATE-----").next().unwrap_or(certificate);
        let Facts { validity, .. } = facts(first).ok_or(AuthorityError::NoCertificate)?;
        let make = |source| AuthorityError::Make { name: "an authority".to_owned(), source };
        let issuer = Issuer::from_ca_cert_pem(first, key).map_err(make)?;
        Ok(Authority { certificate: format!("{}\n", first.trim()), validity, issuer })
    }

    /// Its certificate: what others trust in.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Until when it can sign.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// A controller's identity: a client certificate for `controller.driftline`.
    ///
    /// # Errors
    /// When the library fails.
    pub fn controller(&self, validity: Validity) -> Result<Pair, AuthorityError> {
        self.leaf(CONTROLLER, ExtendedKeyUsagePurpose::ClientAuth, validity)
    }

    /// A node's agent's identity: a server certificate for `<node>.agent.driftline`.
    ///
    /// # Errors
    /// When the node's name is none.
    pub fn agent(&self, node: &str, validity: Validity) -> Result<Pair, AuthorityError> {
        self.leaf(&agent_name(node), ExtendedKeyUsagePurpose::ServerAuth, validity)
    }

    /// The same for the key of a certificate signing request (PKCS #10, PEM). Whatever else the request asks for is not
    /// looked at.
    ///
    /// # Errors
    /// When the request cannot be read or is not signed by its key, or the node's name is none.
    pub fn agent_of_request(&self, request: &str, node: &str, validity: Validity) -> Result<String, AuthorityError> {
        let name = agent_name(node);
        let make = |source| AuthorityError::Make { name: name.clone(), source };
        let mut request = CertificateSigningRequestParams::from_pem(request).map_err(make)?;
        request.params = self.params(&name, ExtendedKeyUsagePurpose::ServerAuth, validity).map_err(make)?;
        Ok(request.signed_by(&self.issuer).map_err(make)?.pem())
    }

    fn leaf(&self, name: &str, usage: ExtendedKeyUsagePurpose, validity: Validity) -> Result<Pair, AuthorityError> {
        let make = |source| AuthorityError::Make { name: name.to_owned(), source };
        let key = KeyPair::generate().map_err(make)?;
        let params = self.params(name, usage, validity).map_err(make)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(make)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    fn params(
        &self,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
        validity: Validity,
    ) -> Result<CertificateParams, rcgen::Error> {
        let mut params = leaf_params(name)?;
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        validity.within(self.validity).apply(&mut params);
        Ok(params)
    }
}

fn leaf_params(name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Driftline");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

/// An agent's new key, and the request to sign it.
///
/// # Errors
/// When the node's name is none.
pub fn request(node: &str) -> Result<(KeyPair, String), AuthorityError> {
    let name = agent_name(node);
    let make = |source| AuthorityError::Make { name: name.clone(), source };
    let key = KeyPair::generate().map_err(make)?;
    let request = leaf_params(&name).and_then(|params| params.serialize_request(&key)).and_then(|r| r.pem());
    Ok((key, request.map_err(make)?))
}

/// Whether the first certificate of a PEM text is of this key.
pub fn is_of(certificate: &str, key: &KeyPair) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()) else { return false };
    pem.parse_x509().is_ok_and(|parsed| parsed.public_key().subject_public_key.data.as_ref() == key.public_key_raw())
}

/// A certificate that nobody trusts: an agent shows it until a controller has given it one.
///
/// # Errors
/// When the node's name is none.
pub fn unsigned(node: &str) -> Result<Pair, AuthorityError> {
    let name = agent_name(node);
    let make = |source| AuthorityError::Make { name: name.clone(), source };
    let key = KeyPair::generate().map_err(make)?;
    let certificate = leaf_params(&name).and_then(|params| params.self_signed(&key)).map_err(make)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: Duration = Duration::from_secs(365 * 86_400);
    const NOW: u64 = 1_800_000_000;

    fn authority(lifetime: Duration) -> Authority {
        let pair = Authority::generate(Validity::starting(NOW, lifetime)).unwrap();
        Authority::from_pem(&pair.certificate, &pair.key).unwrap()
    }

    #[test]
    fn what_is_signed_ends_with_its_authority() {
        let authority = authority(Duration::from_secs(100));
        let leaf = authority.agent("n", Validity::starting(NOW, YEAR)).unwrap();
        let facts = facts(&leaf.certificate).unwrap();
        assert_eq!((facts.validity.until, facts.validity.made(), facts.signs), (NOW + 100, NOW, false));
    }

    #[test]
    fn a_request_gives_its_key_and_nothing_else() {
        let authority = authority(YEAR);
        let (key, request) = request("evil").unwrap();
        let pem = authority.agent_of_request(&request, "node-1", Validity::starting(NOW, YEAR / 12)).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let parsed = pem.parse_x509().unwrap();
        assert_eq!(parsed.public_key().subject_public_key.data.as_ref(), key.public_key_raw());
        let names = parsed.subject_alternative_name().unwrap().unwrap();
        assert_eq!(format!("{:?}", names.value.general_names), r#"[DNSName("node-1.agent.driftline")]"#);
        assert!(!parsed.is_ca());
        let usage = parsed.extended_key_usage().unwrap().unwrap();
        assert!(usage.value.server_auth && !usage.value.client_auth);
    }

    #[test]
    fn a_request_with_a_broken_signature_is_refused() {
        let (_, request) = request("n").unwrap();
        let mut der = x509_parser::pem::parse_x509_pem(request.as_bytes()).unwrap().1.contents;
        *der.last_mut().unwrap() ^= 1;
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        let broken = format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n");
        assert!(authority(YEAR).agent_of_request(&broken, "n", Validity::starting(NOW, YEAR)).is_err());
    }

    #[test]
    fn what_is_no_authority_is_refused_with_the_reason() {
        let (one, other) = (Validity::starting(NOW, YEAR), Validity::starting(NOW, YEAR * 2));
        let (one, other) = (Authority::generate(one).unwrap(), Authority::generate(other).unwrap());
        let why = |certificate: &str, key: &str| Authority::from_pem(certificate, key).err().unwrap().to_string();
        assert!(why(&one.certificate, &other.key).contains("another certificate's"));
        assert!(why(&one.certificate, "nothing").contains("PKCS #8"));
        assert!(why("nothing", &one.key).contains("no certificate"));
        let leaf = Authority::from_pem(&one.certificate, &one.key).unwrap();
        let leaf = leaf.controller(Validity::starting(NOW, YEAR)).unwrap();
        assert!(why(&leaf.certificate, &leaf.key).contains("may not sign"));
    }

    #[test]
    fn of_a_chain_the_first_is_the_authority() {
        let (one, other) = (Validity::starting(NOW, YEAR), Validity::starting(NOW, YEAR * 2));
        let (one, other) = (Authority::generate(one).unwrap(), Authority::generate(other).unwrap());
        let chain = format!("{}{}", one.certificate, other.certificate);
        let authority = Authority::from_pem(&chain, &one.key).unwrap();
        assert_eq!(authority.certificate().trim(), one.certificate.replace("\r\n", "\n").trim());
    }
}
