//! Whether the links of a chain are stored as their manifests say, as far as lengths, headers and the ends of digest
//! tables tell: what a run asks of all that it builds on. Reading the data again is verification's work.

use std::{collections::HashSet, fs::File};

use rustix::io::Errno;

use super::{
    RepoError, Repository, Scan, StoredPoint, digests, image,
    manifest::StoredDisk,
    read::graph_of,
    store::{Act, StoreError},
};
use crate::{
    chain::graph::{Damage, Graph, Link},
    ids::{DiskName, GuestId, PointId},
    sentence::sentence,
};

impl Repository {
    /// Opens one link's image, if it is the one of the manifest as far as its length and header tell.
    ///
    /// # Errors
    /// When it is missing, another one, or cannot be read.
    pub(crate) fn open_link(&self, guest: &GuestId, link: Link<'_>) -> Result<File, RepoError> {
        let (point, disk) = (&link.point.id, &link.disk.name);
        let file = self.image(guest, point, disk)?;
        image::expect(&file, &self.image_path(guest, point, disk), link.disk.bytes, link.disk.virtual_size)?;
        Ok(file)
    }

    /// Fails unless the link's image and digest table are there and of the shape that the manifest gives them. `points`
    /// are the guest's, in the order of a scan.
    ///
    /// # Errors
    /// `ManifestMismatch` where the manifest gives the disk another size than its table, which never changes. Otherwise
    /// with what is wrong with the files, or keeps from looking.
    pub(super) fn check_link(&self, guest: &GuestId, link: Link<'_>, points: &[StoredPoint]) -> Result<(), RepoError> {
        let (point, expected) = (&link.point.id, link.disk.virtual_size);
        let at = points.binary_search_by(|stored| {
            let identity = &stored.manifest.identity;
            (identity.sequence, &identity.point).cmp(&(link.point.sequence, point))
        });
        let stored = at.ok().and_then(|at| points[at].manifest.stored(&link.disk.name));
        let missing = || RepoError::NoSuchPoint { guest: guest.clone(), point: point.clone() };
        let size = self.size_by_table(guest, point, stored.ok_or_else(missing)?)?;
        if size != expected {
            let why = format!("it gives disk {} {expected} bytes, its digest table {size}", link.disk.name);
            return Err(RepoError::ManifestMismatch { point: point.clone(), why });
        }
        self.open_link(guest, link).map(drop)
    }

    /// Virtual size in bytes of a disk, as its digest table tells it.
    fn size_by_table(&self, guest: &GuestId, point: &PointId, stored: &StoredDisk) -> Result<u64, RepoError> {
        let table = self.table(guest, point, &stored.name, stored.generation)?;
        let path = self.image_path(guest, point, &stored.name).with_file_name(&stored.table);
        let failed = |source| StoreError { act: Act::Read, path: path.clone(), source };
        let length = table.metadata().map_err(failed)?.len();
        digests::virtual_size(&table, length).map_err(|source| RepoError::Table { path, source })
    }

    /// What is wrong with a link's files; none where nothing is.
    ///
    /// # Errors
    /// Where not the files are what is wrong, but the file system that they stand on, or this process: another try can find
    /// them as they should be.
    fn wrong_with(
        &self,
        guest: &GuestId,
        link: Link<'_>,
        points: &[StoredPoint],
    ) -> Result<Option<RepoError>, RepoError> {
        let look = || self.check_link(guest, link, points).err();
        let Some(mut error) = look() else { return Ok(None) };
        if blame(&error) == Blame::Either {
            // The manifest stands beside the files. Once it can be read, what has passed by then is no damage.
            self.point(guest, &link.point.id)?;
            match look() {
                Some(again) => error = again,
                None => return Ok(None),
            }
        }
        if blame(&error) == Blame::FileSystem { Err(error) } else { Ok(Some(error)) }
    }

    /// A guest's points as a graph of chains, broken where an image that `heads`, disks of points, rest on is not as it was
    /// stored. One that alone cannot be read is not, either, and of a manifest that is not whole no disk is.
    ///
    /// # Errors
    /// Where the file system lets nothing be opened.
    pub(crate) fn graph_with_damage(
        &self,
        guest: &GuestId,
        scan: &Scan,
        heads: impl FnOnce(&Graph) -> Vec<(PointId, DiskName)>,
    ) -> Result<Graph, RepoError> {
        let graph = graph_of(&scan.points);
        let (mut looked_at, mut damage) = (HashSet::new(), Damage::new());
        for (point, disk) in heads(&graph) {
            for link in graph.chain(&point, &disk).into_iter().flatten() {
                // What is below was looked at with it.
                if !looked_at.insert((&link.point.id, &link.disk.name)) {
                    break;
                }
                let Some(error) = self.wrong_with(guest, link, &scan.points)? else { continue };
                let whole_point = matches!(error, RepoError::ManifestMismatch { .. });
                for disk in link.point.disks.iter().filter(|disk| whole_point || disk.name == link.disk.name) {
                    damage.insert((link.point.id.clone(), disk.name.clone()), sentence(&error));
                }
            }
        }
        Ok(graph.with_damage(damage))
    }
}

/// What an error tells about a file.
#[derive(PartialEq)]
enum Blame {
    /// It is not as it should be, and stays so.
    File,
    /// Its file system, or this process, cannot open it now.
    FileSystem,
    /// The one or the other: rights, or a place of the disk that cannot be read.
    Either,
}

fn blame(error: &RepoError) -> Blame {
    let RepoError::Store(error) = error else { return Blame::File };
    match Errno::from_io_error(&error.source) {
        // What is no error of the system is one that we have found ourselves, such as a folder in the file's place; the two
        // others are a link in it.
        None | Some(Errno::LOOP | Errno::XDEV) => Blame::File,
        // Also how file systems tell that the sums of an inode are wrong, and a disk that a sector is.
        Some(Errno::ACCESS | Errno::PERM | Errno::IO | Errno::UCLEAN | Errno::BADMSG | Errno::NODATA) => Blame::Either,
        Some(_) => Blame::FileSystem,
    }
}
