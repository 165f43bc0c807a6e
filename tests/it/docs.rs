//! Nothing in the documentation is left without a test: each fence says what it is, what is typed in has a test that
//! runs it, files for hosts can be read, YAML is an example's, and `make` and `cargo` are given targets that are there.

use std::fs;

use driftline::config::{GuestFile, HostConfig};

use crate::guides::{Fence, RUN_BY, Runner, documents, fences, fences_for, tree};

fn all() -> Vec<Fence> {
    documents().iter().flat_map(|document| fences(document)).collect()
}

fn examples() -> Vec<(String, String)> {
    let entries = fs::read_dir(tree("examples")).unwrap().map(|entry| entry.unwrap());
    let read =
        |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap());
    entries.map(read).collect()
}

/// What is wrong with a fence, if anything is.
fn wrong(fence: &Fence) -> Option<&'static str> {
    match fence.language.as_str() {
        "text" => None,
        "sh" | "toml" if fence.runner().is_none() => Some("no test runs it: see tests/support/guides.rs"),
        "sh" => None,
        "toml" if fence.file().is_none() => Some("its first line is no comment with the file's path"),
        "toml" => None,
        "yaml" => {
            let known = examples().iter().any(|(_, text)| text.contains(&fence.text));
            (!known).then_some("it stands in no file of examples/")
        }
        _ => Some("it does not say whether it is sh, toml, yaml or text"),
    }
}

#[test]
fn everything_that_the_documents_say_to_type_or_write_is_run_by_a_test() {
    for fence in all() {
        if let Some(why) = wrong(&fence) {
            panic!("{}, under {:?}: {why}:\n{}", fence.document, fence.heading, fence.text);
        }
    }
}

#[test]
fn every_place_that_a_test_runs_is_there() {
    for (document, heading, _) in RUN_BY {
        let found = fences(document).iter().any(|fence| heading.is_none_or(|heading| fence.heading == heading));
        assert!(found, "{document} has no fence under {heading:?}");
    }
}

#[test]
fn a_command_that_no_test_runs_is_noticed() {
    let fence = |language: &str, text: &str| Fence {
        document: "docs/new.md".to_owned(),
        heading: "New".to_owned(),
        language: language.to_owned(),
        text: text.to_owned(),
    };
    for (language, text) in
        [("sh", "driftline prune\n"), ("toml", "# /etc/x.toml\n"), ("yaml", "kind: Policy\n"), ("", "driftline x\n")]
    {
        assert!(wrong(&fence(language, text)).is_some(), "{language} {text}");
    }
    assert_eq!(wrong(&fence("text", "a --> b\n")), None);
}

#[test]
fn what_the_examples_say_to_type_stands_in_a_guide() {
    let typed: String = all().into_iter().filter(|fence| fence.language == "sh").map(|fence| fence.text).collect();
    for (name, text) in examples() {
        for line in text.lines().filter_map(|line| line.strip_prefix("#   ")) {
            assert!(typed.contains(line), "{name} says to type {line:?}, which no test runs");
        }
    }
}

#[test]
fn files_for_hosts_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for fence in all() {
        let Some((path, text)) = fence.file().filter(|_| fence.language == "toml") else { continue };
        let file = folder.path().join("file.toml");
        fs::write(&file, text).unwrap();
        match path {
            "/etc/driftline/host.toml" => drop(HostConfig::load(&file).unwrap()),
            guest if guest.starts_with("/etc/driftline/guests.d/") => drop(GuestFile::load(&file).unwrap()),
            other => panic!("{}: nothing reads {other}", fence.document),
        }
        seen += 1;
    }
    assert!(seen > 0, "no document shows a file");
}

/// What is wrong with a command for this tree, if anything is.
fn missing(command: &str) -> Option<String> {
    let command = command.split('#').next().unwrap_or_default();
    match command.split_whitespace().collect::<Vec<_>>().as_slice() {
        [] => None,
        ["make", target] => {
            let makefile = fs::read_to_string(tree("Makefile")).unwrap();
            let targets = makefile.lines().find_map(|line| line.strip_prefix(".PHONY:")).unwrap();
            let known = targets.split_whitespace().any(|known| known == *target)
                && makefile.lines().any(|line| line.starts_with(&format!("{target}:")));
            (!known).then(|| format!("the Makefile has no target {target}"))
        }
        ["cargo", "test", "--features", "fake", "--lib", filter] => module(&format!("src/{filter}")),
        ["cargo", "test", "--features", "fake", "--test", name, filter @ ..] => {
            module(&format!("tests/{name}/main")).or_else(|| module(&format!("tests/{name}/{}", filter.first()?)))
        }
        _ => Some("nothing here knows how to look whether it works".to_owned()),
    }
}

/// Whether a module such as `src/engine::` has its file.
fn module(path: &str) -> Option<String> {
    let file = format!("{}.rs", path.trim_end_matches("::"));
    (!tree(&file).exists()).then(|| format!("there is no {file}"))
}

#[test]
fn make_and_cargo_are_given_what_is_there() {
    for (document, _, _) in RUN_BY.iter().filter(|(_, _, runner)| *runner == Runner::Tree) {
        for fence in fences_for(document, Runner::Tree) {
            for line in fence.text.lines() {
                assert_eq!(missing(line), None, "{document}: {line}");
            }
        }
    }
    for document in documents() {
        let text = fs::read_to_string(tree(&document)).unwrap();
        for word in text.split('`').filter(|word| word.starts_with("make ")) {
            assert_eq!(missing(word), None, "{document}: {word}");
        }
    }
    for command in ["make coffee", "cargo test --features fake --test nothing", "cargo test --features fake --lib no::"]
    {
        assert!(missing(command).is_some(), "{command}");
    }
}
