//! QEMU's version, as the greeting and `query-version` give it. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A version of QEMU; ordered, the distribution's package text last.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "VersionInfo", into = "VersionInfo")]
pub struct Version {
    /// The 7 of 7.2.22.
    pub major: u32,
    /// The 2 of 7.2.22.
    pub minor: u32,
    /// The 22 of 7.2.22.
    pub micro: u32,
    /// What the distribution says of its build, such as `Debian 1:7.2+dfsg-7+deb12u18`; empty for an own build.
    pub package: String,
}

impl Version {
    /// The oldest QEMU that is spoken to. 5.2 dies on `query-named-block-nodes` while a backup job is concluded and
    /// not yet dismissed, which is a normal state of our recovery (measured).
    pub const OLDEST: (u32, u32) = (6, 0);

    /// True from release `major.minor` on.
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        (self.major, self.minor) >= (major, minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// QAPI's `VersionInfo`.
#[derive(Serialize, Deserialize)]
struct VersionInfo {
    qemu: Triple,
    #[serde(default)]
    package: String,
}

#[derive(Serialize, Deserialize)]
struct Triple {
    major: u32,
    minor: u32,
    #[serde(default)]
    micro: u32,
}

impl From<VersionInfo> for Version {
    fn from(info: VersionInfo) -> Self {
        let VersionInfo { qemu: Triple { major, minor, micro }, package } = info;
        Self { major, minor, micro, package }
    }
}

impl From<Version> for VersionInfo {
    fn from(version: Version) -> Self {
        let Version { major, minor, micro, package } = version;
        Self { qemu: Triple { major, minor, micro }, package }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_number_not_by_text() {
        let parse = |text: &str| serde_json::from_str::<Version>(text).unwrap();
        let seven = parse(r#"{"qemu":{"micro":22,"minor":2,"major":7},"package":"Debian 1:7.2+dfsg"}"#);
        let ten = parse(r#"{"qemu":{"micro":13,"minor":0,"major":10},"package":""}"#);
        assert!(seven < ten);
        assert!(ten.at_least(8, 2) && !seven.at_least(8, 2));
        assert_eq!(seven.to_string(), "7.2.22");
    }
}
