//! What is left of a point that is discarded: nothing of ours, and nothing of anybody else's is touched.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::Arc,
};

use driftline::repo::{Act, Gate, Operation};

use super::support::{self, Place, disk, guest, point_id};

fn names(dir: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

#[test]
fn a_discarded_point_leaves_no_file_of_ours_and_what_others_put_there_fails_no_run() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    let _lease = support::lease(&repository).unwrap();
    let point = point_id(1);
    let partial = repository.create_point(&guest(), &point).unwrap();
    let dir = place.point_dir(&point);
    support::fill(&partial, &dir, "disk0", 1 << 20, &["write -P 1 0 64k".into()]).unwrap();
    partial.create_disk(&disk("zz"), 1 << 20, 0, None).unwrap();
    partial.store_variables(&disk("pflash1"), b"variables").unwrap();
    let foreign = [OsStr::new("@eaDir"), OsStr::new("kept.qcow2"), OsStr::from_bytes(b"n\xff.qcow2")];
    fs::create_dir(dir.join(foreign[0])).unwrap();
    fs::write(dir.join(foreign[0]).join("index"), b"x").unwrap();
    fs::create_dir(dir.join(foreign[1])).unwrap();
    fs::write(dir.join(foreign[2]), b"x").unwrap();
    partial.discard().unwrap();
    assert_eq!(names(&dir), foreign);
    assert_eq!(names(&dir.join(foreign[0])), ["index"]);
    // What recovery asks for once more, and what the guest's next run does.
    repository.partial_point(&guest(), &point).unwrap().unwrap().discard().unwrap();
    repository.create_point(&guest(), &point_id(2)).unwrap().discard().unwrap();
    assert!(!place.point_dir(&point_id(2)).exists());
}

#[test]
fn a_file_that_cannot_be_removed_keeps_no_other_from_being_removed_and_is_told() {
    let place = Place::new();
    drop(place.initialise().unwrap());
    let gate: Gate = Arc::new(|operation: &Operation| {
        let stuck = operation.act == Act::Remove && operation.path.ends_with("a.qcow2");
        if stuck { Err(io::Error::other("stuck")) } else { Ok(()) }
    });
    let repository = place.open_gated(gate).unwrap();
    let _lease = support::lease(&repository).unwrap();
    let point = point_id(1);
    let partial = repository.create_point(&guest(), &point).unwrap();
    for name in ["a", "b"] {
        partial.create_disk(&disk(name), 1 << 20, 0, None).unwrap();
    }
    let error = partial.discard().unwrap_err();
    assert_eq!(error.reason(), "RepositoryIOError", "{error}");
    let dir = place.point_dir(&point);
    assert_eq!(names(&dir), ["a.qcow2"]);
    assert_eq!(fs::metadata(dir.join("a.qcow2")).unwrap().len(), 0, "its space is free");
}
