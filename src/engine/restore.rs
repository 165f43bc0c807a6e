//! Restores: a chain of stored images becomes one new image (`Flatten`). Reads the repository, writes beneath the
//! restore roots only. Blocking; called by agent and command.
//!
//! Nothing is opened by a name from an image's header: the chain comes from manifests and goes to `qemu-img` as
//! descriptors. An image gets its name only when all images of the request are copied, compared with their digests
//! and on the disk: before that there is a temporary file, which a failure removes.

mod error;
mod target;
mod verify;

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::AsFd,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

pub use error::RestoreError;
use target::Target;

use crate::{
    chain::graph::{Graph, Link},
    ids::{DiskName, GuestId, PointId},
    repo::{Manifest, Repository},
};
pub use crate::{qcow2::tool::Format, repo::Roots as RestoreRoots};

/// What is to be restored, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreRequest {
    /// The run's uid: an image that this run has given its name already is its result, and not in its way. Empty: none.
    pub run: String,
    /// The guest whose point it is.
    pub guest: GuestId,
    /// The point.
    pub point: PointId,
    /// Disks of the point, and the file that each is written to: absolute, beneath a restore root.
    pub disks: Vec<(DiskName, PathBuf)>,
    /// Format of the new images.
    pub format: Format,
    /// Whether files that are there may be replaced.
    pub overwrite: Overwrite,
    /// Compare every cluster with its digest before an image gets its name.
    pub verify: bool,
}

/// Whether a file that is there may be replaced. One that a process has open as an image never is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Overwrite {
    /// Never.
    Never,
    /// Only a file that an earlier restore of the same guest wrote.
    IfSameGuest,
    /// Any regular file.
    Always,
}

/// How far a restore is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreProgress {
    /// The disk at work.
    pub disk: DiskName,
    /// What is being done to it.
    pub stage: Stage,
    /// Bytes of the disk done in this stage.
    pub done: u64,
    /// Virtual size of the disk in bytes.
    pub total: u64,
}

/// What is being done to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The chain is written into the new image.
    Copying,
    /// The new image is compared with the digests.
    Verifying,
}

/// A restore that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The new images.
    pub disks: Vec<RestoredDisk>,
    /// Whether every cluster was compared with its digest.
    pub verified: bool,
}

/// One new image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoredDisk {
    /// The disk.
    pub name: DiskName,
    /// The image.
    pub path: PathBuf,
    /// Virtual size in bytes.
    pub virtual_size: u64,
    /// The points that were read, the restored one first.
    pub chain: Vec<PointId>,
}

/// One disk, from the chain that is read to the file that is written.
struct Work<'a> {
    disk: &'a DiskName,
    virtual_size: u64,
    chain: Vec<Link<'a>>,
    images: Vec<File>,
    target: Target,
}

/// Writes one new image for each disk of the request.
///
/// # Errors
/// When anything about chain, target, copy or comparison is not right; no file has got its name then, unless the
/// rename of a later disk of the same request failed. When cancelled.
pub fn flatten(
    repository: &Repository,
    roots: &RestoreRoots,
    request: &RestoreRequest,
    progress: &mut dyn FnMut(RestoreProgress),
    cancel: &AtomicBool,
) -> Result<Restored, RestoreError> {
    let manifests = manifests(repository, request)?;
    let graph = Graph::new(manifests.values().map(Manifest::point).collect());
    let mut works = prepare(repository, roots, request, &graph)?;
    for work in &works {
        work.target.clear_leftovers()?;
    }
    target::check_space(&works)?;
    for work in works.iter_mut().filter(|work| !work.target.is_done()) {
        copy(repository, request, work, progress, cancel)?;
        if request.verify {
            verify::compare(repository, request, &manifests, work, progress, cancel)?;
        }
        work.target.settle(&request.guest, &request.run)?;
    }
    if cancel.load(Ordering::Relaxed) {
        return Err(RestoreError::Cancelled);
    }
    for work in &works {
        work.target.refuse_newly_used()?;
    }
    let mut disks = Vec::new();
    for work in works {
        let chain = work.chain.iter().map(|link| link.point.id.clone()).collect();
        let path = work.target.publish()?;
        disks.push(RestoredDisk { name: work.disk.clone(), path, virtual_size: work.virtual_size, chain });
    }
    Ok(Restored { disks, verified: request.verify })
}

/// Whether `flatten` would begin to write: chains, targets and space are looked at, and nothing is changed.
///
/// # Errors
/// With what `flatten` would refuse.
pub fn check(repository: &Repository, roots: &RestoreRoots, request: &RestoreRequest) -> Result<(), RestoreError> {
    let manifests = manifests(repository, request)?;
    let graph = Graph::new(manifests.values().map(Manifest::point).collect());
    target::check_space(&prepare(repository, roots, request, &graph)?)
}

fn manifests(repository: &Repository, request: &RestoreRequest) -> Result<BTreeMap<PointId, Manifest>, RestoreError> {
    let points = repository.points(&request.guest).map_err(|source| RestoreError::Repository { source })?;
    Ok(points.into_iter().map(|stored| (stored.manifest.identity.point.clone(), stored.manifest)).collect())
}

/// Looks at everything that can be known to be wrong, before a byte is written.
fn prepare<'a>(
    repository: &Repository,
    roots: &RestoreRoots,
    request: &'a RestoreRequest,
    graph: &'a Graph,
) -> Result<Vec<Work<'a>>, RestoreError> {
    if request.disks.is_empty() {
        return Err(RestoreError::NoDisks);
    }
    let mut works: Vec<Work<'a>> = Vec::new();
    for (disk, path) in &request.disks {
        if works.iter().any(|work| work.disk == disk) {
            return Err(RestoreError::DiskTwice { disk: disk.clone() });
        }
        if let Some(work) = works.iter().find(|work| work.target.path() == path) {
            let (first, second) = (work.disk.clone(), disk.clone());
            return Err(RestoreError::PathTwice { path: path.clone(), first, second });
        }
        let broken = |source| RestoreError::Chain { disk: disk.clone(), source };
        let chain = graph.chain(&request.point, disk).map_err(broken)?;
        let images = chain
            .iter()
            .map(|link| repository.open_link(&request.guest, *link))
            .collect::<Result<_, _>>()
            .map_err(|source| RestoreError::Repository { source })?;
        let target = Target::prepare(repository, roots, path, request)?;
        let virtual_size = chain[0].disk.virtual_size;
        works.push(Work { disk, virtual_size, chain, images, target });
    }
    Ok(works)
}

fn copy(
    repository: &Repository,
    request: &RestoreRequest,
    work: &mut Work<'_>,
    progress: &mut dyn FnMut(RestoreProgress),
    cancel: &AtomicBool,
) -> Result<(), RestoreError> {
    let failed = |source| RestoreError::Copy { disk: work.disk.clone(), source };
    let file = work.target.create()?;
    let tool = repository.tool();
    tool.create(file.as_fd(), request.format, work.virtual_size).map_err(failed)?;
    let chain: Vec<_> = work.images.iter().map(AsFd::as_fd).collect();
    let total = work.virtual_size;
    let mut report = |fraction: f64| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let done = (fraction * total as f64) as u64;
        progress(RestoreProgress { disk: work.disk.clone(), stage: Stage::Copying, done: done.min(total), total });
    };
    report(0.0);
    match tool.convert(&chain, file.as_fd(), request.format, &mut report, cancel) {
        Ok(()) => Ok(()),
        Err(crate::qcow2::tool::ToolError::Cancelled { .. }) => Err(RestoreError::Cancelled),
        Err(source) => Err(failed(source)),
    }
}
