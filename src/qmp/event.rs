//! What QEMU says unasked. Events are kept as values: an event or a field that this build does not know harms nothing.
//! They are hints, never proof: a start that is refused emits some, and those sent while nobody is connected are lost.

use serde::Deserialize;
use serde_json::Value;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Such as `JOB_STATUS_CHANGE`.
    pub name: String,
    /// The event's data; `null` where it has none (`STOP`).
    pub data: Value,
    /// QEMU's wall clock at the event; `None` where its clock failed.
    pub timestamp: Option<jiff::Timestamp>,
}

impl Event {
    /// A text of the data by its key, such as `id` or `status` of `JOB_STATUS_CHANGE`.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.data.get(key).and_then(Value::as_str)
    }
}

/// The time in an event; QEMU writes -1 when its clock failed.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct WireTime {
    seconds: i64,
    microseconds: i64,
}

impl WireTime {
    pub(super) fn timestamp(self) -> Option<jiff::Timestamp> {
        if self.seconds < 0 {
            return None;
        }
        let nanoseconds = i32::try_from(self.microseconds.checked_mul(1000)?).ok()?;
        jiff::Timestamp::new(self.seconds, nanoseconds).ok()
    }
}
