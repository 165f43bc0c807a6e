//! Which UUID a guest's name stood for (in, out): a small file per guest in the state folder, so that a machine that
//! takes over another one's name is not backed up as that one until a person says so, by removing the file.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{ids::GuestId, retry::Retry};

/// The memory of names.
#[derive(Debug, Clone)]
pub struct Known {
    folder: PathBuf,
}

/// The memory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("Remembering the UUID of guest {guest} in {} failed", path.display())]
pub struct KnownError {
    /// The guest.
    guest: String,
    /// The file.
    path: PathBuf,
    /// What the system said.
    #[source]
    source: io::Error,
}

impl KnownError {
    /// The word for logs and problems.
    pub fn reason(&self) -> &'static str {
        "StateUnusable"
    }

    /// The state folder has to be mended.
    pub fn retry(&self) -> Retry {
        Retry::Backoff
    }
}

/// What the memory says of a guest.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same machine as before, or the first of its name.
    Same,
    /// Another one had the name.
    Changed {
        /// Who had it.
        before: GuestId,
        /// The file to remove.
        file: PathBuf,
    },
}

impl Known {
    /// The memory beneath the agent's state folder.
    pub fn new(state: &Path) -> Known {
        Known { folder: state.join("names") }
    }

    /// Compares with what is remembered, and remembers a name that is new. Both names were checked when the guest's file
    /// was read: they are one component of a path each.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn check(&self, namespace: &str, name: &str, uuid: &GuestId) -> Result<Verdict, KnownError> {
        let path = self.folder.join(namespace).join(name);
        let failed = |source| KnownError { guest: format!("{namespace}/{name}"), path: path.clone(), source };
        match fs::read_to_string(&path) {
            Ok(text) => match text.trim().parse::<GuestId>() {
                Ok(before) if before == *uuid => Ok(Verdict::Same),
                Ok(before) => Ok(Verdict::Changed { before, file: path }),
                Err(error) => Err(failed(io::Error::new(io::ErrorKind::InvalidData, error))),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                write(&path, uuid).map_err(failed)?;
                Ok(Verdict::Same)
            }
            Err(error) => Err(failed(error)),
        }
    }
}

fn write(path: &Path, uuid: &GuestId) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    // A guest's name has no leading dot, so the temporary name is nobody's.
    let temporary = folder.join(format!(".{uuid}"));
    fs::write(&temporary, format!("{uuid}\n"))?;
    fs::File::open(&temporary)?.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_machine_under_a_name_is_noticed_until_a_person_removes_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let known = Known::new(dir.path());
        let first: GuestId = "11111111-1111-4111-8111-111111111111".parse().unwrap();
        let second: GuestId = "22222222-2222-4222-8222-222222222222".parse().unwrap();
        assert_eq!(known.check("t", "a", &first).unwrap(), Verdict::Same);
        assert_eq!(known.check("t", "a", &first).unwrap(), Verdict::Same);
        assert_eq!(known.check("t", "b", &second).unwrap(), Verdict::Same);
        let Verdict::Changed { before, file } = Known::new(dir.path()).check("t", "a", &second).unwrap() else {
            panic!("not noticed")
        };
        assert_eq!(before, first);
        fs::remove_file(file).unwrap();
        assert_eq!(known.check("t", "a", &second).unwrap(), Verdict::Same);
    }
}
