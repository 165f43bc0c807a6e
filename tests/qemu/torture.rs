//! The chain torture: rounds of what a machine goes through, a backup in the middle of it by the built command, and whoever
//! dies; each point is restored and compared with the disks of its instant.
//!
//! A seed decides all that happens but not when: `DRIFTLINE_TORTURE_SEED` and `DRIFTLINE_TORTURE_ROUNDS` (`make torture`)
//! change the few rounds of `make test`. With `DRIFTLINE_TORTURE_LOG` a line of JSON for each round is appended to a file,
//! and lives that stand there already are not gone through again: the seed of each is its own. `torture/logs` has the logs of
//! the last long ones.

mod attempt;
mod deeds;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use crate::lab::{
    fuse::Behind,
    machine::{Attach, Disk, Machine, Plan},
    mount::Mount,
    reference::Reference,
};

const MIB: u64 = 1 << 20;
/// Rounds of one life: then a new machine and a new repository, so that a seed leads to any round within a minute or two.
const LIFE: u64 = 25;

/// Bytes of the small file system: all that the points of a life can take.
const ROOM: u64 = 400 * MIB;

/// The BLAKE3 of each disk's raw content.
type Digests = BTreeMap<String, String>;

#[test]
fn chains_survive_whatever_happens_to_machine_command_and_repository() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seed = number("DRIFTLINE_TORTURE_SEED").unwrap_or(1);
    let rounds = number("DRIFTLINE_TORTURE_ROUNDS").unwrap_or(LIFE);
    let log = std::env::var_os("DRIFTLINE_TORTURE_LOG").map(PathBuf::from);
    let done = log.as_deref().map_or(0, whole_lives);
    for life in done..rounds.div_ceil(LIFE) {
        let mut torture = Torture::new(seed, life, log.clone());
        for round in 0..LIFE.min(rounds - life * LIFE) {
            torture.round(round);
        }
        torture.end();
    }
}

/// The lives that stand in a log whole. What stands there of another one is removed: it is gone through again.
fn whole_lives(log: &Path) -> u64 {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let lives = lines.len() / usize::try_from(LIFE).unwrap();
    let kept: String =
        lines.iter().take(lives * usize::try_from(LIFE).unwrap()).map(|line| format!("{line}\n")).collect();
    fs::write(log, kept).unwrap();
    lives as u64
}

/// One machine with its host and repository.
struct Torture {
    /// The server that the repository is behind, in every other life.
    behind: Option<Behind>,
    /// The small file system that it is on, in the others.
    _small: Option<Mount>,
    folder: tempfile::TempDir,
    machine: Machine,
    seed: u64,
    life: u64,
    log: Option<PathBuf>,
    rng: StdRng,
    /// All points that are stored, and what they must restore to.
    points: BTreeMap<String, Digests>,
    /// Instants of runs that were cut off and not finished yet.
    pending: Vec<Digests>,
    /// Disks whose next backup has to be an increment.
    continued: BTreeSet<String>,
    /// Disks that somebody has taken a snapshot of, as they were before.
    bases: BTreeMap<String, Disk>,
    /// How many runs there were since one completed undisturbed.
    incomplete: usize,
    /// What happened in this round.
    deeds: Vec<String>,
}

impl Torture {
    fn new(seed: u64, life: u64, log: Option<PathBuf>) -> Torture {
        let folder = tempfile::Builder::new().prefix("torture-").tempdir().unwrap();
        for name in ["repository", "restored", "guests.d", "scratch"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let path = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "state = {:?}\nlocks = {:?}\nguests = {:?}\nrepositoryRoots = [{:?}]\nreserve = \"1Mi\"\n\
             [restoreRoots]\nteam-a = [{:?}]\n[scratch]\ndirectory = {:?}\nbudget = \"24Mi\"\n",
            path("state"),
            path("locks"),
            path("guests.d"),
            path("repository"),
            path("restored"),
            path("scratch"),
        );
        fs::write(folder.path().join("host.toml"), config).unwrap();
        let machine = Plan::new()
            .disk(Disk::qcow2("a", 5 * MIB))
            .disk(Disk::qcow2("b", 3 * MIB + 512).attach(Attach::Scsi))
            .disk(Disk::raw("c", 2 * MIB + 1024))
            .start();
        let rng = StdRng::seed_from_u64(seed << 32 | life);
        let repository = folder.path().join("repository");
        let slow = (life % 4 == 3).then_some(16 * MIB);
        let behind = (life % 2 == 1).then(|| Behind::new(&repository, slow));
        let small = if behind.is_none() { Mount::tmpfs(ROOM, &repository) } else { None };
        Torture {
            behind,
            _small: small,
            folder,
            machine,
            seed,
            life,
            log,
            rng,
            points: BTreeMap::new(),
            pending: Vec::new(),
            continued: BTreeSet::new(),
            bases: BTreeMap::new(),
            incomplete: 0,
            deeds: Vec::new(),
        }
    }

    fn round(&mut self, round: u64) {
        self.deeds.clear();
        for _ in 0..self.rng.random_range(1..5) {
            self.deed();
        }
        self.write();
        let reference = self.reference();
        self.pending.push(reference);
        let outcome = self.attempt();
        let context = format!("seed {} life {} round {round}: {:?}; {outcome}", self.seed, self.life, self.deeds);
        self.account(&context);
        let random = self.rng.random_range(0..self.points.len().max(1));
        let chosen: Vec<_> = self.points.keys().next_back().into_iter().chain(self.points.keys().nth(random)).collect();
        for point in chosen.into_iter().cloned().collect::<BTreeSet<_>>() {
            self.check(&point, &context);
        }
        let line = json!({
            "seed": self.seed, "life": self.life, "round": round, "deeds": self.deeds, "outcome": outcome,
            "points": self.points.len(), "newest": self.points.iter().next_back(),
        });
        if let Some(log) = &self.log {
            let line = line.to_string().replace(&self.folder.path().display().to_string(), "DIR");
            writeln!(File::options().create(true).append(true).open(log).unwrap(), "{line}").unwrap();
        }
    }

    /// Whatever is new in the repository is one of the instants that are awaited, and nothing is gone.
    fn account(&mut self, context: &str) {
        if !self.folder.path().join("repository/driftline.json").exists() {
            return;
        }
        let listed = self.json(&["points", "--repository", &self.path("repository")]);
        let ids = |value: &Value| value["pointID"].as_str().unwrap().to_owned();
        let there: BTreeSet<String> = listed["points"].as_array().unwrap().iter().map(ids).collect();
        let gone: Vec<_> = self.points.keys().filter(|point| !there.contains(*point)).collect();
        assert!(gone.is_empty(), "{context}: {gone:?} are gone");
        for point in there.into_iter().filter(|point| !self.points.contains_key(point)).collect::<Vec<_>>() {
            let found = self.restored(&point, context);
            let Some(at) = self.pending.iter().position(|awaited| *awaited == found) else {
                panic!("{context}: {point} restores to {found:?}, awaited were {:?}", self.pending);
            };
            // What was awaited before it does not come any more.
            let digests = self.pending.drain(..=at).next_back().unwrap();
            self.points.insert(point, digests);
        }
    }

    fn check(&self, point: &str, context: &str) {
        let found = self.restored(point, context);
        assert_eq!(found, self.points[point], "{context}: {point} is not the disks of its instant");
    }

    /// What a point restores to, by Driftline itself.
    fn restored(&self, point: &str, context: &str) -> Digests {
        let shown = self.json(&["points", "show", point, "--repository", &self.path("repository")]);
        let disks: Vec<&str> = shown["disks"].as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap()).collect();
        let target = |disk: &str| format!("{}/{disk}.raw", self.path("restored"));
        let targets: Vec<String> = disks.iter().map(|disk| format!("{disk}={}", target(disk))).collect();
        let repository = self.path("repository");
        let mut words = vec!["restore", "--repository", &repository, "--point", point, "--format", "Raw"];
        words.extend(targets.iter().flat_map(|target| ["--to", target]));
        let output = self.run(&words);
        assert!(output.status.success(), "{context}: {point}: {}", String::from_utf8_lossy(&output.stderr));
        let digest = |disk: &&str| {
            let bytes = fs::read(target(disk)).unwrap();
            fs::remove_file(target(disk)).unwrap();
            ((*disk).to_owned(), blake3::hash(&bytes).to_hex().to_string())
        };
        disks.iter().map(digest).collect()
    }

    /// What the disks are now.
    fn reference(&self) -> Digests {
        let reference = Reference::take(&self.machine);
        let digest = |disk: &str| blake3::hash(&fs::read(reference.file(disk)).unwrap()).to_hex().to_string();
        reference.disks().map(|disk| (disk.to_owned(), digest(disk))).collect()
    }

    /// All points, and what verification says.
    fn end(self) {
        let context = format!("seed {} life {}, at its end", self.seed, self.life);
        for point in self.points.keys() {
            self.check(point, &context);
        }
        let verified = self.run(&["verify", "--repository", &self.path("repository")]);
        assert!(verified.status.success(), "{context}: {}", String::from_utf8_lossy(&verified.stderr));
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_driftline"));
        command.env("DRIFTLINE_CONFIG", self.path("host.toml")).stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command().args(words).output().unwrap()
    }

    fn json(&self, words: &[&str]) -> Value {
        let output = self.run(&[words, &["-o", "json"]].concat());
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}
