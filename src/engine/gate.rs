//! The gate that every act of a run passes: before and after each write of the journal, each command to QEMU and each
//! call of the repository. In the product it is open. A test closes it at the n-th passage to see what a crash of the
//! engine there would leave.

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Passage {
    /// The journal is about to be written or removed.
    JournalBefore,
    /// It was.
    JournalAfter,
    /// A command is about to be sent to QEMU.
    Sending(&'static str),
    /// Its reply came.
    Replied(&'static str),
    /// The repository is about to be asked for something.
    RepositoryBefore(&'static str),
    /// It answered.
    RepositoryAfter(&'static str),
}

/// Says whether the passage is open. Once it says no, the run never goes on.
#[cfg(any(test, feature = "fake"))]
pub type Gate = std::sync::Arc<dyn Fn(Passage) -> bool + Send + Sync>;

/// The gate of an engine.
#[derive(Clone, Default)]
pub(super) struct Gates {
    #[cfg(any(test, feature = "fake"))]
    pub(super) gate: Option<Gate>,
}

impl Gates {
    /// Returns when the passage is open.
    #[cfg(any(test, feature = "fake"))]
    pub(super) async fn pass(&self, passage: Passage) {
        if let Some(gate) = &self.gate
            && !gate(passage)
        {
            std::future::pending::<()>().await;
        }
    }

    /// Returns at once.
    #[cfg(not(any(test, feature = "fake")))]
    pub(super) async fn pass(&self, _: Passage) {}
}

impl std::fmt::Debug for Gates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gates")
    }
}
