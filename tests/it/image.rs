//! The image: built by `tests/image/build` around the program under test, unpacked, and looked at. Its programs run as
//! the user that it names. Images are built by root alone; whoever else runs this sees that it is said.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_driftline");
const NAME: &str = "driftline.test/driftline:it";

fn build(arguments: &[&str]) -> Output {
    script().args(arguments).output().unwrap()
}

fn script() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/image/build"))
}

/// What it said and where the archive is: the only line on stdout.
fn built(arguments: &[&str]) -> (String, PathBuf) {
    let out = build(arguments);
    let (said, path) = (String::from_utf8(out.stderr).unwrap(), String::from_utf8(out.stdout).unwrap());
    assert!(out.status.success(), "{said}");
    assert_eq!(path.lines().count(), 1, "{path}");
    (said, path.trim_end().into())
}

/// The one line of a call that is refused. Its cache has nothing, and it waits for nobody.
fn refused(arguments: &[&str]) -> String {
    let cache = tempfile::tempdir().unwrap();
    let out = script().args(arguments).env("DRIFTLINE_CACHE", cache.path()).output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(!out.status.success() && out.stdout.is_empty(), "{arguments:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

fn run(command: &mut Command) -> String {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        let said = refused(&[PROGRAM, NAME]);
        assert!(said.contains("only be built as root"), "{said}");
    }
    root
}

/// An archive, unpacked.
struct Image {
    folder: tempfile::TempDir,
    index: Value,
    manifest: Value,
    config: Value,
}

impl Image {
    fn read(archive: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        run(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(folder.path()));
        let json = |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
        let index = json(&folder.path().join("index.json"));
        let manifest = json(&blob(folder.path(), &index["manifests"][0]));
        let config = json(&blob(folder.path(), &manifest["config"]));
        Self { folder, index, manifest, config }
    }

    fn layers(&self) -> Vec<PathBuf> {
        self.manifest["layers"].as_array().unwrap().iter().map(|layer| blob(self.folder.path(), layer)).collect()
    }

    /// The root file system, as a runtime would see it.
    fn root(&self) -> PathBuf {
        let root = self.folder.path().join("root");
        std::fs::create_dir(&root).unwrap();
        for layer in self.layers() {
            run(Command::new("tar").arg("-xf").arg(layer).arg("-C").arg(&root));
        }
        root
    }
}

/// The file of a descriptor: named by its digest.
fn blob(folder: &Path, descriptor: &Value) -> PathBuf {
    let digest = descriptor["digest"].as_str().unwrap();
    folder.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())
}

fn files(layer: &Path) -> Vec<String> {
    let all = run(Command::new("tar").arg("-tf").arg(layer));
    all.lines().filter(|name| !name.ends_with('/')).map(str::to_owned).collect()
}

#[test]
fn the_programs_of_the_image_run_as_its_user_and_a_second_build_is_none() {
    if !is_root() {
        return;
    }
    let prepared = build(&["--base"]);
    assert!(prepared.status.success(), "{}", String::from_utf8_lossy(&prepared.stderr));
    let (_, archive) = built(&[PROGRAM, NAME]);
    let (said, again) = built(&[PROGRAM, NAME]);
    assert_eq!(again, archive);
    assert!(said.contains("from the cache") && said.contains(" MB"), "{said}");

    let image = Image::read(&archive);
    assert_eq!(image.index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], NAME);
    let config = &image.config["config"];
    assert_eq!(config["User"], "64090:64090");
    assert_eq!(config["Entrypoint"], json!(["/usr/local/bin/driftline"]));
    assert_eq!(config["Labels"]["org.opencontainers.image.title"], "driftline");
    assert_eq!(config["Labels"]["org.opencontainers.image.licenses"], "Apache-2.0");

    // What changes with the program is a layer that has little else: the base is not in it.
    let layers = image.layers();
    assert_eq!(layers.len(), 2);
    let changing = files(&layers[1]);
    assert!(changing.contains(&"usr/local/bin/driftline".to_owned()), "{changing:?}");
    assert!(changing.iter().all(|name| name.starts_with("etc/") || name.ends_with("driftline")), "{changing:?}");

    let root = image.root();
    let of_the_image = |program: &str| {
        run(Command::new("chroot").arg("--userspec=64090:64090").arg(&root).args([program, "--version"]))
    };
    assert_eq!(of_the_image("/usr/local/bin/driftline"), run(Command::new(PROGRAM).arg("--version")));
    let version =
        |said: String| said.split_once("version ").expect("It says its version").1.lines().next().map(str::to_owned);
    let qemu_img = version(of_the_image("qemu-img"));
    assert_eq!(version(of_the_image("qemu-io")), qemu_img);
    assert_eq!(version(of_the_image("qemu-storage-daemon")), qemu_img, "of the same package");
    let users = std::fs::read_to_string(root.join("etc/passwd")).unwrap();
    assert!(users.contains("\ndriftline:x:64090:64090:"), "{users}");
}

#[test]
fn what_an_image_cannot_be_built_from_is_said_in_one_line() {
    let said = refused(&["/nowhere/driftline", NAME]);
    assert!(said.contains("/nowhere/driftline is not there") && said.contains("cargo build"), "{said}");
    let said = refused(&["--from", "/nowhere/root.tar", PROGRAM, NAME]);
    assert!(said.contains("the base /nowhere/root.tar is not there"), "{said}");
    let said = refused(&[PROGRAM, "driftline.test/driftline"]);
    assert!(said.contains("has no tag"), "{said}");
    for usage in [&[][..], &[PROGRAM], &["--base", PROGRAM]] {
        assert!(refused(usage).contains("usage: "));
    }
    if is_root() {
        let not_a_base = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let said = refused(&["--from", not_a_base.to_str().unwrap(), PROGRAM, NAME]);
        assert!(said.contains("Cargo.toml is no tar of a root file system"), "{said}");
        let said = refused(&[PROGRAM, NAME]);
        assert!(said.contains("the base is not there: run"), "{said}");
    }
}
