//! What the documentation tells people to type on a plain host, typed in as it stands, with a real QEMU: the README's
//! quick start on a host without files of ours, and the guide with them.
//!
//! It runs in mount and process namespaces of its own, where /run, /srv and /var/lib are folders of the test: no path
//! but /etc/driftline is another one, and the machine that a document starts in the background ends with the test.

use std::{fs, path::Path, process::Stdio, time::Duration};

use crate::{
    guides::{Fence, Runner, documents_for, fences_for, path_with, programs, script},
    lab::child::Guarded,
};

/// What stands for what a test cannot do: a build of this package into /usr/local. The program is the one under test.
const CARGO: &str = "#!/bin/sh\n[ \"$*\" = 'install --locked --root /usr/local --path .' ]\n";

/// Types it all in; gives what was said on stdout.
fn run(fences: &[Fence]) -> String {
    let folder = tempfile::Builder::new().prefix("docs-").tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    for name in ["run", "srv", "var-lib", "none"] {
        fs::create_dir(path(name)).unwrap();
    }
    let program = Path::new(env!("CARGO_BIN_EXE_driftline"));
    programs(&folder.path().join("bin"), &[("cargo", CARGO)], &[("driftline", program)]);
    let mut all = String::new();
    for (name, place) in [("run", "/run"), ("srv", "/srv"), ("var-lib", "/var/lib")] {
        all.push_str(&format!("mount --bind '{}' {place}\n", path(name)));
    }
    // The tester's own files bound nothing.
    all.push_str(&format!("if [ -d /etc/driftline ]; then mount --bind '{}' /etc/driftline; fi\n", path("none")));
    let etc = path("etc");
    let others = [
        ("/etc/driftline".to_owned(), etc.clone()),
        // What the document says of the usual place holds for this one.
        ("repositoryRoots = ".to_owned(), format!("guests = \"{etc}/guests.d\"\nrepositoryRoots = ")),
    ];
    let text = script(fences, &others);
    // A configuration that is named must be there: only where the document writes one.
    if text.contains("host.toml") {
        all.push_str(&format!("export DRIFTLINE_CONFIG='{etc}/host.toml'\n"));
    }
    let said = |name: &str| fs::read_to_string(path(name)).unwrap_or_default();
    fs::write(path("script"), format!("set -eu\n{all}{text}")).unwrap();

    let output = |name: &str| Stdio::from(fs::File::create(path(name)).unwrap());
    let mut shell = Guarded::start("unshare", |command| {
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", &path("script")]);
        command.env("PATH", path_with(&folder.path().join("bin"))).env_remove("DRIFTLINE_CONFIG");
        command.current_dir(folder.path()).stdin(Stdio::null()).stdout(output("stdout")).stderr(output("stderr"));
    });
    let status = shell.wait(Duration::from_secs(180));
    assert!(status.success(), "{status}\n{}{}", said("stdout"), said("stderr"));
    said("stdout")
}

#[test]
fn no_document_for_a_host_is_left_out() {
    assert_eq!(documents_for(Runner::Host), ["README.md", "docs/guide-host.md"], "type in the new one here too");
}

#[test]
fn the_quick_start_of_the_readme_restores_an_equal_image_when_it_is_copied_as_it_stands() {
    let said = run(&fences_for("README.md", Runner::Host));
    assert!(said.contains("Images are identical."), "{said}");
}

#[test]
fn the_guide_for_a_host_does_what_it_says() {
    let said = run(&fences_for("docs/guide-host.md", Runner::Host));
    assert!(said.contains("Images are identical."), "{said}");
    assert!(said.contains("\"namespace\": \"team-a\""), "the machine has the namespace of its file: {said}");
}
