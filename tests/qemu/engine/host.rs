//! A host for the engine's tests: its folders, its runs, and what they may not leave behind.

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::Duration,
};

use driftline::{
    clock,
    engine::{
        BackupRequest, DiskSelection, Engine, GuestRef, Patience, Phase, RepositoryRef, RequestedDataPath,
        RequestedFleecing, RequestedType, RunControl, RunState, Scratch, Settings,
        quiesce::Quiesce,
        restore::{self, Overwrite, RestoreRequest},
    },
    ids::{BitmapName, RepositoryId},
    qmp::{Address, Monitor},
    repo::{QemuImg, Repository, Roots},
};
use serde_json::{Value, json};

use super::{MIB, SOON};
use crate::lab::{
    machine::{Format, Machine},
    reference::Reference,
};

/// A host: state, locks and a repository.
pub(super) struct Host {
    pub(super) folder: tempfile::TempDir,
    pub(super) id: RepositoryId,
    /// Where fleeced runs have their scratch; none is fleeced without.
    pub(super) scratch: Option<Scratch>,
}

impl Host {
    pub(super) fn new() -> Host {
        Host::with_id("9f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10")
    }

    pub(super) fn with_id(id: &str) -> Host {
        let folder = tempfile::tempdir().unwrap();
        let id = id.parse().unwrap();
        std::fs::create_dir(folder.path().join("repository")).unwrap();
        let host = Host { folder, id, scratch: None };
        host.initialise();
        host
    }

    pub(super) fn initialise(&self) {
        Repository::initialise(&self.roots(), &self.repository_path(), &self.id, &self.tool()).unwrap();
    }

    pub(super) fn repository_path(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    pub(super) fn roots(&self) -> Roots {
        Roots::new(vec![self.folder.path().to_owned()])
    }

    pub(super) fn tool(&self) -> QemuImg {
        QemuImg::new("qemu-img", None)
    }

    pub(super) fn repository(&self) -> Repository {
        Repository::open(&self.roots(), &self.repository_path(), Some(&self.id), &self.tool()).unwrap()
    }

    pub(super) fn engine(&self) -> Engine {
        self.engine_with(self.roots(), clock::system())
    }

    pub(super) fn engine_by(&self, clock: clock::Clock) -> Engine {
        self.engine_with(self.roots(), clock)
    }

    pub(super) fn engine_on(&self, roots: Roots) -> Engine {
        self.engine_with(roots, clock::system())
    }

    fn engine_with(&self, roots: Roots, clock: clock::Clock) -> Engine {
        let settings = Settings {
            state: self.folder.path().join("state"),
            locks: self.folder.path().join("locks"),
            roots,
            tool: self.tool(),
            clock,
            reserve_bytes: MIB,
            scratch: self.scratch.clone(),
        };
        Engine::new(settings)
            .unwrap()
            .with_patience(Patience { lock_pause: Duration::from_millis(10), ..Patience::default() })
    }

    pub(super) fn named(&self) -> RepositoryRef {
        RepositoryRef { path: self.repository_path(), id: self.id.clone() }
    }

    pub(super) fn request(&self, machine: &Machine, run: &str, bandwidth: u64) -> BackupRequest {
        BackupRequest {
            run: run.to_owned(),
            run_name: run.to_owned(),
            guest: GuestRef {
                uuid: machine.uuid().parse().unwrap(),
                name: "guest".to_owned(),
                namespace: "team-a".to_owned(),
            },
            repository: self.named(),
            kind: RequestedType::Full,
            fleecing: RequestedFleecing::Auto,
            data_path: RequestedDataPath::Auto,
            disks: DiskSelection::default(),
            bandwidth,
            quiesce: Quiesce::default(),
            policy: None,
        }
    }

    /// Every disk of the run's point, read with stock tools, is the disk of the reference.
    pub(super) fn assert_equal(&self, machine: &Machine, state: &RunState, reference: &Reference) {
        for disk in reference.disks() {
            let image = self.stored(machine, state, disk);
            crate::lab::machine::run(std::process::Command::new("qemu-img").arg("check").arg(&image));
            reference.assert_equal(disk, &image, Format::Qcow2);
        }
    }

    /// Every disk of the run's point, restored by Driftline itself, is the disk of the reference.
    pub(super) fn assert_restores(&self, machine: &Machine, state: &RunState, reference: &Reference) {
        let folder = tempfile::tempdir_in(self.folder.path()).unwrap();
        let identity = &state.point.as_ref().unwrap().manifest.identity;
        let file = |disk: &str| folder.path().join(format!("{disk}.raw"));
        let request = RestoreRequest {
            run: String::new(),
            guest: machine.uuid().parse().unwrap(),
            point: identity.point.clone(),
            disks: identity.disks.iter().map(|disk| (disk.name.clone(), file(disk.name.as_str()))).collect(),
            format: restore::Format::Raw,
            overwrite: Overwrite::Never,
            verify: true,
        };
        restore::flatten(&self.repository(), &self.roots(), &request, &mut |_| (), &AtomicBool::new(false)).unwrap();
        reference.disks().for_each(|disk| reference.assert_equal(disk, &file(disk), Format::Raw));
    }

    pub(super) fn stored(&self, machine: &Machine, state: &RunState, disk: &str) -> PathBuf {
        let point = state.point.as_ref().unwrap().manifest.identity.point.to_string();
        self.guest_folder(machine).join(point).join(format!("{disk}.qcow2"))
    }

    pub(super) fn guest_folder(&self, machine: &Machine) -> PathBuf {
        self.repository_path().join("guests").join(machine.uuid())
    }

    /// Continues the machine, and gives up what QEMU has kept until then.
    pub(super) async fn go_on(&self, machine: &Machine) {
        machine.execute("cont", json!({}));
        let guest = machine.uuid().parse().unwrap();
        assert_eq!(self.engine().give_up_kept(&monitor(machine.qmp()), &guest).await.unwrap(), 0);
    }

    /// Nothing but whole points in the repository, nothing in the journal.
    pub(super) fn assert_tidy(&self, machine: &Machine) {
        let scan = self.repository().scan(&machine.uuid().parse().unwrap()).unwrap();
        assert_eq!((scan.partial, scan.findings), (vec![], vec![]));
        assert_eq!(self.engine().unfinished().unwrap(), vec![]);
        assert_eq!(files(&self.folder.path().join("state/journal")), Vec::<String>::new());
    }
}

pub(super) fn files(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// Nothing of ours is in QEMU but bitmaps.
pub(super) fn assert_clean(machine: &Machine) {
    assert_eq!(machine.execute("query-jobs", json!({})), json!([]));
    assert_eq!(machine.execute("query-fdsets", json!({})), json!([]));
    let nodes = machine.execute("query-named-block-nodes", json!({ "flat": true }));
    let ours = |node: &&Value| node["node-name"].as_str().unwrap().starts_with("dl-");
    assert_eq!(nodes.as_array().unwrap().iter().find(ours), None);
}

/// The bitmaps of ours with the node's file, by role.
pub(super) fn bitmaps(machine: &Machine) -> Vec<(String, BitmapName, Value)> {
    let nodes = machine.execute("query-named-block-nodes", json!({ "flat": true }));
    let mut found = Vec::new();
    for node in nodes.as_array().unwrap() {
        for bitmap in node["dirty-bitmaps"].as_array().into_iter().flatten() {
            if let Ok(name) = bitmap["name"].as_str().unwrap_or_default().parse() {
                found.push((node["file"].as_str().unwrap().to_owned(), name, bitmap.clone()));
            }
        }
    }
    found
}

pub(super) fn monitor(socket: PathBuf) -> Monitor {
    Monitor::new(Address::Unix(socket))
}

/// A run on its way.
pub(super) struct Going {
    pub(super) control: RunControl,
    pub(super) task: tokio::task::JoinHandle<RunState>,
}

impl Going {
    pub(super) fn start(engine: &Engine, socket: PathBuf, request: &BackupRequest) -> Going {
        let control = RunControl::new(request, jiff::Timestamp::now());
        let (engine, request, handle) = (engine.clone(), request.clone(), control.clone());
        let task = tokio::spawn(async move { engine.backup(&monitor(socket), &request, &handle).await });
        Going { control, task }
    }

    pub(super) async fn reach(&self, phase: Phase) {
        let mut states = self.control.state.subscribe();
        let reached = states.wait_for(|state| state.phase == phase || state.phase.is_final());
        let state = tokio::time::timeout(SOON, reached).await.expect("the phase is reached in time").unwrap().clone();
        assert_eq!(state.phase, phase, "{state:?}");
    }

    /// Waits until the run has left a phase and those before it: after `Preparing` the instant has passed.
    pub(super) async fn reach_past(&self, phase: Phase) {
        let mut states = self.control.state.subscribe();
        let before = |now| now == Phase::Waiting || now == phase;
        let reached = states.wait_for(|state| !before(state.phase));
        tokio::time::timeout(SOON, reached).await.expect("the phase is left in time").unwrap();
    }

    pub(super) async fn end(self) -> RunState {
        self.end_within(Duration::from_secs(60)).await
    }

    pub(super) async fn end_within(self, time: Duration) -> RunState {
        tokio::time::timeout(time, self.task).await.expect("the run ends in time").unwrap()
    }
}
