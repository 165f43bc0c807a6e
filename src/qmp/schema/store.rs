//! Schemas that were asked for, by the program that has them. Answering `query-qmp-schema` keeps QEMU's main loop, and with
//! it the guest, busy for some 50 ms (measured on 7.2), so no program is asked twice. Losing a file costs one question.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::Schema;
use crate::qmp::{process::Program, version::Version};

/// Files that are kept. A container gives the same program a new identity with each start.
const KEPT: usize = 32;

/// The folder of the schemas.
#[derive(Debug, Clone)]
pub struct Schemas {
    folder: PathBuf,
}

impl Schemas {
    /// Those in the state folder; it is made when there is something to keep.
    pub fn new(state: &Path) -> Schemas {
        Schemas { folder: state.join("schemas") }
    }

    fn path(&self, program: &Program, version: &Version) -> PathBuf {
        let Version { major, minor, micro, package } = version;
        let told = format!("1 {major}.{minor}.{micro} {package} {program}");
        self.folder.join(format!("{}.json", &blake3::hash(told.as_bytes()).to_hex()[..32]))
    }

    /// The schema of a program; none when it is not known, or its file cannot be read.
    pub(in crate::qmp) fn find(&self, program: &Program, version: &Version) -> Option<Schema> {
        serde_json::from_slice(&fs::read(self.path(program, version)).ok()?).ok()
    }

    /// Keeps a schema, and drops the oldest beyond `KEPT`.
    pub(in crate::qmp) fn keep(&self, program: &Program, version: &Version, schema: &Schema) {
        let write = || -> io::Result<()> {
            fs::create_dir_all(&self.folder)?;
            fs::set_permissions(&self.folder, fs::Permissions::from_mode(0o700))?;
            let path = self.path(program, version);
            let spare = path.with_extension(std::process::id().to_string());
            fs::write(&spare, serde_json::to_vec(schema)?)?;
            fs::rename(&spare, &path)?;
            self.drop_oldest()
        };
        if let Err(error) = write() {
            tracing::debug!(%error, folder = %self.folder.display(), "a schema is not kept");
        }
    }

    fn drop_oldest(&self) -> io::Result<()> {
        let age = |entry: &fs::DirEntry| entry.metadata().and_then(|data| data.modified());
        let mut files: Vec<_> = fs::read_dir(&self.folder)?.collect::<Result<_, _>>()?;
        files.sort_by_key(|entry| std::cmp::Reverse(age(entry).unwrap_or(SystemTime::UNIX_EPOCH)));
        files.iter().skip(KEPT).try_for_each(|entry| fs::remove_file(entry.path()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(inode: u64) -> Program {
        Program { device: 1, inode, bytes: 3, modified: 4, changed: 5 }
    }

    #[test]
    fn each_program_of_each_version_has_its_own_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let schemas = Schemas::new(folder.path());
        let version = Version { major: 7, minor: 2, micro: 22, package: "Debian 1".to_owned() };
        let schema = Schema { events: ["STOP".into()].into(), ..Schema::default() };
        schemas.keep(&program(1), &version, &schema);
        assert_eq!(schemas.find(&program(1), &version), Some(schema.clone()));
        assert_eq!(schemas.find(&program(2), &version), None);
        assert_eq!(schemas.find(&program(1), &Version { package: "Debian 2".to_owned(), ..version.clone() }), None);
        fs::write(schemas.path(&program(1), &version), "{").unwrap();
        assert_eq!(schemas.find(&program(1), &version), None);
        for inode in 0..40 {
            schemas.keep(&program(inode), &version, &schema);
        }
        assert_eq!(fs::read_dir(folder.path().join("schemas")).unwrap().count(), KEPT);
        assert!(schemas.find(&program(39), &version).is_some());
    }
}
