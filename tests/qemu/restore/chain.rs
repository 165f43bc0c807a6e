//! A chain of stored points made by stock tools, and the disk that it stores.

use std::path::{Path, PathBuf};

use driftline::repo::{Repository, StoredPoint};

use super::support::{Place, commit, qemu_io, run};

/// A disk as the guest saw it, changed by the same commands that make the points.
pub(super) struct Reference(pub(super) PathBuf);

impl Reference {
    pub(super) fn new(place: &Place, size: u64) -> Self {
        let path = place.root().join("reference.qcow2");
        run("qemu-img", &["create", "-q", "-f", "qcow2", path.to_str().unwrap(), &size.to_string()]);
        Self(path)
    }

    pub(super) fn assert_equal(&self, format: &str, image: &Path) {
        let (reference, image) = (self.0.to_str().unwrap(), image.to_str().unwrap());
        run("qemu-img", &["compare", "-f", "qcow2", "-F", format, reference, image]);
        // The comparison takes zeros behind the end of the shorter one for equal.
        assert_eq!(virtual_size("qcow2", reference), virtual_size(format, image));
    }
}

pub(super) fn virtual_size(format: &str, image: &str) -> Option<u64> {
    let info = run("qemu-img", &["info", "--output=json", "-f", format, image]);
    serde_json::from_str::<serde_json::Value>(&info).unwrap()["virtual-size"].as_u64()
}

/// A full and two increments on a disk of an odd size, with data, zeros over data, and growth; and the reference.
pub(super) fn chain(place: &Place, repository: &Repository) -> (Vec<StoredPoint>, Reference) {
    let size = 3 * (1 << 20) + 512;
    let grown = size + 65_536 + 1024;
    let reference = Reference::new(place, size);
    let path = reference.0.to_str().unwrap();
    let steps: [(u64, &[&str]); 3] = [
        (size, &["write -P 1 0 512k", "write -P 2 1M 64k", "write -P 3 3M 512"]),
        (size, &["write -P 4 64k 64k", "write -z 128k 128k", "write -P 5 2M 192k"]),
        (grown, &["write -P 6 2112k 64k", "write -z 2176k 64k", "write -P 7 3136k 512"]),
    ];
    let mut points: Vec<StoredPoint> = Vec::new();
    for (n, (size, commands)) in (1..).zip(steps) {
        let commands: Vec<String> = commands.iter().map(ToString::to_string).collect();
        run("qemu-img", &["resize", "-q", "-f", "qcow2", path, &size.to_string()]);
        qemu_io(&reference.0, &commands);
        points.push(commit(place, repository, n, size, points.last(), &commands));
    }
    (points, reference)
}
