//! A folder behind a program of its own, as a network file system is behind a server: it can be slow, hang, die.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::Signal;

use super::child::{Guarded, wait_for};

/// A folder that is shown in the place of another one by `bindfs`; gone with its drop.
pub struct Behind {
    server: Guarded,
    at: PathBuf,
}

impl Behind {
    /// Puts `folder` behind a server, at its own path: what it holds moves beside it, to `<folder>.behind`. With a rate, so
    /// many bytes are written to it in a second.
    pub fn new(folder: &Path, rate: Option<u64>) -> Behind {
        let behind = folder.with_extension("behind");
        std::fs::rename(folder, &behind).expect("the folder can be moved");
        std::fs::create_dir(folder).expect("its place can be made");
        Behind::between(&behind, folder, rate)
    }

    /// Answers again after its end, as another one.
    pub fn revive(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
        self.server = serve(&self.at.with_extension("behind"), &self.at, None);
    }

    /// Shows what is in `behind` at `folder`.
    pub fn between(behind: &Path, folder: &Path, rate: Option<u64>) -> Behind {
        Behind { server: serve(behind, folder, rate), at: folder.to_owned() }
    }

    /// Nobody who asks it for anything gets an answer.
    pub fn hang(&self) {
        self.server.signal(Signal::STOP);
    }

    /// Answers again.
    pub fn go_on(&self) {
        self.server.signal(Signal::CONT);
    }

    /// Ends; whoever asks gets an error.
    pub fn kill(&mut self) {
        self.server.kill();
    }
}

fn serve(behind: &Path, folder: &Path, rate: Option<u64>) -> Guarded {
    let server = Guarded::start("bindfs", |command| {
        command.args(["-f", "--multithreaded"]);
        command.args(rate.map(|rate| format!("--write-rate={rate}")));
        command.arg(behind).arg(folder);
    });
    let mounted = format!(" {} ", folder.display());
    let shown = || std::fs::read_to_string("/proc/self/mounts").is_ok_and(|all| all.contains(&mounted));
    wait_for("the folder is mounted", Duration::from_secs(20), || shown().then_some(()));
    server
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.server.kill();
        // Lazily: a machine that the failed test still holds may have files open.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}
