//! The network of the nodes: a bridge in the test's own network namespace, which routes between them.
//!
//! Each node has an address on the bridge, and this namespace as its gateway. It knows the way to every node's pods, so
//! pods reach each other, the test reaches pods, and pods reach what the test listens on, without any translation.

use std::{fs, net::Ipv4Addr, process::Command};

use rustix::process::Pid;

const BRIDGE: &str = "nodes0";
/// Our own address on the bridge, of a range for documentation (RFC 5737).
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 254);
/// The network of all pods: nodes have 10.244.1.0/24, 10.244.2.0/24 and so on.
pub(super) const PODS: &str = "10.244.0.0/16";

/// The bridge. Dropped, it is gone.
pub(super) struct Bridge;

impl Bridge {
    pub(super) fn start() -> Bridge {
        ip(&format!("link add {BRIDGE} type bridge"));
        let bridge = Bridge;
        ip(&format!("address add {GATEWAY}/24 dev {BRIDGE}"));
        ip(&format!("link set {BRIDGE} up"));
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("A namespace of our own can forward");
        bridge
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        quietly(&["link", "delete", BRIDGE]);
    }
}

/// Where a node is in the network.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place(pub(super) u8);

impl Place {
    /// The node's address.
    pub(super) fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(203, 0, 113, self.0)
    }

    /// The network of its pods.
    pub(super) fn pods(self) -> String {
        format!("10.244.{}.0/24", self.0)
    }

    /// Connects the network namespace of `init`.
    pub(super) fn connect(self, init: Pid) {
        let (port, address, init) = (self.port(), self.address(), init.as_raw_nonzero());
        ip(&format!("link add {port} type veth peer name eth0 netns {init}"));
        ip(&format!("link set {port} master {BRIDGE} up"));
        ip(&format!("route add {} via {address}", self.pods()));
        let inside = format!(
            "link set lo up\naddress add {address}/24 dev eth0\nlink set eth0 up\nroute add default via {GATEWAY}\n"
        );
        // ip's own --netns wants a name: by nsenter it takes a process.
        let mut batch = Command::new("nsenter");
        batch.args(["--target", &init.to_string(), "--net", "--", "sh", "-c", "printf %s \"$1\" | ip -batch -", "sh"]);
        run(batch.arg(inside));
    }

    /// Takes the cable away. The kernel removes what a namespace leaves behind in its own time, and this now.
    pub(super) fn disconnect(self) {
        // Both are gone already when the namespace was quicker.
        quietly(&["link", "delete", &self.port()]);
        quietly(&["route", "delete", &self.pods()]);
    }

    fn port(self) -> String {
        format!("node{}", self.0)
    }
}

fn ip(words: &str) {
    run(Command::new("ip").args(words.split(' ')));
}

/// For an end, which may come while a test fails already.
fn quietly(words: &[&str]) {
    let _ = Command::new("ip").args(words).output();
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
