//! What a control plane is started for: tests that need an API server and few controllers, or real nodes.

use std::net::{Ipv4Addr, SocketAddrV4};

/// The address of the Service `kubernetes` in a cluster with nodes, the first of `SERVICES`.
pub(super) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The network of Services in a cluster with nodes.
pub(super) const SERVICES: &str = "10.96.0.0/24";

/// How one control plane differs from another.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Where the API server listens.
    pub server: SocketAddrV4,
    /// Nodes may join: a scheduler, every controller, the Node authorizer, and an audit log of what pods ask for.
    pub nodes: bool,
}

impl Shape {
    /// The light one on a port of 127.0.0.1.
    pub fn light(port: u16) -> Shape {
        Shape { server: SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), nodes: false }
    }

    /// One for nodes, at an address that nodes can reach.
    pub fn for_nodes(server: SocketAddrV4) -> Shape {
        Shape { server, nodes: true }
    }

    /// The names that the API server's certificate is good for.
    pub(super) fn names(self) -> Vec<String> {
        let mut names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        if self.nodes {
            names.extend([self.server.ip().to_string(), SERVICE.to_string()]);
            names.extend(["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned));
        }
        names
    }
}
