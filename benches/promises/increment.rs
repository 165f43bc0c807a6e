//! Increments by the command: what they store and how long they take, beside the changed bytes, beside the disk's size, and
//! beside what a person would do by hand on the monitor.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::json;

use crate::{
    Row,
    backup::{bare, command, host},
    lab::{
        machine::{Disk, Machine, Plan},
        mount::Mount,
    },
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
    /// `place` is on a disk, and not in /tmp: that may be memory.
    fn new(size: u64, place: &Path) -> Bench {
        let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(place).unwrap();
        let disk = folder.path().join("disk0.raw");
        let machine = Plan::new().disk(Disk::raw("disk0", size).at(&disk)).start();
        let (host, repository) = (host(folder.path()), folder.path().join("repositories/increments"));
        std::fs::create_dir_all(&repository).unwrap();
        let bench = Bench { folder, machine, host, repository, size };
        bench.by_command();
        add_bitmap(&bench.machine);
        bench
    }

    fn by_command(&self) -> Duration {
        command(&self.machine, &self.host, &self.repository, &[])
    }
}

/// Changes so many bytes, in clusters all over the first GiB: the same on every disk.
pub(crate) fn dirty(machine: &Machine, bytes: u64) {
    let count = bytes / CLUSTER;
    let stride = 1024 * MIB / CLUSTER / count * CLUSTER;
    for at in 0..count {
        machine.write("disk0", u8::try_from(at % 251 + 1).unwrap(), at * stride, 4096);
    }
    rustix::fs::sync();
}

/// The bitmap of whoever makes increments by hand.
pub(crate) fn add_bitmap(machine: &Machine) {
    let bitmap = json!({ "node": "fmt-disk0", "name": "bare", "granularity": CLUSTER });
    machine.execute("block-dirty-bitmap-add", bitmap);
}

/// What a person would do by hand.
pub(crate) fn by_hand(machine: &Machine, folder: &Path, size: u64) -> Duration {
    let how = json!({ "sync": "bitmap", "bitmap": "bare", "bitmap-mode": "on-success" });
    bare(machine, &folder.join("bare.qcow2"), size, how)
}

/// Bytes of the newest point's image.
pub(crate) fn stored(machine: &Machine, repository: &Path) -> u64 {
    let points = std::fs::read_dir(repository.join("guests").join(machine.uuid())).unwrap();
    let images = points.map(|point| point.unwrap().path().join("disk0.qcow2")).filter(|image| image.exists());
    images.max().map_or(0, |image| image.metadata().unwrap().len())
}

/// 1 GiB, of which 10 MiB have changed: at most 100 ms more than by hand.
pub fn small(quick: bool) -> Vec<Row> {
    let bench = Bench::new(1024 * MIB, Path::new(env!("CARGO_TARGET_TMPDIR")));
    let round = |_| {
        dirty(&bench.machine, 10 * MIB);
        let bare = by_hand(&bench.machine, bench.folder.path(), bench.size);
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

/// 64 MiB have changed, of disks of 1 GiB to 1 TiB: at most 1.1 times as much is stored, and the size costs at most a third.
pub fn sizes(quick: bool) -> Vec<Row> {
    let changed = 64 * MIB;
    let measure = |size| {
        // A full of 1 TiB is promised all of it, though it stores little.
        let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let place = folder.path().join("mounted");
        let _mount = Mount::sparse_ext4(&folder.path().join("image"), 2 << 40, &place).unwrap();
        let bench = Bench::new(size, &place);
        let round = |_| {
            dirty(&bench.machine, changed);
            bench.by_command()
        };
        round(0);
        let times: Vec<_> = (1..=if quick { 1 } else { ROUNDS }).map(round).collect();
        (seconds(&times), stored(&bench.machine, &bench.repository))
    };
    let (mut rows, mut small) = (Vec::new(), None);
    for (size, named) in [(1 << 30, "1 GiB"), (32 << 30, "32 GiB"), (1 << 40, "1 TiB")] {
        let (time, stored) = measure(size);
        #[allow(clippy::cast_precision_loss)]
        let stored = stored as f64 / changed as f64;
        let what = "  stored bytes / changed clusters";
        rows.push(Row::reported(&format!("Increment of 64 MiB on {named}"), format!("{:.0} ms", time * 1e3)));
        rows.push(Row::promised(what, format!("{stored:.3}"), "at most 1.1", stored <= 1.1));
        if let Some(small) = small {
            let times = time / small;
            rows.push(Row::promised("  time / that on 1 GiB", format!("{times:.2}"), "at most 1.3", times <= 1.3));
        }
        small = small.or(Some(time));
    }
    rows
}
