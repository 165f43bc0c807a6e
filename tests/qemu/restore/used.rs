//! Restores over an image that a process has open, from the beginning or since then.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use driftline::{
    engine::restore::{Format, Overwrite, RestoreProgress, RestoreRequest, Stage, flatten},
    repo::Repository,
};

use super::{
    chain::chain,
    request, restore, roots,
    support::{Mount, Place},
    target,
};

/// A process that uses an image as a machine does: qemu-io holds it open, locked, until its standard input ends.
struct User(Child);

impl User {
    fn of(path: &Path) -> User {
        let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw"]).arg(path).stdin(Stdio::piped()).stdout(Stdio::null());
        let user = User(command.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(10);
        while !fs::read_to_string("/proc/locks").unwrap().contains(&format!(":{inode} ")) {
            assert!(Instant::now() < deadline, "qemu-io takes no lock");
            std::thread::yield_now();
        }
        user
    }

    fn leave(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// While a process uses the image at `path`, it is not replaced; afterwards it is.
fn is_replaced_only_when_unused(place: &Place, repository: &Repository, path: &Path) {
    fs::write(path, vec![0; 1 << 20]).unwrap();
    let user = User::of(path);
    let always = RestoreRequest { overwrite: Overwrite::Always, ..request(1, path, Format::Raw) };
    assert_eq!(restore(place, repository, &always).unwrap_err().reason(), "TargetInUse");
    user.leave();
    restore(place, repository, &always).unwrap();
}

#[test]
fn an_image_that_a_process_uses_is_never_replaced() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    chain(&place, &repository);
    is_replaced_only_when_unused(&place, &repository, &target(&place).join("disk"));
}

/// There the device that `stat` tells is not the one of the locks.
#[test]
fn an_image_in_use_is_seen_on_an_overlay_too() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    chain(&place, &repository);
    let folder = target(&place);
    let layers = tempfile::tempdir().unwrap();
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| {
        let path = layers.path().join(name);
        fs::create_dir(&path).unwrap();
        path.to_str().unwrap().to_owned()
    });
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let Some(_mount) = Mount::new(&["-t", "overlay", "overlay", "-o", &options], &folder) else { return };
    is_replaced_only_when_unused(&place, &repository, &folder.join("disk"));
}

#[test]
fn an_image_that_a_process_began_to_use_during_the_restore_is_not_replaced() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    chain(&place, &repository);
    let path = target(&place).join("disk");
    fs::write(&path, vec![7; 1 << 20]).unwrap();
    let always = RestoreRequest { overwrite: Overwrite::Always, ..request(1, &path, Format::Raw) };
    let mut user = None;
    let mut begin = |progress: RestoreProgress| {
        if progress.stage == Stage::Verifying && user.is_none() {
            user = Some(User::of(&path));
        }
    };
    let done = flatten(&repository, &roots(&place), &always, &mut begin, &AtomicBool::new(false));
    user.expect("the restore verifies").leave();
    assert_eq!(done.unwrap_err().reason(), "TargetInUse");
    assert_eq!(fs::read(&path).unwrap(), vec![7; 1 << 20]);
    assert_eq!(fs::read_dir(target(&place)).unwrap().count(), 1, "the temporary file is gone");
}
