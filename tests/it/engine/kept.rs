//! Descriptors that QEMU keeps while the guest does not run: written down, given up once it does, never too many.

use driftline::{
    engine::Phase,
    qmp::{command::AddFd, fake::Pace},
};

use super::{
    crashes::is_stopped,
    host::{Counter, Going, Host, UUID, assert_complete, assert_failed, files},
    shape::{Shape, Way},
};

fn paused(shape: Shape) -> Host {
    let host = Host::shaped(shape, Pace::AtOnce);
    host.qemu.set_status("paused");
    host
}

async fn give_up(host: &Host) -> usize {
    host.engine().give_up_kept(&host.monitor(), &UUID.parse().unwrap()).await.unwrap()
}

fn written_down(host: &Host) -> bool {
    files(&host.folder.path().join("state/journal")) == [format!("{UUID}.kept")]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_paused_guest_keeps_is_given_up_once_it_runs() {
    for way in [Way::Direct, Way::Staged] {
        let host = paused(Shape { way, ..Shape::FIRST });
        for (run, sets) in [("run-1", 4), ("run-2", 8)] {
            assert_complete(&host.run(run).await);
            assert_eq!((host.qemu.fdsets().len(), give_up(&host).await), (sets, sets));
            assert!(written_down(&host));
        }
        host.qemu.set_status("running");
        assert_eq!(give_up(&host).await, 0);
        host.assert_tidy();
        assert_eq!(host.qemu.fdsets(), vec![]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_run_and_a_recovery_give_them_up_too() {
    let host = paused(Shape::FIRST);
    assert_complete(&host.run("run-1").await);
    host.qemu.set_status("running");
    assert_complete(&host.run("run-2").await);
    assert_eq!(host.assert_tidy(), 2);
    assert_eq!(host.qemu.fdsets(), vec![]);
    host.qemu.set_status("paused");
    assert_complete(&host.run("run-3").await);
    host.qemu.set_status("running");
    let (monitor, guest) = (host.monitor(), UUID.parse().unwrap());
    host.engine().recover(&monitor, &guest, &host.named(), false).await.unwrap();
    host.assert_tidy();
    assert_eq!(host.qemu.fdsets(), vec![]);
}

#[tokio::test(flavor = "multi_thread")]
async fn those_of_a_qemu_that_was_started_again_are_forgotten() {
    let mut host = paused(Shape::FIRST);
    assert_complete(&host.run("run-1").await);
    assert!(written_down(&host));
    host.restart();
    assert_eq!(give_up(&host).await, 0);
    host.assert_tidy();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_keeps_too_many_is_refused_until_it_runs() {
    let host = paused(Shape::FIRST);
    assert_complete(&host.run("run-1").await);
    let kept: Vec<String> = host.qemu.fdsets().into_iter().flat_map(|(_, words)| words).collect();
    let client = host.monitor().client().await.unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    for _ in kept.len()..256 {
        let add = AddFd { fdset_id: None, opaque: Some(kept[0].clone()) };
        client.execute_with_fd(&add, std::os::fd::AsFd::as_fd(&file)).await.unwrap();
    }
    client.close();
    let state = host.run("run-2").await;
    assert_failed(&state, "DescriptorsKept");
    assert!(
        state.retriable && state.message.contains("256") && state.message.contains("continue"),
        "{}",
        state.message
    );
    assert_eq!(host.qemu.transactions(), 1);
    host.qemu.set_status("running");
    assert_complete(&host.run("run-3").await);
    host.assert_tidy();
    assert_eq!(host.qemu.fdsets(), vec![]);
}

/// Whatever act the engine is stopped at: once the guest runs, nothing stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_a_paused_guest_that_is_stopped_at_any_act_leaves_nothing_once_it_runs() {
    let shape = Shape { disks: 1, ..Shape::FIRST };
    let host = paused(shape);
    let counter = Counter::new(usize::MAX);
    assert_complete(&host.start(&host.gated(counter.gate()), &host.request("run")).end().await);
    for stop_at in (0..counter.count()).step_by(3) {
        let host = paused(shape);
        is_stopped(&host, stop_at, Going::reach_end).await;
        let state = host.run("run").await;
        assert_eq!(state.phase, Phase::Complete, "stopped at {stop_at}: {} {}", state.reason, state.message);
        host.qemu.set_status("running");
        assert_eq!(give_up(&host).await, 0);
        assert_eq!(host.assert_tidy(), 1, "stopped at {stop_at}");
        host.assert_clean(host.bitmaps());
    }
}
