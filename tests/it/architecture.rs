//! The rules of ARCHITECTURE.md that a text can be checked for: which layer may name what, that every file says what
//! it is, and that none has grown past what a person reads at once.

#[path = "architecture/paths.rs"]
mod paths;

use std::{
    fs,
    path::{Path, PathBuf},
};

use paths::paths_of;

/// One rule: the files that it is about, and the paths that they may not name.
struct Layer {
    /// Files and folders below `src/`, without the ending.
    of: &'static [&'static str],
    /// Prefixes of paths.
    never: &'static [&'static str],
}

const CLUSTER: &str = "k8s_openapi";

const LAYERS: &[Layer] = &[
    // Pure: what they decide depends on their arguments alone.
    Layer {
        of: &["ids", "schedule", "chain", "api"],
        never: &[
            "kube::Client",
            "kube::Api",
            "kube::api",
            "kube::client",
            "kube::runtime",
            "tokio",
            "tonic",
            "std::fs",
            "std::net",
            "std::process",
            "std::env",
            "std::time::SystemTime",
            "std::time::Instant",
            "rustix",
            "crate::clock",
            "crate::qmp",
            "crate::repo",
            "crate::engine",
            "crate::agent",
            "crate::controller",
            "crate::rpc",
            "crate::cli",
        ],
    },
    Layer {
        of: &["qmp", "guest_agent"],
        never: &[
            "kube",
            CLUSTER,
            "tonic",
            "prost",
            "crate::repo",
            "crate::rpc",
            "crate::api",
            "crate::engine",
            "crate::agent",
            "crate::controller",
            "crate::cli",
        ],
    },
    Layer {
        of: &["repo", "qcow2"],
        never: &[
            "kube",
            CLUSTER,
            "tonic",
            "prost",
            "crate::qmp",
            "crate::rpc",
            "crate::api",
            "crate::engine",
            "crate::agent",
            "crate::controller",
            "crate::cli",
        ],
    },
    // It joins qmp, repo and chain, for the agent and for a person's command alike.
    Layer {
        of: &["engine"],
        never: &[
            "kube",
            CLUSTER,
            "tonic",
            "prost",
            "crate::rpc",
            "crate::api",
            "crate::agent",
            "crate::controller",
            "crate::cli",
        ],
    },
    // It talks gRPC up and calls the engine; Kubernetes is the controller's business.
    Layer { of: &["agent"], never: &["kube", CLUSTER, "crate::api", "crate::controller", "crate::cli"] },
];

/// Rules of the other direction: the path may be named in these places alone.
const ONLY: &[(&str, &[&str])] = &[
    ("tonic", &["rpc", "agent/service"]),
    ("kube::Client", &["controller", "cli", "main"]),
    ("kube::client", &["controller", "cli", "main"]),
];

/// Stages that decide. They wait for nothing: whatever they need comes in as an argument.
const DECIDERS: &[&str] = &["world", "plan", "report", "choose", "recover", "progress"];

#[test]
fn no_layer_names_what_lies_beyond_it() {
    let mut broken = Vec::new();
    for file in sources("src") {
        for layer in LAYERS.iter().filter(|layer| file.is_in(layer.of)) {
            for path in file.paths().filter(|path| layer.never.iter().any(|never| is_below(path, never))) {
                broken.push(format!("{} names {path}", file.name));
            }
        }
        for (what, places) in ONLY.iter().filter(|(_, places)| !file.is_in(places)) {
            for path in file.paths().filter(|path| is_below(path, what)) {
                broken.push(format!("{} names {path}, which only {} may", file.name, places.join(", ")));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn a_stage_that_decides_waits_for_nothing() {
    for file in sources("src") {
        let decides = file.name.split(['/', '.']).any(|part| DECIDERS.contains(&part));
        if decides && (file.is_in(&["controller"]) || file.is_in(&["engine"])) {
            for word in ["async ", ".await"] {
                assert!(!file.code().contains(word), "{} has {word:?}: a decision waits for nothing", file.name);
            }
        }
    }
}

#[test]
fn every_file_opens_by_saying_what_it_is() {
    for file in sources("src").chain(sources("tests")).chain(sources("benches")) {
        assert!(file.text.starts_with("//! "), "{} does not open with //!", file.name);
        assert!(!file.name.ends_with("mod.rs"), "{}: a module's own file is foo.rs beside foo/", file.name);
    }
}

#[test]
fn no_file_is_longer_than_a_person_reads_at_once() {
    let mut wrong = Vec::new();
    for file in sources("src").chain(sources("tests")) {
        let lines = file.text.lines().count();
        if lines > 400 {
            wrong.push(format!("{} has {lines} lines: is there a second idea in it?", file.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_repository_holds_all_that_it_needs() {
    let outside = concat!("../", "shared");
    for file in sources("src").chain(sources("tests")).chain(sources("benches")) {
        assert!(!file.text.contains(outside), "{} names {outside}", file.name);
    }
    for name in ["Makefile", "Dockerfile", "Cargo.toml", "build.rs", ".ci/run", "tests/controlplane/build"] {
        let text = fs::read_to_string(root().join(name)).unwrap();
        assert!(!text.contains(outside), "{name} names {outside}");
    }
}

/// A file of the repository, by its path from the root.
struct Source {
    name: String,
    text: String,
}

impl Source {
    /// True when it is one of these files or lies in one of these folders, counted from `src/`.
    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| {
            self.name
                .strip_prefix("src/")
                .and_then(|name| name.strip_prefix(place))
                .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        })
    }

    /// The text without comments and without the tests at its end.
    fn code(&self) -> String {
        let code = self.text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        code.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect()
    }

    fn paths(&self) -> impl Iterator<Item = String> {
        paths_of(&self.code()).into_iter()
    }
}

fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The Rust files below a folder of the repository; none where there is no such folder.
fn sources(folder: &str) -> std::vec::IntoIter<Source> {
    fn walk(folder: &Path, found: &mut Vec<Source>) {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.push(Source { name, text: fs::read_to_string(&path).unwrap() });
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), &mut found);
    found.into_iter()
}
