//! What a host's guest and runs can be.

const DISKS: [(&str, u64); 3] = [("disk0", 200_192), ("disk1", 131_072), ("disk2", 71_168)];

/// What a host's guest and runs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// How many disks the guest has, at most 3.
    pub(super) disks: usize,
    /// Whether runs continue an earlier one.
    pub(super) continued: bool,
    pub(super) way: Way,
}

/// Which way the data takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Direct,
    Staged,
    /// On QEMU 10.0.
    Fleeced,
}

impl Shape {
    /// The first run of a guest with two disks.
    pub(super) const FIRST: Shape = Shape { disks: 2, continued: false, way: Way::Direct };
    /// An increment of the same.
    pub(super) const CONTINUED: Shape = Shape { continued: true, ..Shape::FIRST };

    pub(super) fn all() -> Vec<Shape> {
        let ways = [Way::Direct, Way::Staged, Way::Fleeced];
        let of = |way| [1, 2, 3].map(|disks| [false, true].map(|continued| Shape { disks, continued, way }));
        ways.into_iter().flat_map(of).flatten().collect()
    }

    pub(super) fn disks(self) -> &'static [(&'static str, u64)] {
        &DISKS[..self.disks]
    }
}
