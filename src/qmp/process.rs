//! The process behind a monitor: its id and start time, so that "QEMU is gone" can be proven later, by an agent that
//! was itself restarted in between. A refused connection proves nothing. Reads `/proc`.

use std::{
    fs,
    io::Read,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use serde::{Deserialize, Serialize};

/// Bytes of the longest command line that is read. libvirt's are some 10 KiB.
const MAX_COMMAND_LINE: u64 = 256 << 10;

/// How often a file that changes is read again before it is given up.
const READINGS: usize = 5;

/// One process of one boot of this host; never mistaken for a later one that got the same id.
///
/// Who listens on a monitor's socket is QEMU itself, unless QEMU inherited the socket, as under libvirt, or somebody stands
/// between: see `is_qemu`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// The process id, as this process' PID namespace has it.
    pub pid: i32,
    /// Start time in clock ticks since boot (`/proc/<pid>/stat`, field 22).
    pub start_ticks: u64,
    /// The host's boot (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
}

/// The file that a process runs, also when another one has its name by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) bytes: u64,
    /// Nanoseconds.
    pub(super) modified: i128,
    /// Nanoseconds.
    pub(super) changed: i128,
}

impl std::fmt::Display for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { device, inode, bytes, modified, changed } = self;
        write!(f, "{device} {inode} {bytes} {modified} {changed}")
    }
}

/// Whose files a process's paths name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// This host's.
    Host,
    /// Its own: it runs in a container.
    Own,
    /// That cannot be seen. Nothing may be opened by its paths, for they may be those of another file system.
    Unknown,
}

impl Process {
    /// The living process `pid`; `None` when it cannot be seen.
    pub fn of(pid: i32) -> Option<Process> {
        let stat = Stat::read(pid)?;
        Some(Process { pid, start_ticks: stat.start_ticks, boot_id: boot_id()? })
    }

    /// False when the process has ended for certain. A zombie has ended, unless threads of it are left: one that hangs
    /// in the kernel may still write.
    pub fn is_alive(&self) -> bool {
        if boot_id().is_some_and(|now| now != self.boot_id) {
            return false;
        }
        match Stat::read(self.pid) {
            None => fs::exists(format!("/proc/{}", self.pid)).unwrap_or(true),
            Some(stat) if stat.start_ticks != self.start_ticks => false,
            Some(stat) => !stat.is_dead() || threads(self.pid) > 1,
        }
    }

    /// Whether it is QEMU, by the name that it was started under. The listener of a monitor may be another one: libvirt's
    /// daemon, a launcher, a proxy. Their end says nothing of QEMU's.
    pub fn is_qemu(&self) -> bool {
        // The short name first: it is read without the process's memory, which one that hangs in the kernel may hold.
        let short = fs::read_to_string(format!("/proc/{}/comm", self.pid)).unwrap_or_default();
        is_qemus_name(short.trim_end()) || self.program().is_some_and(|program| is_qemus_name(&program))
    }

    /// Whose files its paths name.
    ///
    /// By the root directory, not by the mount namespace: libvirt gives its machines one of their own with the same files.
    pub fn file_system(&self) -> FileSystem {
        let root = |pid: &str| {
            let meta = fs::metadata(format!("/proc/{pid}/root/.")).ok()?;
            Some((meta.dev(), meta.ino()))
        };
        let own = root(&self.pid.to_string());
        // An agent in a pod is not on the host's root either, but is given the host's folders at their own paths.
        match own {
            None => FileSystem::Unknown,
            own if [root("self"), root("1")].contains(&own) => FileSystem::Host,
            Some(_) => FileSystem::Own,
        }
    }

    /// The file that it runs; none where that cannot be seen.
    pub fn executable(&self) -> Option<Program> {
        let file = fs::metadata(format!("/proc/{}/exe", self.pid)).ok()?;
        let time = |seconds: i64, nanoseconds: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        Some(Program {
            device: file.dev(),
            inode: file.ino(),
            bytes: file.size(),
            modified: time(file.mtime(), file.mtime_nsec()),
            changed: time(file.ctime(), file.ctime_nsec()),
        })
    }

    /// The last part of the name that it was started under.
    fn program(&self) -> Option<String> {
        let mut start = Vec::new();
        fs::File::open(format!("/proc/{}/cmdline", self.pid)).ok()?.take(4096).read_to_end(&mut start).ok()?;
        let name = start.split(|byte| *byte == 0).next()?.rsplit(|byte| *byte == b'/').next()?;
        Some(String::from_utf8_lossy(name).into_owned())
    }

    /// What is in a regular file that the process has open, at most `limit` bytes. None when it has no such file open for
    /// reading, or when the file is larger, cannot be read, or changes as fast as it is read.
    ///
    /// By the process's own descriptor and with its access: the name alone is what QEMU says, and could be that of any file
    /// of the host. Opening `/proc/PID/fd/N` would open the file anew with the reader's rights, also where the process may
    /// not read it (`O_PATH`).
    pub fn read_open_file(&self, name: &Path, limit: u64) -> Option<Vec<u8>> {
        // A relative name is one of the process.
        let meant = fs::metadata(Path::new("/proc").join(self.pid.to_string()).join("cwd").join(name)).ok()?;
        let same = |other: &fs::Metadata| (other.dev(), other.ino()) == (meant.dev(), meant.ino());
        let folder = fs::read_dir(format!("/proc/{}/fd", self.pid)).ok()?;
        let links = folder.flatten().filter(|entry| fs::metadata(entry.path()).is_ok_and(|found| same(&found)));
        let numbers = links.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let process = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // The id could have become another process's before.
        if !self.is_alive() {
            return None;
        }
        numbers.into_iter().find_map(|number: i32| {
            let file = fs::File::from(pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()?);
            let found = file.metadata().ok()?;
            if !found.is_file() || !same(&found) || found.len() > limit {
                return None;
            }
            read_settled(&file, usize::try_from(found.len()).ok()?)
        })
    }

    /// The arguments that QEMU was started with, its own name first. None when they cannot be read, are none of UTF-8 or
    /// longer than any machine needs, or when the process is not QEMU: under libvirt its daemon holds the socket.
    pub fn command_line(&self) -> Option<Vec<String>> {
        let file = fs::File::open(format!("/proc/{}/cmdline", self.pid)).ok()?;
        let mut text = String::new();
        file.take(MAX_COMMAND_LINE + 1).read_to_string(&mut text).ok()?;
        // Looked at after the reading: the id could have become another process's before.
        // The kernel gives an empty text for a process that is in the middle of its start, or has ended but for a thread.
        if text.is_empty() || text.len() as u64 > MAX_COMMAND_LINE || !self.is_alive() {
            return None;
        }
        let arguments: Vec<_> = text.strip_suffix('\0').unwrap_or(&text).split('\0').map(str::to_owned).collect();
        self.is_qemu().then_some(arguments)
    }
}

/// Not libvirt's `virtqemud`.
fn is_qemus_name(name: &str) -> bool {
    name.starts_with("qemu") || name == "kvm"
}

/// The whole file, once two readings are equal. The descriptor's position is the process's too, and stays.
fn read_settled(file: &fs::File, length: usize) -> Option<Vec<u8>> {
    let read = || {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0).ok().map(|()| bytes)
    };
    let mut last = read()?;
    for _ in 0..READINGS {
        let now = read()?;
        if now == last {
            return Some(now);
        }
        last = now;
    }
    None
}

fn boot_id() -> Option<String> {
    Some(fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
}

fn threads(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

struct Stat {
    state: char,
    start_ticks: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Stat> {
        // The name in parentheses may hold anything, parentheses and blanks too: the fields start behind the last one.
        Stat::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Stat> {
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let start_ticks = fields.nth(18)?.parse().ok()?;
        Some(Stat { state, start_ticks })
    }

    fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_another_start_time_does_not() {
        let me = Process::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.is_alive() && me.file_system() == FileSystem::Host);
        assert!(!Process { start_ticks: me.start_ticks + 1, ..me.clone() }.is_alive());
        assert!(!Process { boot_id: "another".to_owned(), ..me }.is_alive());
    }

    #[test]
    fn a_process_that_was_killed_and_not_yet_reaped_is_dead() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(process.is_alive());
        child.kill().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while process.is_alive() {
            assert!(std::time::Instant::now() < deadline, "a killed process still counts as alive");
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!process.is_alive());
    }

    #[test]
    fn a_file_is_read_only_where_the_process_has_it_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("vars");
        fs::write(&path, "variables").unwrap();
        let me = Process::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(me.read_open_file(&path, 64), None);
        let flags = rustix::fs::OFlags::PATH;
        let _seen = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap();
        let _written = fs::File::options().append(true).open(&path).unwrap();
        assert_eq!(me.read_open_file(&path, 64), None, "it may not read it");
        let _open = fs::File::open(&path).unwrap();
        for name in [&path, &link] {
            assert_eq!(me.read_open_file(name, 64).unwrap(), b"variables");
        }
        assert_eq!(me.read_open_file(&path, 8), None);
        assert_eq!(me.read_open_file(Path::new("/etc/passwd"), 1 << 20), None);
    }

    #[test]
    fn only_a_qemu_has_a_command_line_of_a_machine() {
        let me = Process::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert_eq!(me.command_line(), None);
        let mut child = std::process::Command::new("sleep");
        let child = std::os::unix::process::CommandExt::arg0(&mut child, "/usr/bin/qemu-system-x86_64").arg("60");
        let mut child = child.spawn().unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();
        // For a moment after its start a process has this test's name or no arguments.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let line = loop {
            match process.command_line() {
                None if std::time::Instant::now() < deadline => std::thread::yield_now(),
                line => break line,
            }
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(line.unwrap(), ["/usr/bin/qemu-system-x86_64", "60"]);
        assert_eq!(process.command_line(), None);
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let text = "12 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 424242 20 21";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.start_ticks), ('S', 424_242));
    }
}
