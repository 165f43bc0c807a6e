//! The ways that a backup can take, beside each other: straight to the repository, fleeced, and staged. And what a fleeced
//! full of a sparse disk stores, whose snapshot does not say where it has data.

use std::{path::Path, time::Duration};

use crate::{
    Row,
    backup::{command, fill},
    guest::host,
    increment::{dirty, stored},
    lab::machine::{Disk, Format, Machine, Plan},
    seconds,
};

const MIB: u64 = 1 << 20;
const ROUNDS: usize = 5;

/// Fulls of 256 MiB and increments of 10 MiB, of a disk of 1 GiB.
pub fn beside_each_other(quick: bool) -> Vec<Row> {
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = folder.path().join("disk0.raw");
    fill(&disk, 1024 * MIB, 256 * MIB);
    let machine = Plan::new().disk(Disk::raw("disk0", 1024 * MIB).at(&disk)).start();
    let mut rows = vec![Row::reported("Disk of 1 GiB with 256 MiB of data", format!("QEMU {}", version(&machine)))];
    let mut ways = vec![
        ("direct", ["--fleecing", "Never", "--data-path", "Direct"]),
        ("staged", ["--fleecing", "Never", "--data-path", "Staged"]),
    ];
    if machine.can_fleece() {
        ways.push(("fleeced", ["--fleecing", "Always", "--data-path", "Direct"]));
    }
    for (way, words) in ways {
        let place = folder.path().join(way);
        let (host, repository) = host(&place);
        let back_up = |kind| timed(&machine, &host, &repository, &[&words[..], &["--type", kind]].concat());
        let round = |_| {
            let full = back_up("Full");
            dirty(&machine, 10 * MIB);
            (full, back_up("Incremental"))
        };
        round(0);
        let rounds: Vec<_> = (1..=if quick { 1 } else { ROUNDS }).map(round).collect();
        let ms = |of: fn(&(Duration, Duration)) -> Duration| {
            format!("{:.0} ms", seconds(&rounds.iter().map(of).collect::<Vec<_>>()) * 1e3)
        };
        rows.push(Row::reported(&format!("  {way}: full"), ms(|round| round.0)));
        rows.push(Row::reported(&format!("  {way}: increment of 10 MiB"), ms(|round| round.1)));
    }
    rows
}

/// A clone of 4 GiB with 32 MiB of data: at most 40 MiB are stored.
pub fn clone(_quick: bool) -> Vec<Row> {
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let base = folder.path().join("base.raw");
    fill(&base, 4096 * MIB, 32 * MIB);
    let disk = Disk::qcow2("disk0", 4096 * MIB).at(&folder.path().join("clone.qcow2")).backed_by(&base, Format::Raw);
    let machine = Plan::new().disk(disk).start();
    if !machine.can_fleece() {
        let why = format!("none on QEMU {}", version(&machine));
        return vec![Row::reported("Fleeced full of a clone of 4 GiB with 32 MiB of data", why)];
    }
    let (host, repository) = host(&folder.path().join("fleeced"));
    let took = timed(&machine, &host, &repository, &["--fleecing", "Always", "--type", "Full"]);
    let stored = stored(&machine, &repository) / MIB;
    vec![
        Row::reported("Fleeced full of a clone of 4 GiB with 32 MiB of data", format!("{:.1} s", took.as_secs_f64())),
        Row::promised("  stored", format!("{stored} MiB"), "at most 40 MiB", stored <= 40),
    ]
}

fn timed(machine: &Machine, host: &Path, repository: &Path, words: &[&str]) -> Duration {
    rustix::fs::sync();
    command(machine, host, repository, words)
}

pub(crate) fn version(machine: &Machine) -> String {
    let (major, minor) = machine.version();
    format!("{major}.{minor}")
}
