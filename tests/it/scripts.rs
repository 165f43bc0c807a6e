//! The scripts behind `make`: a target that is told to end takes all that it has started along.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_stage_that_is_told_to_end_takes_along_what_its_command_has_started() {
    let folder = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stage");
    let report = folder.path().join("pid");
    // As cargo does it: a command that starts another one, waits for it, and hands no signal on.
    let command = format!("sleep 600 & echo $! >{0}.new; mv {0}.new {0}; wait", report.display());
    let mut stage = Command::new(script)
        .args(["a stage", "sh", "-c", &command])
        .env("DRIFTLINE_STAGES", folder.path().join("stages"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("the command runs", || report.exists());
    let sleeper: i32 = std::fs::read_to_string(&report).unwrap().trim().parse().unwrap();
    let sleeper = Pid::from_raw(sleeper).unwrap();
    assert!(test_kill_process(sleeper).is_ok());
    kill_process(Pid::from_child(&stage), Signal::TERM).unwrap();
    let mut status = None;
    until("the stage ends", || {
        status = stage.try_wait().unwrap();
        status.is_some()
    });
    assert!(!status.unwrap().success());
    until("what it had started is gone", || test_kill_process(sleeper).is_err());
    let costs = std::fs::read_to_string(folder.path().join("stages")).unwrap();
    assert!(costs.contains("a stage: stopped"), "{costs}");
}
