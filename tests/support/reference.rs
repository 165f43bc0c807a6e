//! What the disks held at the instant of a run, byte by byte, and the comparison of a restored image with it.
//!
//! The order in a test: stop the writers and flush ([`Console::stop`](super::tiny_guest::Console::stop), or simply
//! write nothing); [`Reference::take`]; start the run and wait until it is past its instant; let the writers go on.
//! The machine itself is never stopped: pausing it for the reference would prove less.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
    process::Command,
};

use super::machine::{Format, Machine, run};

/// Raw copies of a machine's disks.
pub struct Reference {
    folder: tempfile::TempDir,
    disks: BTreeMap<String, PathBuf>,
}

impl Reference {
    /// Flushes and copies all disks of the machine, whose writers stand still.
    pub fn take(machine: &Machine) -> Reference {
        let folder = tempfile::Builder::new().prefix("reference-").tempdir().expect("a temporary folder");
        let mut disks = BTreeMap::new();
        for disk in machine.disks() {
            machine.flush(&disk.name);
            let copy = folder.path().join(format!("{}.raw", disk.name));
            let mut command = Command::new("qemu-img");
            command.args(["convert", "-U", "-f", disk.format.word(), "-O", "raw"]).arg(&disk.file).arg(&copy);
            run(&mut command);
            disks.insert(disk.name.clone(), copy);
        }
        Reference { folder, disks }
    }

    /// The names of the disks.
    pub fn disks(&self) -> impl Iterator<Item = &str> {
        self.disks.keys().map(String::as_str)
    }

    /// The raw copy of a disk.
    pub fn file(&self, disk: &str) -> &Path {
        self.disks.get(disk).unwrap_or_else(|| panic!("There is no reference of {disk}"))
    }

    /// Panics with the first difference unless the image holds exactly the disk's bytes.
    pub fn assert_equal(&self, disk: &str, image: &Path, format: Format) {
        if let Some(difference) = self.difference(disk, image, format) {
            panic!("{} is not {disk} of the instant: {difference}", image.display());
        }
    }

    /// The first difference in words, or `None` where every byte and the size are equal.
    pub fn difference(&self, disk: &str, image: &Path, format: Format) -> Option<String> {
        if format == Format::Raw {
            return difference(self.file(disk), image);
        }
        let flat = tempfile::Builder::new().prefix("flat-").tempfile_in(self.folder.path()).expect("a temporary file");
        run(Command::new("qemu-img").args(["convert", "-f", format.word(), "-O", "raw"]).arg(image).arg(flat.path()));
        difference(self.file(disk), flat.path())
    }
}

const CLUSTER: usize = 65536;

/// How two raw images differ: sizes, the first different byte with its surroundings, the number of different clusters.
pub fn difference(expected: &Path, found: &Path) -> Option<String> {
    let open = |path: &Path| File::open(path).unwrap_or_else(|error| panic!("Cannot open {}: {error}", path.display()));
    let (left, right) = (open(expected), open(found));
    let size = |file: &File| file.metadata().expect("an open file has metadata").len();
    if size(&left) != size(&right) {
        return Some(format!("it has {} bytes, {} were expected", size(&right), size(&left)));
    }
    let (mut left, mut right) = (BufReader::new(left), BufReader::new(right));
    let (mut a, mut b) = (Vec::with_capacity(CLUSTER), Vec::with_capacity(CLUSTER));
    let (mut first, mut clusters, mut offset) = (None, 0, 0);
    loop {
        a.clear();
        b.clear();
        let read = |file: &mut BufReader<File>, into: &mut Vec<u8>| {
            file.take(CLUSTER as u64).read_to_end(into).expect("an image can be read");
        };
        read(&mut left, &mut a);
        read(&mut right, &mut b);
        if a.is_empty() {
            break;
        }
        if a != b {
            clusters += 1;
            first.get_or_insert_with(|| describe(&a, &b, offset));
        }
        offset += CLUSTER;
    }
    first.map(|first| format!("{first}; {clusters} of {} clusters of 64 KiB differ", offset / CLUSTER))
}

fn describe(a: &[u8], b: &[u8], start: usize) -> String {
    let at = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or_default();
    let show = |bytes: &[u8]| hex::encode(&bytes[at..bytes.len().min(at + 16)]);
    let offset = start + at;
    format!(
        "the first difference is at byte {offset} (cluster {}): {} instead of {}",
        offset / CLUSTER,
        show(b),
        show(a)
    )
}
