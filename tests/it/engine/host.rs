//! A host with a scripted QEMU, a repository and engines that come and go.

#![allow(unreachable_pub, reason = "shared by the engine's tests")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use driftline::{
    clock,
    engine::{
        BackupRequest, BackupType, DiskSelection, Engine, GuestRef, Patience, Phase, RepositoryRef, RequestedDataPath,
        RequestedFleecing, RequestedType, RunControl, RunState, Scratch, Settings,
        gate::{Gate, Passage},
        quiesce::Quiesce,
    },
    ids::RepositoryId,
    qmp::{
        Address, Monitor,
        fake::{FakeDisk, FakeQemu, Logged, Pace, Setup},
    },
    repo::{self, QemuImg, Repository, Roots},
};

use super::shape::{Shape, Way};

pub const UUID: &str = "9f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10";
const SOON: Duration = Duration::from_secs(60);

pub struct Host {
    pub folder: tempfile::TempDir,
    pub id: RepositoryId,
    pub qemu: FakeQemu,
    pub reserve: u64,
    /// What runs ask for.
    pub kind: RequestedType,
    /// What the guest and its runs are.
    pub(super) shape: Shape,
    /// Points that were there before the test.
    pub before: usize,
}

impl Host {
    pub fn new(pace: Pace) -> Host {
        Host::shaped(Shape::FIRST, pace)
    }

    pub(super) fn shaped(shape: Shape, pace: Pace) -> Host {
        let folder = tempfile::tempdir().unwrap();
        let id = "5d0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10".parse().unwrap();
        for name in ["repository", "scratch"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        for (index, (disk, size)) in shape.disks().iter().enumerate() {
            let mut bytes = vec![u8::try_from(index + 1).unwrap(); usize::try_from(*size).unwrap()];
            bytes[65536..70000].fill(0);
            std::fs::write(folder.path().join(disk), bytes).unwrap();
        }
        let qemu = start(folder.path(), shape, pace);
        let host = Host { folder, id, qemu, reserve: 0, kind: RequestedType::Full, shape, before: 0 };
        Repository::initialise(&host.roots(), &host.path(), &host.id, &tool()).unwrap();
        host
    }

    /// Whose next run is of that shape.
    pub(super) async fn begun(shape: Shape, pace: Pace) -> Host {
        let mut host = Host::shaped(shape, Pace::AtOnce);
        if shape.continued {
            assert_complete(&host.run("before").await);
            (host.kind, host.before) = (RequestedType::Auto, 1);
            for (index, (disk, size)) in shape.disks().iter().enumerate() {
                host.qemu.write(disk, 65536 * (index as u64 % 2), &[0x5a; 512]).unwrap();
                host.qemu.write(disk, size - 512, &[0x5b; 512]).unwrap();
            }
        }
        host.qemu.set_pace(pace);
        host
    }

    /// QEMU is started again after its end.
    pub fn restart(&mut self) {
        self.qemu.kill();
        let _ = std::fs::remove_file(self.qemu.socket());
        self.qemu = start(self.folder.path(), self.shape, Pace::AtOnce);
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    pub fn named(&self) -> RepositoryRef {
        RepositoryRef { path: self.path(), id: self.id.clone() }
    }

    pub fn roots(&self) -> Roots {
        Roots::new(vec![self.folder.path().to_owned()])
    }

    pub fn repository(&self) -> Repository {
        Repository::open(&self.roots(), &self.path(), Some(&self.id), &tool()).unwrap()
    }

    pub fn engine(&self) -> Engine {
        self.engine_on(self.roots())
    }

    pub fn engine_on(&self, roots: Roots) -> Engine {
        let settings = Settings {
            state: self.folder.path().join("state"),
            locks: self.folder.path().join("locks"),
            roots,
            tool: tool(),
            clock: clock::system(),
            reserve_bytes: self.reserve,
            scratch: Some(Scratch { directory: self.folder.path().join("scratch"), budget: 1 << 30, reserve: 0 }),
        };
        Engine::new(settings).unwrap().with_patience(self.patience())
    }

    /// Of its engines.
    pub fn patience(&self) -> Patience {
        Patience {
            lock_pause: Duration::from_millis(5),
            silent_start: Duration::from_secs(2),
            silent_unseen: Duration::from_secs(2),
            undo: Duration::from_millis(1500),
            clean_up: Duration::from_secs(2),
            suspended: Duration::from_secs(60),
            repository: Duration::from_secs(1),
            commit: Duration::from_millis(300),
            commit_pause: Duration::from_millis(20),
        }
    }

    pub fn gated(&self, gate: Gate) -> Engine {
        self.engine().with_gate(gate)
    }

    pub fn failing(&self, gate: repo::Gate) -> Engine {
        self.engine_on(self.roots().with_gate(gate))
    }

    pub fn request(&self, run: &str) -> BackupRequest {
        BackupRequest {
            run: run.to_owned(),
            run_name: run.to_owned(),
            guest: GuestRef { uuid: UUID.parse().unwrap(), name: "guest".to_owned(), namespace: "team-a".to_owned() },
            repository: self.named(),
            kind: self.kind,
            fleecing: match self.shape.way {
                Way::Fleeced => RequestedFleecing::Always,
                Way::Direct | Way::Staged => RequestedFleecing::Never,
            },
            data_path: match self.shape.way {
                Way::Staged => RequestedDataPath::Staged,
                Way::Direct | Way::Fleeced => RequestedDataPath::Auto,
            },
            disks: DiskSelection::default(),
            bandwidth: 0,
            quiesce: Quiesce::default(),
            policy: None,
        }
    }

    pub fn monitor(&self) -> Monitor {
        Monitor::new(Address::Unix(self.qemu.socket()))
    }

    pub fn start(&self, engine: &Engine, request: &BackupRequest) -> Going {
        let control = RunControl::new(request, jiff::Timestamp::now());
        let monitor = self.monitor();
        let (engine, request, handle) = (engine.clone(), request.clone(), control.clone());
        let task = tokio::spawn(async move { engine.backup(&monitor, &request, &handle).await });
        Going { control, task }
    }

    /// A run whose engine does nothing any more from the first act on that fits.
    pub async fn stopped(&self, run: &str, at: impl Fn(Passage) -> bool + Send + Sync + 'static) -> Going {
        let reached = Arc::new(tokio::sync::Notify::new());
        let notify = reached.clone();
        let engine = self.gated(Arc::new(move |passage| {
            let here = at(passage);
            if here {
                notify.notify_one();
            }
            !here
        }));
        let going = self.start(&engine, &self.request(run));
        reached.notified().await;
        going
    }

    /// A run that copies, and whose engine is gone.
    pub async fn let_go(&self, request: &BackupRequest) {
        let going = self.start(&self.engine(), request);
        going.copying().await;
        going.control.detach.cancel();
        going.end().await;
    }

    pub async fn run(&self, run: &str) -> RunState {
        self.start(&self.engine(), &self.request(run)).end().await
    }

    /// Nothing but whole points in the repository, nothing in the journal and the scratch folder. Gives the number of new points.
    pub fn assert_tidy(&self) -> usize {
        let scan = self.repository().scan(&UUID.parse().unwrap()).unwrap();
        assert_eq!((scan.partial, scan.findings), (vec![], vec![]));
        for folder in ["state/journal", "scratch"] {
            assert_eq!(files(&self.folder.path().join(folder)), Vec::<String>::new(), "{folder}");
        }
        scan.points.len() - self.before
    }

    /// Nothing of ours is in QEMU but `count` bitmaps on each disk.
    pub fn assert_clean(&self, count: usize) {
        assert_eq!(self.qemu.jobs().len(), 0, "{:?}", self.qemu.jobs());
        assert_eq!(self.qemu.fdsets(), vec![]);
        let ours: Vec<_> = self.qemu.nodes().into_iter().filter(|node| node.starts_with("dl-")).collect();
        assert_eq!(ours, Vec::<String>::new());
        assert_eq!(self.qemu.status(), "running");
        for (disk, _) in self.shape.disks() {
            assert_eq!(self.qemu.bitmaps(disk).len(), count, "{:?}", self.qemu.bitmaps(disk));
        }
    }

    /// The stored images hold what `bytes` say of the disks.
    pub fn assert_stored(&self, state: &RunState, bytes: &[Vec<u8>]) {
        let point = state.point.as_ref().unwrap().manifest.identity.point.to_string();
        for ((disk, _), expected) in self.shape.disks().iter().zip(bytes) {
            let image = self.path().join("guests").join(UUID).join(&point).join(format!("{disk}.qcow2"));
            let flat = self.folder.path().join("flat");
            let done = Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(&image).arg(&flat).status().unwrap();
            assert!(done.success());
            assert!(std::fs::read(&flat).unwrap() == *expected, "{disk} of {point} is not what it was");
        }
    }

    pub fn disks(&self) -> Vec<Vec<u8>> {
        let disks = self.shape.disks().iter();
        disks.map(|(disk, _)| std::fs::read(self.folder.path().join(disk)).unwrap()).collect()
    }

    /// Another run after the guest has written is an increment where it can be, and stores the disks as they are then.
    pub async fn assert_next_is_exact(&self) {
        for (disk, size) in self.shape.disks() {
            self.qemu.write(disk, size - 1024, &[0x77; 512]).unwrap();
        }
        let (known, disks) = (self.assert_tidy() + self.before > 0, self.disks());
        let request = BackupRequest { kind: RequestedType::Auto, ..self.request("the next") };
        let state = self.start(&self.engine(), &request).end().await;
        assert_complete(&state);
        let expected = if known { BackupType::Incremental } else { BackupType::Full };
        assert_eq!(state.kind, Some(expected), "{:?}", state.type_reason);
        self.assert_stored(&state, &disks);
    }

    /// New transactions in which jobs were started.
    pub fn starts(&self) -> usize {
        let starts = |logged: &&Logged| {
            let actions = logged.arguments["actions"].as_array().map(Vec::as_slice).unwrap_or_default();
            logged.done && actions.iter().any(|action| action["type"] == "blockdev-backup")
        };
        self.qemu.log().iter().filter(starts).count() - self.before
    }

    /// Bitmaps that stay on a disk: the checkpoint and the sentinel, and the checkpoint before.
    pub fn bitmaps(&self) -> usize {
        2 + self.before
    }
}

fn start(folder: &Path, shape: Shape, pace: Pace) -> FakeQemu {
    let disk = |(at, (name, _)): (usize, &(&str, u64))| match at {
        0 => FakeDisk::raw(name, folder.join(name)),
        1 => FakeDisk::qcow2(name, folder.join(name)).under("throttle", "limit"),
        _ => FakeDisk::qcow2(name, folder.join(name)).by_drive(name),
    };
    let mut setup = Setup::new(folder.join("qmp")).uuid(UUID).pace(pace);
    if shape.way == Way::Fleeced {
        setup = setup.version(10, 0);
    }
    shape.disks().iter().enumerate().map(disk).fold(setup, Setup::disk).start().unwrap()
}

fn tool() -> QemuImg {
    QemuImg::new("qemu-img", None)
}

pub fn files(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// A run on its way.
pub struct Going {
    pub control: RunControl,
    pub task: tokio::task::JoinHandle<RunState>,
}

impl Going {
    pub async fn reach(&self, what: impl FnMut(&RunState) -> bool) -> RunState {
        let mut states = self.control.state.subscribe();
        let reached = tokio::time::timeout(SOON, states.wait_for(what)).await;
        match reached {
            Ok(state) => state.unwrap().clone(),
            Err(_) => panic!("not reached: {:?}", self.control.state.borrow()),
        }
    }

    pub async fn copying(&self) -> RunState {
        let state = self.reach(|state| state.phase == Phase::Copying || state.phase.is_final()).await;
        assert_eq!(state.phase, Phase::Copying, "{state:?}");
        state
    }

    pub async fn reach_end(&self) {
        self.reach(|state| state.phase.is_final()).await;
    }

    /// Its engine is gone.
    pub async fn abort(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    pub async fn end(self) -> RunState {
        match tokio::time::timeout(SOON, self.task).await {
            Ok(state) => state.unwrap(),
            Err(_) => panic!("The run does not end: {:?}", self.control.state.borrow()),
        }
    }
}

pub fn assert_complete(state: &RunState) {
    assert_eq!(state.phase, Phase::Complete, "{}: {}", state.reason, state.message);
}

pub fn assert_failed(state: &RunState, reason: &str) {
    assert_eq!((state.phase, state.reason.as_str()), (Phase::Failed, reason), "{}", state.message);
    assert!(state.message.len() > 10);
}

/// Counts, and says stop at the n-th.
pub struct Counter(Arc<(std::sync::atomic::AtomicUsize, tokio::sync::Notify)>, usize);

impl Counter {
    pub fn new(stop_at: usize) -> Counter {
        Counter(Arc::default(), stop_at)
    }

    pub fn gate(&self) -> Gate {
        let (shared, stop_at) = (self.0.clone(), self.1);
        Arc::new(move |_| {
            let open = shared.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst) != stop_at;
            if !open {
                shared.1.notify_one();
            }
            open
        })
    }

    pub fn count(&self) -> usize {
        self.0.0.load(std::sync::atomic::Ordering::SeqCst)
    }

    pub async fn stopped(&self) {
        self.0.1.notified().await;
    }
}
