//! One test's own namespace in an installation: its repositories, guests and objects, by kubectl as a person would.

use std::{
    fs,
    ops::Deref,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::json;

use super::{Installation, NODES};
use crate::objects::Objects;

/// A namespace with a place of its own on each node.
pub struct Tenant {
    /// What it is in.
    pub installation: &'static Installation,
    /// Its objects.
    pub objects: Objects,
}

impl Tenant {
    /// A new empty folder below the node's repository roots.
    pub fn repository_folder(&self, node: &str, name: &str) -> PathBuf {
        let folder = self.installation.host(node).join("repositories").join(&self.namespace).join(name);
        fs::create_dir_all(&folder).expect("A repository's folder can be made");
        folder
    }

    /// The folder on a node that the hosts' files allow for this namespace's restores.
    pub fn restore_folder(&self, node: &str) -> PathBuf {
        self.installation.host(node).join("restores").join(&self.namespace)
    }

    /// Writes the host's file for a guest; does not wait for the Guest.
    pub fn declare_guest(&self, node: &str, name: &str, qmp: &Path, more: &str) -> PathBuf {
        let qmp = toml::Value::from(qmp.display().to_string());
        let namespace = &self.namespace;
        let file = self.installation.host(node).join("guests.d").join(format!("{namespace}.{name}.toml"));
        let text = format!("name = \"{name}\"\nnamespace = \"{namespace}\"\nqmp = {qmp}\n{more}");
        // Renamed when complete: the agent may look at any time.
        let temporary = file.with_extension("new");
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, &file))
            .expect("A guest's file can be written");
        file
    }

    /// Declares a guest and waits until its Guest is ready.
    pub fn guest(&self, node: &str, name: &str, qmp: &Path) {
        self.declare_guest(node, name, qmp, "");
        self.wait_for(&format!("guests.driftline.dev/{name}"), "Ready", Duration::from_secs(30));
    }

    /// A BackupRepository in a new folder of the node, ready. Returns the folder.
    pub fn repository(&self, node: &str, name: &str) -> PathBuf {
        let folder = self.repository_folder(node, name);
        self.create("BackupRepository", name, json!({ "filesystem": { "path": folder, "nodeName": node } })).ok();
        self.wait_for(&format!("backuprepositories.driftline.dev/{name}"), "Ready", Duration::from_secs(30));
        folder
    }

    /// The one image of a repository on the first node that holds one point of one disk.
    pub fn stored_image(&self, repository: &str) -> PathBuf {
        let mut folders = vec![self.repository_folder(NODES[0], repository)];
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder).expect("It can be listed").flatten().map(|entry| entry.path()) {
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|ending| ending == "qcow2") {
                    return path;
                }
            }
        }
        panic!("There is no image in repository {repository}");
    }

    /// Applies a RestoreRun of all `disks` of a point to new files named `<run>-<disk>`. Returns the files.
    pub fn restore(&self, run: &str, point: &str, node: &str, disks: &[&str], format: &str) -> Vec<PathBuf> {
        let files: Vec<PathBuf> =
            disks.iter().map(|disk| self.restore_folder(node).join(format!("{run}-{disk}"))).collect();
        let targets: Vec<_> = disks.iter().copied().zip(files.iter().map(PathBuf::as_path)).collect();
        self.create("RestoreRun", run, self.restore_spec(point, node, &targets, format)).ok();
        files
    }
}

impl Deref for Tenant {
    type Target = Objects;
    fn deref(&self) -> &Objects {
        &self.objects
    }
}
