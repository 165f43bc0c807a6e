//! Network namespaces: each thread has one, and hands it on to the threads and the children that it starts.

use std::{fs::File, io::Read, os::unix::fs::MetadataExt, process::Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::child::Guarded;

/// A network namespace. It goes when nobody is in it and nobody has this.
#[derive(Debug)]
pub struct Netns(File);

impl Netns {
    /// The one that the calling thread is in.
    pub fn current() -> Netns {
        Netns(File::open("/proc/thread-self/ns/net").expect("A thread has a network namespace"))
    }

    /// A new one, in which `lo` is up. Needs root's rights.
    pub fn new() -> Netns {
        let mut holder = Guarded::start("unshare", |command| {
            command.args(["--net", "--", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"]);
            command.stdin(Stdio::null()).stdout(Stdio::piped());
        });
        let mut stdout = holder.inner().stdout.take().expect("It is piped");
        stdout.read_exact(&mut [0; 3]).expect("A network namespace can be made with the rights of root");
        Netns(File::open(format!("/proc/{}/ns/net", holder.id())).expect("It is held until we have it"))
    }

    /// Puts the calling thread into it until the guard is dropped.
    pub fn enter(&self) -> Inside {
        let before = Netns::current();
        self.move_thread();
        Inside(before)
    }

    /// Puts the calling thread into it for good. Where it is there already, that needs no rights.
    pub fn move_thread(&self) {
        if self.id() != Netns::current().id() {
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&self.0), Some(LinkNameSpaceType::Network))
                .expect("A thread can change its network with the rights of root");
        }
    }

    fn id(&self) -> (u64, u64) {
        let metadata = self.0.metadata().expect("A namespace is a file");
        (metadata.dev(), metadata.ino())
    }
}

/// A thread that is in another network namespace than before. Dropped by that thread, it is back.
#[derive(Debug)]
pub struct Inside(Netns);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.move_thread();
    }
}
