//! Child processes that end with the process that started them, even when that one is killed with SIGKILL, and a
//! temporary folder that goes then too.
//!
//! Built on `child.rs`; what it adds is a log, a process group of its own, and a name for complaints.

use std::{
    ffi::OsStr,
    fmt, fs,
    io::{self, Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
};

use rustix::process::{Pid, Signal};

use crate::lab::child::Guarded;

/// A child process that leads its own process group, with its output in a file.
pub struct Process {
    name: String,
    child: Guarded,
    log: PathBuf,
}

impl Process {
    /// Starts `command` as `name`, with stdout and stderr in `folder/name.log` (appended: a restart keeps the past).
    pub fn start(name: &str, command: Command, folder: &Path) -> Process {
        let log = folder.join(format!("{name}.log"));
        let file = fs::OpenOptions::new().create(true).append(true).open(&log);
        let file = file.unwrap_or_else(|error| panic!("{} cannot be opened: {error}", log.display()));
        let program = command.get_program().to_str().expect("The program's path is UTF-8");
        let child = Guarded::start(program, |child| {
            child.args(command.get_args());
            for (key, value) in command.get_envs() {
                match value {
                    Some(value) => child.env(key, value),
                    None => child.env_remove(key),
                };
            }
            child.stdin(Stdio::null()).stdout(file.try_clone().expect("A descriptor can be copied")).stderr(file);
            // Its own group: a test kills the children of a role together with it, and Ctrl-C reaches only the test.
            child.process_group(0);
        });
        Process { name: name.to_owned(), child, log }
    }

    /// The process id.
    pub fn pid(&self) -> Pid {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("A child has a process id")
    }

    /// Sends `signal` to the process alone.
    pub fn signal(&self, signal: Signal) {
        self.child.signal(signal);
    }

    /// Kills the whole process group with SIGKILL and waits for the end.
    pub fn kill(&mut self) {
        // An error says that it has ended already.
        let _ = rustix::process::kill_process_group(self.pid(), Signal::KILL);
        self.child.kill();
    }

    /// True while it runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.is_alive()
    }

    /// The whole log.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The last 4 KiB of its log.
    pub fn log_tail(&self) -> String {
        let tail = || -> io::Result<Vec<u8>> {
            let mut file = fs::File::open(&self.log)?;
            file.seek(SeekFrom::Start(file.metadata()?.len().saturating_sub(4096)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        tail().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_else(|error| error.to_string())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name, self.child.id())
    }
}

const SWEEP: &str = r#"for _ in 1 2 3 4 5; do
    awk -v below="$1/" 'index($2, below) == 1 { print $2 }' /proc/self/mounts | xargs -r umount -l
    rm -rf "$1" && exit
    sleep 1
done"#;

/// A new temporary folder that is removed when this process has ended, however it ends. `DRIFTLINE_KEEP=1` keeps it
/// for a look at the logs.
pub fn folder_that_ends_with_us(prefix: &str) -> PathBuf {
    let folder = tempfile::Builder::new().prefix(&format!("{prefix}-")).tempdir().expect("A folder can be made").keep();
    if std::env::var_os("DRIFTLINE_KEEP").is_some() {
        eprintln!("{} is kept", folder.display());
        return folder;
    }
    // The others may still be writing while they die: so it tries a few times. What a test has mounted there goes first.
    when_we_end(SWEEP, [&folder]);
    folder
}

/// Runs a shell script with `args` when this process has ended, however it ends.
#[expect(clippy::zombie_processes, reason = "it waits for us, not we for it")]
pub fn when_we_end<S: AsRef<OsStr>>(script: &str, args: impl IntoIterator<Item = S>) {
    // `cat` ends when the other end of its pipe is closed, which the kernel does for a killed process too.
    let mut sweeper = Command::new("sh");
    sweeper.arg("-c").arg(format!("cat\n{script}")).arg("sh").args(args);
    sweeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let mut sweeper = sweeper.spawn().expect("A shell can be started");
    static PIPES: Mutex<Vec<std::process::ChildStdin>> = Mutex::new(Vec::new());
    PIPES.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend(sweeper.stdin.take());
}
