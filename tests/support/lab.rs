//! What the tests against real parts share: machines (QEMU), the proxy on their monitor, references of an instant, and
//! the tiny Linux guest.
//!
//! A test binary takes it whole, with `#[path = "../support/lab.rs"] mod lab;`, and uses the part that it needs.
#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test binary uses its part")]

pub mod child;
pub mod disk;
pub mod fuse;
pub mod machine;
pub mod monitor;
pub mod mount;
pub mod netns;
pub mod proxy;
pub mod proxy_rules;
pub mod reference;
pub mod tiny_guest;
