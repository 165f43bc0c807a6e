//! The host's scratch folder: how much of it a run may take, and what for.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{Done, EngineError, Halt, Run};
use crate::{
    engine::{
        Scratch,
        choose::Chosen,
        data_path::{self, DataPath},
        fleecing::{self, RequestedFleecing, Unfleeced},
        graph::GuestFacts,
        journal::Record,
        request::BackupRequest,
        space,
    },
    qmp::Client,
    repo::{QemuImg, space_at},
};

/// How long a run waits for another one that takes room: it looks at a folder and writes a record.
const TURN: Duration = Duration::from_secs(60);

/// What a run takes of the scratch folder.
pub(super) struct Shares {
    /// The folder, where the images are staged in it.
    pub(super) staging: Option<PathBuf>,
    /// What the guest overwrites may take, in bytes, by disk; where the run is fleeced.
    pub(super) fleece: Vec<Option<u64>>,
}

impl Run<'_> {
    /// Decides how the guest is kept from the target. `local`: the repository is on a local file system.
    pub(super) async fn shares(
        &self,
        request: &BackupRequest,
        client: &Client,
        guest: &GuestFacts,
        chosen: &[Chosen],
        local: bool,
    ) -> Done<Shares> {
        let refused = |why| EngineError::TargetUnsafe { path: request.repository.path.clone(), why };
        let path = data_path::decide(request.data_path, local).map_err(refused)?;
        let always = request.fleecing == RequestedFleecing::Always;
        let room = match self.scratch_room().await {
            Err(Halt::Failed(error)) if !always && path == DataPath::Direct => {
                // A direct run to a local target is as safe as it ever was.
                tracing::warn!(error = %error.failure().message, "the run is not fleeced");
                None
            }
            room => room?,
        };
        let (staging, room) = match path {
            DataPath::Direct => (None, room),
            DataPath::Staged => {
                let bounds = chosen.iter().map(|disk| space::bound(disk.virtual_size, disk.choice.base.as_ref()));
                let left = data_path::left(bounds.fold(0, u64::saturating_add), room).map_err(refused)?;
                (self.engine.settings.scratch.as_ref().map(|scratch| scratch.directory.clone()), Some(left))
            }
        };
        let decided = if staging.is_some() && !always {
            Err(Unfleeced::Staged)
        } else {
            fleecing::decide(request.fleecing, guest, chosen, Self::can_fleece(client), room)
        };
        let fleece = match decided {
            Ok(limits) => limits.into_iter().map(Some).collect(),
            Err(why) if always => return Err(EngineError::NotFleeced { why }.into()),
            Err(why) => {
                tracing::info!(run = %request.run, reason = why.reason(), %why, "the run is not fleeced");
                vec![None; chosen.len()]
            }
        };
        Ok(Shares { staging, fleece })
    }

    /// The right to promise room in the scratch folder: what is free is looked at, and taken by the journal's record, by one
    /// run of the host at a time. None where there is no folder.
    pub(super) async fn scratch_turn(&mut self) -> Done<Option<OwnedFd>> {
        use rustix::fs::{FlockOperation, Mode, OFlags};
        if self.engine.settings.scratch.is_none() {
            return Ok(None);
        }
        // Not the folder itself: whoever can open that could hold it.
        let path = self.engine.settings.state.join("scratch.lock");
        let failed = |source: io::Error| EngineError::Scratch { path: path.clone(), source };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)).map_err(|errno| failed(errno.into()))?;
        let since = Instant::now();
        while let Err(errno) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if errno != rustix::io::Errno::WOULDBLOCK {
                return Err(failed(errno.into()).into());
            }
            self.check()?;
            if since.elapsed() > TURN {
                return Err(failed(io::Error::other("another run of this host holds it and does not go on")).into());
            }
            if since.elapsed() > Duration::from_secs(2) {
                self.say("ScratchBusy", "Waits for another run of this host that takes room in the scratch folder");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.say("", "");
        Ok(Some(file))
    }

    /// Bytes of the scratch folder that a run may take now; none where there is no folder.
    async fn scratch_room(&self) -> Done<Option<u64>> {
        let Some(scratch) = self.engine.settings.scratch.clone() else { return Ok(None) };
        let records = self.journal(|journal| journal.all()).await?;
        let sum = |of: fn(&Record) -> u64| records.iter().map(of).fold(0, u64::saturating_add);
        let (promised, not_taken) = (sum(Record::scratch_bytes), sum(Record::sparse_scratch_bytes));
        let (path, budget) = (scratch.directory.clone(), scratch.budget);
        let free = tokio::task::spawn_blocking(move || free_bytes(&scratch))
            .await
            .map_err(|source| EngineError::Broken { act: "Looking at the scratch folder", source })?
            .map_err(|source| EngineError::Scratch { path, source })?;
        Ok(Some(space::scratch_room(budget, free, promised, not_taken)))
    }

    /// A new scratch file, which has no name any more.
    pub(super) async fn scratch_file(&self, virtual_size: u64, limit: u64) -> Done<OwnedFd> {
        let Some(scratch) = self.engine.settings.scratch.clone() else {
            let source = io::ErrorKind::NotFound.into();
            return Err(EngineError::Scratch { path: "[scratch]".into(), source }.into());
        };
        let (path, tool) = (scratch.directory.clone(), self.engine.settings.tool.clone());
        let made = tokio::task::spawn_blocking(move || make_scratch(&scratch, &tool, virtual_size, limit))
            .await
            .map_err(|source| EngineError::Broken { act: "Making a scratch file", source })?;
        Ok(made.map_err(|source| EngineError::Scratch { path, source })?)
    }

    /// Gives back the space of the attempt's scratch files, which QEMU has closed: it may keep the descriptors.
    pub(super) fn empty_scratches(&mut self) {
        for fd in self.scratches.drain(..) {
            if let Err(error) = File::from(fd).set_len(0) {
                tracing::warn!(%error, "a scratch file keeps its space until QEMU gives it up");
            }
        }
    }
}

fn free_bytes(scratch: &Scratch) -> io::Result<u64> {
    let space = space_at(&scratch.directory)?;
    if !space.local {
        return Err(io::Error::other(
            "it is not on a local file system that keeps allocated space, such as ext4 or xfs on disks of this host",
        ));
    }
    Ok(space.available.saturating_sub(scratch.reserve))
}

/// An anonymous file: nothing is left behind, whoever dies when. Its length is the limit, beyond which QEMU does not go.
fn make_scratch(scratch: &Scratch, tool: &QemuImg, virtual_size: u64, limit: u64) -> io::Result<OwnedFd> {
    let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(&scratch.directory, flags, rustix::fs::Mode::from_raw_mode(0o600))?);
    if let Some(owner) = tool.owner.filter(|_| rustix::process::geteuid().is_root()) {
        std::os::unix::fs::fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    tool.create_stored(file.as_fd(), virtual_size, None).map_err(io::Error::other)?;
    file.set_len(limit.max(file.metadata()?.len()))?;
    Ok(file.into())
}
