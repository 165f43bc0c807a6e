//! One binary for what needs neither QEMU nor a control plane: layers, generated files, scenarios, crashes at every write.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;
mod architecture;
mod argocd;
mod command;
mod controller;
mod docs;
mod engine;
mod examples;
mod generated;
#[path = "../support/guides.rs"]
mod guides;
mod image;
mod reasons;
mod repo;
mod scripts;
