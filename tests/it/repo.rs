//! The repository: crashes at every operation that changes something, paths that lead elsewhere, file systems that are
//! full or read-only, leases, and verification. Real files, a real `qemu-img`, no QEMU.

#[allow(dead_code, reason = "each of the two test binaries uses a part of it")]
#[path = "../support/repo.rs"]
mod support;

mod crash;
mod discard;
mod lease;
mod refused;
mod stray;
mod verify;
