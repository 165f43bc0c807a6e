//! The engine with a scripted QEMU: stopped at every act, cut off at every command, refused, cancelled, and always:
//! no committed point lost, nothing left behind, at most one transaction.

mod away;
mod course;
mod crashes;
mod durable;
mod hangs;
mod harm;
mod host;
mod kept;
mod late;
mod order;
mod parents;
mod quiesce;
mod scenarios;
mod scratch;
mod shape;
