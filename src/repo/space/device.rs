//! What a file system lies on in the end: followed through the kernel's own files from the device that the file system says, by
//! way of partitions, device mapper, md and loop devices, to disks. A disk that stands elsewhere hangs whoever writes to it
//! when its server does, whatever file system is on it (measured: a guest's write took as long as the server hung).
//!
//! The reading is thin and gives facts; `stands_here` decides. What is not known is no fact: without /sys, or where it does
//! not list the device, a file system is taken by its kind alone, as an ordinary disk in a container has to be.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, Dev, FileType, Mode, OFlags, StatxFlags};

use super::{is_local_kind, kind};

/// Devices are stacked a few times; a loop in the tree would be the kernel's mistake, and not followed for ever.
const DEEPEST: usize = 16;

/// Block devices whose data goes through a network or another program, by how their names begin: network block devices, Ceph's,
/// those over RDMA, DRBD, ATA over Ethernet, and ublk (drivers of Linux, drivers/block).
const ELSEWHERE: &[&str] = &["nbd", "rbd", "rnbd", "drbd", "etherd!", "ublkb"];

/// What there is below a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Base {
    /// A disk.
    Disk {
        /// Its name.
        name: String,
        /// Its place among the kernel's devices, such as `/sys/devices/pci0000:00/…/host2/session1/target2:0:0/2:0:0:0/block/sdb`.
        place: PathBuf,
        /// By which its NVMe controllers are reached, such as `pcie` or `tcp`.
        transports: Vec<String>,
        /// The SCSI host that it is on belongs to iSCSI.
        iscsi: bool,
    },
    /// A file system of that magic number, which holds a loop device's file.
    FileSystem(u64),
    /// A loop device's file or device, which cannot be seen from here.
    Hidden,
}

/// Whether a write to it waits for nobody but this host. A file that cannot be seen is no ordinary disk: it may be anywhere.
/// Disks of a storage network (Fibre Channel, FCoE, SRP) count as this host's: it is there for them alone, and what it carries
/// are most often the guests' own disks.
fn stands_here(base: &Base) -> bool {
    match base {
        Base::Disk { name, place, transports, iscsi } => {
            let session = |part: &str| part.strip_prefix("session").is_some_and(is_number);
            let by_session = place.iter().filter_map(|part| part.to_str()).any(session);
            let elsewhere = ELSEWHERE.iter().any(|driver| name.starts_with(driver));
            !(elsewhere || *iscsi || by_session) && transports.iter().all(|transport| transport == "pcie")
        }
        Base::FileSystem(kind) => is_local_kind(*kind),
        Base::Hidden => false,
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The kernel's own files.
pub(super) struct Kernel {
    sys: PathBuf,
    mounts: PathBuf,
}

impl Default for Kernel {
    fn default() -> Self {
        Self { sys: "/sys".into(), mounts: "/proc/self/mountinfo".into() }
    }
}

impl Kernel {
    /// Whether the file system of an opened folder stands on disks of this host, as far as the kernel tells.
    ///
    /// # Errors
    /// When the folder does not say what it is on.
    pub(super) fn stands_here(&self, folder: BorrowedFd<'_>) -> io::Result<bool> {
        let mut found = Vec::new();
        self.below(folder, DEEPEST, &mut found)?;
        Ok(found.iter().all(stands_here))
    }

    /// What is below the file system of an opened file or folder.
    fn below(&self, opened: BorrowedFd<'_>, deepest: usize, found: &mut Vec<Base>) -> io::Result<()> {
        let stat = rustix::fs::fstat(opened)?;
        if rustix::fs::major(stat.st_dev) != 0 {
            if let Ok(place) = self.place_of(stat.st_dev) {
                self.below_device(&place, deepest, found);
            }
            return Ok(());
        }
        // A number of its own, which no device has: btrfs, overlayfs, tmpfs. The mount tells what it is of.
        let status = rustix::fs::statx(opened, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
        let mounts = fs::read_to_string(&self.mounts).unwrap_or_default();
        let Some(mount) = mounts.lines().find_map(|line| Mount::parse(line, status.stx_mnt_id)) else { return Ok(()) };
        for source in mount.sources() {
            for place in self.places_of_source(Path::new(&source)) {
                self.below_device(&place, deepest, found);
            }
        }
        if let Some(upper) = mount.upper()
            && let Ok(upper) = open(Path::new(&upper))
            && deepest > 0
        {
            // In a container it is a folder of the host, which cannot be seen: then the kind of file system has to do.
            found.push(Base::FileSystem(kind(upper.as_fd())?));
            self.below(upper.as_fd(), deepest - 1, found)?;
        }
        Ok(())
    }

    /// What a loop device is over: a file, or another device, which stands where its disk does and not where its name does.
    fn below_loop(&self, over: &Path, deepest: usize, found: &mut Vec<Base>) -> io::Result<()> {
        let over = open(over)?;
        let stat = rustix::fs::fstat(&over)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice {
            self.below_device(&self.place_of(stat.st_rdev)?, deepest, found);
            return Ok(());
        }
        found.push(Base::FileSystem(kind(over.as_fd())?));
        self.below(over.as_fd(), deepest, found)
    }

    /// The folder of the block device of that number beneath /sys/devices.
    fn place_of(&self, number: Dev) -> io::Result<PathBuf> {
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        fs::canonicalize(self.sys.join(format!("dev/block/{major}:{minor}")))
    }

    /// What a block device, or a partition of one, is made of. `place`: its folder beneath /sys/devices.
    fn below_device(&self, place: &Path, deepest: usize, found: &mut Vec<Base>) {
        let Some(deeper) = deepest.checked_sub(1) else { return };
        let place = match place.parent() {
            Some(disk) if place.join("partition").exists() => disk,
            _ => place,
        };
        let slaves = linked(&place.join("slaves"));
        for slave in &slaves {
            self.below_device(slave, deeper, found);
        }
        if !slaves.is_empty() {
            return;
        }
        if let Ok(file) = fs::read_to_string(place.join("loop/backing_file")) {
            if self.below_loop(Path::new(file.trim_end_matches('\n')), deeper, found).is_err() {
                found.push(Base::Hidden);
            }
            return;
        }
        found.push(self.disk(place));
    }

    fn disk(&self, place: &Path) -> Base {
        let name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let hosts = place.iter().filter(|part| part.to_str().is_some_and(|part| part.starts_with("host")));
        let iscsi = hosts.into_iter().any(|host| self.sys.join("class/iscsi_host").join(host).exists());
        let transports = if name.starts_with("nvme") { transports(place) } else { Vec::new() };
        Base::Disk { name, place: place.to_owned(), transports, iscsi }
    }

    /// The devices of a mount's source: itself, and those that its btrfs has besides. In a container there is no such file in
    /// /dev, but the kernel knows the name.
    fn places_of_source(&self, source: &Path) -> Vec<PathBuf> {
        let Some(name) = source.file_name().filter(|_| source.is_absolute()) else { return Vec::new() };
        let number = rustix::fs::stat(source).ok().map(|stat| stat.st_rdev).filter(|number| *number != 0);
        let by_number = number.and_then(|number| self.place_of(number).ok());
        let class = self.sys.join("class/block");
        let by_name = || fs::canonicalize(class.join(name)).ok();
        let is_mapped = |place: &PathBuf| {
            fs::read_to_string(place.join("dm/name"))
                .is_ok_and(|mapped| Path::new(mapped.trim_end()) == Path::new(name))
        };
        let by_mapper = || linked(&class).into_iter().find(is_mapped);
        let Some(place) = by_number.or_else(by_name).or_else(by_mapper) else { return Vec::new() };
        let pools = fs::read_dir(self.sys.join("fs/btrfs")).into_iter().flatten().flatten();
        let mut pools = pools.map(|pool| linked(&pool.path().join("devices")));
        pools.find(|pool| pool.contains(&place)).unwrap_or_else(|| vec![place])
    }
}

/// How the controllers of an NVMe disk are reached: its own one is the folder around it; a disk with several paths stands in
/// its subsystem's folder, which leads to all of them.
fn transports(place: &Path) -> Vec<String> {
    let Some(around) = place.parent() else { return Vec::new() };
    let transport = |controller: &Path| fs::read_to_string(controller.join("transport")).ok();
    let all = transport(around).into_iter().chain(linked(around).into_iter().filter_map(|to| transport(&to)));
    all.map(|transport| transport.trim().to_owned()).collect()
}

/// Where the links in a folder lead. None where there is no such folder.
fn linked(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let links = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    links.filter_map(|link| fs::canonicalize(link.path()).ok()).collect()
}

fn open(path: &Path) -> io::Result<std::os::fd::OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// A line of mountinfo (proc(5)).
struct Mount {
    /// The kind of file system, such as `btrfs`.
    kind: String,
    source: String,
    options: String,
}

impl Mount {
    /// The line, if it is the mount of that number.
    fn parse(line: &str, number: u64) -> Option<Self> {
        let (place, what) = line.split_once(" - ")?;
        if place.split(' ').next()?.parse() != Ok(number) {
            return None;
        }
        let mut words = what.split(' ').map(plain);
        Some(Self { kind: words.next()?, source: words.next()?, options: words.next()? })
    }

    /// The devices that it names: bcachefs lists them all.
    fn sources(&self) -> Vec<String> {
        match self.kind.as_str() {
            "bcachefs" => self.source.split(':').map(str::to_owned).collect(),
            _ => vec![self.source.clone()],
        }
    }

    /// The folder to which an overlayfs writes.
    fn upper(&self) -> Option<String> {
        let mut options = self.options.split(',').filter(|_| self.kind == "overlay");
        options.find_map(|option| option.strip_prefix("upperdir=")).map(str::to_owned)
    }
}

/// A word of mountinfo as it was: blanks and the like stand there as octal numbers.
fn plain(word: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(word.to_owned(), |word, (written, meant)| word.replace(written, meant))
}

#[cfg(test)]
mod tests;
