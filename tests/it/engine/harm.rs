//! The guest's own writes: a run that makes them fail ends, and what is not its doing is left alone. Nor does the guest stand
//! still for longer than a run's instant.

use std::sync::Arc;

use driftline::{
    engine::{RunControl, gate::Passage},
    qmp::fake::{Fault, Pace, When},
};
use serde_json::json;

use super::{
    host::{Host, assert_complete, assert_failed},
    shape::{Shape, Way},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_of_the_guest_ends_the_copy_and_the_guest_goes_on() {
    let host = Host::new(Pace::Manual);
    let going = host.start(&host.engine(), &host.request("run"));
    going.copying().await;
    host.qemu.set_status("io-error");
    host.qemu.emit(
        "BLOCK_IO_ERROR",
        json!({ "device": "", "node-name": "limit", "operation": "write", "action": "stop", "nospace": true,
            "reason": "No space left on device" }),
    );
    let state = going.end().await;
    assert_failed(&state, "GuestHarmed");
    assert_eq!(host.qemu.status(), "running");
    host.assert_clean(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_stands_because_of_a_disk_of_the_run_goes_on_though_no_event_told() {
    let host = Host::new(Pace::Manual);
    let going = host.start(&host.engine(), &host.request("run"));
    going.copying().await;
    host.qemu.set_io_status("disk0", "nospace");
    host.qemu.set_status("io-error");
    assert_failed(&going.end().await, "GuestHarmed");
    assert_eq!(host.qemu.status(), "running");
    host.assert_clean(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_a_disk_that_is_not_in_the_run_is_none_of_ours() {
    let host = Host::new(Pace::Manual);
    let mut request = host.request("run");
    request.disks.exclude = vec!["disk1".parse().unwrap()];
    let going = host.start(&host.engine(), &request);
    going.copying().await;
    host.qemu.set_io_status("disk1", "failed");
    host.qemu.set_status("io-error");
    host.qemu.emit("STOP", json!({}));
    host.qemu.finish_jobs();
    assert_complete(&going.end().await);
    assert_eq!(host.qemu.status(), "io-error", "somebody else's stop is somebody else's to end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_was_stopped_by_an_error_before_is_backed_up_and_not_started() {
    let host = Host::new(Pace::AtOnce);
    host.qemu.set_status("io-error");
    assert_complete(&host.run("run").await);
    assert_eq!(host.qemu.status(), "io-error");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_stands_for_the_instant_goes_on_though_the_engine_is_let_go_and_the_connection_lost_just_then() {
    let host = Host::shaped(Shape { way: Way::Fleeced, ..Shape::FIRST }, Pace::AtOnce);
    host.qemu.fault(When::NthOf("qom-set", 1), Fault::CutBefore);
    let request = host.request("run");
    let control = RunControl::new(&request, jiff::Timestamp::now());
    let detach = control.detach.clone();
    let engine = host.gated(Arc::new(move |passage| {
        if passage == Passage::Sending("qom-set") {
            detach.cancel();
        }
        true
    }));
    let state = engine.backup(&host.monitor(), &request, &control).await;
    assert!(!state.phase.is_final(), "{}: {}", state.reason, state.message);
    assert_eq!(host.qemu.status(), "running", "the engine has ended, and the guest stands still");
    assert_complete(&host.run("run").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_qemu_refuses_to_continue_is_told_and_continued_as_soon_as_it_may() {
    let host = Host::shaped(Shape { way: Way::Fleeced, ..Shape::FIRST }, Pace::AtOnce);
    let refused = Fault::Refuse { class: "GenericError".into(), description: "Failed to get the lock".into() };
    host.qemu.fault(When::Every("cont"), refused);
    let state = host.run("run").await;
    assert_failed(&state, "GuestStopped");
    for part in ["stands still", "Failed to get the lock", "`cont` by hand"] {
        assert!(state.message.contains(part), "{}", state.message);
    }
    let asked = || host.qemu.log().iter().filter(|logged| logged.command == "cont").count();
    assert!((2..=4).contains(&asked()), "it was asked {} times", asked());
    assert_eq!(host.qemu.status(), "paused");
    host.qemu.clear_faults();
    assert_complete(&host.run("the next").await);
    assert_eq!(host.qemu.status(), "running");
}
