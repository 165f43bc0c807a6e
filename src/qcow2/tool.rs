//! The one door to `qemu-img`: what it is asked, and how its answers are read. May start processes, and nothing else.
//!
//! Images go in as descriptors, named `/proc/self/fd/N` in the child, with explicit drivers and `"backing": null`
//! below the last link: no name from an image's header is opened. The child is confined (`confine`).

mod confine;

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use serde::Deserialize;

use super::CLUSTER;
use crate::retry::Retry;

/// Who owns the files of a repository; `qemu-img` runs as it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileOwner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// How `qemu-img` is run.
#[derive(Debug, Clone)]
pub struct QemuImg {
    /// The program: a path, or a name that is looked up in `PATH`.
    pub program: PathBuf,
    /// As whom. Without one, or where this process is not root, as this process's own user.
    pub owner: Option<FileOwner>,
}

/// Format of a restored image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// qcow2, version 3, clusters of 64 KiB.
    Qcow2,
    /// The bytes of the disk, with holes where it is zero.
    Raw,
}

impl Format {
    /// The name of QEMU's driver.
    pub fn driver(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// What `qemu-img check` found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Checked {
    /// Errors that may have damaged data.
    pub corruptions: u64,
    /// Clusters that are lost to the file, but to nobody's data.
    pub leaks: u64,
    /// Errors of the check itself.
    pub check_errors: u64,
}

/// Why `qemu-img` did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It could not be started or confined.
    #[error("Cannot start {program}")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Its output could not be read.
    #[error("Cannot follow qemu-img {command}")]
    Follow {
        /// Which of its commands.
        command: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It ended without success.
    #[error("Command qemu-img {command} failed ({status}): {stderr}")]
    Failed {
        /// Which of its commands.
        command: &'static str,
        /// How it ended.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// It answered something that is no answer.
    #[error("Command qemu-img {command} gave an answer that cannot be read")]
    Malformed {
        /// Which of its commands.
        command: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It was ended at our own word.
    #[error("Command qemu-img {command} was cancelled")]
    Cancelled {
        /// Which of its commands.
        command: &'static str,
    },
}

/// What `qemu-img` says of an image whose first bytes are not qcow2's (`block/qcow2.c`; measured on QEMU 7.2).
const NOT_QCOW2: &str = "not in qcow2 format";

impl ToolError {
    /// Reason word for conditions, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Start { .. } => "QemuImgNotStarted",
            Self::Follow { .. } | Self::Failed { .. } | Self::Malformed { .. } => "QemuImgFailed",
            Self::Cancelled { .. } => "Cancelled",
        }
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Start { .. } | Self::Cancelled { .. } => Retry::OnChange,
            Self::Failed { stderr, .. } if stderr.contains(NOT_QCOW2) => Retry::OnChange,
            Self::Follow { .. } | Self::Failed { .. } | Self::Malformed { .. } => Retry::Backoff,
        }
    }
}

/// Never set: for what is not cancelled.
static NEVER: AtomicBool = AtomicBool::new(false);

impl QemuImg {
    /// `program`, run as `owner` where this process may change its user.
    pub fn new(program: impl Into<PathBuf>, owner: Option<FileOwner>) -> Self {
        Self { program: program.into(), owner }
    }

    /// Makes an empty image of `virtual_size` bytes in `file`: qcow2 in the shape in which points are stored, or raw
    /// by length alone.
    ///
    /// # Errors
    /// When `qemu-img` fails, or the length cannot be set.
    pub fn create(&self, file: BorrowedFd<'_>, format: Format, virtual_size: u64) -> Result<(), ToolError> {
        match format {
            Format::Raw => rustix::fs::ftruncate(file, virtual_size)
                .map_err(|errno| ToolError::Follow { command: "create", source: errno.into() }),
            Format::Qcow2 => self.create_stored(file, virtual_size, None),
        }
    }

    /// Makes an empty qcow2 image in the shape in which points are stored. `backing` becomes the name of its backing file,
    /// a qcow2; it is not looked at.
    ///
    /// # Errors
    /// When `qemu-img` fails.
    pub fn create_stored(
        &self,
        file: BorrowedFd<'_>,
        virtual_size: u64,
        backing: Option<&str>,
    ) -> Result<(), ToolError> {
        let options = format!("cluster_size={CLUSTER},compat=1.1,lazy_refcounts=off,preallocation=off");
        let path = path_of(file);
        let size = virtual_size.to_string();
        let backing = backing.map(|name| ["-u", "-F", "qcow2", "-b", name]);
        let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &options];
        args.extend(backing.iter().flatten());
        args.extend([path.as_str(), &size]);
        self.run("create", &args, &[file], &NEVER, &mut |_| ()).map(drop)
    }

    /// Checks the tables of a qcow2 image, without its parents, and changes nothing.
    ///
    /// # Errors
    /// When `qemu-img` cannot do the check. Damage is no error.
    pub fn check(&self, file: BorrowedFd<'_>, cancel: &AtomicBool) -> Result<Checked, ToolError> {
        let image = graph(&[file]);
        let args = ["check", "--output=json", &image];
        // 2: corruption, 3: leaks (qemu-img(1)).
        let output = self.run_accepting("check", &args, &[file], cancel, &mut |_| (), &[0, 2, 3])?;
        serde_json::from_slice(&output).map_err(|source| ToolError::Malformed { command: "check", source })
    }

    /// Writes what the chain reads as into `target`, an empty image made by `create`. `chain` holds qcow2 images, the
    /// point itself first, the full last. `progress` gets fractions of 1.
    ///
    /// # Errors
    /// When `qemu-img` fails or is cancelled.
    pub fn convert(
        &self,
        chain: &[BorrowedFd<'_>],
        target: BorrowedFd<'_>,
        format: Format,
        progress: &mut dyn FnMut(f64),
        cancel: &AtomicBool,
    ) -> Result<(), ToolError> {
        let source = graph(chain);
        let driver = format.driver();
        let target_options = format!("driver={driver},file.driver=file,file.filename={}", path_of(target));
        let args = ["convert", "-p", "-n", "--target-is-zero", "--target-image-opts", &source, &target_options];
        let files: Vec<_> = chain.iter().copied().chain([target]).collect();
        let mut line = Vec::new();
        let mut read = |bytes: &[u8]| {
            for &byte in bytes {
                match byte {
                    b'\r' | b'\n' => line.clear(),
                    b'/' => line.iter().position(|&b| b == b'(').map_or((), |open| {
                        let text = String::from_utf8_lossy(&line[open + 1..]);
                        if let Ok(percent) = text.trim().parse::<f64>() {
                            progress((percent / 100.0).clamp(0.0, 1.0));
                        }
                    }),
                    other => line.push(other),
                }
            }
        };
        self.run("convert", &args, &files, cancel, &mut read).map(drop)
    }

    fn run(
        &self,
        command: &'static str,
        args: &[&str],
        files: &[BorrowedFd<'_>],
        cancel: &AtomicBool,
        output: &mut dyn FnMut(&[u8]),
    ) -> Result<Vec<u8>, ToolError> {
        self.run_accepting(command, args, files, cancel, output, &[0])
    }

    fn run_accepting(
        &self,
        command: &'static str,
        args: &[&str],
        files: &[BorrowedFd<'_>],
        cancel: &AtomicBool,
        output: &mut dyn FnMut(&[u8]),
        accepted: &[i32],
    ) -> Result<Vec<u8>, ToolError> {
        let child = confine::start(&self.program, self.owner, args, files)
            .map_err(|source| ToolError::Start { program: self.program.display().to_string(), source })?;
        let ended = confine::follow(child, output, &|| cancel.load(Ordering::Relaxed))
            .map_err(|source| ToolError::Follow { command, source })?;
        match ended.status {
            None => Err(ToolError::Cancelled { command }),
            Some(status) if status.code().is_some_and(|code| accepted.contains(&code)) => Ok(ended.stdout),
            Some(status) => Err(ToolError::Failed {
                command,
                status: status.to_string(),
                stderr: String::from_utf8_lossy(&ended.stderr).trim().to_owned(),
            }),
        }
    }
}

/// The descriptor's path in a process that inherited it under the same number.
fn path_of(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// A chain of qcow2 images as a `json:` name, the first on top, nothing below the last.
fn graph(chain: &[BorrowedFd<'_>]) -> String {
    let graph = chain.iter().rev().fold(serde_json::Value::Null, |backing, file| {
        serde_json::json!({
            "driver": "qcow2",
            "file": { "driver": "file", "filename": path_of(*file) },
            "backing": backing,
        })
    });
    format!("json:{graph}")
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_chain_names_descriptors_only_and_ends_in_no_backing_file() {
        let (top, base) = (io::stdin(), io::stdout());
        let name = graph(&[top.as_fd(), base.as_fd()]);
        let value: serde_json::Value = serde_json::from_str(name.strip_prefix("json:").unwrap()).unwrap();
        assert_eq!(value["file"]["filename"], "/proc/self/fd/0");
        assert_eq!(value["backing"]["file"]["filename"], "/proc/self/fd/1");
        assert!(value["backing"]["backing"].is_null());
        assert!(value["backing"].as_object().unwrap().contains_key("backing"));
    }
}
