//! What belongs to this user alone: the folders and files of the journal, which name command lines, sockets and paths, and
//! the files of the locks, which would make every backup wait for whoever else could open and lock them.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Makes the folder, also one of an earlier version, this user's alone. Only for a name that we give: the host may have given
/// any other folder to others as well.
pub(super) fn own_folder(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    if fs::metadata(path)?.permissions().mode() & 0o777 == 0o700 {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Makes the folder this user's alone where it is not there. One that is, such as /run/lock, is the host's and stays as it is.
pub(super) fn make_folder(path: &Path) -> io::Result<()> {
    if let Some(around) = path.parent() {
        fs::create_dir_all(around)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
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
