//! Container images without a registry: an archive of one layer that `ctr images import` takes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;

/// The image of `probe.go`: what a pod's sandbox runs, and enough for the pods of a test.
pub const PROBE: &str = "driftline.test/probe:1";

/// Writes the archive of [`PROBE`] below `folder`.
pub(super) fn probe(folder: &Path) -> PathBuf {
    let root = folder.join("probe");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/nodes/probe.go");
    let mut go = Command::new("go");
    // Nothing but Go's own library: it needs no module, no network and no libc.
    go.args(["build", "-trimpath", "-ldflags=-s -w", "-o"]).arg(root.join("bin/probe")).arg(source);
    run(go.env("CGO_ENABLED", "0").env("GOFLAGS", "").env("GOWORK", "off"));
    let archive = folder.join("probe.tar");
    write(&archive, PROBE, &root, &["/bin/probe"]);
    archive
}

/// Writes an image called `name` (repository and tag) that holds the files of `root` and runs `entrypoint`.
pub fn write(archive: &Path, name: &str, root: &Path, entrypoint: &[&str]) {
    let place = archive.with_extension("parts");
    fs::create_dir_all(&place).expect("A folder for an image can be made");
    let layer = place.join("layer.tar");
    let tar = |archive: &Path, from: &Path| {
        let mut tar = Command::new("tar");
        tar.args(["--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "--file"]);
        run(tar.arg(archive).arg("--directory").arg(from).arg("."));
    };
    tar(&layer, root);
    let digest = run(Command::new("sha256sum").arg(&layer));
    let digest = digest.split_whitespace().next().expect("sha256sum prints a digest");
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Entrypoint": entrypoint, "Env": ["PATH=/bin"], "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    for (file, text) in [("config.json", config), ("manifest.json", manifest)] {
        fs::write(place.join(file), text.to_string()).expect("A part of an image can be written");
    }
    tar(archive, &place);
    fs::remove_dir_all(&place).expect("The parts of an image can be removed");
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
