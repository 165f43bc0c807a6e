//! What belongs to this user alone: the folders and files of the journal, which name command lines, sockets and paths, and
//! those of the locks, which would make every backup wait for whoever else could open and lock them.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Makes the folder, also one of an earlier version, this user's alone. A folder in which everybody may make files, such as
/// /run/lock, is the host's: it stays as it is.
pub(super) fn own_folder(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o777 == 0o700 || mode & 0o1000 != 0 {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Writes to a file that is this user's alone if it is made.
pub(super) fn writing() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

/// Makes an opened file, also one of an earlier version, this user's alone.
pub(super) fn own_file(file: &File) -> io::Result<()> {
    if file.metadata()?.permissions().mode() & 0o777 == 0o600 {
        return Ok(());
    }
    file.set_permissions(fs::Permissions::from_mode(0o600))
}
