//! File systems of a test's own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::machine::run;

/// A file system of its own, gone with the test; none where this user may not mount.
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts with `args` at a folder, which is made.
    pub fn new(args: &[&str], at: &Path) -> Option<Mount> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        fs::create_dir_all(at).expect("the file system of the test can be made");
        run(Command::new("mount").args(args).arg(at));
        Some(Mount(at.to_owned()))
    }

    /// Memory, so many bytes of it.
    pub fn tmpfs(size: u64, at: &Path) -> Option<Mount> {
        Mount::new(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], at)
    }

    /// An ext4 in a file that takes what is written to it: as large as one likes, and no promise below it.
    pub fn sparse_ext4(image: &Path, size: u64, at: &Path) -> Option<Mount> {
        make_ext4(image, size);
        Mount::new(&["-o", "loop", image.to_str().expect("the file system of the test can be made")], at)
    }

    /// An ext4 in a file.
    pub fn ext4(image: &Path, size: u64, at: &Path) -> Option<Mount> {
        make_ext4(image, size);
        // Written in whole, and not only sized: what ext4 promises must not fail below it.
        fs::write(image, fs::read(image).expect("the file system of the test can be made"))
            .expect("the file system of the test can be made");
        Mount::new(&["-o", "loop", image.to_str().expect("the file system of the test can be made")], at)
    }

    /// Whoever writes to it waits until the drop of what is returned, as with a disk that does not answer.
    #[must_use]
    pub fn freeze(&self) -> Frozen<'_> {
        run(Command::new("fsfreeze").arg("--freeze").arg(&self.0));
        Frozen(self)
    }
}

/// A file system that takes no write.
pub struct Frozen<'mount>(&'mount Mount);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(&self.0.0).status();
    }
}

fn make_ext4(image: &Path, size: u64) {
    fs::File::create(image).and_then(|file| file.set_len(size)).expect("the file system of the test can be made");
    run(Command::new("mkfs.ext4").args(["-q", "-b", "4096", "-m", "0"]).arg(image));
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a machine that the failed test still holds may have files open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Takes every block that is left.
pub fn fill_up(folder: &Path) {
    let path = folder.join("filler");
    let taken = Command::new("dd")
        .args(["if=/dev/zero", "bs=4k"])
        .arg(format!("of={}", path.display()))
        .output()
        .expect("the file system of the test can be made");
    assert!(String::from_utf8_lossy(&taken.stderr).contains("No space left"), "{taken:?}");
}
