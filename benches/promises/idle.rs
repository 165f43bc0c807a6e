//! Resident memory of roles that have nothing to do.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use driftline::qmp::fake::{FakeDisk, FakeQemu, Setup};

use crate::{
    Row,
    lab::{
        child::{Guarded, wait_for},
        machine::run,
    },
};

/// An agent with 50 machines (scripted ones, a disk each): under 40 MiB.
pub fn agent(_quick: bool) -> Vec<Row> {
    const GUESTS: usize = 50;
    let folder = tempfile::Builder::new().prefix("bench-").tempdir().unwrap();
    let machines: Vec<FakeQemu> = (0..GUESTS).map(|number| machine(folder.path(), number)).collect();
    let admin = free_address();
    let agent = start(folder.path(), &admin);
    let metric = || metric(&admin, "driftline_agent_guest_connected");
    wait_for("the agent is connected to every machine", Duration::from_secs(60), || {
        (metric() == Some(GUESTS as f64)).then_some(())
    });
    // Idle: what the start needed once is freed or not, but no longer grows.
    std::thread::sleep(Duration::from_secs(5));
    let resident = resident_kib(agent.id());
    drop(machines);
    vec![Row::promised(
        &format!("Idle agent with {GUESTS} machines: resident memory"),
        format!("{:.1} MiB", resident as f64 / 1024.0),
        "under 40 MiB",
        resident < 40 * 1024,
    )]
}

/// A scripted machine with its host file in `folder/guests.d`.
fn machine(folder: &Path, number: usize) -> FakeQemu {
    let socket = folder.join(format!("{number}.qmp"));
    let image = folder.join(format!("{number}.raw"));
    std::fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let file = format!("name = \"g{number}\"\nnamespace = \"bench\"\nqmp = {:?}\n", socket.display().to_string());
    let guests = folder.join("guests.d");
    std::fs::create_dir_all(&guests).unwrap();
    std::fs::write(guests.join(format!("g{number}.toml")), file).unwrap();
    let uuid = uuid::Uuid::new_v4().to_string();
    Setup::new(socket).uuid(&uuid).disk(FakeDisk::raw("disk0", image)).start().unwrap()
}

fn start(folder: &Path, admin: &str) -> Guarded {
    let program = env!("CARGO_BIN_EXE_driftline");
    let path = |name: &str| folder.join(name).display().to_string();
    run(Command::new(program).args(["certs", "authority", "--out", &path("ca")]));
    let leaf = ["certs", "agent", "--node", "node-1", "--authority", &path("ca"), "--out", &path("tls")];
    run(Command::new(program).args(leaf));
    let config = format!("state = {:?}\nlocks = {:?}\nguests = {:?}\n", path("state"), path("locks"), path("guests.d"));
    std::fs::write(folder.join("host.toml"), config).unwrap();
    Guarded::start(program, |command| {
        command.args(["agent", "--node-name", "node-1", "--listen", &free_address(), "--admin-listen", admin]);
        command.args(["--tls-dir", &path("tls"), "--config", &path("host.toml")]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    })
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// The sum of a metric's values; none while nobody answers.
fn metric(address: &str, name: &str) -> Option<f64> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let values = text.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit(' ').next());
    Some(values.filter_map(|value| value.parse::<f64>().ok()).sum())
}

/// Resident memory of a process, in KiB.
pub(crate) fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
