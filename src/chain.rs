//! What restore points are to each other: chains of parents, breaks in them, and what was found wrong. Pure: no I/O,
//! no clock; the repository hands in what its manifests say.

pub mod finding;
pub mod graph;
pub mod next;
pub mod point;
