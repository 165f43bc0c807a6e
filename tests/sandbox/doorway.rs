//! How a person's own shell reaches an API server that lives in a network namespace: this program binds a port outside,
//! enters the namespace with the listener as its stdin (a socket stays in the namespace that it was made in), and
//! carries bytes between it and the server inside.

use std::{
    io,
    net::{Shutdown, SocketAddrV4, TcpListener, TcpStream},
    os::{fd::AsFd, unix::process::CommandExt},
    path::Path,
    process::{Command, ExitCode, Stdio},
    thread,
};

/// Set by `tests/in-netns`.
const INSIDE: &str = "DRIFTLINE_NETNS";

/// The listener outside.
pub(crate) struct Doorway {
    listener: TcpListener,
}

/// The doorway, when this program has entered the namespace already.
pub(crate) fn inside() -> Option<Doorway> {
    std::env::var_os(INSIDE)?;
    let listener = io::stdin().as_fd().try_clone_to_owned().expect("A descriptor can be copied");
    Some(Doorway { listener: listener.into() })
}

/// Starts this program anew inside of a namespace; returns only when that fails.
pub(crate) fn enter() -> ExitCode {
    let listener = TcpListener::bind("127.0.0.1:0").expect("A free port can be bound");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/in-netns");
    let program = std::env::current_exe().expect("A program knows its own file");
    let mut command = Command::new(&script);
    command.arg(program).args(std::env::args_os().skip(1)).stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)));
    let error = command.exec();
    eprintln!("{} cannot be run: {error}", script.display());
    ExitCode::FAILURE
}

impl Doorway {
    /// The port of 127.0.0.1 outside. The API server's certificate is good for that address too.
    pub(crate) fn port(&self) -> u16 {
        let address = self.listener.local_addr();
        address.expect("stdin is the listener that this program made before it entered the namespace").port()
    }

    /// Carries connections to the server inside from now on.
    pub(crate) fn open(self, server: SocketAddrV4) {
        thread::spawn(move || {
            for outside in self.listener.incoming().flatten() {
                // Without a server the person's kubectl sees a connection that is closed at once, as without a doorway.
                if let Ok(inside) = TcpStream::connect(server) {
                    carry(&outside, &inside);
                    carry(&inside, &outside);
                }
            }
        });
    }
}

/// Copies one direction in a thread of its own, until it ends.
fn carry(from: &TcpStream, to: &TcpStream) {
    let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else { return };
    thread::spawn(move || {
        // Whichever side failed, the other one has to hear of the end.
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
}
