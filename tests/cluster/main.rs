//! Tests against a real kube-apiserver, with agent, controller and a real QEMU.
#![allow(clippy::unwrap_used, missing_docs)]
