//! The comparison of a new image with the digests of its chain: every cluster of the disk, those too that must be
//! zeros because no point stores anything of them.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::fs::SeekFrom;

use super::{Format, RestoreError, RestoreProgress, RestoreRequest, Stage, Work};
use crate::{
    chain::graph::Link,
    ids::PointId,
    qcow2::{
        CLUSTER,
        header::Header,
        map::{Extent, Kind, Map},
    },
    repo::{
        Manifest, Repository,
        check::open_table,
        digest_clusters,
        digests::{Entry, Table},
    },
    sentence::sentence,
};

/// Compares the temporary file of `work` with the digest tables of its chain.
pub(super) fn compare(
    repository: &Repository,
    request: &RestoreRequest,
    manifests: &BTreeMap<PointId, Manifest>,
    work: &Work<'_>,
    progress: &mut dyn FnMut(RestoreProgress),
    cancel: &AtomicBool,
) -> Result<(), RestoreError> {
    let failed = |why: String| RestoreError::Compare { disk: work.disk.clone(), why };
    let Some(file) = work.target.file() else { return Ok(()) };
    let map = match request.format {
        Format::Raw => raw_map(file, work.virtual_size),
        Format::Qcow2 => qcow2_map(file, work.virtual_size),
    }
    .map_err(|error| failed(error.to_string()))?;
    let mut expected = Expected { layers: Vec::new() };
    for link in &work.chain {
        let stored = manifests.get(&link.point.id).and_then(|manifest| manifest.stored(&link.disk.name));
        let Some(stored) = stored else { return Err(failed(format!("Point {} has no such disk", link.point.id))) };
        let table = open_table(repository, &request.guest, &link.point.id, stored, cancel)
            .map_err(|error| failed(sentence(&error)))?
            .map_err(|why| if cancel.load(Ordering::Relaxed) { RestoreError::Cancelled } else { failed(why) })?;
        if table.virtual_size() != link.disk.virtual_size {
            return Err(failed(format!("The table of point {} is one of another disk", link.point.id)));
        }
        expected.layers.push((*link, table));
    }
    let mut comparison = Comparison { expected, differences: 0, first: None, problem: None };
    let mut next = 0;
    let clusters = work.virtual_size.div_ceil(CLUSTER);
    let total = work.virtual_size;
    let mut report = |done: u64| {
        progress(RestoreProgress { disk: work.disk.clone(), stage: Stage::Verifying, done: done.min(total), total });
    };
    let read = digest_clusters(
        file,
        &map,
        work.virtual_size,
        &mut |cluster, entry| {
            comparison.hole(next, cluster);
            comparison.cluster(cluster, entry);
            next = cluster + 1;
            comparison.problem.is_none() && !cancel.load(Ordering::Relaxed)
        },
        &mut report,
    );
    read.map_err(|error| failed(error.to_string()))?;
    if !cancel.load(Ordering::Relaxed) {
        comparison.hole(next, clusters);
    }
    if cancel.load(Ordering::Relaxed) {
        return Err(RestoreError::Cancelled);
    }
    if let Some(why) = comparison.problem {
        return Err(failed(why));
    }
    report(total);
    match comparison.first {
        None => Ok(()),
        Some((cluster, stored)) => Err(RestoreError::Damaged {
            disk: work.disk.clone(),
            clusters: comparison.differences,
            offset: cluster * CLUSTER,
            stored,
        }),
    }
}

/// What was found so far.
struct Comparison<'a> {
    expected: Expected<'a>,
    differences: u64,
    /// The first cluster that differs, and where its content should have come from.
    first: Option<(u64, String)>,
    /// Why it cannot go on.
    problem: Option<String>,
}

impl Comparison<'_> {
    /// The image has this at `cluster`.
    fn cluster(&mut self, cluster: u64, found: Entry) {
        match self.expected.get(cluster) {
            Ok((entry, _)) if entry == found => {}
            Ok((_, point)) => {
                let stored = match point {
                    Some(point) => format!("stored in point {point}"),
                    None => "stored in no point, so zeros".into(),
                };
                self.differences += 1;
                self.first.get_or_insert((cluster, stored));
            }
            Err(why) => self.problem = Some(why),
        }
    }

    /// The image has nothing, so zeros, from cluster `from` to before `to`.
    fn hole(&mut self, from: u64, to: u64) {
        let mut at = from;
        while let Some(cluster) = self.expected.next(at).filter(|cluster| *cluster < to) {
            self.cluster(cluster, Entry::Zero);
            at = cluster + 1;
        }
    }
}

/// What the disk must hold, by the tables of its chain, the restored point's first.
struct Expected<'a> {
    layers: Vec<(Link<'a>, Table<File>)>,
}

impl Expected<'_> {
    /// The first cluster at or behind `cluster` that any point stores. Clusters that none stores are zeros.
    fn next(&self, cluster: u64) -> Option<u64> {
        self.layers.iter().filter_map(|(_, table)| table.next(cluster)).min()
    }

    /// What `cluster` must hold, and which point stores it.
    fn get(&mut self, cluster: u64) -> Result<(Entry, Option<&PointId>), String> {
        for (link, table) in &mut self.layers {
            if let Some(entry) = table.get(cluster).map_err(|error| sentence(&error))? {
                return Ok((entry, Some(&link.point.id)));
            }
        }
        Ok((Entry::Zero, None))
    }
}

/// The clusters of a raw image that are not holes, at the place where they stand.
fn raw_map(file: &File, virtual_size: u64) -> io::Result<Map> {
    let length = file.metadata()?.len();
    if length != virtual_size {
        return Err(io::Error::other(format!("The image has {length} bytes, the disk {virtual_size}")));
    }
    let mut map = Map { extents: Vec::new() };
    let mut at = 0;
    while at < length {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data))?;
        // Widened to whole clusters; `at` is the start of one, so that extents never overlap.
        let (first, end) = (data / CLUSTER, hole.min(length).div_ceil(CLUSTER));
        map.extents.push(Extent { first, count: end - first, kind: Kind::Data { host: first * CLUSTER } });
        at = end * CLUSTER;
    }
    Ok(map)
}

fn qcow2_map(file: &File, virtual_size: u64) -> io::Result<Map> {
    let length = file.metadata()?.len();
    let header = Header::read(file).map_err(|error| io::Error::other(sentence(&error)))?;
    header.expect_stored(virtual_size).map_err(|error| io::Error::other(sentence(&error)))?;
    if let Some(backing) = header.backing {
        return Err(io::Error::other(format!("The image has a backing file {backing:?}")));
    }
    Map::read(file, &header, length).map_err(|error| io::Error::other(sentence(&error)))
}
