//! A real Linux guest that writes to all of its disks with O_DIRECT until it is told to stop.
//!
//! Built once by `tiny-guest/build.sh` into the cache folder, keyed by the hash of the script and the writer.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use super::child::wait_for;

/// Where the guest's kernel and initrd are.
pub struct TinyGuest {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk: busybox and the writer.
    pub initrd: PathBuf,
}

impl TinyGuest {
    /// Builds it where it is not there yet (some 4 s, and a download of 30 MiB).
    pub fn build() -> TinyGuest {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/tiny-guest");
        let mut hash = blake3::Hasher::new();
        for name in ["build.sh", "writer.c"] {
            hash.update(&std::fs::read(source.join(name)).expect("the guest's sources are in the checkout"));
        }
        let folder = cache().join(format!("tiny-guest-{}", &hash.finalize().to_hex()[..16]));
        let output = Command::new("sh").arg(source.join("build.sh")).arg(&folder).output().expect("there is a shell");
        assert!(output.status.success(), "tiny-guest: {}", String::from_utf8_lossy(&output.stderr));
        TinyGuest { kernel: folder.join("vmlinuz"), initrd: folder.join("initrd.gz") }
    }
}

/// The folder for what is built once: `DRIFTLINE_CACHE`, or `driftline` in the user's cache.
pub fn cache() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("DRIFTLINE_CACHE").unwrap_or_else(|| {
        let user = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
        user.unwrap_or_else(std::env::temp_dir).join("driftline")
    })
}

/// What the writer said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriterState {
    /// Writes since boot.
    pub writes: u64,
    /// Writes and flushes that failed since boot: must stay 0, or a backup has harmed the guest.
    pub errors: u64,
    /// The slowest write since the last answer.
    pub slowest: Duration,
    /// Within which half of them were done.
    pub half: Duration,
    /// Within which 999 of 1000 were done.
    pub p999: Duration,
}

/// The guest's serial console, on which the writer takes its words.
pub struct Console {
    stream: UnixStream,
    text: Arc<(Mutex<String>, Condvar)>,
    read: Mutex<usize>,
}

impl Console {
    /// Connects as soon as the socket is there.
    pub(super) fn connect(socket: &Path) -> Console {
        let stream = wait_for("the guest's console", Duration::from_secs(20), || UnixStream::connect(socket).ok());
        let text = Arc::new((Mutex::new(String::new()), Condvar::new()));
        let (mut input, sink) = (stream.try_clone().expect("a socket can be doubled"), text.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(got @ 1..) = input.read(&mut buffer) {
                sink.0.lock().expect("no reader panics").push_str(&String::from_utf8_lossy(&buffer[..got]));
                sink.1.notify_all();
            }
        });
        Console { stream, text, read: Mutex::new(0) }
    }

    /// Waits until the guest is up and its writer ready, stopped.
    pub fn wait_until_up(&self) {
        self.answer("ready", Duration::from_secs(120));
    }

    /// Lets the writer go on.
    pub fn go(&self) -> WriterState {
        self.word("go", "going")
    }

    /// Lets the writer write about ten times a second.
    pub fn go_gently(&self) -> WriterState {
        self.word("gently", "going")
    }

    /// Stops the writer; when this returns, all disks are flushed and nothing is written until [`Console::go`].
    pub fn stop(&self) -> WriterState {
        self.word("stop", "stopped")
    }

    /// How the writer is.
    pub fn status(&self) -> WriterState {
        self.word("status", "status")
    }

    /// All that the guest has said.
    pub fn text(&self) -> String {
        self.text.0.lock().expect("no reader panics").clone()
    }

    fn word(&self, word: &str, expected: &str) -> WriterState {
        let mut stream = &self.stream;
        stream.write_all(format!("{word}\n").as_bytes()).expect("the guest's console takes words");
        self.answer(expected, Duration::from_secs(60))
    }

    fn answer(&self, expected: &str, deadline: Duration) -> WriterState {
        let end = Instant::now() + deadline;
        let mut read = self.read.lock().expect("one word at a time");
        let mut text = self.text.0.lock().expect("no reader panics");
        loop {
            let found = text[*read..].find(&format!("WRITER {expected} ")).map(|at| at + *read);
            if let Some((at, length)) = found.and_then(|at| Some((at, text[at..].find('\n')?))) {
                *read = at + length;
                return parse(text[at..at + length].trim());
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "The guest did not say {expected:?} within {deadline:?}; its console:\n{text}");
            text = self.text.1.wait_timeout(text, left).expect("no reader panics").0;
        }
    }
}

fn parse(line: &str) -> WriterState {
    let number = |key: &str| -> u64 {
        let value = line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("The writer said {line:?}, without {key}"))
    };
    WriterState {
        writes: number("writes"),
        errors: number("errors"),
        slowest: Duration::from_millis(number("maxlat_ms")),
        half: Duration::from_micros(number("p50_us")),
        p999: Duration::from_micros(number("p999_us")),
    }
}
