//! Disks that come and go while the machine runs, and the machine that goes on in another QEMU.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{Machine, launch, wait_for};

const SOON: Duration = Duration::from_secs(30);

impl Machine {
    /// Takes a disk away from the running machine: one on a SCSI bus, which asks no guest. Its node goes too, unless a job
    /// uses it. Disks of such machines are named in their order.
    pub fn unplug(&mut self, disk: &str) {
        let at = self.plan.disks.iter().position(|found| found.name == disk).expect("the machine has the disk");
        let disk = self.plan.disks.remove(at);
        self.execute("device_del", json!({ "id": disk.name }));
        let until = Instant::now() + SOON;
        loop {
            let devices = self.execute("query-block", json!({})).to_string();
            if !devices.contains(&format!("/{}\"", disk.name)) && !devices.contains(&format!("\"{}\"", disk.name)) {
                break;
            }
            assert!(Instant::now() < until, "{} is not gone, {}: {devices}", disk.name, self.status());
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.try_execute("blockdev-del", json!({ "node-name": disk.format_node() }));
        self.plan.unplugged.push(disk);
    }

    /// Gives an unplugged disk back.
    pub fn plug(&mut self, disk: &str) {
        let at = self.plan.unplugged.iter().position(|found| found.name == disk).expect("the disk was unplugged");
        let disk = self.plan.unplugged.remove(at);
        let (node, bus) = (disk.format_node(), format!("bus-{}.0", disk.name));
        if !self
            .execute("query-named-block-nodes", json!({ "flat": true }))
            .to_string()
            .contains(&format!("\"{node}\""))
        {
            let file = json!({ "driver": "file", "filename": disk.file });
            self.execute("blockdev-add", json!({ "driver": disk.format.word(), "node-name": node, "file": file }));
        }
        self.execute("device_add", json!({ "driver": "scsi-hd", "id": disk.name, "bus": bus, "drive": node }));
        let place = self.plan.disks.partition_point(|other| other.name < disk.name);
        self.plan.disks.insert(place, disk);
    }

    /// Goes on in a second QEMU, with its bitmaps by the stream or by the images alone. Where the migration fails it goes on
    /// here, and QEMU's words are returned. The first QEMU is left as it is until [`Machine::end_former`].
    pub fn migrate(&mut self, with_bitmaps: bool) -> Result<(), String> {
        let there = self.folder.path().join("there");
        let _ = fs::remove_dir_all(&there);
        fs::create_dir(&there).expect("the machine's folder takes folders");
        let stream = format!("unix:{}", there.join("stream").display());
        let plan = self.plan.clone().arguments(&["-incoming", "defer"]);
        let (child, mut monitor, console) = launch(&plan, &there);
        if with_bitmaps {
            let capability = json!({ "capabilities": [{ "capability": "dirty-bitmaps", "state": true }] });
            self.execute("migrate-set-capabilities", capability.clone());
            monitor.execute("migrate-set-capabilities", capability);
        }
        monitor.execute("migrate-incoming", json!({ "uri": stream }));
        self.execute("migrate", json!({ "uri": stream }));
        let done = wait_for("the migration ends", SOON, || {
            let found = self.execute("query-migrate", json!({}));
            match found["status"].as_str() {
                Some("completed") => Some(Ok(())),
                Some("failed" | "cancelled") => {
                    let words = found["error-desc"].as_str().unwrap_or_default();
                    let there = fs::read_to_string(there.join("stderr")).unwrap_or_default();
                    Some(Err(format!("{words} here: {} there: {there}", self.complaints())))
                }
                _ => None,
            }
        });
        done?;
        wait_for("the machine runs there", SOON, || {
            (monitor.execute("query-status", json!({}))["status"] == "running").then_some(())
        });
        for name in ["qmp", "test", "stdout", "stderr"] {
            fs::rename(there.join(name), self.folder.path().join(name)).expect("the machine's files can be moved");
        }
        self.former = Some(std::mem::replace(&mut self.child, child));
        self.console = console;
        *self.monitor.lock().expect("no test thread panicked here") = monitor;
        Ok(())
    }

    /// Ends the QEMU that it has migrated from.
    pub fn end_former(&mut self) {
        self.former = None;
    }
}
