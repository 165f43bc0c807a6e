//! `make demo` and `make sandbox`: Driftline on real parts, on this machine, in a network namespace of its own.
//!
//! `demo` goes through the main job once and compares the restored bytes; it ends by itself. `sandbox` starts the same
//! parts and stays until Ctrl-C. Everything lies in temporary folders and ends with this program, however it ends.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it talks to a person")]

#[path = "../support/controlplane.rs"]
mod controlplane;
#[path = "../support/installation.rs"]
mod installation;
#[path = "../support/lab.rs"]
mod lab;
#[path = "../support/objects.rs"]
mod objects;

mod demo;
mod doorway;
mod stay;

use std::{process::ExitCode, time::Instant};

fn main() -> ExitCode {
    let what = std::env::args().nth(1).unwrap_or_default();
    let act: fn(Parts) = match what.as_str() {
        "demo" => demo::show,
        "sandbox" => stay::until_stopped,
        _ => {
            eprintln!("usage: make demo | make sandbox");
            return ExitCode::from(2);
        }
    };
    let Some(doorway) = doorway::inside() else {
        // The guest's packages come from the network, which the namespace has not.
        lab::tiny_guest::TinyGuest::build();
        return doorway::enter();
    };
    // Ctrl-C runs no destructors: what machines keep in temporary folders goes with this one.
    let folder = controlplane::process::folder_that_ends_with_us("driftline-sandbox");
    tempfile::env::override_temp_dir(&folder).expect("Nothing has asked for a temporary folder before");
    let began = Instant::now();
    println!("Starting etcd, kube-apiserver and kube-controller-manager …");
    let plane: &'static _ = Box::leak(Box::new(controlplane::ControlPlane::start(doorway.port())));
    doorway.open();
    println!("  ready after {:.1} s", began.elapsed().as_secs_f64());

    println!("Installing charts/driftline; starting the controller with its ServiceAccount's rights, and two agents …");
    let began = Instant::now();
    let installation: &'static _ = Box::leak(Box::new(installation::Installation::start(plane)));
    println!("  ready after {:.1} s", began.elapsed().as_secs_f64());

    println!("Starting a Linux guest in QEMU with a qcow2 and a raw disk, which writes to both all the time …");
    let began = Instant::now();
    let monitor = folder.join("monitor.qmp");
    let machine = machine(&monitor);
    machine.console().wait_until_up();
    machine.console().go();
    println!("  up after {:.1} s", began.elapsed().as_secs_f64());
    act(Parts { installation, tenant: installation.tenant(), machine, monitor });
    ExitCode::SUCCESS
}

/// What demo and sandbox have in common.
struct Parts {
    installation: &'static installation::Installation,
    tenant: installation::Tenant,
    machine: lab::machine::Machine,
    /// A monitor that nobody holds.
    monitor: std::path::PathBuf,
}

/// With a monitor for the person, beside the one that the agent holds.
fn machine(person: &std::path::Path) -> lab::machine::Machine {
    const MIB: u64 = 1 << 20;
    let monitor = format!("unix:{},server=on,wait=off", person.display());
    lab::machine::Plan::new()
        .arguments(&["-qmp", &monitor])
        .disk(lab::machine::Disk::qcow2("system", 64 * MIB))
        .disk(lab::machine::Disk::raw("data", 32 * MIB + 512))
        .linux()
        .start()
}
