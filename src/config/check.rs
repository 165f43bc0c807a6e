//! What a host's file may say (pure): absolute paths, names and labels that Kubernetes accepts, sizes.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ConfigError, GuestFile, HostConfig};

/// Bytes, written as `5Gi`, `500M` or a plain number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "SizeText")]
pub struct Size(pub u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum SizeText {
    Number(u64),
    Text(String),
}

impl TryFrom<SizeText> for Size {
    type Error = String;
    fn try_from(text: SizeText) -> Result<Self, String> {
        const UNITS: [(&str, u64); 8] = [
            ("Ki", 1 << 10),
            ("Mi", 1 << 20),
            ("Gi", 1 << 30),
            ("Ti", 1 << 40),
            ("k", 1_000),
            ("M", 1_000_000),
            ("G", 1_000_000_000),
            ("T", 1_000_000_000_000),
        ];
        let text = match text {
            SizeText::Number(bytes) => return Ok(Size(bytes)),
            SizeText::Text(text) => text,
        };
        let (digits, unit) = UNITS
            .iter()
            .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|digits| (digits, *unit)))
            .unwrap_or((&text, 1));
        // `parse` alone would accept a sign.
        let number = if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse::<u64>().ok() } else { None };
        number
            .and_then(|number| number.checked_mul(unit))
            .map(Size)
            .ok_or_else(|| format!("{text:?} is not a size: write whole bytes or a number such as 5Gi or 500M"))
    }
}

/// User and group by a line of `passwd`, or by numbers.
pub(super) fn user(user: &str, passwd: &str) -> Option<(u32, u32)> {
    if let Some((uid, gid)) = user.split_once(':') {
        return Some((uid.parse().ok()?, gid.parse().ok()?));
    }
    let mut fields = passwd.lines().map(|line| line.split(':')).find(|line| line.clone().next() == Some(user))?;
    Some((fields.nth(2)?.parse().ok()?, fields.next()?.parse().ok()?))
}

pub(super) fn host(path: &Path, config: &HostConfig) -> Result<(), ConfigError> {
    let fixed = [("state", &config.state), ("locks", &config.locks), ("guests", &config.guests)];
    let repositories = config.repository_roots.iter().map(|root| ("repositoryRoots", root));
    let restores = config.restore_roots.values().flatten().map(|root| ("restoreRoots", root));
    let scratch = config.scratch.iter().map(|scratch| ("scratch.directory", &scratch.directory));
    for (key, value) in fixed.into_iter().chain(repositories).chain(restores).chain(scratch) {
        absolute(path, key, value)?;
    }
    // A restore writes what a tenant asks for: never into anybody's backups, nor into the host's own files, which say who
    // may do what.
    let guarded = config.repository_roots.iter().chain([&config.state, &config.locks, &config.guests]);
    let guarded: Vec<_> = guarded.map(PathBuf::as_path).chain([path]).collect();
    for root in config.restore_roots.values().flatten() {
        let apart = !guarded.iter().any(|other| root.starts_with(other) || other.starts_with(root));
        let expected = "apart from repositoryRoots, state, locks, guests and this file";
        require(path, "restoreRoots", &root.to_string_lossy(), apart, expected)?;
    }
    for namespace in config.restore_roots.keys() {
        require(path, "restoreRoots", namespace, is_dns_label(namespace), NAMESPACE)?;
    }
    Ok(())
}

pub(super) fn guest(path: &Path, file: &GuestFile) -> Result<(), ConfigError> {
    require(path, "name", &file.name, is_dns_name(&file.name), NAME)?;
    require(path, "namespace", &file.namespace, is_dns_label(&file.namespace), NAMESPACE)?;
    absolute(path, "qmp", &file.qmp)?;
    if let Some(socket) = &file.guest_agent {
        absolute(path, "guestAgent", socket)?;
    }
    for (key, value) in &file.labels {
        require(path, "labels", key, is_label_key(key), "a label's key such as tier or example.com/tier")?;
        let expected =
            "a label's value: at most 63 letters, digits, -, _ and dots, with a letter or digit at both ends";
        require(path, &format!("labels.{key}"), value, value.is_empty() || is_label_word(value), expected)?;
    }
    Ok(())
}

const NAME: &str = "a Kubernetes name: at most 253 lower case letters, digits, - and dots, such as db-1";
const NAMESPACE: &str = "a namespace: at most 63 lower case letters, digits and -, such as team-a";

fn require(path: &Path, key: &str, value: &str, right: bool, expected: &'static str) -> Result<(), ConfigError> {
    if right {
        return Ok(());
    }
    Err(ConfigError::Value { path: path.to_owned(), key: key.to_owned(), value: value.to_owned(), expected })
}

fn absolute(path: &Path, key: &str, value: &Path) -> Result<(), ConfigError> {
    let right = value.is_absolute() && !value.components().any(|part| part == std::path::Component::ParentDir);
    require(path, key, &value.to_string_lossy(), right, "an absolute path without ..")
}

/// RFC 1123 label.
fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.len() <= 63 && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// RFC 1123 subdomain.
pub(super) fn is_dns_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

fn is_label_word(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let end = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    text.len() <= 63 && text.bytes().all(inner) && end(text.bytes().next()) && end(text.bytes().last())
}

fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, word)) => is_dns_name(prefix) && is_label_word(word),
        None => is_label_word(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_guest(text: &str) -> Result<GuestFile, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g.toml");
        std::fs::write(&path, text).unwrap();
        GuestFile::load(&path)
    }

    fn load_host(text: &str) -> Result<HostConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.toml");
        std::fs::write(&path, text).unwrap();
        HostConfig::load(&path)
    }

    #[test]
    fn a_guest_file_of_the_documentation_is_read() {
        let file = load_guest(
            "name = \"db-1\"\nnamespace = \"team-a\"\nqmp = \"/run/qemu/db-1.qmp\"\n\
             guestAgent = \"/run/qemu/db-1.qga\"\nuuid = \"9F0C7E1E-9a51-4c7e-8f2b-0d9f2f6f3a10\"\n[labels]\ntier = \"gold\"\n",
        )
        .unwrap();
        assert_eq!(file.uuid.unwrap().as_str(), "9f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10");
        assert_eq!(file.labels["tier"], "gold");
    }

    #[test]
    fn a_host_file_of_the_documentation_is_read() {
        let host = load_host(
            "state = \"/s\"\nlocks = \"/l\"\nguests = \"/g\"\nuser = \"driftline\"\nrepositoryRoots = [\"/srv/backup\"]\n\
             [restoreRoots]\nteam-a = [\"/var/lib/machines/team-a\"]\n[scratch]\ndirectory = \"/x\"\nbudget = \"20Gi\"\nreserve = \"5Gi\"\n",
        )
        .unwrap();
        assert_eq!(host.scratch.unwrap().budget, Size(20 << 30));
        assert_eq!(host.restore_roots["team-a"].len(), 1);
    }

    #[test]
    fn a_restore_root_is_apart_from_backups_and_from_the_hosts_own_files() {
        let with = |root: &str| {
            load_host(&format!(
                "state = \"/s\"\nguests = \"/g\"\nrepositoryRoots = [\"/srv/backup\"]\n[restoreRoots]\nteam-a = [{root:?}]\n"
            ))
        };
        assert!(with("/srv/backups").is_ok() && with("/srv/machines").is_ok());
        for root in ["/srv", "/srv/backup", "/srv/backup/team-a", "/s", "/s/journal", "/g", "/"] {
            let error = with(root).unwrap_err().to_string();
            assert!(error.contains("apart from repositoryRoots"), "{root}: {error}");
        }
    }

    #[test]
    fn an_empty_host_file_opens_no_path() {
        let host = load_host("").unwrap();
        assert!(host.repository_roots.is_empty() && host.restore_roots.is_empty());
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = load_host("repositoryRoot = [\"/srv\"]\n").unwrap_err();
        assert!(error.to_string().contains("repositoryRoot"), "{error}");
        assert_eq!(error.reason(), "HostFileInvalid");
    }

    #[test]
    fn a_wrong_line_is_named_once_in_one_sentence() {
        let error = load_host("locks = \"/l\"\n  stat = \"/s\"\n").unwrap_err();
        let text = crate::sentence::sentence(&error);
        assert!(text.contains("host.toml, line 2, column 3: unknown field `stat`, expected one of"), "{text}");
        assert_eq!((text.matches("unknown field").count(), text.lines().count()), (1, 1), "{text}");
        let text = crate::sentence::sentence(&load_host("state = \n").unwrap_err());
        assert!(text.contains("host.toml, line 1, column ") && text.lines().count() == 1, "{text}");
    }

    #[test]
    fn what_kubernetes_would_refuse_is_refused_with_the_key() {
        let with = |name: &str, namespace: &str, qmp: &str, label: &str| {
            load_guest(&format!(
                "name = {name:?}\nnamespace = {namespace:?}\nqmp = {qmp:?}\nlabels = {{ a = {label:?} }}"
            ))
        };
        assert!(with("db-1", "team-a", "/q", "x").is_ok());
        for (key, result) in [
            ("name", with("DB_1", "team-a", "/q", "x")),
            ("name", with("", "team-a", "/q", "x")),
            ("namespace", with("db-1", "team.a", "/q", "x")),
            ("qmp", with("db-1", "team-a", "run/q", "x")),
            ("qmp", with("db-1", "team-a", "/run/../q", "x")),
            ("labels.a", with("db-1", "team-a", "/q", "no spaces")),
        ] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(&format!(" {key} = ")), "{error}");
        }
    }

    #[test]
    fn a_user_is_found_by_name_or_given_by_numbers() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\ndriftline:x:998:997::/nonexistent:/usr/sbin/nologin\n";
        assert_eq!(user("driftline", passwd), Some((998, 997)));
        assert_eq!(user("7:8", passwd), Some((7, 8)));
        for wrong in ["nobody-here", "drift", "7:", ":8", "a:b"] {
            assert_eq!(user(wrong, passwd), None, "{wrong}");
        }
    }

    #[test]
    fn sizes_are_whole_bytes_or_have_a_unit() {
        let size = |text: &str| Size::try_from(SizeText::Text(text.to_owned())).map(|size| size.0);
        assert_eq!(size("5Gi"), Ok(5 << 30));
        assert_eq!(size("500M"), Ok(500_000_000));
        assert_eq!(size("7"), Ok(7));
        for wrong in ["", "Gi", "-1Gi", "+1", "1.5Gi", "99999999999Ti", "5 Gi"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
