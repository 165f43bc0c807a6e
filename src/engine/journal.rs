//! The journal: what a crash between two acts could leave behind, one record per guest, on the host's disk. Each state
//! is synced before the act that it names. Losing it loses no restore point, only convenience.
//!
//! `Record` is pure data; `Journal` reads and writes. A record is written into a spare file of fixed length, synced and
//! exchanged with the old one, and the folder synced: never torn, and since both files keep their space from the first
//! state on, a disk that fills up cannot stop a run half-way from being written down.

mod aside;
#[cfg(test)]
mod fixture;
mod kept;
mod record;
mod store;
mod wishes;

#[cfg(test)]
pub(in crate::engine) use self::fixture::{fixture, increment, request};

pub use self::{
    aside::{Aside, Left},
    record::{Failure, Record, RecordDisk, RecordVariables, State},
    store::{Journal, JournalError},
    wishes::Waiting,
};
