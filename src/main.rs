//! The one binary: arguments, configuration, role.

fn main() {}
