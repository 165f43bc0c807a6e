//! A point on its way into the repository: its folder, its images, and the manifest whose rename makes it a point.
//! Before that rename the folder is invisible to everybody but recovery; after it, it is never discarded.

use std::{fs::File, os::fd::OwnedFd, sync::atomic::AtomicBool};

use super::{
    Manifest, RepoError, Repository, Staging, StoredPoint, image, layout,
    manifest::StoredVariables,
    read::{graph_of, namespace_of},
    seal::{self, SealedDisk},
    store::{Act, Folder},
};
use crate::{
    chain::{graph::Graph, point::Parent},
    ids::{DiskName, GuestId, PointId},
    retry::Retry,
    sentence::sentence,
};

/// A point that has no manifest yet.
pub struct PartialPoint {
    repository: Repository,
    guest: GuestId,
    point: PointId,
    folder: Folder,
}

/// A point that is durable.
#[derive(Debug, Clone, PartialEq)]
pub struct CommittedPoint {
    /// The point as it now stands in the repository.
    pub stored: StoredPoint,
}

impl Repository {
    /// Makes the folder of a new point. The guest's writer lease must be held.
    ///
    /// # Errors
    /// When the id was used before, the lease is not held, or the folder cannot be made.
    pub fn create_point(&self, guest: &GuestId, point: &PointId) -> Result<PartialPoint, RepoError> {
        self.check_lease(guest)?;
        let guests = self.inner.root.ensure_folder(layout::GUESTS)?;
        let folder = guests.ensure_folder(guest.as_str())?.make_folder(point.as_str())?;
        let folder = folder.ok_or_else(|| RepoError::PointExists { point: point.clone() })?;
        Ok(PartialPoint { repository: self.clone(), guest: guest.clone(), point: point.clone(), folder })
    }

    /// One point, if it is committed, brought to the disk: for whoever gives up something because it is there. Its manifest
    /// may be seen before the rename has reached the disk, where a crash or an error came between that and the sync.
    ///
    /// # Errors
    /// When its manifest cannot be read, or its folder not be synced: a power cut may take the point away then.
    pub fn durable_point(&self, guest: &GuestId, point: &PointId) -> Result<Option<StoredPoint>, RepoError> {
        let Some(folder) = self.point_folder(guest, point)? else { return Ok(None) };
        let stored = self.read_manifest(&folder, guest, point)?;
        if stored.is_some() {
            folder.sync()?;
        }
        Ok(stored)
    }

    /// A point that was begun and has no manifest: what recovery finishes or discards. None where there is no folder,
    /// or where the point is committed (`point` gives it then).
    ///
    /// # Errors
    /// When the folder cannot be looked at.
    pub fn partial_point(&self, guest: &GuestId, point: &PointId) -> Result<Option<PartialPoint>, RepoError> {
        let Some(folder) = self.point_folder(guest, point)? else { return Ok(None) };
        if folder.contains(layout::MANIFEST)? {
            return Ok(None);
        }
        Ok(Some(PartialPoint { repository: self.clone(), guest: guest.clone(), point: point.clone(), folder }))
    }
}

impl PartialPoint {
    /// The point's id.
    pub fn id(&self) -> &PointId {
        &self.point
    }

    /// Makes a disk's empty image of `virtual_size` bytes and allocates `reserve_bytes` for it ahead, so that the
    /// copy cannot run out of space: for an unfleeced guest that would be a failing write of its own. The header names
    /// the image of `parent`, for people with `qemu-img`; nothing of ours opens it by that name.
    ///
    /// # Errors
    /// `Reserve` where the space is not there or cannot be allocated ahead; otherwise when the image cannot be made.
    pub fn create_disk(
        &self,
        disk: &DiskName,
        virtual_size: u64,
        reserve_bytes: u64,
        parent: Option<&Parent>,
    ) -> Result<(), RepoError> {
        self.repository.check_lease(&self.guest)?;
        let backing = parent.map(layout::backing);
        let tool = self.repository.tool();
        image::create(&self.folder, tool, disk, virtual_size, reserve_bytes, backing.as_deref())
    }

    /// Allocates `reserve_bytes` in all for a disk's image that is being written.
    ///
    /// # Errors
    /// `Reserve` where the space is not there or cannot be allocated ahead.
    pub fn reserve_disk(&self, disk: &DiskName, reserve_bytes: u64) -> Result<(), RepoError> {
        image::reserve(&self.folder, disk, reserve_bytes)
    }

    /// Stores the variables of the guest's firmware, and brings them to the disk.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn store_variables(&self, disk: &DiskName, bytes: &[u8]) -> Result<(), RepoError> {
        self.repository.check_lease(&self.guest)?;
        Ok(self.folder.prepare(&layout::variables(disk), bytes)?)
    }

    /// What was stored of the variables of that drive, as the manifest names it; None where nothing was.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn variables(&self, disk: &DiskName) -> Result<Option<StoredVariables>, RepoError> {
        let name = layout::variables(disk);
        let Some(file) = self.folder.open(&name, false)? else { return Ok(None) };
        let failed = |source| self.folder.error(Act::Read, &name, source);
        let bytes = file.metadata().map_err(failed)?.len();
        let digest = seal::file_digest(file, &AtomicBool::new(false)).map_err(failed)?.unwrap_or_default();
        Ok(Some(StoredVariables { name: disk.clone(), file: name, bytes, digest, other: serde_json::Map::new() }))
    }

    /// A disk's image, open for reading and writing: QEMU gets it by `add-fd` and needs no path to it.
    ///
    /// # Errors
    /// When it is not there.
    pub fn open_disk(&self, disk: &DiskName) -> Result<OwnedFd, RepoError> {
        Ok(self.open(&layout::image(disk), true)?.into())
    }

    /// Takes a disk's image from where it was staged. May be repeated after a crash: it begins anew. `progress` gets the bytes
    /// that are carried, and says whether to go on.
    ///
    /// # Errors
    /// When the staged image is gone or cannot be read, or this one cannot be written.
    pub fn take_disk(
        &self,
        disk: &DiskName,
        staged: &Staging,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), RepoError> {
        self.repository.check_lease(&self.guest)?;
        staged.carry_disk(disk, &self.folder, progress)
    }

    /// Finishes a disk's image that nobody writes to any longer: frees what was allocated ahead and not used, checks
    /// it, computes its digest table, and brings both to the disk. May be repeated after a crash. `progress` gets the
    /// bytes that are digested.
    ///
    /// # Errors
    /// When the image is damaged, or not of the shape of a stored one, or cannot be read or written.
    pub fn seal_disk(&self, disk: &DiskName, progress: &mut dyn FnMut(u64)) -> Result<SealedDisk, RepoError> {
        self.repository.check_lease(&self.guest)?;
        let file = self.open(&layout::image(disk), true)?;
        seal::seal(&self.folder, disk, &file, self.repository.tool(), progress)
    }

    /// Makes the folder a point: checks that everything the manifest names is there, writes it aside, and renames it
    /// into place. Once this returns, the point outlives a power cut. May be repeated after a crash, with the same
    /// manifest.
    ///
    /// # Errors
    /// When the manifest does not fit to what is stored, a parent is gone, the guest belongs to another namespace,
    /// the lease was lost, or the file system refuses. The point is not there then.
    pub fn commit(&self, manifest: &Manifest) -> Result<CommittedPoint, RepoError> {
        let refused = |source| RepoError::Manifest { point: self.point.clone(), source };
        manifest.check().map_err(refused)?;
        self.repository.check_manifest(manifest, &self.guest, &self.point)?;
        if let Some(stored) = self.repository.read_manifest(&self.folder, &self.guest, &self.point)? {
            // It may have been seen before it reached the disk.
            self.folder.sync()?;
            return self.committed(manifest, stored);
        }
        self.check_place(manifest)?;
        self.check_files(manifest)?;
        self.folder.prepare(layout::MANIFEST_NEW, &manifest.to_bytes())?;
        self.folder.sync()?;
        self.repository.check_lease(&self.guest)?;
        self.folder.publish(layout::MANIFEST_NEW, layout::MANIFEST)?;
        let stored = self.repository.read_manifest(&self.folder, &self.guest, &self.point)?;
        match stored {
            Some(stored) => self.committed(manifest, stored),
            None => Err(RepoError::NoSuchPoint { guest: self.guest.clone(), point: self.point.clone() }),
        }
    }

    /// Removes what was stored of a point that will never be one, and its folder. An entry that is not ours, such as a
    /// folder that a NAS makes in every folder, stays with the folder: it is nobody's backup, and no run waits for it.
    ///
    /// # Errors
    /// `PointExists` when the manifest is there: then nothing is removed. Otherwise the first file of ours that cannot
    /// be removed; the others are.
    pub fn discard(self) -> Result<(), RepoError> {
        self.repository.check_lease(&self.guest)?;
        if self.folder.contains(layout::MANIFEST)? {
            return Err(RepoError::PointExists { point: self.point });
        }
        let (mut foreign, mut failed) = (Vec::new(), None);
        for name in self.folder.entries()? {
            match name.to_str().filter(|name| layout::is_of_point(name)) {
                // Where its kind cannot be told, the removal says what is wrong.
                Some(ours) if !self.folder.is_folder(ours.as_ref()).unwrap_or(false) => {
                    self.folder.empty(ours);
                    failed = failed.or(self.folder.remove(ours).err());
                }
                _ => foreign.push(name),
            }
        }
        if let Some(error) = failed {
            return Err(error.into());
        }
        if let Some(guest) = self.repository.guest_folder(&self.guest)? {
            if foreign.is_empty() && guest.remove_empty_folder(self.point.as_str())? {
                return Ok(guest.sync()?);
            }
            tracing::warn!(
                guest = %self.guest, point = %self.point, folder = %self.folder.path().display(), ?foreign,
                "The folder of a discarded point stays, because it holds what Driftline did not make: remove it by hand"
            );
            self.folder.sync()?;
        }
        Ok(())
    }

    fn open(&self, name: &str, write: bool) -> Result<File, RepoError> {
        image::open(&self.folder, name, write)
    }

    /// The manifest is there: fine if it is this very one.
    fn committed(&self, manifest: &Manifest, stored: StoredPoint) -> Result<CommittedPoint, RepoError> {
        if stored.manifest.identity_digest() != manifest.identity_digest() {
            return Err(RepoError::PointExists { point: self.point.clone() });
        }
        Ok(CommittedPoint { stored })
    }

    /// The guest must be of the namespace, the point its newest, and every parent there as it was.
    fn check_place(&self, manifest: &Manifest) -> Result<(), RepoError> {
        let points = self.repository.points(&self.guest)?;
        namespace_of(&self.guest, &points, &manifest.identity.guest.namespace)?;
        let newest = points.last().map_or(0, |newest| newest.manifest.identity.sequence);
        if manifest.identity.sequence <= newest {
            return Err(RepoError::ManifestMismatch {
                point: self.point.clone(),
                why: format!("its sequence is {}, the newest point has {newest}", manifest.identity.sequence),
            });
        }
        let graph = graph_of(&points);
        for disk in &manifest.identity.disks {
            let Some(parent) = &disk.parent else { continue };
            match self.check_parent(parent, &graph, &points) {
                Err(error) if error.retry() == Retry::OnChange => {
                    return Err(RepoError::ParentGone {
                        point: self.point.clone(),
                        disk: disk.name.clone(),
                        parent: parent.point.clone(),
                        why: sentence(&error),
                    });
                }
                done => done?,
            }
        }
        Ok(())
    }

    /// The parent must be the point that it was, and it and all that it rests on be stored as their manifests say. It is brought
    /// to the disk first: another host may have been cut off between its rename and the sync.
    fn check_parent(&self, parent: &Parent, graph: &Graph, points: &[StoredPoint]) -> Result<(), RepoError> {
        let found = graph.point(&parent.point);
        let same = found.is_some_and(|point| point.identity_digest == parent.identity_digest);
        let chain = graph.chain(&parent.point, &parent.disk).ok().filter(|_| same);
        let gone = || RepoError::NoSuchPoint { guest: self.guest.clone(), point: parent.point.clone() };
        let mut links = chain.ok_or_else(gone)?.into_iter();
        links.try_for_each(|link| self.repository.check_link(&self.guest, link, points))?;
        self.repository.durable_point(&self.guest, &parent.point)?.map(drop).ok_or_else(gone)
    }

    /// Images and tables must be what the manifest says of them.
    fn check_files(&self, manifest: &Manifest) -> Result<(), RepoError> {
        let wrong = |name: &str, why: String| RepoError::File { path: self.folder.path().join(name), why };
        for stored in &manifest.definition.variables {
            if self.variables(&stored.name)?.is_none_or(|found| found.digest != stored.digest) {
                return Err(wrong(&stored.file, "its digest is not the one in the manifest".into()));
            }
        }
        for disk in &manifest.identity.disks {
            let Some(stored) = manifest.stored(&disk.name) else { continue };
            let image = self.open(&stored.file, false)?;
            image::expect(&image, &self.folder.path().join(&stored.file), stored.bytes, disk.virtual_size)?;
            let table = self.open(&stored.table, false)?;
            let digest = seal::file_digest(table, &AtomicBool::new(false))
                .map_err(|source| self.folder.error(Act::Read, &stored.table, source))?;
            if digest.as_deref() != Some(stored.table_digest.as_str()) {
                return Err(wrong(&stored.table, "its digest is not the one in the manifest".into()));
            }
        }
        Ok(())
    }
}
