//! The cgroups of the nodes' pods: one folder of the bench in every hierarchy, with one for each node in it.
//!
//! They are the machine's own, so they are removed with the node, and by a sweeper when this process is killed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::controlplane::process::when_we_end;

const SWEEP: &str = r#"for _ in 1 2 3 4 5 6 7 8 9 10; do
    left=
    for folder; do
        [ ! -d "$folder" ] || { find "$folder" -depth -type d -exec rmdir {} + || left=some; }
    done
    [ -n "$left" ] || exit
    sleep 1
done"#;

/// The folders of one bench.
pub(super) struct Cgroups {
    name: String,
    hierarchies: Vec<Hierarchy>,
}

struct Hierarchy {
    mount: PathBuf,
    v2: bool,
}

impl Cgroups {
    /// The folders called `name`, made with the first node.
    pub(super) fn named(name: String) -> Cgroups {
        let hierarchies = hierarchies();
        assert!(!hierarchies.is_empty(), "No cgroups are mounted here: nodes need them below /sys/fs/cgroup");
        let cgroups = Cgroups { name, hierarchies };
        when_we_end(SWEEP, cgroups.roots());
        cgroups
    }

    /// Makes the folders of a node; what it returns is kubelet's `cgroupRoot`.
    pub(super) fn make(&self, node: &str) -> String {
        // Where v1 has the controllers, what pods need of the v2 tree beside it is made by runc, and removed by us.
        let v2 = self.hierarchies.iter().all(|hierarchy| hierarchy.v2);
        for hierarchy in self.hierarchies.iter().filter(|hierarchy| hierarchy.v2 == v2) {
            let make = || -> io::Result<()> {
                let bench = hierarchy.mount.join(&self.name);
                hierarchy.make(&hierarchy.mount, &bench)?;
                hierarchy.make(&bench, &bench.join(node))
            };
            make().unwrap_or_else(|error| {
                panic!(
                    "No cgroup can be made below {} ({error}): nodes need root's rights on the machine's cgroups; in a \
                     container: privileged, with the cgroups writable",
                    hierarchy.mount.display()
                )
            });
        }
        format!("/{}/{node}", self.name)
    }

    /// Removes the folders of a node whose processes have ended.
    pub(super) fn remove(&self, node: &str) {
        for root in self.roots() {
            remove(&root.join(node));
        }
    }

    /// The folder of the bench in every hierarchy.
    pub(super) fn roots(&self) -> Vec<PathBuf> {
        self.hierarchies.iter().map(|hierarchy| hierarchy.mount.join(&self.name)).collect()
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for root in self.roots() {
            remove(&root);
        }
    }
}

impl Hierarchy {
    fn make(&self, parent: &Path, folder: &Path) -> io::Result<()> {
        if self.v2 {
            // What the parent does not hand down, its children do not have.
            let controllers = fs::read_to_string(parent.join("cgroup.controllers"))?;
            let all: Vec<_> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
            fs::write(parent.join("cgroup.subtree_control"), all.join(" "))?;
        }
        fs::create_dir_all(folder)?;
        // A new cpuset of v1 is empty, and takes no process before it is filled.
        for name in ["cpuset.cpus", "cpuset.mems"] {
            if !self.v2 && parent.join(name).exists() {
                fs::write(folder.join(name), fs::read(parent.join(name))?)?;
            }
        }
        Ok(())
    }
}

fn hierarchies() -> Vec<Hierarchy> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("A process can read its mounts");
    let mount = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let (mount, kind) = (words.next()?, words.next()?);
        matches!(kind, "cgroup" | "cgroup2").then(|| Hierarchy { mount: mount.into(), v2: kind == "cgroup2" })
    };
    mounts.lines().filter_map(mount).collect()
}

/// Removes a tree of cgroups from its leaves on. The kernel needs a moment after the last process; what stays is left to
/// the sweeper, for this may run while a test fails.
fn remove(folder: &Path) {
    fn leaves_first(folder: &Path) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                leaves_first(&entry.path())?;
            }
        }
        fs::remove_dir(folder)
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while folder.exists() && leaves_first(folder).is_err() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
}
