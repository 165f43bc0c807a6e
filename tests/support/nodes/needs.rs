//! What a bench of nodes needs of the machine, said in one line each before anything is started.

use std::{env, ffi::OsString, path::Path};

/// Programs, each with the Debian package that has it.
const PROGRAMS: &[(&str, &str)] = &[
    ("containerd", "containerd"),
    ("containerd-shim-runc-v2", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
];
/// Where Debian has the CNI plugins; `containerd.toml` names it too.
const PLUGINS: &str = "/usr/lib/cni";
/// Places that every node has for its own: its disk cannot lie below one of them.
const COVERED: &[&str] = &["/etc", "/var", "/srv", "/opt", "/run"];

/// Panics with all that is missing.
pub(super) fn check(folder: &Path) {
    let mut missing = Vec::new();
    if !rustix::process::geteuid().is_root() {
        missing.push("it is not root, and nodes need the rights of root: run the tests as root".to_owned());
    }
    if env::var_os("DRIFTLINE_NETNS").is_none() {
        missing
            .push("it is in the machine's own network: run it through tests/in-netns, as cargo test does".to_owned());
    }
    for (program, package) in PROGRAMS {
        if !env::split_paths(&path()).any(|folder| folder.join(program).is_file()) {
            missing.push(format!("there is no {program}: tests/install-tools, or install the package {package}"));
        }
    }
    if !Path::new(PLUGINS).join("ptp").exists() {
        let package = "containernetworking-plugins";
        missing.push(format!("there is no {PLUGINS}/ptp: tests/install-tools, or install the package {package}"));
    }
    if let Some(covered) = COVERED.iter().find(|covered| folder.starts_with(covered)) {
        missing.push(format!("{} lies in {covered}, which each node covers: set TMPDIR to /tmp", folder.display()));
    }
    assert!(missing.is_empty(), "This process cannot start nodes:\n- {}", missing.join("\n- "));
}

/// PATH with the folders of system programs, which are not on everybody's.
pub(super) fn path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin:/usr/bin:/bin");
    path
}
