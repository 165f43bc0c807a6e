//! Why nothing is fleeced below QEMU 8.2: by hand, without the engine, a snapshot there is stored wrong, and nobody says so.

use std::process::Command;

use serde_json::json;

use super::{MIB, SOON};
use crate::lab::{
    child::wait_for,
    machine::{Disk, Format, Plan, run},
    reference::Reference,
};

#[test]
fn a_snapshot_of_an_old_qemu_shows_zeros_that_the_guest_has_written_since() {
    let machine = Plan::new().disk(Disk::qcow2("disk0", 4 * MIB)).start();
    machine.write("disk0", 0x5a, 0, 4 * MIB);
    let reference = Reference::take(&machine);
    let file = |name: &str| machine.folder().join(format!("{name}.qcow2"));
    for name in ["fl", "t"] {
        run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(file(name)).arg((4 * MIB).to_string()));
        let options = json!({
            "driver": "qcow2", "node-name": name, "file": { "driver": "file", "filename": file(name) },
        });
        machine.execute("blockdev-add", options);
    }
    let node = machine.disk("disk0").format_node();
    let filter = json!({
        "driver": "copy-before-write", "node-name": "cbw", "file": node, "target": "fl", "discard": "unmap",
        "on-cbw-error": "break-snapshot", "cbw-timeout": 5,
    });
    machine.execute("blockdev-add", filter);
    let drive = json!({ "path": "/machine/peripheral/disk0", "property": "drive", "value": "cbw" });
    machine.execute("qom-set", drive);
    machine.execute("blockdev-add", json!({ "driver": "snapshot-access", "node-name": "snap", "file": "cbw" }));
    machine.write_zeroes("disk0", MIB, 131_072);
    let backup = json!({ "job-id": "j", "device": "snap", "target": "t", "sync": "full", "auto-dismiss": false });
    machine.execute("blockdev-backup", backup);
    wait_for("the copy ends", SOON, || {
        (machine.execute("query-jobs", json!({}))[0]["status"] == "concluded").then_some(())
    });
    assert!(machine.execute("query-jobs", json!({}))[0].get("error").is_none(), "nobody says so");
    machine.execute("job-dismiss", json!({ "id": "j" }));
    machine.execute("blockdev-del", json!({ "node-name": "t" }));
    let differs = reference.difference("disk0", &file("t"), Format::Qcow2);
    assert_eq!(differs.is_none(), machine.can_fleece(), "{differs:?}");
}
