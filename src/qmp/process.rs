//! The process behind a monitor: its id and start time, so that "QEMU is gone" can be proven later, by an agent that
//! was itself restarted in between. A refused connection proves nothing. Reads `/proc`.

use std::fs;

use serde::{Deserialize, Serialize};

/// One process of one boot of this host; never mistaken for a later one that got the same id.
///
/// It is the process that listens on the socket. That is QEMU itself, unless QEMU inherited the socket: under libvirt
/// it is libvirt's daemon, and this says nothing of QEMU's life.
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
        assert!(me.is_alive());
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
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let text = "12 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 424242 20 21";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.start_ticks), ('S', 424_242));
    }
}
