//! Restores over an image that a process has open, from the beginning or since then.

use std::{
    fs,
    process::{Command, Stdio},
    sync::atomic::AtomicBool,
};

use driftline::engine::restore::{Format, Overwrite, RestoreProgress, RestoreRequest, Stage, flatten};

use super::{
    chain::chain,
    request, restore, roots,
    support::{Mount, Place},
    target,
};

#[test]
fn an_image_that_a_process_uses_is_never_replaced() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    chain(&place, &repository);
    let path = target(&place).join("disk");
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    // qemu-io holds the image open until its standard input ends.
    let mut user = Command::new("qemu-io")
        .args(["-f", "raw"])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let always = RestoreRequest { overwrite: Overwrite::Always, ..request(1, &path, Format::Raw) };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap());
    while !fs::read_to_string("/proc/locks").unwrap().contains(&format!(":{inode} ")) {
        assert!(std::time::Instant::now() < deadline, "qemu-io takes no lock");
        std::thread::yield_now();
    }
    assert_eq!(restore(&place, &repository, &always).unwrap_err().reason(), "TargetInUse");
    drop(user.stdin.take());
    user.wait().unwrap();
    restore(&place, &repository, &always).unwrap();
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
    let path = folder.join("disk");
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    let mut user = Command::new("qemu-io");
    let mut user = user.args(["-f", "raw"]).arg(&path).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let always = RestoreRequest { overwrite: Overwrite::Always, ..request(1, &path, Format::Raw) };
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !fs::read_to_string("/proc/locks").unwrap().contains(&format!(":{inode} ")) {
        assert!(std::time::Instant::now() < deadline, "qemu-io takes no lock");
        std::thread::yield_now();
    }
    assert_eq!(restore(&place, &repository, &always).unwrap_err().reason(), "TargetInUse");
    drop(user.stdin.take());
    user.wait().unwrap();
    restore(&place, &repository, &always).unwrap();
}

#[test]
fn an_image_that_a_process_began_to_use_during_the_restore_is_not_replaced() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    chain(&place, &repository);
    let path = target(&place).join("disk");
    fs::write(&path, vec![7; 1 << 20]).unwrap();
    let always = RestoreRequest { overwrite: Overwrite::Always, ..request(1, &path, Format::Raw) };
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap());
    let mut user = None;
    let mut begin = |progress: RestoreProgress| {
        if progress.stage != Stage::Verifying || user.is_some() {
            return;
        }
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw"]).arg(&path).stdin(Stdio::piped()).stdout(Stdio::null());
        user = Some(command.spawn().unwrap());
        while !fs::read_to_string("/proc/locks").unwrap().contains(&format!(":{inode} ")) {
            std::thread::yield_now();
        }
    };
    let done = flatten(&repository, &roots(&place), &always, &mut begin, &AtomicBool::new(false));
    let mut user = user.expect("the restore verifies");
    drop(user.stdin.take());
    user.wait().unwrap();
    assert_eq!(done.unwrap_err().reason(), "TargetInUse");
    assert_eq!(fs::read(&path).unwrap(), vec![7; 1 << 20]);
    assert_eq!(fs::read_dir(target(&place)).unwrap().count(), 1, "the temporary file is gone");
}
