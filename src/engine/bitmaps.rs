//! A person at the host adds, clears and removes bitmaps. What may be done is decided purely; nothing is, while a run of the
//! guest is in flight or another process works on it.

use std::collections::BTreeSet;

use super::{Engine, EngineError, graph::DiskFacts, graph::inspect};
use crate::{
    ids::{BitmapName, DiskName, GuestId, PointId},
    qmp::{
        Monitor,
        command::{BitmapAdd, BitmapRef, BlockDirtyBitmapAdd, BlockDirtyBitmapClear, BlockDirtyBitmapRemove, Command},
    },
};

/// What every name of Driftline's begins with.
const OURS: &str = "driftline.";

/// Whether QEMU takes that for the bytes that one bit stands for: a power of two from 512 to 2 GiB.
pub fn is_granularity(bytes: u32) -> bool {
    bytes.is_power_of_two() && bytes >= 512
}

/// What becomes of a bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitmapAct {
    /// A new one, which records from now on.
    Add {
        /// Bytes that one bit stands for.
        granularity: u32,
        /// Whether it is stored in the image at a clean end of QEMU.
        persistent: bool,
    },
    /// No byte is marked in it any more.
    Clear,
    /// It is gone.
    Remove,
}

/// A bitmap that a person names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedBitmap {
    /// The disk.
    pub disk: DiskName,
    /// Its name.
    pub name: String,
    /// Whether one of another program is meant, too.
    pub foreign: bool,
}

/// Why that is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BitmapRefusal {
    /// There is no such disk.
    #[error("The machine has no disk {disk} that is backed up: it has {known}")]
    NoDisk {
        /// As it was named.
        disk: DiskName,
        /// Those that there are.
        known: String,
    },
    /// There is no such bitmap.
    #[error("Disk {disk} has no bitmap {name:?}: `driftline bitmaps list` shows those that it has")]
    NotThere {
        /// The disk.
        disk: DiskName,
        /// As it was named.
        name: String,
    },
    /// There is one of that name.
    #[error("Disk {disk} has a bitmap {name:?} already: give another name")]
    Exists {
        /// The disk.
        disk: DiskName,
        /// As it was named.
        name: String,
    },
    /// A name of ours, for one that is not.
    #[error("Names that begin with {OURS} are Driftline's own: give another one")]
    Reserved,
    /// Another program's.
    #[error(
        "Bitmap {name:?} is not Driftline's: whatever has made it may build its next backup on it. If nothing does, say --foreign"
    )]
    Foreign {
        /// As it was named.
        name: String,
    },
    /// A checkpoint that is emptied makes the next increment miss what was written.
    #[error(
        "Bitmap {name} is what Driftline's next backup of disk {disk} builds on: emptied, that backup would miss what was written \
         since. Remove it, and the next one is a full"
    )]
    Needed {
        /// The disk.
        disk: DiskName,
        /// Its name.
        name: String,
    },
    /// A run of ours that nobody has finished yet needs it.
    #[error(
        "Bitmap {name} may be needed by a run of the machine that is not finished: `driftline recover` finishes it first"
    )]
    InFlight {
        /// Its name.
        name: String,
    },
    /// A job or export uses it.
    #[error("Bitmap {name:?} is in use by a job or an export: `driftline jobs` shows what the machine does")]
    Busy {
        /// Its name.
        name: String,
    },
    /// The image cannot hold it.
    #[error(
        "Disk {disk} has an image of format {format}, which stores no bitmaps: only qcow2 does. Leave --persistent out"
    )]
    NotStored {
        /// The disk.
        disk: DiskName,
        /// Its format.
        format: String,
    },
}

impl BitmapRefusal {
    /// Reason word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoDisk { .. } => "DiskNotFound",
            Self::NotThere { .. } => "BitmapNotFound",
            Self::Exists { .. } => "BitmapExists",
            Self::Reserved => "BitmapNameReserved",
            Self::Foreign { .. } => "BitmapForeign",
            Self::Needed { .. } => "BitmapNeeded",
            Self::InFlight { .. } => "BitmapInFlight",
            Self::Busy { .. } => "BitmapBusy",
            Self::NotStored { .. } => "BitmapNotStored",
        }
    }
}

/// Whether it may be done, and the node that it is done on.
fn check<'a>(
    disks: &'a [DiskFacts],
    of: &NamedBitmap,
    act: BitmapAct,
    in_flight: &BTreeSet<PointId>,
) -> Result<&'a str, BitmapRefusal> {
    let (disk, name) = (of.disk.clone(), of.name.clone());
    let Some(facts) = disks.iter().find(|facts| facts.name == disk && facts.eligible()) else {
        let known: Vec<_> = disks.iter().filter(|facts| facts.eligible()).map(|facts| facts.name.as_str()).collect();
        return Err(BitmapRefusal::NoDisk { disk, known: known.join(", ") });
    };
    let found = facts.bitmaps.iter().find(|bitmap| bitmap.name == name);
    let node = facts.node_name.as_str();
    if let BitmapAct::Add { persistent, .. } = act {
        return match found {
            _ if name.starts_with(OURS) => Err(BitmapRefusal::Reserved),
            Some(_) => Err(BitmapRefusal::Exists { disk, name }),
            None if persistent && !facts.persistent_bitmaps => {
                Err(BitmapRefusal::NotStored { disk, format: facts.format.clone() })
            }
            None => Ok(node),
        };
    }
    let Some(found) = found else { return Err(BitmapRefusal::NotThere { disk, name }) };
    match name.parse::<BitmapName>() {
        _ if found.busy => Err(BitmapRefusal::Busy { name }),
        // Of another version, perhaps.
        Err(_) if act == BitmapAct::Clear && name.starts_with(OURS) => Err(BitmapRefusal::Needed { disk, name }),
        Ok(own) if in_flight.contains(&own.point) => Err(BitmapRefusal::InFlight { name }),
        Ok(_) if act == BitmapAct::Clear => Err(BitmapRefusal::Needed { disk, name }),
        Err(_) if !of.foreign => Err(BitmapRefusal::Foreign { name }),
        Ok(_) | Err(_) => Ok(node),
    }
}

impl Engine {
    /// Adds, clears or removes a bitmap, with the guest's lock held.
    ///
    /// # Errors
    /// When it may not be done, somebody works on the guest, or QEMU refuses.
    pub async fn change_bitmap(
        &self,
        monitor: &Monitor,
        guest: &GuestId,
        bitmap: &NamedBitmap,
        act: BitmapAct,
    ) -> Result<(), EngineError> {
        let _lock = self.lock_soon(guest, "driftline bitmaps").await?;
        let journal = &self.0.journal;
        let in_flight = journal.in_flight(None).map_err(EngineError::Journal)?;
        // Nobody drives it just now, and it may build on any of them.
        if journal.load(guest).map_err(EngineError::Journal)?.is_some() && !matches!(act, BitmapAct::Add { .. }) {
            return Err(EngineError::Bitmap(BitmapRefusal::InFlight { name: bitmap.name.clone() }));
        }
        let client = monitor.client().await.map_err(|source| EngineError::Connect { source })?;
        let found = inspect(&client).await?;
        let node = check(&found.disks, bitmap, act, &in_flight).map_err(EngineError::Bitmap)?;
        let (node, name) = (node.to_owned(), bitmap.name.clone());
        let failed = |command| move |source| EngineError::Inspect { command, source };
        match act {
            BitmapAct::Add { granularity, persistent } => {
                let add = BlockDirtyBitmapAdd(BitmapAdd { node, name, granularity, persistent, disabled: false });
                client.execute(&add).await.map(drop).map_err(failed(BlockDirtyBitmapAdd::NAME))
            }
            BitmapAct::Clear => {
                let clear = BlockDirtyBitmapClear(BitmapRef { node, name });
                client.execute(&clear).await.map(drop).map_err(failed(BlockDirtyBitmapClear::NAME))
            }
            BitmapAct::Remove => {
                let remove = BlockDirtyBitmapRemove(BitmapRef { node, name });
                client.execute(&remove).await.map(drop).map_err(failed(BlockDirtyBitmapRemove::NAME))
            }
        }
    }
}

#[cfg(test)]
mod tests;
