//! What is taken from the command line, and what is refused with what to write.

use std::path::Path;

use super::*;

fn parse(words: &[&str]) -> Result<Verb, clap::Error> {
    let all = ["driftline"].iter().chain(words);
    let cli = Cli::try_parse_from(all)?;
    cli.check()?;
    match cli.command {
        Command::Verb(verb) => Ok(verb),
        other => panic!("{other:?} is no verb"),
    }
}

#[test]
fn the_arguments_are_consistent() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn values_are_the_apis_in_any_case() {
    for (kind, format, overwrite) in [("Full", "Raw", "Always"), ("full", "raw", "always"), ("FULL", "RAW", "ALWAYS")] {
        parse(&["backup", "--qmp", "q", "--repository", "r", "--type", kind]).unwrap();
        let id = "01j00000000000000000000000";
        let words = ["restore", "--repository", "r", "--point", id, "--to", "a=b", "--format", format];
        let words: Vec<_> = words.into_iter().chain(["--overwrite", overwrite]).collect();
        let Verb::Restore(restore) = parse(&words).unwrap() else { panic!("a restore") };
        assert_eq!((restore.format, restore.overwrite), (ImageFormat::Raw, Overwrite::Always));
    }
}

#[test]
fn wrong_values_are_refused_with_what_to_write() {
    for (words, says) in [
        (vec!["backup", "--qmp", "q", "--repository", "r", "--bandwidth", "fast"], "50Mi"),
        (vec!["backup", "--qmp", "q", "--repository", "r", "--bandwidth", "0"], "50Mi"),
        (vec!["backup", "--repository", "r"], "--qmp"),
        (vec!["backup", "--qmp", "q", "--repository", "r", "--name", "Bad Name"], "such as db-1"),
        (vec!["restore", "--repository", "r", "--point", "latest", "--to", "x"], "DISK=PATH"),
        (vec!["restore", "--repository", "r", "--point", "newest", "--to", "a=b"], "26 characters"),
        (vec!["restore", "--repository", "r", "--point", "latest"], "--to"),
        (vec!["restore", "--repository", "r", "--point", "latst", "--to", "a=b"], "or latest"),
        (vec!["backup", "--qmp", "q", "--repository", "r", "--disk", "a", "--exclude", "a"], "named by both"),
        (vec!["points"], "--repository"),
        (vec!["points", "show", "latest"], "Usage: driftline points show"),
        (vec!["points", "--repository", "a", "show", "latest", "--repository", "b"], "once"),
        (vec!["points", "--guest", "a", "show", "latest", "--guest", "b", "--repository", "b"], "once"),
    ] {
        let text = parse(&words).unwrap_err().to_string();
        assert!(text.contains(says), "{words:?}: {text}");
    }
}

#[test]
fn one_point_is_shown_wherever_the_repository_is_named() {
    for words in [
        ["points", "show", "latest", "--repository", "r", "--guest", "g"],
        ["points", "--repository", "r", "--guest", "g", "show", "latest"],
        ["points", "--guest", "g", "show", "--repository", "r", "latest"],
    ] {
        let Verb::Points(points) = parse(&words).unwrap() else { panic!("points") };
        let Some(PointsVerb::Show(show)) = &points.show else { panic!("show") };
        assert_eq!(show.id, PointName::Latest);
        assert_eq!(points.repository(), Some(Path::new("r")));
        assert_eq!(points.guest(), Some("g"));
    }
}

#[test]
fn a_target_is_told_apart_from_its_disk_at_the_first_sign_before_a_path() {
    for (text, disk, path) in [
        ("disk0=/images/disk0.raw", "disk0", "/images/disk0.raw"),
        ("disk0=new.raw", "disk0", "new.raw"),
        ("disk0=/images/size=1/disk0=a.raw", "disk0", "/images/size=1/disk0=a.raw"),
        ("disk0=size=1.raw", "disk0", "size=1.raw"),
        ("id=0=/images/a=b", "id=0", "/images/a=b"),
        ("id=0=./a=b", "id=0", "./a=b"),
        ("id=0=../a", "id=0", "../a"),
        ("/machine/a=b/c=/images/x", "/machine/a=b/c", "/images/x"),
    ] {
        let target = target(text).unwrap();
        assert_eq!((target.disk.as_str(), target.path.as_path()), (disk, Path::new(path)), "{text}");
    }
    for wrong in ["disk0", "disk0=", "=/images/x", ""] {
        assert!(target(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn output_and_verbosity_are_taken_before_and_behind_the_verb() {
    for words in [["-o", "json", "points", "--repository", "r"], ["points", "--repository", "r", "-o", "JSON"]] {
        let cli = Cli::try_parse_from(["driftline"].iter().chain(&words)).unwrap();
        assert_eq!(cli.common.output, OutputFormat::Json);
    }
}
