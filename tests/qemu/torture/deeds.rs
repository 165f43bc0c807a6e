//! What a machine goes through between two backups.

use std::{collections::BTreeSet, fs};

use rand::{RngExt, seq::IndexedRandom};
use serde_json::json;

use super::Torture;
use crate::lab::{
    child::wait_for,
    machine::{Format, Machine},
};

const GRANULE: u64 = 65536;
const SOON: std::time::Duration = std::time::Duration::from_secs(30);

/// With how often each happens.
const DEEDS: [(u32, Deed); 17] = [
    (30, Deed::Write),
    (12, Deed::Zero),
    (12, Deed::Discard),
    (6, Deed::Grow),
    (3, Deed::Shrink),
    (4, Deed::ShrinkAndGrow),
    (8, Deed::Restart),
    (4, Deed::Kill),
    (4, Deed::Reset),
    (4, Deed::Exchange),
    (2, Deed::Copy),
    (4, Deed::Snapshot),
    (6, Deed::Commit),
    (2, Deed::LosePoint),
    (3, Deed::Unplug),
    (8, Deed::Plug),
    (5, Deed::Migrate),
];

#[derive(Debug, Clone, Copy)]
enum Deed {
    Write,
    Zero,
    Discard,
    Grow,
    Shrink,
    ShrinkAndGrow,
    Restart,
    Kill,
    Reset,
    Exchange,
    Copy,
    Snapshot,
    Commit,
    LosePoint,
    Unplug,
    Plug,
    Migrate,
}

impl Torture {
    pub(super) fn deed(&mut self) {
        let (_, deed) = *DEEDS.choose_weighted(&mut self.rng, |(weight, _)| *weight).unwrap();
        let disk = self.any_disk();
        // QEMU refuses these while a run that was cut off still copies.
        let copies = self.machine.execute("query-jobs", json!({})) != json!([]);
        match deed {
            Deed::Write | Deed::Zero | Deed::Discard => return self.change(deed, &disk),
            Deed::Grow | Deed::Shrink | Deed::ShrinkAndGrow | Deed::Snapshot | Deed::Commit if copies => return,
            // So does the bitmap of a machine that was killed, until the next run removes it (measured on 7.2 and 10.0).
            Deed::Grow | Deed::Shrink | Deed::ShrinkAndGrow if is_inconsistent(&self.machine, &disk) => return,
            Deed::Grow => {
                let size = size(&self.machine, &disk) + 512 * self.rng.random_range(1..200);
                resize(&self.machine, &disk, size);
            }
            Deed::Shrink | Deed::ShrinkAndGrow => {
                let before = size(&self.machine, &disk);
                let smaller = before - 512 * self.rng.random_range(1..1000);
                resize(&self.machine, &disk, smaller);
                if matches!(deed, Deed::ShrinkAndGrow) {
                    resize(&self.machine, &disk, before);
                }
                self.continued.remove(&disk);
            }
            Deed::Restart => self.restart(true),
            Deed::Kill => self.restart(false),
            Deed::Reset => {
                // QEMU itself may never give up a SCSI disk that is unplugged after a reset in the first milliseconds of its
                // firmware (measured with nothing of ours, on 7.2 and 10.0).
                std::thread::sleep(std::time::Duration::from_millis(200));
                drop(self.machine.execute("system_reset", json!({})));
            }
            Deed::Exchange | Deed::Copy => {
                // Overlays have their places.
                if !self.is_plugged() || ["a", "b"].iter().any(|disk| self.is_overlay(disk)) {
                    return;
                }
                self.machine.quit();
                let [a, b] = ["a", "b"].map(|disk| self.machine.disk(disk).file.clone());
                if matches!(deed, Deed::Copy) {
                    fs::copy(&a, &b).unwrap();
                    self.continued.clear();
                } else {
                    self.machine.put("a", &b, Format::Qcow2);
                    self.machine.put("b", &a, Format::Qcow2);
                    let swapped = |disk: &String| match disk.as_str() {
                        "a" => "b".to_owned(),
                        "b" => "a".to_owned(),
                        _ => disk.clone(),
                    };
                    self.continued = self.continued.iter().map(swapped).collect();
                }
                self.forget_transient();
                self.machine.start_again();
            }
            Deed::Snapshot if self.is_overlay(&disk) => return,
            Deed::Snapshot => {
                let node = active(&self.machine, &disk);
                assert!(self.snapshot(&disk, &node), "{:?}: the snapshot of {node} failed", self.deeds);
            }
            Deed::Commit if !self.is_overlay(&disk) => return,
            Deed::Commit => self.commit(&disk),
            Deed::Unplug if !self.can_unplug() => return,
            Deed::Unplug => self.machine.unplug("b"),
            Deed::Plug if self.is_plugged() => return,
            Deed::Plug => self.machine.plug("b"),
            Deed::Migrate if !self.can_migrate() => return,
            Deed::Migrate => {
                let moved = self.migrate();
                self.machine.end_former();
                assert!(moved || copies, "{:?}: the migration failed", self.deeds);
            }
            Deed::LosePoint => {
                let Some((newest, _)) = self.points.pop_last() else { return };
                let folder = self.folder.path().join("repository/guests").join(self.machine.uuid()).join(&newest);
                fs::remove_dir_all(folder).unwrap();
                self.continued.clear();
            }
        }
        self.deeds.push(format!("{deed:?} {disk}"));
    }

    /// Somebody's snapshot of a disk at a node. Gives whether QEMU takes it: it does not where a job stands on the node.
    pub(super) fn snapshot(&mut self, disk: &str, node: &str) -> bool {
        let file = self.folder.path().join(format!("overlay-{disk}-{}", self.rng.random_range(0..u32::MAX)));
        let arguments = json!({
            "node-name": node, "snapshot-file": file, "format": "qcow2", "snapshot-node-name": format!("overlay-{disk}"),
        });
        if self.machine.try_execute("blockdev-snapshot-sync", arguments).is_err() {
            return false;
        }
        self.bases.insert(disk.to_owned(), self.machine.disk(disk).clone());
        self.machine.put(disk, &file, Format::Qcow2);
        self.continued.remove(disk);
        true
    }

    /// A disk that the machine has.
    fn any_disk(&mut self) -> String {
        let disk = *["a", "b", "c"].choose(&mut self.rng).unwrap();
        if disk == "b" && !self.is_plugged() { "a".to_owned() } else { disk.to_owned() }
    }

    fn is_plugged(&self) -> bool {
        self.machine.disks().iter().any(|disk| disk.name == "b")
    }

    pub(super) fn can_unplug(&self) -> bool {
        self.is_plugged() && !self.is_overlay("b")
    }

    /// A second QEMU is started with the disks of the plan: overlays and what was plugged have other places there.
    pub(super) fn can_migrate(&self) -> bool {
        self.bases.is_empty() && self.is_plugged()
    }

    /// The machine goes on in a second QEMU, with its bitmaps or without. Gives whether it does.
    pub(super) fn migrate(&mut self) -> bool {
        // QEMU sends none while one is inconsistent or on a node with a name that it made up, and the migration fails
        // (measured on 7.2 and 10.0).
        let bitmaps = self.rng.random()
            && !["a", "b", "c"]
                .iter()
                .any(|disk| is_inconsistent(&self.machine, disk) || active(&self.machine, disk).starts_with('#'));
        let moved = self.machine.migrate(bitmaps);
        if !bitmaps {
            self.forget_transient();
        }
        self.deeds.push(format!("bitmaps {bitmaps} moved {moved:?}"));
        moved.is_ok()
    }

    /// A write of some kind at a random place of a random disk.
    pub(super) fn write(&mut self) {
        let kinds = [Deed::Write, Deed::Write, Deed::Zero, Deed::Discard];
        let (deed, disk) = (*kinds.choose(&mut self.rng).unwrap(), self.any_disk());
        self.change(deed, &disk);
    }

    fn change(&mut self, deed: Deed, disk: &str) {
        let sectors = size(&self.machine, disk) / 512;
        let length = [1, 8, 127, 128, 129, 1024].choose(&mut self.rng).copied().unwrap().min(sectors);
        // Often where clusters begin and where the disk ends.
        let last = sectors - length;
        let at = match self.rng.random_range(0..4) {
            0 => last,
            1 => self.rng.random_range(0..=last) / 128 * 128,
            _ => self.rng.random_range(0..=last),
        };
        let (offset, length) = (at * 512, length * 512);
        match deed {
            Deed::Zero => self.machine.write_zeroes(disk, offset, length),
            Deed::Discard => self.machine.qemu_io(disk, &format!("discard {offset} {length}"), "discard"),
            _ => self.machine.write(disk, self.rng.random_range(1..=255), offset, length),
        }
        self.deeds.push(format!("{deed:?} {disk} {offset}+{length}"));
    }

    pub(super) fn restart(&mut self, cleanly: bool) {
        if cleanly {
            self.machine.quit();
        } else {
            self.machine.kill();
            self.continued.clear();
        }
        self.forget_transient();
        self.machine.start_again();
    }

    /// Raw images keep no bitmaps.
    pub(super) fn forget_transient(&mut self) {
        let raw = self.machine.disks().iter().filter(|disk| disk.format == Format::Raw);
        for disk in raw {
            self.continued.remove(&disk.name);
        }
    }

    pub(super) fn is_overlay(&self, disk: &str) -> bool {
        self.bases.contains_key(disk)
    }

    /// The overlay goes back into its base, which becomes the disk again.
    fn commit(&mut self, disk: &str) {
        let machine = &self.machine;
        let overlay = active(machine, disk);
        machine.execute("block-commit", json!({ "device": overlay, "job-id": "back" }));
        wait_for("the commit is ready", SOON, || {
            (machine.execute("query-jobs", json!({}))[0]["status"] == "ready").then_some(())
        });
        machine.execute("block-job-complete", json!({ "device": "back" }));
        wait_for("the commit ends", SOON, || (machine.execute("query-jobs", json!({})) == json!([])).then_some(()));
        // One that was on QEMU's command line does not go by itself.
        let nodes = machine.execute("query-named-block-nodes", json!({ "flat": true }));
        if nodes.as_array().unwrap().iter().any(|node| node["node-name"] == overlay) {
            machine.execute("blockdev-del", json!({ "node-name": overlay }));
        }
        let base = self.bases.remove(disk).unwrap();
        self.machine.put(disk, &base.file, base.format);
        self.continued.remove(disk);
    }

    /// Nothing of ours but a few bitmaps is in the machine, and it runs.
    pub(super) fn assert_clean(&self, context: &str) {
        let machine = &self.machine;
        assert_eq!(machine.status(), "running", "{context}");
        assert_eq!(machine.execute("query-jobs", json!({})), json!([]), "{context}");
        assert_eq!(machine.execute("query-fdsets", json!({})), json!([]), "{context}");
        let disks: BTreeSet<String> = machine.disks().iter().map(|disk| active(machine, &disk.name)).collect();
        let nodes = machine.execute("query-named-block-nodes", json!({ "flat": true }));
        for node in nodes.as_array().unwrap() {
            assert!(!node["node-name"].as_str().unwrap().starts_with("dl-"), "{context}: {node}");
            let names = node["dirty-bitmaps"].as_array().into_iter().flatten().filter_map(|b| b["name"].as_str());
            let ours: BTreeSet<&str> = names.filter(|name| name.starts_with("driftline.")).collect();
            let sentinels = ours.iter().filter(|name| name.ends_with(".end")).count();
            // A layer that is read-only keeps what it has until it is active again.
            if node["ro"] == true {
                continue;
            }
            assert!(ours.iter().all(|name| !name.ends_with(".inc")), "{context}: {ours:?}");
            // An unplugged disk keeps its checkpoints until it is back.
            if !disks.contains(node["node-name"].as_str().unwrap()) {
                continue;
            }
            // What a machine that ended took along is removed by the next run that completes.
            let most = 2 + self.incomplete;
            assert!(
                sentinels <= most && ours.len() <= most + sentinels,
                "{context}: {ours:?} on {}",
                node["node-name"]
            );
        }
    }
}

/// The node that holds a disk's format now.
pub(super) fn active(machine: &Machine, disk: &str) -> String {
    inserted(machine, disk)["node-name"].as_str().unwrap().to_owned()
}

fn size(machine: &Machine, disk: &str) -> u64 {
    inserted(machine, disk)["image"]["virtual-size"].as_u64().unwrap()
}

fn is_inconsistent(machine: &Machine, disk: &str) -> bool {
    let node = inserted(machine, disk);
    node["dirty-bitmaps"].as_array().into_iter().flatten().any(|bitmap| bitmap["inconsistent"] == true)
}

fn resize(machine: &Machine, disk: &str, size: u64) {
    let size = size.max(GRANULE);
    machine.execute("block_resize", json!({ "node-name": active(machine, disk), "size": size }));
}

fn inserted(machine: &Machine, disk: &str) -> serde_json::Value {
    let devices = machine.execute("query-block", json!({}));
    let is = |path: &str| path == disk || path.split('/').any(|part| part == disk);
    let found = devices.as_array().unwrap().iter().find(|device| device["qdev"].as_str().is_some_and(is));
    found.unwrap_or_else(|| panic!("There is no {disk} in {devices}"))["inserted"].clone()
}
