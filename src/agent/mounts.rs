//! Folders of the node that the agent's container has by a mount, and that were removed on the node since (in): what was
//! made anew in their place, such as the `RuntimeDirectory=` of a unit, is not seen until the container is started again.

use std::{
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use super::problem::Problem;

/// What the kernel puts after the root of a mount whose folder was removed (Linux `fs/d_path.c`).
const REMOVED: &str = "//deleted";

/// The first of the folders that was removed below its mount. None, too, where the kernel does not say.
pub(super) fn removed<'a>(folders: impl IntoIterator<Item = &'a Path>) -> Option<Problem> {
    let mounts = mounts_of_removed(&fs::read_to_string("/proc/self/mountinfo").ok()?);
    let mut folders = folders.into_iter();
    mounts
        .first()
        .and_then(|_| folders.find_map(|folder| mounts.iter().find(|mount| folder.starts_with(mount))))
        .map(|mount| Problem::folder_removed(mount))
}

/// Mount points whose folder was removed. What is mounted above one hides it.
fn mounts_of_removed(mountinfo: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    // ID, parent, device, root, mount point, and more (proc_pid_mountinfo(5)), the newest mount last.
    for (root, point) in mountinfo.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        Some((fields.next()?, unescaped(fields.next()?)))
    }) {
        found.retain(|hidden| !hidden.starts_with(&point));
        if root.ends_with(REMOVED) {
            found.push(point);
        }
    }
    found
}

/// Blanks and backslashes are written in octal: `\040`.
fn unescaped(field: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let octal = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok();
        let code = after.get(..3).filter(|_| *first == b'\\').and_then(octal);
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_removed_folders_are_told_unless_hidden() {
        let text = "\
1 0 0:1 / / rw - overlay overlay rw
2 1 0:2 /run/qemu//deleted /run/qemu rw,relatime master:3 - tmpfs tmpfs rw
3 1 0:3 /srv/deleted /srv/backup rw - ext4 /dev/vda rw
4 1 0:3 /srv/of\\040mine//deleted /srv/of\\040mine rw - ext4 /dev/vda rw
5 1 0:3 /old//deleted /srv/again rw - ext4 /dev/vda rw
6 1 0:3 /new /srv/again rw - ext4 /dev/vda rw
";
        assert_eq!(mounts_of_removed(text), [Path::new("/run/qemu"), Path::new("/srv/of mine")]);
    }

    #[test]
    fn a_folder_without_a_mount_of_its_own_is_not_told() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("gone");
        assert_eq!(removed([folder.as_path()]), None);
    }
}
