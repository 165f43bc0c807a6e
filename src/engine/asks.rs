//! Questions to repositories that may be left behind when they hang: one for each guest and repository, because each holds a
//! thread until it is answered, and the run asks again every two minutes.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::ids::GuestId;

/// A question; it goes on while anybody, such as the thread that hangs, has it.
pub(super) type Ask = Arc<()>;

/// Who has asked which repository.
type Asked = HashMap<(GuestId, PathBuf), Weak<()>>;

/// The questions that go on. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Asks(Arc<Mutex<Asked>>);

impl Asks {
    /// None while an earlier question of the guest to the repository goes on.
    pub(super) fn begin(&self, guest: &GuestId, repository: &Path) -> Option<Ask> {
        let mut asks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        asks.retain(|_, ask| ask.strong_count() > 0);
        let key = (guest.clone(), repository.to_owned());
        if asks.contains_key(&key) {
            return None;
        }
        let ask = Ask::default();
        asks.insert(key, Arc::downgrade(&ask));
        Some(ask)
    }
}
