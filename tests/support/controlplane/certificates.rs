//! The certificates and kubeconfigs of a test's control plane: one authority, one server, the clients, and the key
//! pair that signs ServiceAccount tokens. All of them lie in the control plane's own folder; the authority stays with
//! us, since a node that joins later needs a certificate too.

use std::{
    fs,
    net::SocketAddrV4,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use super::{Shape, write};

/// The folder that holds them, and what signs more of them.
pub(super) struct Certificates {
    folder: PathBuf,
    server: SocketAddrV4,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Certificates {
    /// Makes in `folder` what the API server needs.
    pub(super) fn write(folder: PathBuf, shape: Shape) -> Certificates {
        fs::create_dir_all(&folder).expect("The folder for certificates can be made");
        let certificates = Certificates { folder, server: shape.server, authority: authority() };
        write(&certificates.folder.join("ca.crt"), &certificates.authority.pem());
        let server = CertificateParams::new(shape.names()).expect("They are names");
        certificates.leaf("server", server, ExtendedKeyUsagePurpose::ServerAuth);
        if shape.nodes {
            certificates.client("kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters"));
        }
        let accounts = KeyPair::generate().expect("A key can be made");
        write(&certificates.folder.join("accounts.key"), &accounts.serialize_pem());
        write(&certificates.folder.join("accounts.pub"), &accounts.public_key_pem());
        certificates
    }

    /// Writes a kubeconfig with a new client certificate for `user`.
    pub(super) fn client_kubeconfig(&self, path: &Path, user: &str, group: Option<&str>) {
        let name = user.replace(':', ".");
        self.client(&name, user, group);
        let file = |end: &str| self.folder.join(format!("{name}.{end}"));
        self.kubeconfig(path, &serde_json::json!({ "client-certificate": file("crt"), "client-key": file("key") }));
    }

    /// Writes a kubeconfig for a bearer token.
    pub(super) fn token_kubeconfig(&self, path: &Path, token: &str) {
        self.kubeconfig(path, &serde_json::json!({ "token": token }));
    }

    /// A kubeconfig as JSON, which is YAML too: no path needs quoting by hand.
    fn kubeconfig(&self, path: &Path, user: &serde_json::Value) {
        let text = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "driftline",
            "clusters": [{ "name": "driftline", "cluster": {
                "server": format!("https://{}", self.server), "certificate-authority": self.folder.join("ca.crt"),
            }}],
            "users": [{ "name": "driftline", "user": user }],
            "contexts": [{ "name": "driftline", "context": { "cluster": "driftline", "user": "driftline" } }],
        });
        write(path, &text.to_string());
    }

    fn client(&self, name: &str, user: &str, group: Option<&str>) {
        let mut client = CertificateParams::default();
        client.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            client.distinguished_name.push(DnType::OrganizationName, group);
        }
        self.leaf(name, client, ExtendedKeyUsagePurpose::ClientAuth);
    }

    fn leaf(&self, name: &str, mut params: CertificateParams, purpose: ExtendedKeyUsagePurpose) {
        params.extended_key_usages = vec![purpose];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().expect("A key can be made");
        let certificate = params.signed_by(&key, &self.authority).expect("A leaf can be signed");
        write(&self.folder.join(format!("{name}.crt")), &certificate.pem());
        write(&self.folder.join(format!("{name}.key")), &key.serialize_pem());
    }
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "driftline test control plane");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().expect("A key can be made");
    CertifiedIssuer::self_signed(params, key).expect("The authority can be signed")
}
