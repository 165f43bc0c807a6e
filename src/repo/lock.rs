//! Who may write to a guest's folder: one holder at a time, across hosts, without `flock` (network file systems lose
//! those). A lease is a file with holder, token and counter; the holder raises the counter while it lives. It is taken
//! over only after the counter stood still for expiry plus margin on the observer's own clock, or at once where the
//! holder was a process of this very boot and host that is provably gone. The token is looked at again before each
//! rename that counts.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{RepoError, layout, store::Folder};
use crate::ids::GuestId;

/// How often a lease is renewed, and how long it outlives its last renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTimes {
    /// Between two renewals.
    pub renew: Duration,
    /// How long the counter must stand still before another may take over, the margin included.
    pub expiry: Duration,
}

impl Default for LeaseTimes {
    fn default() -> Self {
        Self { renew: Duration::from_secs(2), expiry: Duration::from_secs(15) }
    }
}

/// What stands in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    /// For people.
    holder: String,
    /// New for each lease.
    token: String,
    /// Raised with each renewal.
    counter: u64,
    /// The process that holds it.
    process: ProcessMark,
}

/// A process, so that its death can be proven on the same boot of the same host and in the same process namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProcessMark {
    boot: String,
    namespace: String,
    pid: u32,
    start: String,
}

impl ProcessMark {
    fn own() -> Self {
        let pid = std::process::id();
        Self { boot: boot(), namespace: namespace(), pid, start: start(pid).unwrap_or_default() }
    }

    /// True when the process was seen to be gone. False means "do not know".
    fn is_gone(&self) -> bool {
        if self.boot.is_empty() || self.namespace.is_empty() || self.start.is_empty() {
            return false;
        }
        self.boot == boot() && self.namespace == namespace() && start(self.pid).is_none_or(|start| start != self.start)
    }
}

fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn namespace() -> String {
    std::fs::read_link("/proc/self/ns/pid").map(|link| link.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Start time of a process in ticks since boot, the 22nd field of its stat file (proc(5)); None where it is gone.
fn start(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
}

/// The right to write to one guest's folder, renewed by a thread, given back when dropped.
pub struct Lease {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

/// What the lease and those who look at its token share.
pub(super) struct Inner {
    guest: GuestId,
    folder: Folder,
    record: Mutex<Record>,
    lost: AtomicBool,
    stop: Mutex<bool>,
    stopped: Condvar,
}

impl Lease {
    /// Takes the lease of `guest`, whose folder is `folder`; waits as long as it takes to see whether a holder lives.
    pub(super) fn take(folder: Folder, guest: &GuestId, holder: &str, times: LeaseTimes) -> Result<Self, RepoError> {
        let token = format!("{:032x}", rand::random::<u128>());
        let record =
            Record { holder: holder.to_owned(), token: token.clone(), counter: 0, process: ProcessMark::own() };
        let aside = format!("{}{token}", layout::LEASE_ASIDE);
        loop {
            folder.prepare(&aside, &encode(&record))?;
            match folder.publish(&aside, layout::LEASE) {
                Ok(true) => break,
                Ok(false) => {}
                // Whoever got the lease meanwhile cleared our file away with the leftovers.
                Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
            folder.remove(&aside)?;
            expire(&folder, guest, times)?;
        }
        let inner = Arc::new(Inner {
            guest: guest.clone(),
            folder,
            record: Mutex::new(record),
            lost: AtomicBool::new(false),
            stop: Mutex::new(false),
            stopped: Condvar::new(),
        });
        inner.check()?;
        inner.clear_leftovers()?;
        let renewed = Arc::clone(&inner);
        let thread = std::thread::Builder::new()
            .name("lease".into())
            .spawn(move || {
                renewed.renew_until_stopped(times);
                renewed.give_back();
            })
            .map_err(|source| inner.folder.error(super::store::Act::Write, layout::LEASE, source))?;
        Ok(Self { inner, thread: Some(thread) })
    }

    /// Fails unless the lease is still ours.
    ///
    /// # Errors
    /// `LeaseLost` when another has it, or when the file cannot be read.
    pub fn check(&self) -> Result<(), RepoError> {
        self.inner.check()
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        *held(&self.inner.stop) = true;
        self.inner.stopped.notify_all();
        if let Some(thread) = self.thread.take() {
            // The thread gives the lease back: whatever goes wrong with that, a drop must not panic. A panic there has
            // been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Inner {
    /// Fails unless the file still holds our token.
    pub(super) fn check(&self) -> Result<(), RepoError> {
        let lost = || RepoError::LeaseLost { guest: self.guest.clone() };
        if self.lost.load(Ordering::Acquire) {
            return Err(lost());
        }
        match read(&self.folder)? {
            Some(record) if record.token == held(&self.record).token => Ok(()),
            _ => {
                self.lost.store(true, Ordering::Release);
                Err(lost())
            }
        }
    }

    /// Removes what dead contenders left.
    fn clear_leftovers(&self) -> Result<(), RepoError> {
        for name in self.folder.entries()? {
            if let Some(name) = name.to_str().filter(|name| name.starts_with(layout::LEASE_ASIDE)) {
                self.folder.remove(name)?;
            }
        }
        Ok(())
    }

    fn renew_until_stopped(&self, times: LeaseTimes) {
        let mut stop = held(&self.stop);
        while !*stop && !self.lost.load(Ordering::Acquire) {
            let (next, timeout) = self.stopped.wait_timeout(stop, times.renew).unwrap_or_else(PoisonError::into_inner);
            stop = next;
            if timeout.timed_out()
                && let Err(error) = self.renew()
            {
                tracing::warn!(guest = %self.guest, reason = error.reason(), "The writer lease could not be renewed: {error}");
            }
        }
    }

    fn give_back(&self) {
        if self.check().is_ok()
            && let Err(error) = self.folder.remove(layout::LEASE)
        {
            tracing::warn!(guest = %self.guest, "The writer lease is not given back and has to expire: {error}");
        }
    }

    /// Raises the counter: a whole new file over the old one, after a look at the token.
    fn renew(&self) -> Result<(), RepoError> {
        self.check()?;
        let mut record = held(&self.record);
        let next = Record { counter: record.counter + 1, ..record.clone() };
        let aside = format!("{}{}", layout::LEASE_ASIDE, record.token);
        self.folder.prepare(&aside, &encode(&next))?;
        self.folder.replace(&aside, layout::LEASE)?;
        *record = next;
        Ok(())
    }
}

/// Waits until the lease in the folder is free or was seen to stand still, and puts a dead one aside.
///
/// # Errors
/// `LeaseHeld` as soon as its counter moves.
fn expire(folder: &Folder, guest: &GuestId, times: LeaseTimes) -> Result<(), RepoError> {
    let Some(first) = read(folder)? else { return Ok(()) };
    let since = Instant::now();
    while !first.process.is_gone() && since.elapsed() < times.expiry {
        std::thread::sleep(
            times.renew.min(times.expiry.saturating_sub(since.elapsed())).min(Duration::from_millis(250)),
        );
        match read(folder)? {
            None => return Ok(()),
            Some(record) if record == first => {}
            Some(record) => return Err(RepoError::LeaseHeld { guest: guest.clone(), holder: record.holder }),
        }
    }
    if read(folder)?.is_none_or(|record| record != first) {
        return Ok(());
    }
    // The rename takes whatever stands there: should another observer have been quicker, its new lease is put back.
    let aside = format!("{}{:032x}", layout::LEASE_ASIDE, rand::random::<u128>());
    match folder.replace(layout::LEASE, &aside) {
        Ok(()) => {}
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    if read_from(folder, &aside)?.is_some_and(|record| record != first) {
        folder.publish(&aside, layout::LEASE)?;
    }
    folder.remove(&aside)?;
    Ok(())
}

fn read(folder: &Folder) -> Result<Option<Record>, RepoError> {
    read_from(folder, layout::LEASE)
}

fn read_from(folder: &Folder, name: &str) -> Result<Option<Record>, RepoError> {
    let Some(bytes) = folder.read(name, 4096)? else { return Ok(None) };
    // One that cannot be read stands still as well: it is taken over like a dead one.
    Ok(Some(serde_json::from_slice(&bytes).unwrap_or_else(|_| Record {
        holder: "somebody whose lease cannot be read".into(),
        token: blake3::hash(&bytes).to_hex().to_string(),
        counter: 0,
        process: ProcessMark::default(),
    })))
}

fn encode(record: &Record) -> Vec<u8> {
    // The record holds texts and numbers only: this cannot fail.
    serde_json::to_vec(record).unwrap_or_default()
}

/// What a panicking thread left behind is still right: each critical section changes one value at once.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
