//! The descriptors that QEMU was given: given up once their nodes are closed. Below QEMU 9.1 one that is given up while the
//! guest does not run stays open until it is given up again after the guest runs (measured on 7.2 and 8.2). Such attempts
//! are written down, and tried again by every later run, by a recovery, and by the agent once the guest runs.

use std::collections::BTreeSet;

use super::{Done, EngineError, Halt, Run, doors};
use crate::{
    engine::journal::{Journal, Record},
    ids::{AttemptId, GuestId},
    qmp::{
        Client, ExecuteError,
        block::FdSet,
        command::{QueryFdsets, RemoveFd},
    },
};

/// Descriptors of ended attempts with which a guest is not backed up any more: a process has 1024 where nobody has raised
/// that, and QEMU needs some for each of its disks.
const MOST_KEPT: usize = 256;

impl Run<'_> {
    async fn fdsets(&self, client: &Client) -> Done<Vec<FdSet>> {
        self.execute(client, "Asking QEMU for its descriptors", &QueryFdsets {}).await
    }

    /// Gives up the attempt's sets: QEMU 10.0 keeps them even when the client is gone. Whether there were any.
    pub(super) async fn give_up_fds(&self, client: &Client, record: &Record) -> Done<bool> {
        let sets = self.fdsets(client).await?;
        let ours: Vec<_> = sets.iter().filter(|set| is_of(set, &record.attempt)).collect();
        for set in &ours {
            match self.execute(client, "Giving up a descriptor", &RemoveFd { fdset_id: set.fdset_id }).await {
                // It went with its node.
                Err(Halt::Failed(EngineError::Qemu { source: ExecuteError::Qemu { .. }, .. })) => {}
                done => {
                    done?;
                }
            }
        }
        Ok(!ours.is_empty())
    }

    /// Gives them up for good: where QEMU keeps any, the attempt is written down.
    pub(super) async fn forget_fds(&self, client: &Client, record: &Record) -> Done<()> {
        let given_up = self.give_up_fds(client, record).await?;
        if !given_up || !self.fdsets(client).await?.iter().any(|set| is_of(set, &record.attempt)) {
            return Ok(());
        }
        let (guest, attempt) = (record.request.guest.uuid.clone(), record.attempt.clone());
        let noted = self
            .journal(move |journal| {
                let mut kept = journal.kept(&guest)?;
                kept.insert(attempt);
                journal.set_kept(&guest, &kept)
            })
            .await;
        match noted {
            Err(Halt::Failed(error)) => {
                // They go with QEMU.
                tracing::warn!(error = %error.failure().message, "descriptors that QEMU keeps are not written down");
                Ok(())
            }
            done => done,
        }
    }

    /// Gives up what earlier attempts have left; refuses when QEMU keeps too much of it.
    pub(super) async fn give_up_kept(&self, client: &Client, guest: &GuestId, running: bool) -> Done<()> {
        match give_up_kept(client, &self.engine.journal, guest, running).await? {
            count if count < MOST_KEPT => Ok(()),
            count => Err(EngineError::DescriptorsKept { count }.into()),
        }
    }
}

/// Gives up the descriptors that QEMU has kept of ended attempts at the guest, whose lock is held, if it is `running`: else
/// QEMU would keep them. Returns how many it still keeps.
pub(in crate::engine) async fn give_up_kept(
    client: &Client,
    journal: &Journal,
    guest: &GuestId,
    running: bool,
) -> Result<usize, EngineError> {
    let kept = journal.kept(guest).map_err(EngineError::Journal)?;
    if kept.is_empty() {
        return Ok(0);
    }
    let stay = |sets: Vec<FdSet>| sets.into_iter().filter(|set| attempts(set).any(|attempt| kept.contains(&attempt)));
    if running {
        for set in stay(doors::ask(client, "Asking QEMU for its descriptors", &QueryFdsets {}).await?) {
            doors::ask(client, "Giving up a descriptor", &RemoveFd { fdset_id: set.fdset_id }).await?;
        }
    }
    let left: Vec<_> = stay(doors::ask(client, "Asking QEMU for its descriptors", &QueryFdsets {}).await?).collect();
    let still: BTreeSet<_> = left.iter().flat_map(attempts).collect();
    if still != kept {
        journal.set_kept(guest, &still).map_err(EngineError::Journal)?;
    }
    Ok(left.len())
}

fn is_of(set: &FdSet, attempt: &AttemptId) -> bool {
    attempts(set).any(|found| found == *attempt)
}

/// The attempts whose descriptors are in a set.
pub(super) fn attempts(set: &FdSet) -> impl Iterator<Item = AttemptId> {
    set.fds.iter().filter_map(|fd| AttemptId::of_fdset(fd.opaque.as_deref()?))
}
