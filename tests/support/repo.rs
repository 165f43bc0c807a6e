//! Repositories for tests: a root, a repository in it, and points whose images are made with `qemu-img` and `qemu-io`
//! as QEMU would have written them.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use driftline::{
    chain::point::Parent,
    ids::{AttemptId, DiskName, GuestId, LineageId, PointId, RepositoryId},
    repo::{
        Gate, Lease, LeaseTimes, Manifest, PartialPoint, QemuImg, RepoError, Repository, Roots, SealedDisk,
        StoredPoint,
        manifest::{
            Consistency, Definition, DiskIdentity, GuestIdentity, Identity, PointType, Storage, StoredDisk, Versions,
        },
    },
};

pub(crate) const ID: &str = "9f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10";
pub(crate) const GUEST: &str = "5f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a11";

/// A folder with an empty folder `repo` in it.
pub(crate) struct Place {
    _dir: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("repo");
        std::fs::create_dir(&path).unwrap();
        Self { _dir: dir, path }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.path.parent().unwrap().to_owned()
    }

    pub(crate) fn roots(&self) -> Roots {
        Roots::new(vec![self.root()])
    }

    pub(crate) fn initialise(&self) -> Result<Repository, RepoError> {
        Repository::initialise(&self.roots(), &self.path, &id(), &tool())
    }

    pub(crate) fn open(&self) -> Result<Repository, RepoError> {
        Repository::open(&self.roots(), &self.path, Some(&id()), &tool())
    }

    pub(crate) fn open_gated(&self, gate: Gate) -> Result<Repository, RepoError> {
        Repository::open(&self.roots().with_gate(gate), &self.path, Some(&id()), &tool())
    }

    /// Everything beneath the root with its bytes, to show that nothing was written.
    pub(crate) fn snapshot(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        walk(&self.root(), &mut found);
        found
    }

    pub(crate) fn point_dir(&self, point: &PointId) -> PathBuf {
        self.path.join("guests").join(GUEST).join(point.as_str())
    }
}

fn walk(dir: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            walk(&path, found);
            found.push((path, Vec::new()));
        } else {
            let bytes = std::fs::read(&path).unwrap_or_default();
            found.push((path, bytes));
        }
    }
    found.sort();
}

pub(crate) fn id() -> RepositoryId {
    ID.parse().unwrap()
}

pub(crate) fn guest() -> GuestId {
    GUEST.parse().unwrap()
}

pub(crate) fn disk(name: &str) -> DiskName {
    name.parse().unwrap()
}

pub(crate) fn tool() -> QemuImg {
    QemuImg::new("qemu-img", None)
}

pub(crate) fn point_id(n: u64) -> PointId {
    PointId::new(1_700_000_000_000 + n, None, 0)
}

/// A lease that expires soon, for tests that leave one behind, and that is not renewed meanwhile, so that the count of
/// operations is the same each time.
pub(crate) fn lease(repository: &Repository) -> Result<Lease, RepoError> {
    let times = LeaseTimes { renew: Duration::from_secs(3600), expiry: Duration::from_millis(50) };
    repository.writer_lease_timed(&guest(), "test", times)
}

pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Runs `qemu-io` commands on a qcow2 image, its backing file included.
pub(crate) fn qemu_io(image: &Path, commands: &[String]) {
    let mut args = vec!["-f", "qcow2"];
    for command in commands {
        args.extend(["-c", command]);
    }
    let image = image.to_str().unwrap();
    args.push(image);
    let output = run("qemu-io", &args);
    assert!(!output.contains("failed"), "{output}");
}

/// A manifest of `point` with these sealed disks, each with its parent.
pub(crate) fn manifest(point: &PointId, sequence: u64, disks: &[(&SealedDisk, Option<Parent>)]) -> Manifest {
    let full = disks.iter().all(|(_, parent)| parent.is_none());
    let kind = |full| if full { PointType::Full } else { PointType::Incremental };
    Manifest {
        format: 1,
        identity: Identity {
            repository: id(),
            point: point.clone(),
            sequence,
            guest: GuestIdentity {
                uuid: guest(),
                name: "db-1".into(),
                namespace: "team-a".into(),
                other: Default::default(),
            },
            policy: None,
            run: "run".into(),
            attempt: AttemptId::from_random(1).to_string(),
            checkpoint_time: "2026-11-01T00:00:00Z".parse().unwrap(),
            consistency: Consistency::Crash,
            requested_type: "Auto".into(),
            kind: kind(full),
            disks: disks
                .iter()
                .map(|(sealed, parent)| DiskIdentity {
                    name: sealed.name.clone(),
                    lineage: LineageId::from_random(7),
                    virtual_size: sealed.virtual_size,
                    kind: kind(parent.is_none()),
                    type_reason: "FirstBackup".into(),
                    table_digest: sealed.table_digest.clone(),
                    parent: parent.clone(),
                    other: Default::default(),
                })
                .collect(),
            other: Default::default(),
        },
        storage: Storage {
            disks: disks
                .iter()
                .map(|(sealed, parent)| StoredDisk {
                    name: sealed.name.clone(),
                    file: sealed.file.clone(),
                    format: "qcow2".into(),
                    bytes: sealed.bytes,
                    table: sealed.table.clone(),
                    generation: sealed.generation,
                    table_digest: sealed.table_digest.clone(),
                    parent: parent.clone(),
                    other: Default::default(),
                })
                .collect(),
            other: Default::default(),
        },
        definition: Definition::default(),
        versions: Versions::default(),
        other: Default::default(),
    }
}

/// Makes, fills and seals one disk of a partial point.
pub(crate) fn fill(
    partial: &PartialPoint,
    dir: &Path,
    name: &str,
    size: u64,
    commands: &[String],
) -> Result<SealedDisk, RepoError> {
    let disk = disk(name);
    partial.create_disk(&disk, size, 0, None)?;
    qemu_io(&dir.join(format!("{name}.qcow2")), commands);
    partial.seal_disk(&disk, &mut |_| ())
}

/// A committed point of one disk `disk0` with what the commands write.
pub(crate) fn commit(
    place: &Place,
    repository: &Repository,
    n: u64,
    size: u64,
    parent: Option<&StoredPoint>,
    commands: &[String],
) -> StoredPoint {
    let _lease = lease(repository).unwrap();
    let point = point_id(n);
    let partial = repository.create_point(&guest(), &point).unwrap();
    let sealed = fill(&partial, &place.point_dir(&point), "disk0", size, commands).unwrap();
    let parent = parent.map(|stored| Parent {
        point: stored.manifest.identity.point.clone(),
        disk: disk("disk0"),
        identity_digest: stored.identity_digest.clone(),
    });
    let sequence = repository.next_sequence(&guest()).unwrap();
    partial.commit(&manifest(&point, sequence, &[(&sealed, parent)])).unwrap().stored
}

/// A file system of its own at a folder, taken away with the test.
pub(crate) struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    pub(crate) fn new(args: &[&str], at: &'a Path) -> Option<Self> {
        let done = Command::new("mount").args(args).arg(at).output().unwrap();
        // Only root may mount; the pipeline runs as root.
        done.status.success().then_some(Self(at)).or_else(|| {
            assert!(!rustix::process::geteuid().is_root(), "{}", String::from_utf8_lossy(&done.stderr));
            None
        })
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        // Lazily: a child that another test just forks holds our descriptors until its exec.
        assert!(Command::new("umount").arg("--lazy").arg(self.0).status().unwrap().success());
    }
}
