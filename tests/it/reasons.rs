//! Every reason that a person can meet stands in docs/operations.md: what it means is looked up there at 3 a.m.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// The texts in quotes of a line that look like a reason.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split('"').skip(1).step_by(2).filter(|text| {
        text.len() > 3 && text.starts_with(char::is_uppercase) && text.chars().all(|c| c.is_ascii_alphanumeric())
    })
}

/// The reasons in a source: what a `fn reason` answers, and what is said as the reason of a problem, a refusal or a run that
/// waits.
fn reasons(source: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut inside = false;
    for line in source.lines().take_while(|line| *line != "#[cfg(test)]") {
        if line.contains("fn reason(") {
            inside = true;
        }
        let says = ["reason: \"", "reason = \"", "(state.reason, state.message) = ", "Refusal::new("];
        if inside || says.iter().any(|says| line.contains(says)) {
            // A comparison asks for another's reason, which is said where it is made.
            let said = line.rsplit("=> ").next().unwrap_or(line);
            found.extend(words(said).map(str::to_owned));
        }
        if line == "    }" {
            inside = false;
        }
    }
    found
}

#[test]
fn every_reason_stands_in_the_operations_guide() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = fs::read_to_string(root.join("docs/operations.md")).unwrap();
    // All of them: what stands in a part with no edge of its own, such as the chains, is passed on by one that has.
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    let mut all = BTreeSet::new();
    for file in files {
        all.extend(reasons(&fs::read_to_string(file).unwrap()));
    }
    assert!(all.len() > 60, "the reasons were not found in the sources: {all:?}");
    for reason in ["ParentMissing", "FinishingEarlierRun", "HostFileInvalid"] {
        assert!(all.contains(reason), "{reason} was not found in the sources");
    }
    let missing: Vec<_> = all.iter().filter(|reason| !guide.contains(&format!("`{reason}`"))).collect();
    assert!(missing.is_empty(), "docs/operations.md does not say what these mean: {missing:?}");
}

/// The variants of an enum in a source.
fn variants(source: &str, name: &str) -> Vec<String> {
    let (_, body) = source.split_once(&format!("pub enum {name} {{\n")).unwrap();
    let (body, _) = body.split_once("\n}").unwrap();
    let lines = body.lines().map(str::trim).filter(|line| line.starts_with(char::is_uppercase));
    lines.map(|line| line.trim_end_matches(',').to_owned()).collect()
}

#[test]
fn every_word_about_a_machine_a_disk_and_every_finding_stands_in_the_operations_guide() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = fs::read_to_string(root.join("docs/operations.md")).unwrap();
    for (file, name, least) in [
        ("src/engine/graph/eligible.rs", "Ineligible", 10),
        ("src/chain/finding.rs", "Kind", 10),
        ("src/chain/next.rs", "TypeReason", 10),
        ("src/engine/graph.rs", "PowerState", 5),
    ] {
        let words = variants(&fs::read_to_string(root.join(file)).unwrap(), name);
        assert!(words.len() >= least, "{words:?}");
        let missing: Vec<_> = words.iter().filter(|word| !guide.contains(&format!("| `{word}` |"))).collect();
        assert!(missing.is_empty(), "docs/operations.md does not say what {missing:?} of {name} means");
    }
}
