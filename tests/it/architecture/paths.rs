//! Which paths a Rust file names: those of its `use` trees, written out, and those that stand in the code itself.
//! A reader of words and not a parser: enough to see that a layer reaches where it should not.

/// Every path of two or more parts, and every name that a `use` brings in, without doubles.
pub(super) fn paths_of(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find("use ") {
        let starts = rest[..at].ends_with(|before: char| before.is_whitespace() || before == ')') || at == 0;
        let Some(end) = rest[at..].find(';') else { break };
        if starts {
            expand("", &rest[at + 4..at + end], &mut found);
        }
        rest = &rest[at + 4..];
    }
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    for word in code.split(|c| !is_part(c)).filter(|word| word.contains("::")) {
        found.push(word.trim_matches(':').to_owned());
    }
    found.sort();
    found.dedup();
    found
}

/// Writes the tree `a::{b, c::{d, e}}` out as `a::b`, `a::c::d`, `a::c::e`.
fn expand(prefix: &str, tree: &str, found: &mut Vec<String>) {
    let tree = tree.split(" as ").next().unwrap_or_default().trim();
    let join = |name: &str| match (prefix, name) {
        ("", name) => name.to_owned(),
        (prefix, "self") => prefix.to_owned(),
        (prefix, name) => format!("{prefix}::{name}"),
    };
    let Some(open) = tree.find('{') else {
        found.push(join(tree));
        return;
    };
    let prefix = join(tree[..open].trim().trim_end_matches("::"));
    let inner = tree[open + 1..].trim_end().trim_end_matches('}');
    // The last brace of a deeper tree may be gone with it: depth alone decides where a branch ends.
    let (mut depth, mut start) = (0_i32, 0);
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&prefix, &inner[start..at], found);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !inner[start..].trim().is_empty() {
        expand(&prefix, &inner[start..], found);
    }
}

#[test]
fn a_use_tree_is_written_out() {
    let paths = paths_of("pub use crate::{repo::{Lease, store::{self, Space}}, qmp};\nuse kube::Client as K;\n");
    for path in ["crate::repo::Lease", "crate::repo::store", "crate::repo::store::Space", "crate::qmp", "kube::Client"]
    {
        assert!(paths.iter().any(|found| found == path), "{path} is not in {paths:?}");
    }
}

#[test]
fn a_path_in_the_code_counts_too() {
    let paths = paths_of("fn f() -> std::io::Result<()> { let reuse = tonic::Status::ok(); std::fs::read(reuse) }");
    for path in ["std::io::Result", "tonic::Status::ok", "std::fs::read"] {
        assert!(paths.iter().any(|found| found == path), "{path} is not in {paths:?}");
    }
}
