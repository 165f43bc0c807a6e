//! A worker that loses its power in the middle of a run, and comes back after two minutes.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use super::underway::{SOON, Underway};
use crate::{
    lab::{child::wait_for, reference::Reference},
    release::{NAMESPACE, NODES, Release, Team},
};

#[test]
fn after_a_power_cut_the_run_has_failed_with_its_reason_and_the_guests_next_run_is_right() {
    let (release, _turn) = Release::take();
    // The controller is lost with it, and has to be started elsewhere.
    let node = release.controllers_node();
    let node = *NODES.iter().find(|name| **name == node).unwrap();
    let mut run = Underway::at_half(release, node);
    release.nodes.node(node).power_cut();
    let cut = Instant::now();
    // Once there is a controller again. An agent that is away is waited for: the run is not given up on.
    let guest = run.team.wait_until("guests.driftline.dev/g", "missed", SOON, || {
        run.team.condition("guests.driftline.dev/g", "Ready").filter(|ready| ready["status"] == "Unknown")
    });
    assert_eq!(guest["reason"], "AgentUnavailable", "{guest}");
    // Another pod of the controller is wanted while the one on the lost node cannot end.
    let changed = release.change("controller.log=info,driftline=debug");
    assert!(changed.succeeded(), "{changed}");
    let rollout = ["rollout", "status", "deployment/driftline-controller", "-n", NAMESPACE, "--timeout=60s"];
    let rolled_out = release.plane().kubectl(rollout);
    assert!(rolled_out.succeeded(), "{rolled_out}\n{}", release.logs());
    a_folder_made_anew_is_seen(release, &run.team, NODES.iter().find(|name| **name != node).unwrap());
    std::thread::sleep(Duration::from_secs(120).saturating_sub(cut.elapsed()));
    let waiting = run.team.get("backuprun.driftline.dev", "run");
    assert!(waiting["status"]["agent"]["lostSince"].is_string(), "{waiting:#}");
    assert!(waiting["status"]["completionTime"].is_null(), "{waiting:#}");
    release.nodes.node(node).power_on();
    release.mount_machines(node);
    release.wait_until_ready();
    // QEMU went with the node, and what it had copied with it.
    let failed = run.team.end_of("backuprun.driftline.dev/run", SOON);
    assert_eq!(failed["reason"], "GuestGone", "{failed}");
    run.machine.start_again_by(release.nodes.node(node).launcher());
    run.proxy.start_again(&run.machine);
    run.team.wait_for("guests.driftline.dev/g", "Ready", SOON);
    let reference = Reference::take(&run.machine);
    run.team.back_up("again", "g", "local");
    run.team.wait_for("backuprun.driftline.dev/again", "Complete", SOON);
    run.restores_exactly("again", &reference);
}

/// Meanwhile, elsewhere: the host removes a folder that the agent's pod has, and makes it anew.
fn a_folder_made_anew_is_seen(release: &'static Release, team: &Team, node: &str) {
    let folder = team.seen(node, Path::new("/srv/backup"));
    fs::remove_dir_all(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    let pod = release.agent_pod(node);
    let restarts = ["get", "pod", &pod, "-n", NAMESPACE, "-o", "jsonpath={.status.containerStatuses[0].restartCount}"];
    let before = release.plane().kubectl(restarts).ok();
    wait_for("the liveness probe has the agent started again", SOON, || {
        (release.plane().kubectl(restarts).stdout() != before).then_some(())
    });
    let said = release.plane().kubectl(["logs", &pod, "-n", NAMESPACE, "--previous"]).ok();
    assert!(said.contains("HostFolderRemoved"), "{said}");
    team.repository(node, "elsewhere");
}
