//! How a child that reads foreign images is started and followed: another user where one is configured, no new
//! privileges, no core files, bounded memory and files, dead with the thread that follows it. Its only files are the
//! descriptors that it is given. The one place with `unsafe`: what has to be done between fork and exec.

use std::{
    ffi::OsStr,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Resource, Rlimit, Signal},
};

use super::FileOwner;

/// Address space of one child, in bytes: far above what `qemu-img check` needs for an image of 16 TiB.
const MEMORY: u64 = 8 << 30;
/// What is kept of a child's output, in bytes.
const OUTPUT: usize = 64 * 1024;

/// Starts `program` with `files` open under the numbers that they have here.
pub(super) fn start(
    program: &Path,
    owner: Option<FileOwner>,
    args: &[impl AsRef<OsStr>],
    files: &[BorrowedFd<'_>],
) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.args(args).current_dir("/").env_clear().env("LC_ALL", "C");
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // What a terminal says to all that run in it is for us: we end the child, and say why.
    command.process_group(0);
    if let Some(owner) = owner
        && rustix::process::geteuid().is_root()
    {
        // The standard library drops the supplementary groups with the user.
        command.uid(owner.uid).gid(owner.gid);
    }
    let parent = rustix::process::getpid();
    let files: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    confine(&mut command, parent, files);
    command.spawn()
}

#[allow(unsafe_code, reason = "pre_exec is the only hook between fork and exec; the closure only makes system calls")]
fn confine(command: &mut Command, parent: rustix::process::Pid, files: Vec<RawFd>) {
    let before_exec = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(parent) {
            // The parent died before the signal was asked for.
            return Err(rustix::io::Errno::SRCH.into());
        }
        rustix::thread::set_no_new_privs(true)?;
        for (resource, limit) in [(Resource::Core, 0), (Resource::As, MEMORY), (Resource::Nofile, 1024)] {
            rustix::process::setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })?;
        }
        for &file in &files {
            // SAFETY: the caller holds the descriptors while it spawns; the child has the same numbers.
            let file = unsafe { BorrowedFd::borrow_raw(file) };
            rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(before_exec) };
}

/// How a child ended.
pub(super) struct Ended {
    /// None: killed because the caller gave it up.
    pub(super) status: Option<ExitStatus>,
    /// The first part of its output.
    pub(super) stdout: Vec<u8>,
    /// The first part of its complaints.
    pub(super) stderr: Vec<u8>,
}

/// A child that is killed and reaped when nobody follows it any longer.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Either call fails only where the child has ended and was reaped.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads a child's output until it ends, or kills it as soon as `give_up` says so (asked ten times a second).
/// Must run on the thread that started it: the child dies with that thread.
pub(super) fn follow(child: Child, output: &mut dyn FnMut(&[u8]), give_up: &dyn Fn() -> bool) -> io::Result<Ended> {
    let mut child = Guard(child);
    let (mut stdout, mut stderr) = (child.0.stdout.take(), child.0.stderr.take());
    let mut ended = Ended { status: None, stdout: Vec::new(), stderr: Vec::new() };
    while stdout.is_some() || stderr.is_some() {
        if give_up() {
            return Ok(ended);
        }
        let ready = poll(stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd))?;
        if ready.0 {
            take(&mut stdout, &mut ended.stdout, output)?;
        }
        if ready.1 {
            take(&mut stderr, &mut ended.stderr, &mut |_| ())?;
        }
    }
    ended.status = Some(child.0.wait()?);
    Ok(ended)
}

fn poll(stdout: Option<BorrowedFd<'_>>, stderr: Option<BorrowedFd<'_>>) -> io::Result<(bool, bool)> {
    let mut fds: Vec<_> =
        [stdout, stderr].into_iter().flatten().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    let timeout = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    match rustix::event::poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
    let first = stdout.is_some() && ready.next().unwrap_or(false);
    let second = stderr.is_some() && ready.next().unwrap_or(false);
    Ok((first, second))
}

/// Takes what a pipe has; closes it at its end.
fn take<P: Read>(pipe: &mut Option<P>, kept: &mut Vec<u8>, output: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = [0; 4096];
    let Some(open) = pipe else { return Ok(()) };
    let count = match open.read(&mut buffer) {
        Ok(count) => count,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
        Err(error) => return Err(error),
    };
    if count == 0 {
        *pipe = None;
        return Ok(());
    }
    output(&buffer[..count]);
    let room = OUTPUT.saturating_sub(kept.len()).min(count);
    kept.extend_from_slice(&buffer[..room]);
    Ok(())
}
