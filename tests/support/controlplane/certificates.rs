//! The certificates and kubeconfigs of a test's control plane: one authority, one server, two clients, and the key
//! pair that signs ServiceAccount tokens. Written once at the start, into the control plane's own folder.

use std::{fs, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use super::write;

/// The folder that holds them.
pub(super) struct Certificates<'a> {
    folder: &'a Path,
}

impl Certificates<'_> {
    /// Makes all of them in `folder`.
    pub(super) fn write(folder: &Path) -> Certificates<'_> {
        fs::create_dir_all(folder).expect("The folder for certificates can be made");
        let authority = authority();
        write(&folder.join("ca.crt"), &authority.pem());

        let server = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()]).expect("They are names");
        leaf(folder, &authority, "server", server, ExtendedKeyUsagePurpose::ServerAuth);
        for (name, common_name, group) in
            [("admin", "admin", Some("system:masters")), ("kcm", "system:kube-controller-manager", None)]
        {
            let mut client = CertificateParams::default();
            client.distinguished_name.push(DnType::CommonName, common_name);
            if let Some(group) = group {
                client.distinguished_name.push(DnType::OrganizationName, group);
            }
            leaf(folder, &authority, name, client, ExtendedKeyUsagePurpose::ClientAuth);
        }

        let accounts = KeyPair::generate().expect("A key can be made");
        write(&folder.join("accounts.key"), &accounts.serialize_pem());
        write(&folder.join("accounts.pub"), &accounts.public_key_pem());
        Certificates { folder }
    }

    /// Writes a kubeconfig for the client certificate `name`.
    pub(super) fn kubeconfig(&self, path: &Path, port: u16, name: &str) {
        let file = |end: &str| self.folder.join(format!("{name}.{end}"));
        let user = serde_json::json!({ "client-certificate": file("crt"), "client-key": file("key") });
        write(path, &kubeconfig(self.folder, port, &user));
    }
}

/// Writes a kubeconfig for a bearer token.
pub(super) fn kubeconfig_with_token(path: &Path, pki: &Path, port: u16, token: &str) {
    write(path, &kubeconfig(pki, port, &serde_json::json!({ "token": token })));
}

/// A kubeconfig as JSON, which is YAML too: no path needs quoting by hand.
fn kubeconfig(pki: &Path, port: u16, user: &serde_json::Value) -> String {
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "driftline",
        "clusters": [{ "name": "driftline", "cluster": {
            "server": format!("https://127.0.0.1:{port}"), "certificate-authority": pki.join("ca.crt"),
        }}],
        "users": [{ "name": "driftline", "user": user }],
        "contexts": [{ "name": "driftline", "context": { "cluster": "driftline", "user": "driftline" } }],
    })
    .to_string()
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "driftline test control plane");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().expect("A key can be made");
    CertifiedIssuer::self_signed(params, key).expect("The authority can be signed")
}

fn leaf(
    folder: &Path,
    authority: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
    mut params: CertificateParams,
    purpose: ExtendedKeyUsagePurpose,
) {
    params.extended_key_usages = vec![purpose];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate().expect("A key can be made");
    let certificate = params.signed_by(&key, authority).expect("A leaf can be signed");
    write(&folder.join(format!("{name}.crt")), &certificate.pem());
    write(&folder.join(format!("{name}.key")), &key.serialize_pem());
}
