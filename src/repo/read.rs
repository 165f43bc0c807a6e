//! What a repository holds, as its manifests say: guests, points, chains. Reads only. A manifest that cannot be read is
//! a finding and hides no other point.

use std::{fs::File, path::PathBuf};

use super::{Manifest, RepoError, Repository, layout, store::Folder};
use crate::{
    chain::{
        finding::{Finding, Kind, Severity},
        graph::Graph,
    },
    ids::{DiskName, GuestId, PointId},
    sentence::sentence,
};

/// Above any manifest, in bytes.
const MANIFEST_LIMIT: u64 = 64 << 20;
/// Bytes of the largest file of firmware variables that is stored: that of QEMU's `virt` machines for Arm is padded to
/// it.
pub const VARIABLES_LIMIT: u64 = 64 << 20;

/// A point as it stands in the repository.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredPoint {
    /// Its manifest.
    pub manifest: Manifest,
    /// BLAKE3 of the manifest's identity, in hex: what children name.
    pub identity_digest: String,
    /// BLAKE3 of the manifest's bytes, in hex.
    pub manifest_digest: String,
}

/// What stands in one guest's folder.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    /// Points, oldest first.
    pub points: Vec<StoredPoint>,
    /// Folders without a manifest: backups that are going on or were cut off.
    pub partial: Vec<PointId>,
    /// What cannot be read.
    pub findings: Vec<Finding>,
}

/// What stands in the folder of all guests.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listing {
    /// The guests that have a folder, by UUID.
    pub(crate) guests: Vec<GuestId>,
    /// What is no guest's folder.
    pub(crate) findings: Vec<Finding>,
}

impl Scan {
    /// Refuses a guest that belongs to another namespace: the one of its first manifest that names any owns it.
    ///
    /// # Errors
    /// `OtherNamespace`.
    pub fn check_namespace(&self, guest: &GuestId, namespace: &str) -> Result<(), RepoError> {
        namespace_of(guest, &self.points, namespace)
    }
}

impl Repository {
    /// The guests that have a folder, by UUID.
    ///
    /// # Errors
    /// When the folder of all guests cannot be read.
    pub fn guests(&self) -> Result<Vec<GuestId>, RepoError> {
        Ok(self.listing()?.guests)
    }

    /// The guests that have a folder, and what else stands beside them.
    ///
    /// # Errors
    /// When the folder of all guests cannot be read. Whether a guest's own can be is seen when it is.
    pub(crate) fn listing(&self) -> Result<Listing, RepoError> {
        let mut listing = Listing::default();
        let Some(guests) = self.inner.root.folder(layout::GUESTS)? else { return Ok(listing) };
        for name in guests.entries()? {
            // Another spelling of a UUID would be looked up under the one that we write, and not be found.
            let guest = name.to_str().and_then(|name| name.parse::<GuestId>().ok().filter(|id| id.as_str() == name));
            match guest {
                // Where its kind cannot be told it counts, so that whoever reads it is told why it cannot be.
                Some(guest) if guests.is_folder(&name).unwrap_or(true) => listing.guests.push(guest),
                _ => {
                    let text = format!("{name:?} in the folder of all guests is no guest's folder");
                    listing.findings.push(Finding::new(Severity::Notice, Kind::UnknownFile, text));
                }
            }
        }
        Ok(listing)
    }

    /// A guest's points, oldest first. One whose manifest cannot be read is left out: `scan` tells which.
    ///
    /// # Errors
    /// When the guest's folder cannot be read.
    pub fn points(&self, guest: &GuestId) -> Result<Vec<StoredPoint>, RepoError> {
        let scan = self.scan(guest)?;
        for finding in &scan.findings {
            let point = finding.point.as_ref().map(tracing::field::display);
            tracing::warn!(%guest, point, kind = ?finding.kind, "{}", finding.message);
        }
        Ok(scan.points)
    }

    /// One point, if it is committed.
    ///
    /// # Errors
    /// When its manifest cannot be read.
    pub fn point(&self, guest: &GuestId, point: &PointId) -> Result<Option<StoredPoint>, RepoError> {
        match self.point_folder(guest, point)? {
            None => Ok(None),
            Some(folder) => self.read_manifest(&folder, guest, point),
        }
    }

    /// Everything in a guest's folder.
    ///
    /// # Errors
    /// When the folder cannot be read. A manifest that cannot be read is a finding.
    pub fn scan(&self, guest: &GuestId) -> Result<Scan, RepoError> {
        let mut scan = Scan::default();
        let Some(folder) = self.guest_folder(guest)? else { return Ok(scan) };
        for name in folder.entries()? {
            let Some(point) = name.to_str().and_then(|name| name.parse::<PointId>().ok()) else {
                if !name.as_encoded_bytes().starts_with(layout::LEASE.as_bytes()) {
                    let text = format!("{:?} in the folder of guest {guest} belongs to no point", name);
                    scan.findings.push(Finding::new(Severity::Notice, Kind::UnknownFile, text).guest(guest));
                }
                continue;
            };
            match self.point(guest, &point) {
                Ok(Some(stored)) => scan.points.push(stored),
                Ok(None) => scan.partial.push(point),
                Err(error) => {
                    let text = sentence(&error);
                    let finding = Finding::new(Severity::Damage, Kind::ManifestUnreadable, text);
                    scan.findings.push(finding.guest(guest).point(&point));
                }
            }
        }
        scan.points.sort_by_key(|point| (point.manifest.identity.sequence, point.manifest.identity.point.clone()));
        Ok(scan)
    }

    /// A guest's points as a graph of chains.
    ///
    /// # Errors
    /// As `points`.
    pub fn graph(&self, guest: &GuestId) -> Result<Graph, RepoError> {
        Ok(graph_of(&self.points(guest)?))
    }

    /// The sequence number of the guest's next point. Ask it under the writer lease.
    ///
    /// # Errors
    /// As `points`.
    pub fn next_sequence(&self, guest: &GuestId) -> Result<u64, RepoError> {
        Ok(self.points(guest)?.last().map_or(1, |newest| newest.manifest.identity.sequence + 1))
    }

    pub(super) fn guest_folder(&self, guest: &GuestId) -> Result<Option<Folder>, RepoError> {
        match self.inner.root.folder(layout::GUESTS)? {
            None => Ok(None),
            Some(guests) => Ok(guests.folder(guest.as_str())?),
        }
    }

    pub(super) fn point_folder(&self, guest: &GuestId, point: &PointId) -> Result<Option<Folder>, RepoError> {
        match self.guest_folder(guest)? {
            None => Ok(None),
            Some(folder) => Ok(folder.folder(point.as_str())?),
        }
    }

    pub(super) fn read_manifest(
        &self,
        folder: &Folder,
        guest: &GuestId,
        point: &PointId,
    ) -> Result<Option<StoredPoint>, RepoError> {
        let Some(bytes) = folder.read(layout::MANIFEST, MANIFEST_LIMIT)? else { return Ok(None) };
        let manifest =
            Manifest::parse(&bytes).map_err(|source| RepoError::Manifest { point: point.clone(), source })?;
        self.check_manifest(&manifest, guest, point)?;
        Ok(Some(StoredPoint {
            identity_digest: manifest.identity_digest(),
            manifest_digest: blake3::hash(&bytes).to_hex().to_string(),
            manifest,
        }))
    }

    /// Fails unless the manifest is about this point of this guest in this repository.
    pub(super) fn check_manifest(
        &self,
        manifest: &Manifest,
        guest: &GuestId,
        point: &PointId,
    ) -> Result<(), RepoError> {
        let identity = &manifest.identity;
        let fields = [
            ("repository", self.id().as_str(), identity.repository.as_str()),
            ("guest", guest.as_str(), identity.guest.uuid.as_str()),
            ("point", point.as_str(), identity.point.as_str()),
        ];
        match fields.into_iter().find(|(_, here, there)| here != there) {
            None => Ok(()),
            Some((field, here, there)) => Err(RepoError::ManifestMismatch {
                point: point.clone(),
                why: format!("it names {field} {there}, here is {here}"),
            }),
        }
    }

    /// A committed disk's image, for reading.
    pub(crate) fn image(&self, guest: &GuestId, point: &PointId, disk: &DiskName) -> Result<File, RepoError> {
        self.stored_file(guest, point, &layout::image(disk))
    }

    /// The image's path as people know it, for messages.
    pub(crate) fn image_path(&self, guest: &GuestId, point: &PointId, disk: &DiskName) -> PathBuf {
        self.path().join(layout::GUESTS).join(guest.as_str()).join(point.as_str()).join(layout::image(disk))
    }

    /// A committed disk's digest table of that generation, for reading.
    pub(crate) fn table(
        &self,
        guest: &GuestId,
        point: &PointId,
        disk: &DiskName,
        generation: u32,
    ) -> Result<File, RepoError> {
        self.stored_file(guest, point, &layout::table(disk, generation))
    }

    /// A committed copy of the firmware's variables, for reading.
    pub(super) fn variables(&self, guest: &GuestId, point: &PointId, disk: &DiskName) -> Result<File, RepoError> {
        self.stored_file(guest, point, &layout::variables(disk))
    }

    fn stored_file(&self, guest: &GuestId, point: &PointId, name: &str) -> Result<File, RepoError> {
        let missing = || RepoError::NoSuchPoint { guest: guest.clone(), point: point.clone() };
        let folder = self.point_folder(guest, point)?.ok_or_else(missing)?;
        folder
            .open(name, false)?
            .ok_or_else(|| RepoError::File { path: folder.path().join(name), why: "it is missing".into() })
    }
}

/// Points as a graph of chains.
pub(super) fn graph_of(points: &[StoredPoint]) -> Graph {
    Graph::new(points.iter().map(|stored| stored.manifest.point()).collect())
}

/// Refuses a namespace that is not the one of the guest's first point that has any. Points of no namespace are the
/// host's own, made by the command for a machine that no guest file named: the first namespace that the host gives the
/// machine to takes them over.
pub(super) fn namespace_of(guest: &GuestId, points: &[StoredPoint], asked: &str) -> Result<(), RepoError> {
    let namespaces = points.iter().map(|point| &point.manifest.identity.guest.namespace);
    match namespaces.into_iter().find(|namespace| !namespace.is_empty()) {
        Some(owner) if owner != asked => {
            Err(RepoError::OtherNamespace { guest: guest.clone(), owner: owner.clone(), asked: asked.to_owned() })
        }
        _ => Ok(()),
    }
}
