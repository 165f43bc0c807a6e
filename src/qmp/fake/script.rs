//! What a test says of a scripted QEMU: how it starts, how its jobs end, what goes wrong and when.

use std::{io, path::PathBuf, time::Duration};

use serde_json::Value;

use super::{FakeDisk, FakeQemu};

/// What a scripted QEMU is started with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The socket that is made.
    pub socket: PathBuf,
    /// The machine's UUID.
    pub uuid: String,
    /// The machine's name.
    pub name: Option<String>,
    /// Major, minor, micro.
    pub version: (u32, u32, u32),
    /// Such as `running`, `paused`, `prelaunch`.
    pub status: String,
    /// Its disks.
    pub disks: Vec<FakeDisk>,
    /// How its jobs end.
    pub pace: Pace,
}

impl Setup {
    /// A running QEMU 7.2.22 with no disks, whose jobs run until the test ends them.
    pub fn new(socket: impl Into<PathBuf>) -> Setup {
        Setup {
            socket: socket.into(),
            uuid: "9f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10".to_owned(),
            name: Some("fake".to_owned()),
            version: (7, 2, 22),
            status: "running".to_owned(),
            disks: Vec::new(),
            pace: Pace::Manual,
        }
    }

    /// With one more disk.
    pub fn disk(mut self, disk: FakeDisk) -> Setup {
        self.disks.push(disk);
        self
    }

    /// With jobs that end like this.
    pub fn pace(mut self, pace: Pace) -> Setup {
        self.pace = pace;
        self
    }

    /// Of another version.
    pub fn version(mut self, major: u32, minor: u32) -> Setup {
        self.version = (major, minor, 0);
        self
    }

    /// With another UUID.
    pub fn uuid(mut self, uuid: &str) -> Setup {
        uuid.clone_into(&mut self.uuid);
        self
    }

    /// Makes the socket and serves it.
    pub fn start(self) -> io::Result<FakeQemu> {
        FakeQemu::start(self)
    }
}

/// How jobs end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// By the test's word.
    Manual,
    /// By themselves, right behind the reply that started them.
    AtOnce,
    /// By themselves, this long after it.
    After(Duration),
}

/// What goes wrong with one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It is done, and never answered.
    DropReply,
    /// It is done, and answered only after this long; nothing else is answered meanwhile.
    DelayReply(Duration),
    /// The connection ends and it is not done.
    CutBefore,
    /// It is done and the connection ends without an answer.
    CutAfter,
    /// QEMU is killed and it is not done.
    KillBefore,
    /// It is done and QEMU is killed without an answer.
    KillAfter,
    /// It is refused.
    Refuse {
        /// QEMU's error class.
        class: String,
        /// QEMU's words.
        description: String,
    },
    /// QEMU's main loop hangs from here on: no answer to anything, until it is killed.
    Hang,
}

/// Which command it goes wrong with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum When {
    /// The n-th of all, from 1, as `log` counts them.
    Nth(usize),
    /// The n-th of this name, from 1.
    NthOf(&'static str, usize),
    /// Each of this name.
    Every(&'static str),
}

/// A command that came in.
#[derive(Debug, Clone, PartialEq)]
pub struct Logged {
    /// Which connection it came by, from 1.
    pub connection: usize,
    /// Its name.
    pub command: String,
    /// Its arguments.
    pub arguments: Value,
    /// True when it was done, false when it was refused or a fault came first.
    pub done: bool,
}
