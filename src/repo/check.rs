//! Verification: reads everything that was stored and says what is not as it was. Changes nothing. What is wrong is a
//! finding; an error is only what keeps from looking.

use std::{
    collections::HashSet,
    fs::File,
    os::fd::AsFd,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    Act, RepoError, Repository, Scan, StoreError, StoredPoint, digest_clusters,
    digests::{Entry, Table},
    layout,
    manifest::{DiskIdentity, StoredDisk, StoredVariables},
    read::graph_of,
    seal::file_digest,
};
use crate::{
    chain::{
        finding::{Finding, Kind, Severity},
        graph::{Break, Graph},
    },
    ids::{DiskName, GuestId, PointId},
    qcow2::{CLUSTER, header::Header, map::Map},
    sentence::{counted, sentence},
};

/// How far verification is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckProgress {
    /// The point that is being read.
    pub point: PointId,
    /// Bytes of stored files that were looked at so far, of all points; in the end the total.
    pub done: u64,
    /// Bytes stored in all points that are verified.
    pub total: u64,
}

/// One guest of those that are verified.
struct Chosen {
    guest: GuestId,
    graph: Graph,
    points: Vec<StoredPoint>,
    /// Where one point was asked for, the disks of points that its disks rest on, and they themselves.
    links: Option<HashSet<(PointId, DiskName)>>,
}

impl Chosen {
    fn disks<'a>(&'a self, stored: &'a StoredPoint) -> impl Iterator<Item = (&'a DiskIdentity, &'a StoredDisk)> {
        let (point, manifest) = (&stored.manifest.identity.point, &stored.manifest);
        let chosen = move |disk: &&DiskIdentity| {
            self.links.as_ref().is_none_or(|links| links.contains(&(point.clone(), disk.name.clone())))
        };
        manifest.identity.disks.iter().filter(chosen).filter_map(|disk| Some((disk, manifest.stored(&disk.name)?)))
    }
}

/// Verifies the repository, one guest of it, or one point with all that it builds on: manifests, chains, image tables, and
/// every stored cluster against its digest.
///
/// # Errors
/// When the repository cannot be read at all, or a point that was asked for is not there.
pub fn verify(
    repository: &Repository,
    guest: Option<&GuestId>,
    point: Option<&PointId>,
    progress: &mut dyn FnMut(CheckProgress),
    cancel: &AtomicBool,
) -> Result<Vec<Finding>, RepoError> {
    let asked = |id: &PointId| point.is_none_or(|point| point == id);
    let (guests, mut findings) = match guest {
        Some(guest) => (vec![guest.clone()], Vec::new()),
        None => repository.listing().map(|listing| (listing.guests, listing.findings))?,
    };
    let mut chosen: Vec<Chosen> = Vec::new();
    for of in guests {
        let (guest, scan) = match repository.scan(&of) {
            Ok(scan) => (of, scan),
            // One guest of many hides no other; the one that was asked for is what there is to look at.
            Err(error) if guest.is_none() => {
                findings.push(Finding::new(Severity::Damage, Kind::Unchecked, sentence(&error)).guest(&of));
                continue;
            }
            Err(error) => return Err(error),
        };
        let graph = look_at_images(repository, &guest, &scan, asked, &mut findings);
        findings.extend(of_folder(&guest, &scan).filter(|finding| finding.point.as_ref().is_none_or(asked)));
        let links = point.map(|point| links_of(&graph, point));
        let is_chosen = |id: &PointId| links.as_ref().is_none_or(|links| links.iter().any(|(point, _)| point == id));
        let points = scan.points.into_iter().filter(|stored| is_chosen(&stored.manifest.identity.point)).collect();
        chosen.push(Chosen { guest, graph, points, links });
    }
    if let Some(point) = point
        && chosen.iter().all(|chosen| chosen.points.is_empty())
        && findings.iter().all(|finding| finding.point.as_ref() != Some(point))
    {
        return Err(match guest {
            Some(guest) => RepoError::NoSuchPoint { guest: guest.clone(), point: point.clone() },
            None => RepoError::PointNowhere { point: point.clone() },
        });
    }
    let points = || chosen.iter().flat_map(|chosen| chosen.points.iter().map(move |stored| (chosen, stored)));
    let disks = points().flat_map(|(chosen, stored)| chosen.disks(stored));
    let total = disks.map(|(_, disk)| disk.bytes).fold(0, u64::saturating_add);
    let (mut done, mut lost): (u64, HashSet<(&PointId, &DiskName)>) = (0, HashSet::new());
    for (chosen, stored) in points() {
        let Chosen { guest, graph, .. } = chosen;
        let point = &stored.manifest.identity.point;
        let variables = stored.manifest.definition.variables.iter().filter(|_| asked(point));
        let damaged = variables.filter_map(|variables| verify_variables(repository, guest, point, variables, cancel));
        findings.extend(damaged.map(|finding| finding.guest(guest).point(point)));
        for (identity, disk) in chosen.disks(stored) {
            let mut read = |bytes: u64| {
                let done = done.saturating_add(bytes.min(disk.bytes));
                progress(CheckProgress { point: point.clone(), done, total });
            };
            let mut found = Vec::new();
            match graph.chain(point, &identity.name) {
                Ok(links) => {
                    // The deepest: what is above it is lost because of it.
                    let below = links.iter().rfind(|link| lost.contains(&(&link.point.id, &link.disk.name)));
                    found.extend(below.map(|link| {
                        let (disk, point) = (&link.disk.name, &link.point.id);
                        let text = format!("It builds on disk {disk} of point {point}, which is damaged");
                        Finding::new(Severity::Damage, Kind::ChainBroken, text)
                    }));
                }
                // Of its own image more is said below.
                Err(Break::NotAsStored { point: own, .. }) if own == *point => {}
                Err(broken) => found.push(Finding::new(Severity::Damage, Kind::ChainBroken, broken.to_string())),
            }
            let subject = Subject { repository, guest, point, identity, disk, cancel };
            subject.verify(&mut read, &mut found);
            done = done.saturating_add(disk.bytes);
            if cancel.load(Ordering::Relaxed) {
                // What could not be looked at any longer is not damaged.
                found.retain(|finding| finding.kind != Kind::Unchecked);
                found.push(Finding::new(Severity::Notice, Kind::Unchecked, "Verification was cancelled here"));
            }
            if found.iter().any(|finding| finding.severity == Severity::Damage) {
                lost.insert((point, &identity.name));
            }
            findings.extend(found.into_iter().map(|finding| finding.guest(guest).point(point).disk(&identity.name)));
            if cancel.load(Ordering::Relaxed) {
                return Ok(findings);
            }
            progress(CheckProgress { point: point.clone(), done, total });
        }
    }
    Ok(findings)
}

/// The disks of points that a point's disks rest on, as far as their chains are whole, and they themselves.
fn links_of(graph: &Graph, point: &PointId) -> HashSet<(PointId, DiskName)> {
    let disks = graph.point(point).into_iter().flat_map(|found| &found.disks);
    disks
        .flat_map(|disk| {
            let below = graph.chain(point, &disk.name).into_iter().flatten();
            let below = below.map(|link| (link.point.id.clone(), link.disk.name.clone()));
            below.chain([(point.clone(), disk.name.clone())])
        })
        .collect()
}

/// The guest's chains, broken where an image that a chosen point builds on is not as it was stored.
fn look_at_images(
    repository: &Repository,
    guest: &GuestId,
    scan: &Scan,
    asked: impl Fn(&PointId) -> bool,
    findings: &mut Vec<Finding>,
) -> Graph {
    let disks_of_chosen = |graph: &Graph| {
        let chosen = graph.points().iter().filter(|point| asked(&point.id));
        chosen.flat_map(|point| point.disks.iter().map(|disk| (point.id.clone(), disk.name.clone()))).collect()
    };
    repository.graph_with_damage(guest, scan, disks_of_chosen).unwrap_or_else(|error| {
        findings.push(Finding::new(Severity::Damage, Kind::Unchecked, sentence(&error)).guest(guest));
        graph_of(&scan.points)
    })
}

/// What is wrong with a copy of the firmware's variables.
fn verify_variables(
    repository: &Repository,
    guest: &GuestId,
    point: &PointId,
    stored: &StoredVariables,
    cancel: &AtomicBool,
) -> Option<Finding> {
    let damage = |kind, text| Some(Finding::new(Severity::Damage, kind, text).disk(&stored.name));
    let digest = || -> Result<Result<Option<String>, u64>, RepoError> {
        let file = repository.variables(guest, point, &stored.name)?;
        let failed = |source| StoreError { act: Act::Read, path: layout::variables(&stored.name).into(), source };
        // The length first: a file of holes has no end in our time.
        match file.metadata().map_err(failed)?.len() {
            bytes if bytes == stored.bytes => Ok(Ok(file_digest(file, cancel).map_err(failed)?)),
            bytes => Ok(Err(bytes)),
        }
    };
    match digest() {
        Ok(Ok(digest)) if digest.as_ref().is_none_or(|digest| *digest == stored.digest) => None,
        Ok(Ok(_)) => damage(Kind::VariablesDamaged, "The firmware's variables are not what was stored".to_owned()),
        Ok(Err(bytes)) => {
            let text = format!("The firmware's variables have {bytes} bytes, {} were stored", stored.bytes);
            damage(Kind::VariablesDamaged, text)
        }
        Err(error @ RepoError::File { .. }) => damage(Kind::FileMissing, sentence(&error)),
        Err(error) => damage(Kind::Unchecked, sentence(&error)),
    }
}

/// What a look into a guest's folder tells, before anything is read.
fn of_folder(guest: &GuestId, scan: &Scan) -> impl Iterator<Item = Finding> {
    let partial = scan.partial.iter().map(|partial| {
        let text = format!(
            "Point {partial} has no manifest: a backup is going on or was cut off; the machine's next backup ends one that \
             was, or `driftline recover` while it runs. Where the manifest of a whole point was lost, bring it back before \
             seven days are over: then a backup removes the folder"
        );
        Finding::new(Severity::Notice, Kind::PartialPoint, text).point(partial)
    });
    let twice = scan.points.windows(2).filter_map(|pair| {
        let (one, other) = (&pair[0].manifest.identity, &pair[1].manifest.identity);
        let text = format!("Points {} and {} have one sequence number", one.point, other.point);
        (one.sequence == other.sequence)
            .then(|| Finding::new(Severity::Notice, Kind::SequenceTwice, text).point(&other.point))
    });
    scan.findings.iter().cloned().chain(partial).chain(twice).map(|finding| finding.guest(guest))
}

/// One disk of one point.
struct Subject<'a> {
    repository: &'a Repository,
    guest: &'a GuestId,
    point: &'a PointId,
    identity: &'a DiskIdentity,
    disk: &'a StoredDisk,
    cancel: &'a AtomicBool,
}

impl Subject<'_> {
    /// What is wrong with it.
    fn verify(&self, progress: &mut dyn FnMut(u64), found: &mut Vec<Finding>) {
        let Self { repository, guest, point, identity, disk, cancel } = *self;
        let mut damage = |kind, text: String| found.push(Finding::new(Severity::Damage, kind, text));
        let image = match repository.image(guest, point, &disk.name) {
            Ok(image) => image,
            Err(error @ RepoError::File { .. }) => return damage(Kind::FileMissing, sentence(&error)),
            Err(error) => return damage(Kind::Unchecked, sentence(&error)),
        };
        let bytes = match image.metadata() {
            Ok(metadata) => metadata.len(),
            Err(error) => return damage(Kind::Unchecked, format!("The image cannot be read: {error}")),
        };
        if bytes != disk.bytes {
            damage(Kind::ImageNotAsStored, format!("The image has {bytes} bytes, {} were stored", disk.bytes));
        }
        match repository.tool().check(image.as_fd(), cancel) {
            Ok(checked) if checked.corruptions + checked.check_errors > 0 => {
                damage(
                    Kind::ImageCorrupt,
                    format!("qemu-img check found {}", counted(checked.corruptions, "corruption")),
                );
            }
            Ok(_) => {}
            Err(error) => damage(Kind::Unchecked, sentence(&error)),
        }
        let header = match Header::read(&image).and_then(|h| h.expect_stored(identity.virtual_size).map(|()| h)) {
            Ok(header) => header,
            Err(error) => return damage(Kind::ImageNotAsStored, sentence(&error)),
        };
        let map = match Map::read(&image, &header, bytes) {
            Ok(map) => map,
            Err(error) => return damage(Kind::ImageCorrupt, sentence(&error)),
        };
        let table = match open_table(repository, guest, point, disk, cancel) {
            Ok(Ok(table)) => table,
            Ok(Err(_)) if cancel.load(Ordering::Relaxed) => return,
            Ok(Err(text)) => return damage(Kind::TableDamaged, text),
            Err(error @ RepoError::File { .. }) => return damage(Kind::FileMissing, sentence(&error)),
            Err(error) => return damage(Kind::Unchecked, sentence(&error)),
        };
        self.compare(&image, &map, table, progress, found);
    }

    /// Compares every cluster with its digest.
    fn compare(
        &self,
        image: &File,
        map: &Map,
        mut table: Table<File>,
        progress: &mut dyn FnMut(u64),
        found: &mut Vec<Finding>,
    ) {
        let mut ranges = Ranges::default();
        let (mut seen, mut stopped) = (0, None);
        let mut visit = |cluster, entry| {
            match table.get(cluster) {
                Ok(Some(expected)) => {
                    seen += 1;
                    if expected != entry {
                        ranges.add(cluster, Kind::ClusterDamaged);
                    }
                }
                // Zeros that the table does not have change nothing for a full; else they hide the parent.
                Ok(None) if entry == Entry::Zero && self.disk.parent.is_none() => {}
                Ok(None) => ranges.add(cluster, Kind::ClusterMissing),
                Err(error) => stopped = Some(sentence(&error)),
            }
            stopped.is_none() && !self.cancel.load(Ordering::Relaxed)
        };
        let read = digest_clusters(image, map, self.identity.virtual_size, &mut visit, progress);
        let stopped = stopped.or_else(|| read.err().map(|error| format!("The image cannot be read: {error}")));
        let (data, zero) = table.clusters();
        if let Some(text) = stopped {
            found.push(Finding::new(Severity::Damage, Kind::Unchecked, text));
        } else if data + zero != seen && !self.cancel.load(Ordering::Relaxed) {
            let missing = counted(data + zero - seen, "stored cluster");
            let text = format!("Not in the image: {missing}");
            found.push(Finding::new(Severity::Damage, Kind::ClusterMissing, text));
        }
        found.extend(ranges.findings(self.identity.virtual_size));
    }
}

/// The digest table of a disk, if it is the one that the manifest names; else a sentence that says why not.
pub(crate) fn open_table(
    repository: &Repository,
    guest: &GuestId,
    point: &PointId,
    disk: &StoredDisk,
    cancel: &AtomicBool,
) -> Result<Result<Table<File>, String>, RepoError> {
    let file = repository.table(guest, point, &disk.name, disk.generation)?;
    let path = PathBuf::from(layout::table(&disk.name, disk.generation));
    let failed = |source| StoreError { act: Act::Read, path: path.clone(), source };
    let length = file.metadata().map_err(failed)?.len();
    match file_digest(file.try_clone().map_err(failed)?, cancel).map_err(failed)? {
        Some(digest) if digest == disk.table_digest => {}
        Some(_) => return Ok(Err(format!("Digest table {} is not the one that was stored", path.display()))),
        None => return Ok(Err("Verification was cancelled".into())),
    }
    Ok(Table::open(file, length).map_err(|error| sentence(&error)))
}

/// Damaged clusters, neighbours joined.
#[derive(Default)]
struct Ranges(Vec<(u64, u64, Kind)>);

impl Ranges {
    fn add(&mut self, cluster: u64, kind: Kind) {
        match self.0.last_mut() {
            Some((first, count, last)) if *first + *count == cluster && *last == kind => *count += 1,
            _ => self.0.push((cluster, 1, kind)),
        }
    }

    fn findings(self, virtual_size: u64) -> impl Iterator<Item = Finding> {
        self.0.into_iter().map(move |(first, count, kind)| {
            let offset = first * CLUSTER;
            let length = (count * CLUSTER).min(virtual_size.saturating_sub(offset));
            let what = if kind == Kind::ClusterDamaged { "is not what was stored" } else { "has no digest" };
            let text = format!("The content of {length} bytes at byte {offset} {what}");
            Finding::new(Severity::Damage, kind, text).range(offset, length)
        })
    }
}
