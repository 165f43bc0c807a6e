//! Increments by the command: what they store and how long they take, beside the changed bytes, beside the disk's size, and
//! beside what a person would do by hand on the monitor.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    Row,
    backup::{command, host},
    lab::machine::{Disk, Machine, Plan, run},
    median, seconds,
};

const MIB: u64 = 1 << 20;
const CLUSTER: u64 = 65536;
const ROUNDS: usize = 9;

/// A machine whose first backup is made, and which somebody else's bitmap follows too.
struct Bench {
    folder: tempfile::TempDir,
    machine: Machine,
    host: PathBuf,
    repository: PathBuf,
    size: u64,
}

impl Bench {
    fn new(size: u64) -> Bench {
        // On the disk of the build, not in /tmp: that may be memory.
        let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let disk = folder.path().join("disk0.raw");
        let machine = Plan::new().disk(Disk::raw("disk0", size).at(&disk)).paused().start();
        let (host, repository) = (host(folder.path()), folder.path().join("repositories/increments"));
        std::fs::create_dir_all(&repository).unwrap();
        let bench = Bench { folder, machine, host, repository, size };
        bench.by_command();
        bench.add_bitmap("bare");
        bench
    }

    /// Changes so many bytes, in clusters all over the first GiB: the same on every disk.
    fn dirty(&self, bytes: u64) {
        let count = bytes / CLUSTER;
        let stride = 1024 * MIB / CLUSTER / count * CLUSTER;
        for at in 0..count {
            self.machine.write("disk0", u8::try_from(at % 251 + 1).unwrap(), at * stride, 4096);
        }
        rustix::fs::sync();
    }

    fn by_command(&self) -> Duration {
        command(&self.machine, &self.host, &self.repository)
    }

    fn add_bitmap(&self, name: &str) {
        let bitmap = json!({ "node": "fmt-disk0", "name": name, "granularity": CLUSTER });
        self.machine.execute("block-dirty-bitmap-add", bitmap);
    }

    /// A target, one transaction, the flush, and the bitmap that is not needed any more.
    fn by_hand(&self) -> Duration {
        let target = self.folder.path().join("bare.qcow2");
        let begin = Instant::now();
        let create = ["create", "-q", "-f", "qcow2"];
        run(Command::new("qemu-img").args(create).arg(&target).arg(self.size.to_string()));
        let file = json!({ "driver": "file", "filename": target });
        self.machine.execute("blockdev-add", json!({ "driver": "qcow2", "node-name": "bare", "file": file }));
        let job = json!({
            "job-id": "bare", "device": "fmt-disk0", "target": "bare", "sync": "bitmap", "bitmap": "bare",
            "bitmap-mode": "on-success", "auto-dismiss": false,
        });
        self.machine.execute("blockdev-backup", job);
        while self.machine.execute("query-jobs", json!({}))[0]["status"] != "concluded" {
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(self.machine.execute("query-jobs", json!({}))[0].get("error"), None);
        self.machine.execute("job-dismiss", json!({ "id": "bare" }));
        self.machine.execute("blockdev-del", json!({ "node-name": "bare" }));
        File::open(&target).unwrap().sync_all().unwrap();
        File::open(self.folder.path()).unwrap().sync_all().unwrap();
        let took = begin.elapsed();
        std::fs::remove_file(target).unwrap();
        took
    }

    /// Bytes of the newest point's image.
    fn stored(&self) -> u64 {
        let points = std::fs::read_dir(self.repository.join("guests").join(self.machine.uuid())).unwrap();
        let images = points.map(|point| point.unwrap().path().join("disk0.qcow2")).filter(|image| image.exists());
        images.max().map_or(0, |image: PathBuf| length(&image))
    }
}

fn length(image: &Path) -> u64 {
    image.metadata().unwrap().len()
}

/// 1 GiB, of which 10 MiB have changed: at most 100 ms more than by hand.
pub fn small(quick: bool) -> Vec<Row> {
    let bench = Bench::new(1024 * MIB);
    let round = |_| {
        bench.dirty(10 * MIB);
        let bare = bench.by_hand();
        rustix::fs::sync();
        (bare, bench.by_command())
    };
    round(0);
    let rounds: Vec<_> = (1..=if quick { 1 } else { ROUNDS }).map(round).collect();
    let over = median(rounds.iter().map(|(bare, whole)| (whole.as_secs_f64() - bare.as_secs_f64()) * 1e3).collect());
    let bare = seconds(&rounds.iter().map(|(bare, _)| *bare).collect::<Vec<_>>()) * 1e3;
    vec![
        Row::reported("Increment of 10 MiB on 1 GiB: by hand, with fsync", format!("{bare:.0} ms")),
        Row::promised("  command over that", format!("{over:.0} ms"), "at most 100 ms", over <= 100.0),
    ]
}

/// 64 MiB have changed, of disks of 1 GiB and 32 GiB: at most 1.1 times as much is stored, and the size costs at most a third.
pub fn sizes(quick: bool) -> Vec<Row> {
    let changed = 64 * MIB;
    let measure = |size| {
        let bench = Bench::new(size);
        let round = |_| {
            bench.dirty(changed);
            bench.by_command()
        };
        round(0);
        let times: Vec<_> = (1..=if quick { 1 } else { ROUNDS }).map(round).collect();
        (seconds(&times), bench.stored())
    };
    let (small, large) = (measure(1024 * MIB), measure(32 * 1024 * MIB));
    #[allow(clippy::cast_precision_loss)]
    let ratio = |stored: u64| stored as f64 / changed as f64;
    let (stored, time) = (ratio(small.1), large.0 / small.0);
    vec![
        Row::reported("Increment of 64 MiB on 1 GiB", format!("{:.0} ms", small.0 * 1e3)),
        Row::promised("  stored bytes / changed clusters", format!("{stored:.3}"), "at most 1.1", stored <= 1.1),
        Row::reported("Increment of 64 MiB on 32 GiB", format!("{:.0} ms", large.0 * 1e3)),
        Row::reported("  stored bytes / changed clusters", format!("{:.3}", ratio(large.1))),
        Row::promised("  time / that on 1 GiB", format!("{time:.2}"), "at most 1.3", time <= 1.3),
    ]
}
