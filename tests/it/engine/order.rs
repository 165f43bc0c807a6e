//! The order of a guest's points, whatever else stands in its folder.

use driftline::{engine::RunState, qmp::fake::Pace};

use super::host::{Host, assert_complete};

#[tokio::test(flavor = "multi_thread")]
async fn a_stray_folder_of_the_last_instant_there_is_does_not_turn_the_order_of_points() {
    let host = Host::new(Pace::AtOnce);
    let first = host.run("first").await;
    assert_complete(&first);
    let guest = host.path().join("guests").join(host.request("first").guest.uuid.as_str());
    std::fs::create_dir(guest.join("7zzzzzzzzzzzzzzzzzzzzzzzzz")).unwrap();
    let second = host.run("second").await;
    assert_complete(&second);
    let id = |state: &RunState| state.point.as_ref().unwrap().manifest.identity.point.clone();
    assert!(id(&second) > id(&first), "{} after {}", id(&second), id(&first));
}
