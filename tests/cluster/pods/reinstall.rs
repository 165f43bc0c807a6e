//! The release is taken away and installed again: nothing that it has made is lost.

use serde_json::json;

use super::underway::SOON;
use crate::{
    lab::{
        machine::{Disk, Format, Plan},
        reference::Reference,
    },
    release::{NODES, Release},
};

const MIB: u64 = 1 << 20;

#[test]
fn after_an_uninstall_and_an_install_the_points_come_back_and_nothing_is_lost() {
    let (release, _turn) = Release::take();
    let team = release.team();
    let node = NODES[1];
    let machine = release.machine_on(node, Plan::new().disk(Disk::raw("disk0", 24 * MIB))).start();
    machine.write("disk0", 0x3c, MIB, 20 * MIB);
    team.repository(node, "local");
    team.guest(node, "g", &machine.qmp());
    let reference = Reference::take(&machine);
    team.back_up("run", "g", "local");
    team.wait_for("backuprun.driftline.dev/run", "Complete", SOON);
    let point = team.point_of("run");
    let stored = || release.listing(node, &std::path::Path::new("/srv/backup").join(&team.namespace));
    let before = stored();

    let gone = release.helm("uninstall", &["--wait", "--timeout=120s"]);
    assert!(gone.succeeded(), "{gone}");
    for kind in ["backuprepositories", "backupruns", "guests", "restorepoints"] {
        let left = team.kubectl(["get", &format!("{kind}.driftline.dev"), "-o", "name"]).ok();
        assert_eq!(left.lines().count(), 1, "{kind}: {left}");
    }
    assert_eq!(stored(), before, "the repository has changed");
    // A view, which nobody makes anew now.
    team.kubectl(["delete", "restorepoints.driftline.dev", &point]).ok();

    let back = release.install(&[]);
    assert!(back.succeeded(), "{back}\n{}", release.logs());
    release.wait_until_ready();
    team.wait_for(&format!("restorepoint.driftline.dev/{point}"), "Available", SOON);
    let run = team.get("backupruns.driftline.dev", "run");
    assert_eq!(run["status"]["phase"], json!("Complete"));
    let files = team.restore("back", &point, node, &["disk0"]);
    team.wait_for("restorerun.driftline.dev/back", "Complete", SOON);
    reference.assert_equal("disk0", &files[0], Format::Raw);
}
