//! What is stored of the machine itself, beside its disks: the command line without its secrets, and the firmware's
//! variables as the machine has them.

use std::{process::Command, sync::atomic::AtomicBool};

use driftline::{chain::finding::Kind, repo::check::verify};

use super::{
    MIB, assert_complete,
    host::{Going, Host},
};
use crate::lab::machine::{Disk, Plan, run};

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_and_the_firmwares_variables_are_stored_and_verified() {
    let host = Host::new();
    let file = |name: &str| host.folder.path().canonicalize().unwrap().join(name);
    std::fs::write(file("code.fd"), vec![0; 256 << 10]).unwrap();
    let variables: Vec<u8> = (0..=255_u8).cycle().step_by(7).take(64 << 10).collect();
    std::fs::write(file("vars.fd"), &variables).unwrap();
    let drive = |unit: u8, name: &str, more: &str| {
        format!("if=pflash,unit={unit},format=raw,file={}{more}", file(name).display())
    };
    let (code, vars) = (drive(0, "code.fd", ",readonly=on"), drive(1, "vars.fd", ""));
    let secret = "secret,id=sec0,data=hunter2";
    let arguments = ["-drive", &code, "-drive", &vars, "-object", secret];
    let machine = Plan::new().disk(Disk::raw("disk0", MIB)).paused().arguments(&arguments).start();

    let state = Going::start(&host.engine(), machine.qmp(), &host.request(&machine, "run", 0)).end().await;
    assert_complete(&state);
    let manifest = &state.point.as_ref().unwrap().manifest;
    assert_eq!(manifest.identity.disks.len(), 1, "firmware is no disk");
    let line = manifest.definition.command_line.as_ref().unwrap();
    assert!(line[0].ends_with("qemu-system-x86_64"), "{line:?}");
    for word in [machine.uuid(), &vars, "secret,id=sec0,data=<removed>"] {
        assert!(line.iter().any(|argument| argument == word), "{word} is missing in {line:?}");
    }
    assert!(!line.iter().any(|argument| argument.contains("hunter2")), "{line:?}");

    let [stored] = manifest.definition.variables.as_slice() else { panic!("{:?}", manifest.definition) };
    let copy = host.guest_folder(&machine).join(manifest.identity.point.as_str()).join(&stored.file);
    assert_eq!(std::fs::read(&copy).unwrap(), variables);
    let verify = || verify(&host.repository(), None, None, &mut |_| {}, &AtomicBool::new(false)).unwrap();
    assert_eq!(verify(), vec![]);
    std::fs::write(&copy, &variables[1..]).unwrap();
    assert_eq!(verify().iter().map(|finding| finding.kind).collect::<Vec<_>>(), [Kind::VariablesDamaged]);
    std::fs::remove_file(&copy).unwrap();
    assert_eq!(verify().iter().map(|finding| finding.kind).collect::<Vec<_>>(), [Kind::FileMissing]);
}

/// QEMU keeps tables of a qcow2 to itself while it runs: a copy of the file would be of something else, and look whole.
#[tokio::test(flavor = "multi_thread")]
async fn variables_that_only_qemu_can_read_are_named_and_not_stored() {
    let host = Host::new();
    let file = |name: &str| host.folder.path().canonicalize().unwrap().join(name);
    std::fs::write(file("code.fd"), vec![0; 256 << 10]).unwrap();
    let vars = file("vars.qcow2");
    run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&vars).arg("256K"));
    let code = format!("if=pflash,unit=0,format=raw,file={},readonly=on", file("code.fd").display());
    let vars = format!("if=pflash,unit=1,format=qcow2,file={}", vars.display());
    let arguments = ["-drive", &code, "-drive", &vars];
    let machine = Plan::new().disk(Disk::raw("disk0", MIB)).paused().arguments(&arguments).start();
    let state = Going::start(&host.engine(), machine.qmp(), &host.request(&machine, "run", 0)).end().await;
    assert_complete(&state);
    let definition = &state.point.as_ref().unwrap().manifest.definition;
    assert_eq!((definition.variables.len(), definition.variables_left_out.len()), (0, 1), "{definition:?}");
}
