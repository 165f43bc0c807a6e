//! A real guest agent freezes a real guest's ext4 for the instant: what is restored is whole without its journal.

use std::{path::Path, process::Command, time::Duration};

use driftline::{
    engine::{
        BackupRequest, RunState,
        gate::Passage,
        quiesce::{Quiesce, QuiesceMode, Quiesced},
    },
    guest_agent::{FreezeStatus, GuestAgent},
    repo::manifest::Consistency,
};

use super::{Going, Host, assert_clean, assert_complete};
use crate::lab::{
    child::wait_for,
    machine::{Machine, Plan, run},
};

/// A guest that writes files to an ext4, and whose agent answers.
async fn guest(host: &Host) -> Machine {
    let machine = tokio::task::block_in_place(|| Plan::with_files(&host.folder.path().join("files.raw")));
    for _ in 0..60 {
        if GuestAgent::connect(&machine.guest_agent()).await.is_ok() {
            return machine;
        }
    }
    panic!("no guest agent answers; the console:\n{}", machine.console().text());
}

fn request(host: &Host, machine: &Machine, mode: QuiesceMode, run: &str) -> BackupRequest {
    let quiesce = Quiesce { mode, freeze_timeout: 10, guest_agent: Some(machine.guest_agent()) };
    BackupRequest { quiesce, ..host.request(machine, run, 0) }
}

/// Whether the restored file system says that its journal is to be replayed; and it has no fault.
fn needs_recovery(image: &Path) -> bool {
    let raw = image.with_extension("raw");
    run(Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(image).arg(&raw));
    let said = run(Command::new("dumpe2fs").arg("-h").arg(&raw));
    let found = said.lines().any(|line| line.starts_with("Filesystem features") && line.contains("needs_recovery"));
    if !found {
        run(Command::new("e2fsck").args(["-f", "-n"]).arg(&raw));
    }
    found
}

fn files_written(machine: &Machine) -> u64 {
    machine.execute("query-blockstats", serde_json::json!({}))[0]["stats"]["wr_operations"].as_u64().unwrap()
}

async fn assert_goes_on(machine: &Machine) {
    let mut agent = GuestAgent::connect(&machine.guest_agent()).await.unwrap();
    assert_eq!(agent.status().await.unwrap(), FreezeStatus::Thawed);
    drop(agent);
    let before = files_written(machine);
    tokio::task::block_in_place(|| {
        wait_for("the guest writes on", Duration::from_secs(60), || (files_written(machine) > before).then_some(()));
    });
}

fn point(state: &RunState) -> Consistency {
    state.point.as_ref().unwrap().manifest.identity.consistency
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_guests_file_system_is_restored_clean_and_another_ones_after_a_replay() {
    let host = Host::new();
    let machine = guest(&host).await;
    for (mode, consistency) in
        [(QuiesceMode::Required, Consistency::Application), (QuiesceMode::Never, Consistency::Crash)]
    {
        let request = request(&host, &machine, mode, &format!("{mode:?}"));
        let state = Going::start(&host.engine(), machine.qmp(), &request).end().await;
        assert_complete(&state);
        assert_eq!(point(&state), consistency);
        assert_goes_on(&machine).await;
        let frozen = mode == QuiesceMode::Required;
        assert_eq!(matches!(state.quiesced, Some(Quiesced::Frozen { .. })), frozen);
        assert_eq!(needs_recovery(&host.stored(&machine, &state, "disk0")), !frozen);
    }
    host.assert_tidy(&machine);
    assert_clean(&machine);
}

/// Its file system stands still, and nobody is left who would thaw it.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_engine_died_while_it_was_frozen_is_thawed_by_the_next_one() {
    let host = Host::new();
    let machine = guest(&host).await;
    let request = request(&host, &machine, QuiesceMode::Required, "run");
    let stopped = std::sync::Arc::new(tokio::sync::Notify::new());
    let told = stopped.clone();
    let engine = host.engine().with_gate(std::sync::Arc::new(move |passage| {
        let dies = passage == Passage::Replied("guest-fsfreeze-freeze");
        if dies {
            told.notify_one();
        }
        !dies
    }));
    let going = Going::start(&engine, machine.qmp(), &request);
    tokio::time::timeout(Duration::from_secs(60), stopped.notified()).await.unwrap();
    going.task.abort();
    let _ = going.task.await;
    let mut agent = GuestAgent::connect(&machine.guest_agent()).await.unwrap();
    assert_eq!(agent.status().await.unwrap(), FreezeStatus::Frozen);
    drop(agent);
    let state = Going::start(&host.engine(), machine.qmp(), &request).end().await;
    assert_complete(&state);
    assert_eq!(point(&state), Consistency::Application);
    assert_goes_on(&machine).await;
    assert!(!needs_recovery(&host.stored(&machine, &state, "disk0")));
    host.assert_tidy(&machine);
    assert_clean(&machine);
}
