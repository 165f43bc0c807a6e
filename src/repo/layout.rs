//! Where things stand in a repository. Pure: names from ids, and back. Nothing else makes a name that is stored.
//!
//! `driftline.json` · `guests/<uuid>/<point>/manifest.json`, `<disk>.qcow2`,
//! `<disk>.<generation>.digests`, `<disk>.nvram`

use crate::{
    chain::point::Parent,
    ids::{DiskName, GuestId},
};

/// What makes a folder a repository: its id and format version.
pub const MARKER: &str = "driftline.json";
/// The marker before it counts.
pub const MARKER_NEW: &str = "driftline.json.new";
/// The folder of all guests.
pub const GUESTS: &str = "guests";
/// What makes a folder a point. Its rename into place is the commit.
pub const MANIFEST: &str = "manifest.json";
/// The manifest before it counts.
pub const MANIFEST_NEW: &str = "manifest.json.new";
/// Who writes to a guest's folder.
pub const LEASE: &str = "writer.lease";
/// Prefix of leases that are being made or were given up by force.
pub const LEASE_ASIDE: &str = "writer.lease.";

/// File systems take names of 255 bytes; what is appended needs some of them.
const STEM: usize = 200;

/// A disk's stored image.
pub fn image(disk: &DiskName) -> String {
    format!("{}.qcow2", stem(disk))
}

/// The variables of a guest's firmware, by the name of their pflash drive.
pub fn variables(disk: &DiskName) -> String {
    format!("{}.nvram", stem(disk))
}

/// A disk's digest table of that generation.
pub fn table(disk: &DiskName, generation: u32) -> String {
    format!("{}.{generation}.digests", stem(disk))
}

/// A disk's digest table before it counts.
pub fn table_new(disk: &DiskName) -> String {
    format!("{}.digests.new", stem(disk))
}

/// What the header of an image names that continues `parent`: for people with `qemu-img`, from the point's folder on.
pub fn backing(parent: &Parent) -> String {
    format!("../{}/{}", parent.point, image(&parent.disk))
}

/// The folder, in a host's scratch folder, of what an attempt at the guest has staged.
pub fn staged(guest: &GuestId, attempt: &str) -> String {
    format!("staged-{guest}-{attempt}")
}

/// Whether a file of that name in a point's folder is one that was made here, before the manifest counts.
pub fn is_of_point(name: &str) -> bool {
    name == MANIFEST_NEW || [".qcow2", ".nvram", ".digests", ".digests.new"].iter().any(|end| name.ends_with(end))
}

/// The disk's name as part of a file name. A long one is cut and told apart by a digest behind `~`, which the encoding
/// of a short one never contains.
fn stem(disk: &DiskName) -> String {
    let stem = disk.file_stem();
    if stem.len() <= STEM {
        return stem;
    }
    let digest = blake3::hash(disk.as_str().as_bytes()).to_hex();
    format!("{}~{}", &stem[..STEM - 20], &digest[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_disk_name_makes_a_file_name_that_a_file_system_takes() {
        let (one, other) = ("/".repeat(128), "/".repeat(127) + ".");
        let names: Vec<_> = [one, other].iter().map(|name| table(&name.parse().unwrap(), u32::MAX)).collect();
        assert!(names.iter().all(|name| name.len() <= 255), "{names:?}");
        assert_ne!(names[0], names[1]);
    }

    #[test]
    fn every_file_of_a_point_is_known_as_one_and_others_are_not() {
        let disk = "/machine/peripheral/d0".parse().unwrap();
        for name in [image(&disk), variables(&disk), table(&disk, 7), table_new(&disk), MANIFEST_NEW.to_owned()] {
            assert!(is_of_point(&name), "{name}");
        }
        for name in ["@eaDir", ".DS_Store", "notes.txt", "lost+found"] {
            assert!(!is_of_point(name), "{name}");
        }
    }

    #[test]
    fn no_disk_name_leads_out_of_the_folder_or_to_the_manifest() {
        for name in ["..", "../x", "/etc/passwd", "manifest.json", "a/../../b", "."] {
            let file = image(&name.parse().unwrap());
            assert!(!file.contains('/') && !file.starts_with('.') && file.ends_with(".qcow2"), "{file}");
        }
    }
}
