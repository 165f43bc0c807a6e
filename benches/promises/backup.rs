//! A whole backup by the command, beside what a person would do by hand on the monitor: make a target, one
//! `blockdev-backup`, delete the target's node, fsync.

use std::{
    fs::File,
    io::{BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    Row,
    lab::machine::{Disk, Machine, Plan, run},
    median, seconds,
};

const MIB: u64 = 1 << 20;

/// 4 GiB with 2 GiB of data: at most 1.05 of the bare copy, without the hashing.
pub fn large(quick: bool) -> Vec<Row> {
    let scale = if quick { 16 } else { 1 };
    let measured = measure(4096 * MIB / scale, 2048 * MIB / scale, 5);
    let ratio = |with: fn(&Round) -> Duration| {
        median(measured.iter().map(|round| with(round).as_secs_f64() / round.bare.as_secs_f64()).collect())
    };
    let (copied, all) = (ratio(|round| round.command.saturating_sub(round.hashing)), ratio(|round| round.command));
    let time = |of: fn(&Round) -> Duration| format!("{:.2} s", seconds(&measured.iter().map(of).collect::<Vec<_>>()));
    vec![
        Row::reported("Disk of 4 GiB with 2 GiB of data: bare copy and fsync", time(|round| round.bare)),
        Row::reported("  the whole command", time(|round| round.command)),
        Row::reported("  of it, hashing what was stored", time(|round| round.hashing)),
        Row::promised("  command without hashing / bare", format!("{copied:.3}"), "at most 1.05", copied <= 1.05),
        Row::reported("  command / bare", format!("{all:.3}")),
    ]
}

/// 64 MiB: at most 150 ms over the bare copy.
pub fn small(_quick: bool) -> Vec<Row> {
    let measured = measure(64 * MIB, 64 * MIB, 11);
    let over =
        median(measured.iter().map(|round| (round.command.as_secs_f64() - round.bare.as_secs_f64()) * 1e3).collect());
    let bare = seconds(&measured.iter().map(|round| round.bare).collect::<Vec<_>>()) * 1e3;
    vec![
        Row::reported("Disk of 64 MiB: bare copy and fsync", format!("{bare:.0} ms")),
        Row::promised("  command over bare", format!("{over:.0} ms"), "at most 150 ms", over <= 150.0),
    ]
}

struct Round {
    bare: Duration,
    command: Duration,
    hashing: Duration,
}

/// Both ways in turns, so that what else the computer does hits both.
fn measure(size: u64, data: u64, rounds: usize) -> Vec<Round> {
    // On the disk of the build, not in /tmp: that may be memory.
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = folder.path().join("disk0.raw");
    fill(&disk, size, data);
    let machine = Plan::new().disk(Disk::raw("disk0", size).at(&disk)).start();
    let host = host(folder.path());
    let round = |number: usize| {
        rustix::fs::sync();
        let bare = bare(&machine, &folder.path().join("bare.qcow2"), size, json!({ "sync": "full" }));
        rustix::fs::sync();
        let repository = folder.path().join("repositories").join(number.to_string());
        std::fs::create_dir_all(&repository).unwrap();
        let command = command(&machine, &host, &repository, &[]);
        let hashing = hash(&stored(&repository, machine.uuid()));
        std::fs::remove_dir_all(&repository).unwrap();
        Round { bare, command, hashing }
    };
    // The first one warms the caches.
    round(0);
    (1..=rounds).map(round).collect()
}

/// A copy by hand: a target, one job of the kind that `how` says, the flush.
pub(crate) fn bare(machine: &Machine, target: &Path, size: u64, how: Value) -> Duration {
    let begin = Instant::now();
    run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(target).arg(size.to_string()));
    let file = json!({ "driver": "file", "filename": target });
    machine.execute("blockdev-add", json!({ "driver": "qcow2", "node-name": "bare", "file": file }));
    let mut job = how;
    for (key, value) in [("job-id", "bare"), ("device", "fmt-disk0"), ("target", "bare")] {
        job[key] = json!(value);
    }
    job["auto-dismiss"] = json!(false);
    machine.execute("blockdev-backup", job);
    loop {
        let jobs = machine.execute("query-jobs", json!({}));
        if jobs[0]["status"] == "concluded" {
            assert_eq!(jobs[0].get("error"), None);
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    machine.execute("job-dismiss", json!({ "id": "bare" }));
    machine.execute("blockdev-del", json!({ "node-name": "bare" }));
    File::open(target).unwrap().sync_all().unwrap();
    File::open(target.parent().unwrap()).unwrap().sync_all().unwrap();
    let took = begin.elapsed();
    std::fs::remove_file(target).unwrap();
    took
}

pub(crate) fn command(machine: &Machine, host: &Path, repository: &Path, words: &[&str]) -> Duration {
    let mut command = Command::new(env!("CARGO_BIN_EXE_driftline"));
    command.args(["backup", "--quiet", "--qmp"]).arg(machine.qmp()).arg("--repository").arg(repository).args(words);
    command.env("DRIFTLINE_CONFIG", host).stdin(Stdio::null());
    let begin = Instant::now();
    run(&mut command);
    begin.elapsed()
}

/// What reading and hashing the stored image in its clusters costs, on one core, from the page cache, which the command
/// has told to forget it.
pub(crate) fn hash(image: &Path) -> Duration {
    std::io::copy(&mut File::open(image).unwrap(), &mut std::io::sink()).unwrap();
    let begin = Instant::now();
    let mut file = BufReader::with_capacity(1 << 20, File::open(image).unwrap());
    let mut cluster = vec![0; 65536];
    while file.read_exact(&mut cluster).is_ok() {
        std::hint::black_box(blake3::hash(&cluster));
    }
    begin.elapsed()
}

fn stored(repository: &Path, guest: &str) -> PathBuf {
    let points = std::fs::read_dir(repository.join("guests").join(guest)).unwrap();
    let images = points.map(|point| point.unwrap().path().join("disk0.qcow2"));
    images.into_iter().find(|image| image.exists()).unwrap()
}

/// A host whose state is on the same disk.
pub(crate) fn host(folder: &Path) -> PathBuf {
    let path = |name: &str| folder.join(name).display().to_string();
    let config = format!(
        "state = {:?}\nlocks = {:?}\nrepositoryRoots = [{:?}]\nreserve = \"1Mi\"\n",
        path("state"),
        path("locks"),
        path("repositories")
    );
    let file = folder.join("host.toml");
    std::fs::write(&file, config).unwrap();
    file
}

/// Noise that no file system can compress, then a hole.
pub(crate) fn fill(path: &Path, size: u64, data: u64) {
    let mut noise = blake3::Hasher::new().update(b"bench").finalize_xof();
    let mut file = File::create(path).unwrap();
    let mut block = vec![0; 1 << 20];
    for _ in 0..data / MIB {
        noise.fill(&mut block);
        file.write_all(&block).unwrap();
    }
    file.set_len(size).unwrap();
    file.sync_all().unwrap();
}
