//! The built command where no machine is needed: what is said of wrong words, files and folders, and with which status.

use std::{
    fs::File,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

/// A host with a configuration of its own and an empty folder for repositories.
struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Host { folder: tempfile::tempdir().unwrap() };
        for name in ["repository", "guests.d"] {
            std::fs::create_dir(host.path(name)).unwrap();
        }
        let [state, locks, guests, repository] =
            ["state", "locks", "guests.d", "repository"].map(|name| host.path(name));
        let text =
            format!("state = {state:?}\nlocks = {locks:?}\nguests = {guests:?}\nrepositoryRoots = [{repository:?}]\n");
        std::fs::write(host.path("host.toml"), text).unwrap();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_driftline"));
        command.args(words).env("DRIFTLINE_CONFIG", self.path("host.toml")).stdin(Stdio::null());
        command
    }

    /// Runs the command, which is to end with this status; gives what it said on stderr.
    fn says(&self, words: &[&str], status: i32) -> String {
        let output = self.command(words).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(status), "{words:?}: {said}");
        said
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_result_that_stdout_does_not_take_is_a_failure_that_says_so() {
    let host = Host::new();
    for (words, status) in [(&["guests"][..], 1), (&["guests", "-o", "json"], 1), (&["crds"], 1)] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = host.command(words).stdout(full).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(status), "{words:?}: {said}");
        assert!(said.contains("stdout: No space left on device"), "{words:?}: {said}");
    }
    for words in [&["guests"][..], &["crds"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = host.command(words).stdout(writer).output().unwrap();
        assert_eq!((output.status.code(), stderr(&output).contains("error")), (Some(0), false), "a reader that left");
    }
}

#[test]
fn a_folder_of_machines_that_is_named_must_be_there_and_an_empty_one_is_no_table() {
    let host = Host::new();
    let said = host.says(&["guests", "--guests-dir", &host.text("nosuch")], 1);
    assert!(said.contains("nosuch: No such file") && said.contains("[GuestFolderUnreadable]"), "{said}");
    assert!(said.contains("way out: name a folder that is there"), "{said}");
    let empty = host.command(&["guests"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&empty.stdout), "No machines\n");
}

#[test]
fn a_wrong_host_file_is_told_in_one_sentence_with_its_line_and_the_way_out() {
    let host = Host::new();
    std::fs::write(host.path("host.toml"), "locks = \"/l\"\nstat = \"/s\"\n").unwrap();
    let said = host.says(&["guests"], 1);
    assert!(said.contains("host.toml, line 2, column 1: unknown field `stat`"), "{said}");
    assert_eq!((said.matches("unknown field").count(), said.lines().count()), (1, 2), "{said}");
    assert!(said.contains("way out: correct that place"), "{said}");
    std::fs::remove_file(host.path("host.toml")).unwrap();
    let said = host.says(&["guests"], 1);
    assert!(said.contains("[HostFileUnreadable]") && said.contains("DRIFTLINE_CONFIG"), "{said}");
}

#[test]
fn who_only_reads_is_not_told_to_name_an_empty_folder() {
    let host = Host::new();
    let repository = host.text("repository");
    let restore = ["restore", "--repository", &repository, "--point", "latest", "--to", "disk0=/x"];
    for words in [&["points", "--repository", &repository][..], &["verify", "--repository", &repository], &restore] {
        let said = host.says(words, 1);
        assert!(said.contains("[RepositoryNotMounted]") && said.contains("`driftline backup` alone"), "{said}");
    }
    assert_eq!(std::fs::read_dir(host.path("repository")).unwrap().count(), 0);
}

#[test]
fn a_folder_that_cannot_be_opened_is_named_once() {
    let host = Host::new();
    let file = host.path("repository").join("file");
    std::fs::write(&file, "x").unwrap();
    let said = host.says(&["points", "--repository", file.to_str().unwrap()], 1);
    assert!(said.contains("[FolderNotOpened]") && said.contains("way out: "), "{said}");
    assert_eq!(said.matches(file.to_str().unwrap()).count(), 1, "{said}");
}

#[test]
fn wrong_words_are_refused_before_anything_is_looked_at() {
    let host = Host::new();
    let backup = ["backup", "--qmp", "/nothing", "--repository", "/nothing", "--disk", "disk0", "--exclude", "disk0"];
    let said = host.says(&backup, 2);
    assert!(said.contains("disk disk0 is named by both --disk and --exclude"), "{said}");
    let said = host.says(&["points", "show", "latest"], 2);
    assert!(said.contains("driftline points show ID --repository DIR"), "{said}");
    // It is taken before the verb, too: what is refused is the folder.
    let repository = host.text("repository");
    let said = host.says(&["points", "--repository", &repository, "show", "latest"], 1);
    assert!(said.contains("[RepositoryNotMounted]"), "{said}");
}

#[test]
fn a_file_given_as_a_monitor_is_called_no_socket() {
    let host = Host::new();
    let file = host.text("host.toml");
    let said = host.says(&["guests", "--qmp", &file], 1);
    assert!(said.contains("is no QMP socket: a file has that name") && said.contains("[MonitorNotThere]"), "{said}");
}
