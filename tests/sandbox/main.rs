//! `make demo` and `make sandbox`: Driftline as a person has it, on this machine. A real cluster with two workers, the
//! image, `helm install`, and a Linux guest in QEMU on one of the workers.
//!
//! `demo` goes through the main job once and compares the restored bytes; it ends by itself. `sandbox` starts the same
//! and stays until Ctrl-C. Everything lies in namespaces and temporary folders of its own and ends with this program,
//! however it ends.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it talks to a person")]

#[path = "../support/nodes.rs"]
mod bench;
#[path = "../support/controlplane.rs"]
mod controlplane;
#[path = "../support/lab.rs"]
mod lab;
#[path = "../support/objects.rs"]
mod objects;
#[path = "../support/release.rs"]
mod release;

mod demo;
mod doorway;
mod parts;
mod stay;

use std::{
    panic,
    process::ExitCode,
    sync::{Mutex, PoisonError},
};

use doorway::Doorway;
use parts::Parts;

fn main() -> ExitCode {
    let what = std::env::args().nth(1).unwrap_or_default();
    let act: fn(Parts, Doorway) = match what.as_str() {
        "demo" => |parts, _| demo::show(&parts),
        "sandbox" => stay::until_stopped,
        _ => {
            eprintln!("usage: make demo | make sandbox");
            return ExitCode::from(2);
        }
    };
    if !rustix::process::geteuid().is_root() {
        eprintln!("make {what} starts real nodes, which needs the rights of root: run it as root.");
        return ExitCode::FAILURE;
    }
    let Some(doorway) = doorway::inside() else {
        // The guest's packages come from the network, which the namespace has not.
        lab::tiny_guest::TinyGuest::build();
        return doorway::enter();
    };
    panic::set_hook(Box::new(|panic| complain(panic.payload_as_str().unwrap_or("without a word"))));
    act(Parts::start(), doorway);
    ExitCode::SUCCESS
}

/// Says what went wrong, to a person: not where in this program, and once, though both nodes may fail by the same.
fn complain(what: &str) {
    static SAID: Mutex<String> = Mutex::new(String::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if *said != what {
        eprintln!("\nFAILED: {what}");
        what.clone_into(&mut said);
    }
}
