//! Trees of the kernel's files as Linux shows them, in a folder of their own.

use std::os::unix::fs::symlink;

use rustix::fs::CWD;

use super::*;

/// Numbers of the tree's devices, which no device here has.
const MAJOR: u32 = 4000;

struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Tree {
        let tree = Tree(tempfile::tempdir().unwrap());
        for folder in ["sys/class/block", "sys/class/iscsi_host", "sys/dev/block", "sys/fs/btrfs"] {
            fs::create_dir_all(tree.at(folder)).unwrap();
        }
        fs::write(tree.at("mountinfo"), "").unwrap();
        tree
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn kernel(&self) -> Kernel {
        Kernel { sys: self.at("sys"), mounts: self.at("mountinfo") }
    }

    /// A device that stands at `place` beneath /sys/devices, made of others.
    fn device(&self, minor: u32, place: &str, slaves: &[&str]) -> &Tree {
        let folder = self.at("sys/devices").join(place);
        fs::create_dir_all(folder.join("slaves")).unwrap();
        let name = folder.file_name().unwrap().to_owned();
        for slave in slaves {
            symlink(
                fs::canonicalize(self.at("sys/class/block").join(slave)).unwrap(),
                folder.join("slaves").join(slave),
            )
            .unwrap();
        }
        symlink(&folder, self.at("sys/class/block").join(name)).unwrap();
        symlink(&folder, self.at("sys/dev/block").join(format!("{MAJOR}:{minor}"))).unwrap();
        self
    }

    fn file(&self, path: &str, text: &str) -> &Tree {
        let path = self.at("sys").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// Whether what stands on the device of that number stands here.
    fn is_here(&self, minor: u32) -> bool {
        let mut found = Vec::new();
        let (kernel, number) = (self.kernel(), rustix::fs::makedev(MAJOR, minor));
        kernel.below_device(&kernel.place_of(number).unwrap(), DEEPEST, &mut found);
        assert!(!found.is_empty());
        found.iter().all(stands_here)
    }

    /// The same of a mount's source.
    fn source_is_here(&self, source: &str) -> bool {
        let (kernel, mut found) = (self.kernel(), Vec::new());
        let places = kernel.places_of_source(Path::new(source));
        assert!(!places.is_empty());
        places.iter().for_each(|place| kernel.below_device(place, DEEPEST, &mut found));
        found.iter().all(stands_here)
    }
}

const SATA: &str = "pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda";
const ISCSI: &str = "platform/host6/session1/target6:0:0/6:0:0:1/block/sdb";

#[test]
fn a_disk_of_this_host_stands_here_and_so_does_what_is_made_of_such() {
    let tree = Tree::new();
    tree.device(0, SATA, &[])
        .device(1, &format!("{SATA}/sda1"), &[])
        .file(&format!("devices/{SATA}/sda1/partition"), "1");
    tree.device(2, "pci0000:00/0000:00:05.0/virtio2/block/vda", &[]);
    tree.device(3, "virtual/block/md0", &["sda", "vda"]).device(4, "virtual/block/dm-0", &["md0"]);
    let nvme = "pci0000:00/0000:01:00.0/nvme/nvme0";
    tree.device(5, &format!("{nvme}/nvme0n1"), &[]).file(&format!("devices/{nvme}/transport"), "pcie\n");
    // With several paths it stands elsewhere in the tree, and its folder leads to them.
    tree.device(6, "virtual/nvme-subsystem/nvme-subsys1/nvme1n1", &[]);
    symlink(tree.at("sys/devices").join(nvme), tree.at("sys/devices/virtual/nvme-subsystem/nvme-subsys1/nvme1"))
        .unwrap();
    for minor in 0..=6 {
        assert!(tree.is_here(minor), "{minor}");
    }
}

#[test]
fn a_disk_that_a_server_stands_behind_does_not_and_neither_does_anything_made_of_it() {
    let tree = Tree::new();
    tree.device(0, SATA, &[]).device(1, ISCSI, &[]).device(2, &format!("{ISCSI}/sdb1"), &[]);
    tree.file(&format!("devices/{ISCSI}/sdb1/partition"), "1");
    // An adapter that speaks iSCSI by itself.
    tree.device(3, "pci0000:00/0000:02:00.0/host9/target9:0:0/9:0:0:0/block/sdc", &[])
        .file("class/iscsi_host/host9/port", "");
    tree.device(4, "virtual/block/dm-3", &["sda", "sdb"]).device(5, "virtual/block/md1", &["dm-3"]);
    for (minor, name) in [(6, "nbd0"), (7, "rbd1"), (8, "drbd0"), (9, "rnbd0"), (10, "ublkb0"), (11, "etherd!e0.0")] {
        tree.device(minor, &format!("virtual/block/{name}"), &[]);
    }
    let fabrics = "virtual/nvme-fabrics/ctl/nvme3";
    tree.device(12, &format!("{fabrics}/nvme3n1"), &[]).file(&format!("devices/{fabrics}/transport"), "tcp\n");
    tree.device(13, "virtual/nvme-subsystem/nvme-subsys4/nvme4n1", &[]);
    symlink(tree.at("sys/devices").join(fabrics), tree.at("sys/devices/virtual/nvme-subsystem/nvme-subsys4/nvme4"))
        .unwrap();
    for minor in 1..=13 {
        assert!(!tree.is_here(minor), "{minor}");
    }
}

#[test]
fn a_loop_device_stands_where_its_file_does() {
    let tree = Tree::new();
    fs::write(tree.at("image"), "").unwrap();
    tree.device(0, "virtual/block/loop0", &[]);
    tree.file("devices/virtual/block/loop0/loop/backing_file", &format!("{}\n", tree.at("image").display()));
    assert!(tree.is_here(0), "a file in the folder of the tests, which is local");
    tree.device(1, "virtual/block/loop1", &[])
        .file("devices/virtual/block/loop1/loop/backing_file", "/not/seen/from/here\n");
    assert!(!tree.is_here(1));
    let (nfs, ext4) = (0x6969, 0xef53);
    assert!(!stands_here(&Base::FileSystem(nfs)) && stands_here(&Base::FileSystem(ext4)));
}

#[test]
fn a_loop_device_over_a_device_stands_where_that_does() {
    let tree = Tree::new();
    let places = ["virtual/block/nbd0", SATA];
    for (minor, place) in (0..).zip(places) {
        let node = tree.at(&format!("node{minor}"));
        let number = rustix::fs::makedev(MAJOR, minor);
        let made = rustix::fs::mknodat(CWD, &node, FileType::BlockDevice, Mode::RUSR, number);
        if made == Err(rustix::io::Errno::PERM) {
            // Only root makes a device's node.
            return;
        }
        made.unwrap();
        let name = format!("virtual/block/loop{minor}");
        tree.device(minor, place, &[]).device(minor + 10, &name, &[]);
        tree.file(&format!("devices/{name}/loop/backing_file"), &format!("{}\n", node.display()));
    }
    // Both nodes stand in the same folder, as those in /dev do.
    assert!(!tree.is_here(10) && tree.is_here(11));
    fs::remove_file(tree.at("sys/dev/block").join(format!("{MAJOR}:1"))).unwrap();
    assert!(!tree.is_here(11), "a device that the kernel does not list may be anywhere");
}

#[test]
fn a_mount_without_a_device_s_number_is_followed_by_its_source() {
    let tree = Tree::new();
    tree.device(0, SATA, &[]).device(1, ISCSI, &[]).device(2, "virtual/block/dm-1", &["sdb"]);
    tree.file("devices/virtual/block/dm-1/dm/name", "vg-backup\n");
    assert!(tree.source_is_here("/dev/sda"));
    assert!(!tree.source_is_here("/dev/sdb"));
    assert!(!tree.source_is_here("/dev/mapper/vg-backup"), "the kernel knows the name");
    // A btrfs on two disks names one of them.
    let devices = tree.at("sys/fs/btrfs/0d9f2f6f/devices");
    fs::create_dir_all(&devices).unwrap();
    for (name, place) in [("sda", SATA), ("sdb", ISCSI)] {
        symlink(tree.at("sys/devices").join(place), devices.join(name)).unwrap();
    }
    assert!(!tree.source_is_here("/dev/sda"));
    assert!(tree.kernel().places_of_source(Path::new("tmpfs")).is_empty());
}

#[test]
fn a_line_of_mountinfo_tells_the_source_and_where_an_overlay_writes() {
    let line = r"36 25 0:32 /sub /mnt/a\040b rw,noatime shared:1 master:2 - btrfs /dev/mapper/a\040b rw,subvol=/sub";
    let mount = Mount::parse(line, 36).unwrap();
    assert_eq!((mount.sources(), mount.upper()), (vec!["/dev/mapper/a b".to_owned()], None));
    assert!(Mount::parse(line, 25).is_none());
    let line = "40 25 0:40 / / rw - overlay overlay rw,lowerdir=/l,upperdir=/var/up,workdir=/w";
    assert_eq!(Mount::parse(line, 40).unwrap().upper().as_deref(), Some("/var/up"));
    let line = "41 25 0:41 / /b rw - bcachefs /dev/sda:/dev/sdb rw";
    assert_eq!(Mount::parse(line, 41).unwrap().sources(), ["/dev/sda", "/dev/sdb"]);
}

#[test]
fn where_the_kernel_tells_nothing_the_kind_of_file_system_has_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = Kernel { sys: folder.path().join("sys"), mounts: folder.path().join("mountinfo") };
    assert!(kernel.stands_here(open(folder.path()).unwrap().as_fd()).unwrap());
}
