//! The wall clock, read in one place and passed in everywhere else.

/// The time now.
pub type Clock = std::sync::Arc<dyn Fn() -> jiff::Timestamp + Send + Sync>;

/// The machine's clock.
pub fn system() -> Clock {
    std::sync::Arc::new(jiff::Timestamp::now)
}
