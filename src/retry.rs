//! What an error says about trying again. Pure; every error type of the crate answers with it.

/// Whether and when the same act may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// At once: the cause is known to have passed.
    Now,
    /// Later, with growing pauses.
    Backoff,
    /// Not before something that a person or another program changes: trying again alone cannot help.
    OnChange,
}
