//! Staged runs: QEMU writes to the scratch folder, so that a repository that is slow, full, hung or gone has nothing to do with
//! the guest; and what reaches the repository in the end is what it was at the instant.

use std::time::{Duration, Instant};

use driftline::{
    chain::next::{BackupType, RequestedType},
    engine::{BackupRequest, Phase, RequestedDataPath, RequestedFleecing, Scratch},
};

use super::{Going, Host, MIB, assert_clean, assert_complete, assert_failed, fill, host::files, varied, zero};
use crate::lab::{
    child::wait_for,
    fuse::Behind,
    machine::{Disk, Machine, Plan},
    mount::{Mount, fill_up},
    reference::Reference,
};

/// A host with a scratch folder of so many bytes.
fn host(budget: u64) -> Host {
    let mut host = Host::new();
    let directory = host.folder.path().join("scratch");
    std::fs::create_dir(&directory).unwrap();
    host.scratch = Some(Scratch { directory, budget, reserve: 0 });
    host
}

fn request(host: &Host, machine: &Machine, run: &str) -> BackupRequest {
    BackupRequest { kind: RequestedType::Auto, ..host.request(machine, run, 0) }
}

fn staged(host: &Host) -> Vec<String> {
    files(&host.scratch.as_ref().unwrap().directory)
}

fn assert_gone(host: &Host, machine: &Machine) {
    assert_clean(machine);
    host.assert_tidy(machine);
    assert_eq!(staged(host), Vec::<String>::new());
    assert_eq!(machine.status(), "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_not_local_gets_an_exact_chain_by_way_of_the_scratch_folder() {
    let host = host(1 << 30);
    let _behind = Behind::new(&host.repository_path(), None);
    let machine = varied().start();
    fill(&machine);
    let mut points = Vec::new();
    for round in 0..4u8 {
        for (at, disk) in (0u64..).zip(machine.disks()) {
            let offset = (u64::from(round) * 311_296 + at * 65536) % (2 * MIB);
            machine.write(&disk.name, 0x40 + round, offset, 80_384);
            zero(&machine, &disk.name, (offset + MIB) % (2 * MIB), 65536);
        }
        let reference = Reference::take(&machine);
        let request = request(&host, &machine, &format!("run-{round}"));
        let going = Going::start(&host.engine(), machine.qmp(), &BackupRequest { bandwidth: 2 * MIB, ..request });
        going.reach(Phase::Copying).await;
        assert_eq!(staged(&host).len(), 1);
        for disk in machine.disks() {
            machine.write(&disk.name, 0xe0 + round, 0, 131_072);
            machine.write(&disk.name, 0xe0 + round, disk.size - 66_048, 66_048);
        }
        let state = going.end().await;
        assert_complete(&state);
        let expected = if round == 0 { BackupType::Full } else { BackupType::Incremental };
        assert!(state.disks.iter().all(|disk| disk.kind == expected), "{:?}", state.disks);
        assert_gone(&host, &machine);
        host.assert_equal(&machine, &state, &reference);
        points.push((state, reference));
    }
    for (state, reference) in &points {
        host.assert_restores(&machine, state, reference);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_staged_is_refused_with_the_reason_and_the_way_out() {
    let machine = Plan::new().disk(Disk::qcow2("disk0", 4 * MIB)).start();
    let bare = Host::new();
    let _behind = Behind::new(&bare.repository_path(), None);
    let refused = async |host: &Host, path: RequestedDataPath, words: &[&str], retriable: bool| {
        let request = BackupRequest { data_path: path, ..request(host, &machine, words[0]) };
        let state = Going::start(&host.engine(), machine.qmp(), &request).end().await;
        assert_failed(&state, "TargetUnsafe");
        assert!(words.iter().all(|word| state.message.contains(word)), "{}", state.message);
        assert_eq!(state.retriable, retriable);
        host.assert_tidy(&machine);
        assert_clean(&machine);
    };
    refused(&bare, RequestedDataPath::Direct, &["local file system", "Auto or Staged"], false).await;
    refused(&bare, RequestedDataPath::Auto, &["host.toml", "[scratch]"], false).await;
    let small = host(MIB);
    refused(&small, RequestedDataPath::Staged, &["1.00 MiB", "budget"], true).await;
    // A network file system is no place to stage.
    let mut remote = host(1 << 30);
    let directory = remote.repository_path().join("scratch");
    std::fs::create_dir(&directory).unwrap();
    let _behind = Behind::new(&remote.repository_path(), None);
    remote.scratch = Some(Scratch { directory, budget: 1 << 30, reserve: 0 });
    let state = Going::start(&remote.engine(), machine.qmp(), &request(&remote, &machine, "remote")).end().await;
    assert_failed(&state, "ScratchUnusable");
    assert!(state.message.contains("local file system"), "{}", state.message);
}

/// As with iSCSI, NBD or RBD; here it is a loop device whose file a program shows.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_does_not_hang_with_the_server_behind_the_disk_of_its_repository() {
    let host = host(1 << 30);
    let (at, remote) = (host.repository_path(), host.folder.path().join("remote"));
    std::fs::remove_dir_all(&at).unwrap();
    std::fs::create_dir(&remote).unwrap();
    let behind = Behind::new(&remote, None);
    let Some(mounted) = Mount::ext4(&remote.join("lun"), 64 * MIB, &at) else { return };
    // Ends first where the test fails: nothing that hangs can be unmounted.
    let behind = behind;
    host.initialise();
    assert!(!host.repository().space().unwrap().local);
    let machine = Plan::new().disk(Disk::raw("disk0", 8 * MIB)).start();
    machine.write("disk0", 7, 0, 8 * MIB);
    let reference = Reference::take(&machine);
    let going = Going::start(&host.engine(), machine.qmp(), &host.request(&machine, "run", 4 * MIB));
    going.reach(Phase::Copying).await;
    behind.hang();
    let asked = Instant::now();
    tokio::task::block_in_place(|| machine.write("disk0", 0xee, 7 * MIB, 4096));
    going.reach_past(Phase::Copying).await;
    assert_eq!(machine.status(), "running");
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    behind.go_on();
    let state = going.end().await;
    assert_complete(&state);
    host.assert_equal(&machine, &state, &reference);
    assert_gone(&host, &machine);
    drop(machine);
    drop(mounted);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_runs_that_begin_at_once_are_not_promised_the_same_room() {
    let size = 8 * MIB;
    let machines = [(); 2].map(|()| Plan::new().disk(Disk::raw("disk0", size)).start());
    let host = host(size + 4 * MIB);
    let going = machines.each_ref().map(|machine| {
        machine.write("disk0", 7, 0, size);
        let request = BackupRequest { data_path: RequestedDataPath::Staged, ..request(&host, machine, machine.uuid()) };
        Going::start(&host.engine(), machine.qmp(), &BackupRequest { bandwidth: 4 * MIB, ..request })
    });
    let ended = futures::future::join_all(going.map(Going::end)).await;
    let (done, refused): (Vec<_>, Vec<_>) = ended.iter().partition(|state| state.phase == Phase::Complete);
    assert_eq!((done.len(), refused.len()), (1, 1), "{ended:?}");
    assert_failed(refused[0], "TargetUnsafe");
    assert!(refused[0].retriable && refused[0].message.contains("other runs"), "{}", refused[0].message);
    machines.iter().for_each(|machine| assert_gone(&host, machine));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_staged_run_may_be_fleeced_too() {
    let machine = Plan::new().disk(Disk::qcow2("disk0", 4 * MIB)).start();
    if !machine.can_fleece() {
        return;
    }
    let host = host(64 * MIB);
    machine.write("disk0", 3, 0, 3 * MIB);
    let reference = Reference::take(&machine);
    let request = BackupRequest {
        data_path: RequestedDataPath::Staged,
        fleecing: RequestedFleecing::Always,
        ..request(&host, &machine, "both")
    };
    let going = Going::start(&host.engine(), machine.qmp(), &BackupRequest { bandwidth: MIB, ..request });
    going.reach(Phase::Copying).await;
    machine.write("disk0", 9, 0, 3 * MIB);
    let state = going.end().await;
    assert_complete(&state);
    assert!(state.staged && state.fleeced, "{state:?}");
    host.assert_equal(&machine, &state, &reference);
    assert_gone(&host, &machine);
}

/// What happens to the repository while a guest is backed up to it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Trouble {
    Slow,
    Hung,
    Dead,
    Full,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_under_load_does_not_notice_what_happens_to_the_repository() {
    let machine = Plan::new().disk(Disk::qcow2("disk0", 12 * MIB)).disk(Disk::raw("disk1", 6 * MIB)).linux().start();
    let console = machine.console();
    tokio::task::block_in_place(|| console.wait_until_up());
    let troubles = [Trouble::Slow, Trouble::Hung, Trouble::Dead, Trouble::Full];
    let fleeced = machine.can_fleece().then_some(RequestedFleecing::Always);
    let ways = [RequestedFleecing::Auto].into_iter().chain(fleeced);
    for (fleecing, trouble) in ways.flat_map(|way| troubles.map(|trouble| (way, trouble))) {
        let host = host(1 << 30);
        let (path, storage) = (host.repository_path(), host.repository_path().with_extension("behind"));
        // Room for the run as it is promised, which somebody else takes meanwhile.
        let full = (trouble == Trouble::Full).then(|| Mount::tmpfs(64 * MIB, &storage));
        let mut behind = match trouble {
            Trouble::Full => {
                std::fs::remove_dir_all(&path).unwrap();
                std::fs::create_dir(&path).unwrap();
                let behind = Behind::between(&storage, &path, None);
                host.initialise();
                behind
            }
            _ => Behind::new(&path, (trouble == Trouble::Slow).then_some(MIB)),
        };
        console.go();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let reference = tokio::task::block_in_place(|| {
            console.stop();
            Reference::take(&machine)
        });
        let engine = host.engine();
        let request = BackupRequest { fleecing, ..request(&host, &machine, "run") };
        let going = Going::start(&engine, machine.qmp(), &request);
        going.reach_past(Phase::Preparing).await;
        let before = console.go();
        match trouble {
            Trouble::Slow => {}
            Trouble::Hung => behind.hang(),
            Trouble::Dead => behind.kill(),
            Trouble::Full => fill_up(&storage),
        }
        // The copy ends without the repository, whatever that does.
        going.reach_past(Phase::Copying).await;
        wait_for("the guest writes on", Duration::from_secs(30), || {
            (console.status().writes > before.writes + 500).then_some(())
        });
        let after = console.status();
        assert_eq!(after.errors, 0, "{fleecing:?}, {trouble:?}: {after:?}");
        assert_eq!(machine.status(), "running", "{fleecing:?}, {trouble:?}");
        match trouble {
            Trouble::Slow => {}
            Trouble::Hung => behind.go_on(),
            Trouble::Full => {
                std::fs::remove_file(storage.join("filler")).unwrap();
            }
            Trouble::Dead => {
                // The point is there as soon as the repository is again: for another engine too.
                going.control.detach.cancel();
                going.end().await;
                drop(behind);
                std::fs::remove_dir(&path).unwrap();
                std::fs::rename(&storage, &path).unwrap();
                let state = Going::start(&host.engine(), machine.qmp(), &request).end().await;
                assert_complete(&state);
                host.assert_restores(&machine, &state, &reference);
                assert_gone(&host, &machine);
                continue;
            }
        }
        let state = going.end().await;
        assert_complete(&state);
        assert_eq!((state.staged, state.fleeced), (true, fleecing == RequestedFleecing::Always));
        host.assert_restores(&machine, &state, &reference);
        assert_gone(&host, &machine);
        drop(behind);
        drop(full);
    }
}
