//! The images that the jobs write: those of the point in the repository, or staged ones in the scratch folder.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Done, EngineError, Halt, Run, headway::Headway};
use crate::{
    chain::point::Parent,
    engine::{gate::Passage, journal::Record},
    ids::{DiskName, GuestId},
    repo::{PartialPoint, RepoError, Stage, Staging},
};

impl Run<'_> {
    /// Where the attempt's images are staged, if they are.
    pub(super) fn stage(&self, record: &Record) -> Option<Stage> {
        let settings = &self.engine.settings;
        let directory = record.staging.as_deref()?;
        Some(Stage::new(directory, &record.request.guest.uuid, &record.attempt, &settings.tool, &settings.roots))
    }

    /// Makes a disk's empty image, with the space that it can need.
    pub(super) async fn create_image(
        &mut self,
        record: &Record,
        disk: DiskName,
        virtual_size: u64,
        bound: u64,
        parent: Option<Parent>,
    ) -> Done<()> {
        match self.stage(record) {
            Some(stage) => {
                self.staged("disk", move || opened(&stage)?.create_disk(&disk, virtual_size, bound, parent.as_ref()))
                    .await
            }
            None => {
                let partial = self.open_partial(record).await?;
                let create = move |_: &_| partial.create_disk(&disk, virtual_size, bound, parent.as_ref());
                self.repository(&record.request, "disk", create).await
            }
        }
    }

    /// A disk's image, open for reading and writing.
    pub(super) async fn open_image(&mut self, record: &Record, disk: DiskName) -> Done<OwnedFd> {
        match self.stage(record) {
            Some(stage) => self.staged("disk", move || opened(&stage)?.open_disk(&disk)).await,
            None => {
                let partial = self.open_partial(record).await?;
                self.repository(&record.request, "disk", move |_| partial.open_disk(&disk)).await
            }
        }
    }

    /// Allocates so many bytes in all for a disk's image.
    pub(super) async fn reserve_image(&mut self, record: &Record, disk: DiskName, bytes: u64) -> Done<()> {
        match self.stage(record) {
            Some(stage) => self.staged("allocate", move || opened(&stage)?.reserve_disk(&disk, bytes)).await,
            None => {
                let partial = self.open_partial(record).await?;
                self.repository(&record.request, "allocate", move |_| partial.reserve_disk(&disk, bytes)).await
            }
        }
    }

    /// Brings a disk's image, which QEMU has closed, to the disk.
    pub(super) async fn sync_image(&mut self, record: &Record, disk: DiskName) -> Done<()> {
        match self.stage(record) {
            Some(stage) => self.staged("sync", move || opened(&stage)?.sync_disk(&disk)).await,
            None => {
                let (partial, name) = (self.open_partial(record).await?, disk.clone());
                let synced = self
                    .repository(&record.request, "sync", move |_| {
                        Ok(std::fs::File::from(partial.open_disk(&name)?).sync_all())
                    })
                    .await?;
                Ok(synced.map_err(|source| EngineError::Sync { disk, source })?)
            }
        }
    }

    /// Makes the folder of staged images.
    pub(super) async fn create_staging(&self, record: &Record) -> Done<()> {
        let Some(stage) = self.stage(record) else { return Ok(()) };
        self.staged("create", move || stage.create().map(drop)).await
    }

    /// Removes the staged images, if there are any.
    pub(super) async fn discard_staging(&self, record: &Record) -> Done<()> {
        let Some(stage) = self.stage(record) else { return Ok(()) };
        self.staged("discard", move || stage.discard()).await
    }

    /// Removes what earlier attempts at the guest have staged and no journal knows of any more.
    pub(super) async fn discard_leftover_staging(&self, guest: &GuestId) -> Done<()> {
        let Some(scratch) = self.engine.settings.scratch.clone() else { return Ok(()) };
        let (guest, tool, roots) =
            (guest.clone(), self.engine.settings.tool.clone(), self.engine.settings.roots.clone());
        let discard = move || Stage::discard_all(&scratch.directory, &guest, &tool, &roots);
        match self.staged("discard", discard).await {
            Err(Halt::Failed(error)) => {
                // It takes space and nothing else.
                tracing::warn!(error = %error.failure().message, "the scratch folder was not looked through for what earlier runs have staged");
                Ok(())
            }
            done => done,
        }
    }

    /// Carries the staged images to the repository, if there are any. May be repeated.
    pub(super) async fn take_staged(
        &mut self,
        record: &Record,
        partial: &Arc<PartialPoint>,
        headway: &Headway,
    ) -> Done<()> {
        let Some(stage) = self.stage(record) else { return Ok(()) };
        let looked = stage.clone();
        if self.staged("open", move || looked.open()).await?.is_none() {
            return Err(EngineError::CopyGone { point: record.point.to_string() }.into());
        }
        let given_up = GivenUp::default();
        for disk in &record.disks {
            let (partial, name, stage) = (Arc::clone(partial), disk.name.clone(), stage.clone());
            let mut tell = headway.teller(self, record, &disk.name, "carried to the repository");
            let given_up = Arc::clone(&given_up.0);
            self.repository(&record.request, "take", move |_| {
                partial.take_disk(&name, &opened(&stage)?, &mut |bytes| {
                    tell(bytes);
                    !given_up.load(Ordering::Relaxed)
                })
            })
            .await?;
            headway.step();
        }
        Ok(())
    }

    /// Calls the scratch folder on a thread for blocking calls; the guest's lock is held until it has returned.
    async fn staged<T: Send + 'static>(
        &self,
        name: &'static str,
        act: impl FnOnce() -> Result<T, RepoError> + Send + 'static,
    ) -> Done<T> {
        self.engine.gates.pass(Passage::RepositoryBefore(name)).await;
        let lock = self.lock.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _lock = lock;
            act()
        })
        .await
        .map_err(|source| EngineError::Broken { act: "Staging the copy", source })?;
        self.engine.gates.pass(Passage::RepositoryAfter(name)).await;
        Ok(done.map_err(|source| EngineError::Staging { source: Box::new(source) })?)
    }
}

/// Tells a thread that carries images that nobody waits for it any more, when it is dropped.
#[derive(Default)]
struct GivenUp(Arc<AtomicBool>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn opened(stage: &Stage) -> Result<Staging, RepoError> {
    stage.open()?.ok_or_else(|| RepoError::File { path: stage.path(), why: "it is missing".into() })
}
