//! What the documentation tells people to type, and which test does it. `tests/it/docs.rs` looks that nothing is left
//! out; `tests/qemu/docs.rs` and `tests/cluster/docs.rs` run it, and `tests/cluster/docs_pods.rs` what needs nodes.
//!
//! A fence in a document says what it is: `sh` is typed in, `toml` is a file whose path is its first line, `yaml` is a
//! file of `examples/`, `text` is a figure.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Who runs what is typed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runner {
    /// `make` and `cargo` of this very tree: their targets are there (`tests/it/docs.rs`); CI runs them.
    Tree,
    /// `tests/qemu/docs.rs`: a host with a real QEMU.
    Host,
    /// `tests/cluster/docs.rs`: a real API server, with processes for pods.
    Cluster,
    /// `tests/cluster/docs_pods.rs`: a real cluster, helm and pods.
    Pods,
    /// The same, typed in on each of its nodes.
    Node,
}

/// Every place with something to type in: document, heading (none: all of it), and who runs it.
pub const RUN_BY: &[(&str, Option<&str>, Runner)] = &[
    ("README.md", Some("Driftline"), Runner::Tree),
    ("README.md", Some("One host, no Kubernetes"), Runner::Host),
    ("README.md", Some("In a cluster"), Runner::Cluster),
    ("CONTRIBUTING.md", None, Runner::Tree),
    ("docs/guide-host.md", None, Runner::Host),
    ("docs/guide-cluster.md", None, Runner::Cluster),
    ("docs/operations.md", None, Runner::Cluster),
    ("docs/installation.md", Some("The image without a registry"), Runner::Node),
    ("docs/installation.md", Some("On each node"), Runner::Node),
    ("docs/installation.md", None, Runner::Pods),
    ("docs/upgrade.md", None, Runner::Pods),
    ("docs/uninstall.md", Some("The nodes"), Runner::Node),
    ("docs/uninstall.md", None, Runner::Pods),
    ("docs/security.md", None, Runner::Pods),
];

/// A fenced block.
#[derive(Debug)]
pub struct Fence {
    /// The document, from the root of the tree.
    pub document: String,
    /// The heading that it stands under.
    pub heading: String,
    /// What it says that it is.
    pub language: String,
    /// What stands in it, with a newline at the end of each line.
    pub text: String,
}

impl Fence {
    /// Who runs it, where somebody does.
    pub fn runner(&self) -> Option<Runner> {
        let here = |document: &str, heading: &Option<&str>| {
            document == self.document && heading.is_none_or(|heading| heading == self.heading)
        };
        RUN_BY.iter().find(|(document, heading, _)| here(document, heading)).map(|(_, _, runner)| *runner)
    }

    /// Of a file: the path in its first line, and the whole text.
    pub fn file(&self) -> Option<(&str, &str)> {
        let path = self.text.lines().next()?.strip_prefix("# ")?;
        path.starts_with('/').then_some((path, self.text.as_str()))
    }
}

/// A path of the tree.
pub fn tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The documents that people read: those at the root, and all below `docs/`.
pub fn documents() -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec!["docs".to_owned()];
    let mut take = |folder: &str, folders: &mut Vec<String>| {
        for entry in fs::read_dir(tree(folder)).expect("The tree can be listed").flatten() {
            let name = entry.file_name().into_string().expect("Names of the tree are UTF-8");
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            if path.ends_with(".md") {
                found.push(path);
            } else if !folder.is_empty() && entry.path().is_dir() {
                folders.push(path);
            }
        }
    };
    take("", &mut folders);
    while let Some(folder) = folders.pop() {
        take(&folder, &mut folders);
    }
    found.sort();
    found
}

/// The fences of a document, in their order.
pub fn fences(document: &str) -> Vec<Fence> {
    let text = fs::read_to_string(tree(document)).unwrap_or_else(|error| panic!("{document}: {error}"));
    let (mut found, mut heading, mut open) = (Vec::new(), String::new(), None::<Fence>);
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(fence), None) => fence.text.extend([line, "\n"]),
            (None, Some(language)) => {
                let (document, heading) = (document.to_owned(), heading.clone());
                open = Some(Fence { document, heading, language: language.to_owned(), text: String::new() });
            }
            (None, None) if line.starts_with('#') => heading = line.trim_start_matches('#').trim().to_owned(),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{document}: a fence is not closed");
    found
}

/// The fences of a document that `runner` runs.
pub fn fences_for(document: &str, runner: Runner) -> Vec<Fence> {
    let fences: Vec<_> = fences(document).into_iter().filter(|fence| fence.runner() == Some(runner)).collect();
    assert!(!fences.is_empty(), "{document} has nothing for {runner:?}");
    fences
}

/// The documents that `runner` runs something of: what its tests must name, each of them.
pub fn documents_for(runner: Runner) -> Vec<&'static str> {
    RUN_BY.iter().filter(|(_, _, by)| *by == runner).map(|(document, _, _)| *document).collect()
}

/// One script of all that is typed in and all files that are written, as one reads it, with another word for some.
pub fn script(fences: &[Fence], others: &[(String, String)]) -> String {
    let other = |text: &str| others.iter().fold(text.to_owned(), |text, (this, that)| text.replace(this, that));
    let mut script = "set -eux\n".to_owned();
    for fence in fences {
        match (fence.language.as_str(), fence.file()) {
            ("sh", _) => script.push_str(&other(&fence.text)),
            ("toml", Some((path, text))) => {
                let (path, text) = (other(path), other(text));
                script.push_str(&format!("mkdir -p \"$(dirname '{path}')\"\ncat >'{path}' <<'EOF'\n{text}EOF\n"));
            }
            _ => {}
        }
    }
    script
}

/// Makes a folder look like the root of the tree: the chart, and the examples with another word for some.
pub fn copy_tree(root: &Path, others: &[(String, String)]) {
    std::os::unix::fs::symlink(tree("charts"), root.join("charts")).expect("A link can be made");
    fs::create_dir(root.join("examples")).expect("A folder can be made");
    for entry in fs::read_dir(tree("examples")).expect("The tree can be listed").flatten() {
        let text = fs::read_to_string(entry.path()).expect("The tree can be read");
        let text = others.iter().fold(text, |text, (this, that)| text.replace(this, that));
        fs::write(root.join("examples").join(entry.file_name()), text).expect("A file can be written");
    }
}

/// The folder with programs that a script finds before all others: its own, and the real ones under their names.
pub fn programs(folder: &Path, own: &[(&str, &str)], real: &[(&str, &Path)]) {
    use std::os::unix::fs::{PermissionsExt, symlink};
    fs::create_dir_all(folder).expect("A folder can be made");
    for (name, text) in own {
        let path = folder.join(name);
        fs::write(&path, text).expect("A script can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("It can be made a program");
    }
    for (name, program) in real {
        symlink(program, folder.join(name)).expect("A link can be made");
    }
}

/// `PATH` with a folder in front.
pub fn path_with(folder: &Path) -> String {
    format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default())
}
