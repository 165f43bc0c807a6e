//! How fast a BackupRun goes through a real API server, the controller, an agent and a real QEMU: from the applied object
//! to the transaction, and from the job's end to Complete. QEMU itself says when: each event carries its clock's time.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use driftline::api::BackupRun;
use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, PostParams, WatchEvent, WatchParams};
use serde_json::{Value, json};

use crate::{
    Row, backup,
    increment::{add_bitmap, by_hand, dirty},
    installation::{API_VERSION, Installation, NODES, Tenant},
    lab::{
        child::wait_for,
        machine::{Disk, Machine, Plan},
    },
    median,
};

const MIB: u64 = 1 << 20;
const QUIET: Duration = Duration::from_secs(1);

/// The median of 15: under 150 ms to the transaction, and under 250 ms to Complete beyond hashing and sync.
pub fn latency(quick: bool) -> Vec<Row> {
    let rounds = if quick { 5 } else { 15 };
    let tenant = Installation::shared().tenant();
    let folder = tempfile::Builder::new().prefix("bench-").tempdir().unwrap();
    let events = folder.path().join("events");
    let monitor = format!("unix:{},server=on,wait=off", events.display());
    let machine = Plan::new().disk(Disk::raw("disk0", 4 * MIB)).arguments(&["-qmp", &monitor]).start();
    let jobs = Jobs::listen(&events);
    let repository = ready(&tenant, &machine);
    let (runtime, api) = runs(&tenant);
    let round = |number: usize| {
        // Data that is new, so that nothing of it is in a cache.
        machine.write("disk0", u8::try_from(number + 1).unwrap(), 0, MIB);
        machine.flush("disk0");
        runtime.block_on(run(&api, &tenant, number, &jobs))
    };
    // The first one warms the caches.
    round(0);
    let measured: Vec<Round> = (1..=rounds).map(round).collect();
    let image = stored(&repository);
    let known = median((0..5).map(|_| hash_and_sync(&image, folder.path()).as_secs_f64() * 1e3).collect());
    let start = median(measured.iter().map(|round| round.start * 1e3).collect());
    let end = median(measured.iter().map(|round| round.end * 1e3).collect());
    let beyond = (end - known).max(0.0);
    vec![
        Row::promised(
            &format!("Applied BackupRun to the transaction, median of {rounds}"),
            format!("{start:.0} ms"),
            "under 150 ms",
            start < 150.0,
        ),
        Row::reported("Job's end to Complete, median", format!("{end:.0} ms")),
        Row::reported("  hashing and syncing as much by hand", format!("{known:.0} ms")),
        Row::promised("  beyond hashing and sync", format!("{beyond:.0} ms"), "under 250 ms", beyond < 250.0),
    ]
}

/// 1 GiB, of which 10 MiB have changed: from the applied object to Complete at most 300 ms more than by hand.
pub fn increment(quick: bool) -> Vec<Row> {
    let rounds = if quick { 3 } else { 9 };
    let tenant = Installation::shared().tenant();
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let events = folder.path().join("events");
    let (disk, monitor) = (folder.path().join("disk0.raw"), format!("unix:{},server=on,wait=off", events.display()));
    let size = 1024 * MIB;
    let disk = Disk::raw("disk0", size).at(&disk);
    let machine = Plan::new().disk(disk).arguments(&["-qmp", &monitor]).start();
    let jobs = Jobs::listen(&events);
    ready(&tenant, &machine);
    let (runtime, api) = runs(&tenant);
    runtime.block_on(run(&api, &tenant, 0, &jobs));
    add_bitmap(&machine);
    let round = |number| {
        dirty(&machine, 10 * MIB);
        let bare = by_hand(&machine, folder.path(), size).as_secs_f64();
        rustix::fs::sync();
        (bare, runtime.block_on(run(&api, &tenant, number, &jobs)).whole - bare)
    };
    round(1);
    let measured: Vec<_> = (2..rounds + 2).map(round).collect();
    let bare = median(measured.iter().map(|(bare, _)| bare * 1e3).collect());
    let over = median(measured.iter().map(|(_, over)| over * 1e3).collect());
    vec![
        Row::reported("Increment of 10 MiB on 1 GiB: by hand, with fsync", format!("{bare:.0} ms")),
        Row::promised(
            "  applied BackupRun to Complete over that",
            format!("{over:.0} ms"),
            "at most 300 ms",
            over <= 300.0,
        ),
    ]
}

/// The tenant's BackupRuns, and what asks for them.
fn runs(tenant: &Tenant) -> (tokio::runtime::Runtime, Api<BackupRun>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(tenant.installation.plane.client(&tenant.installation.plane.admin_kubeconfig()));
    (runtime, Api::namespaced(client, &tenant.namespace))
}

/// The tenant's guest `g` is this machine, and its repository `local` is ready. Returns the repository's folder.
pub(crate) fn ready(tenant: &Tenant, machine: &Machine) -> PathBuf {
    tenant.guest(NODES[0], "g", &machine.qmp());
    tenant.repository(NODES[0], "local")
}

/// Seconds.
struct Round {
    start: f64,
    end: f64,
    whole: f64,
}

async fn run(api: &Api<BackupRun>, tenant: &Tenant, number: usize, jobs: &Jobs) -> Round {
    let name = format!("run-{number}");
    let spec = tenant.backup_spec("g", "local");
    let object = json!({ "apiVersion": API_VERSION, "kind": "BackupRun", "metadata": { "name": name }, "spec": spec });
    let seen = api.watch(&WatchParams::default().fields(&format!("metadata.name={name}")), "0").await.unwrap();
    let mut seen = seen.boxed();
    jobs.forget();
    // What the run before has set going, in the API server too, is no part of this one.
    tokio::time::sleep(QUIET).await;
    // Before the request, not after the answer: the server's own time counts.
    let applied = now();
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    let complete = loop {
        let event = tokio::time::timeout(Duration::from_secs(60), seen.try_next()).await;
        let event = event.unwrap_or_else(|_| panic!("{name} does not end:\n{}", tenant.installation.logs()));
        let Some(WatchEvent::Added(run) | WatchEvent::Modified(run)) = event.unwrap() else { continue };
        let is = |kind: &str| {
            let conditions = run.status.iter().flat_map(|status| &status.conditions);
            conditions.into_iter().any(|condition| condition.type_ == kind && condition.status == "True")
        };
        assert!(!is("Failed"), "{name} failed: {run:#?}\n{}", tenant.installation.logs());
        if is("Complete") {
            break now();
        }
    };
    let (created, concluded) = jobs.times();
    Round { start: created - applied, end: complete - concluded, whole: complete - applied }
}

/// A full backup's cost that no control path can avoid: reading and hashing what was stored, and bringing it to the disk.
fn hash_and_sync(image: &Path, folder: &Path) -> Duration {
    let hashing = backup::hash(image);
    let (copy, bytes) = (folder.join("copy"), std::fs::read(image).unwrap());
    let mut file = File::create(&copy).unwrap();
    file.write_all(&bytes).unwrap();
    let begin = Instant::now();
    file.sync_all().unwrap();
    File::open(folder).unwrap().sync_all().unwrap();
    hashing + begin.elapsed()
}

fn stored(folder: &Path) -> PathBuf {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "qcow2") {
                return path;
            }
        }
    }
    panic!("nothing was stored");
}

/// Seconds since 1970, as QEMU's events give them.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// What a third monitor says of jobs, with QEMU's own times.
#[derive(Clone, Default)]
struct Jobs(Arc<Mutex<Vec<(f64, String)>>>);

impl Jobs {
    fn listen(socket: &Path) -> Jobs {
        let mut stream = wait_for("the third monitor", Duration::from_secs(20), || UnixStream::connect(socket).ok());
        stream.write_all(b"{\"execute\": \"qmp_capabilities\"}\n").unwrap();
        let jobs = Jobs::default();
        let told = jobs.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let event: Value = serde_json::from_str(&line).unwrap_or_default();
                if event["event"] == "JOB_STATUS_CHANGE" {
                    let (seconds, micros) =
                        (&event["timestamp"]["seconds"].as_f64(), &event["timestamp"]["microseconds"].as_f64());
                    let time = seconds.unwrap_or_default() + micros.unwrap_or_default() / 1e6;
                    let status = event["data"]["status"].as_str().unwrap_or_default().to_owned();
                    told.0.lock().unwrap().push((time, status));
                }
            }
        });
        jobs
    }

    fn forget(&self) {
        self.0.lock().unwrap().clear();
    }

    /// When the first job came to be, which the transaction did, and when the last one concluded.
    fn times(&self) -> (f64, f64) {
        let all = self.0.lock().unwrap();
        let of = |wanted: &'static str| all.iter().filter(move |(_, status)| status == wanted).map(|(time, _)| *time);
        (of("created").next().unwrap(), of("concluded").next_back().unwrap())
    }
}
