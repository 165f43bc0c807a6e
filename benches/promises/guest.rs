//! What a guest's own writes take while it is backed up to a repository in trouble, beside what they take without a backup, and
//! beside a plain job of QEMU straight to the same repository.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    Row,
    lab::{
        fuse::Behind,
        machine::{Disk, Machine, Plan, run},
        mount::{Mount, fill_up},
        tiny_guest::WriterState,
    },
    ways::version,
};

const MIB: u64 = 1 << 20;
/// At a bandwidth of an eighth of it, each copy lasts some eight seconds.
const SIZE: u64 = 24 * MIB;
/// How long the guest's writes are looked at.
const LOOK: Duration = Duration::from_secs(8);

/// What happens to the repository meanwhile.
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    Slow,
    Hung,
    Dead,
    Full,
}

/// The longest write is at most a second, and the 999 fastest of 1000 at most three times what they are without a backup.
pub fn writes(quick: bool) -> Vec<Row> {
    let look = if quick { LOOK / 8 } else { LOOK };
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = folder.path().join("disk0.raw");
    let machine = Plan::new().disk(Disk::raw("disk0", SIZE).at(&disk)).linux().start();
    machine.console().wait_until_up();
    machine.console().go();
    std::thread::sleep(look);
    let idle = watch(&machine, look);
    let mut rows =
        vec![Row::reported(&format!("Guest's writes on QEMU {}, no backup", version(&machine)), shown(&idle))];
    rows.push(Row::reported(
        "  a plain job straight to a repository of 1 MiB/s",
        shown(&plain(&machine, folder.path(), look)),
    ));
    for (trouble, what) in [
        (Trouble::Slow, "that takes 1 MiB/s"),
        (Trouble::Hung, "that hangs"),
        (Trouble::Dead, "whose server is killed"),
        (Trouble::Full, "that is full"),
    ] {
        let place = folder.path().join(what.replace([' ', '/'], "-"));
        let found = remote(&machine, &place, "Never", trouble, look);
        rows.extend(judged(&format!("  staged, to a repository {what}"), &found, &idle));
        if machine.can_fleece() {
            let found = remote(&machine, &place.with_extension("fleeced"), "Always", trouble, look);
            rows.extend(judged(&format!("  staged and fleeced, to a repository {what}"), &found, &idle));
        }
    }
    if machine.can_fleece() {
        for (stalls, what) in [(false, "on a disk of this machine"), (true, "on a disk that stalls, 0.4 s at a time")] {
            let place = folder.path().join(format!("local-{stalls}"));
            let Some(found) = local(&machine, &place, stalls, look) else { continue };
            rows.extend(judged(&format!("  fleeced, to a repository {what}"), &found, &idle));
        }
    }
    let begin = Instant::now();
    machine.console().stop();
    machine.execute("stop", json!({}));
    rows.push(Row::reported(
        "  a stop of the machine, its writer stopped before",
        format!("{:.0} ms", begin.elapsed().as_secs_f64() * 1e3),
    ));
    rows
}

fn shown(state: &WriterState) -> String {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    format!("p50 {:.1} p99.9 {:.1} max {:.0} ms", ms(state.half), ms(state.p999), ms(state.slowest))
}

fn judged(what: &str, found: &WriterState, idle: &WriterState) -> Vec<Row> {
    let times = found.p999.as_secs_f64() / idle.p999.as_secs_f64();
    let met = found.slowest <= Duration::from_secs(1) && times <= 3.0 && found.errors == 0;
    let measured = format!("{}, p99.9 {times:.2} times, {} errors", shown(found), found.errors);
    vec![Row::promised(what, measured, "max 1 s, p99.9 3 times, no error", met)]
}

fn watch(machine: &Machine, look: Duration) -> WriterState {
    machine.console().status();
    std::thread::sleep(look);
    machine.console().status()
}

/// What a person would do by hand, and what it does to the guest.
fn plain(machine: &Machine, folder: &Path, look: Duration) -> WriterState {
    let place = folder.join("plain");
    std::fs::create_dir(&place).unwrap();
    let _behind = Behind::new(&place, Some(MIB));
    let target = place.join("plain.qcow2");
    run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&target).arg(SIZE.to_string()));
    let file = json!({ "driver": "file", "filename": target });
    machine.execute("blockdev-add", json!({ "driver": "qcow2", "node-name": "plain", "file": file }));
    let job =
        json!({ "job-id": "plain", "device": "fmt-disk0", "target": "plain", "sync": "full", "auto-dismiss": false });
    machine.execute("blockdev-backup", job);
    let found = watch(machine, look);
    // It may have ended by itself.
    let _ = machine.try_execute("job-cancel", json!({ "id": "plain" }));
    while machine.execute("query-jobs", json!({}))[0]["status"] != "concluded" {
        std::thread::sleep(Duration::from_millis(50));
    }
    machine.execute("job-dismiss", json!({ "id": "plain" }));
    machine.execute("blockdev-del", json!({ "node-name": "plain" }));
    found
}

/// The writes of the guest while it is backed up to a repository behind a server, by way of the scratch folder.
fn remote(machine: &Machine, place: &Path, fleecing: &str, trouble: Trouble, look: Duration) -> WriterState {
    let (host, repository) = host(place);
    let storage = repository.with_extension("behind");
    // Room for the run as it is promised, which somebody else takes meanwhile.
    let mount = (trouble == Trouble::Full).then(|| Mount::tmpfs(64 * MIB, &storage));
    let mut behind = match mount {
        Some(_) => Behind::between(&storage, &repository, None),
        None => Behind::new(&repository, (trouble == Trouble::Slow).then_some(MIB)),
    };
    let mut backup = backup(machine, &host, &repository, fleecing);
    wait_for_job(machine);
    match trouble {
        Trouble::Slow => {}
        Trouble::Hung => behind.hang(),
        Trouble::Dead => behind.kill(),
        Trouble::Full => fill_up(&storage),
    }
    let found = watch(machine, look);
    match trouble {
        Trouble::Slow => {}
        Trouble::Hung => behind.go_on(),
        Trouble::Dead => behind.revive(),
        Trouble::Full => std::fs::remove_file(storage.join("filler")).unwrap(),
    }
    assert!(backup.wait().unwrap().success());
    found
}

/// The same with a repository on a disk of this machine, which only the fleece keeps away from the guest; none where this user
/// may not mount.
fn local(machine: &Machine, place: &Path, stalls: bool, look: Duration) -> Option<WriterState> {
    let (host, repository) = host(place);
    let mount = Mount::ext4(&place.join("ext4"), 4 * SIZE, &repository)?;
    let mut backup = backup(machine, &host, &repository, "Always");
    wait_for_job(machine);
    machine.console().status();
    let until = Instant::now() + look;
    while Instant::now() < until {
        let frozen = stalls.then(|| mount.freeze());
        std::thread::sleep(Duration::from_millis(400));
        drop(frozen);
        std::thread::sleep(Duration::from_millis(20));
    }
    let found = machine.console().status();
    assert!(backup.wait().unwrap().success());
    Some(found)
}

/// The configuration of a host of its own, with a scratch folder, and a repository's folder.
pub(crate) fn host(place: &Path) -> (PathBuf, PathBuf) {
    let (repository, scratch) = (place.join("repository"), place.join("scratch"));
    std::fs::create_dir_all(&repository).unwrap();
    std::fs::create_dir(&scratch).unwrap();
    let line = |key: &str, path: &Path| format!("{key} = {:?}\n", path.to_str().unwrap());
    let mut text = line("state", &place.join("state")) + &line("locks", &place.join("locks"));
    text += &format!("reserve = \"1Mi\"\nrepositoryRoots = [{:?}]\n", place.to_str().unwrap());
    text += &format!("[scratch]\nbudget = \"2Gi\"\n{}", line("directory", &scratch));
    let config = place.join("host.toml");
    std::fs::write(&config, text).unwrap();
    (config, repository)
}

fn backup(machine: &Machine, host: &Path, repository: &Path, fleecing: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_driftline"));
    command.args(["backup", "--quiet", "--type", "Full", "--bandwidth", &(SIZE / 8).to_string()]);
    command.args(["--fleecing", fleecing]);
    command.arg("--qmp").arg(machine.qmp()).arg("--repository").arg(repository);
    command.env("DRIFTLINE_CONFIG", host).stdin(Stdio::null()).spawn().unwrap()
}

fn wait_for_job(machine: &Machine) {
    while machine.execute("query-jobs", json!({})).as_array().unwrap().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
}
