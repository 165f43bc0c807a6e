//! Stops at every single operation, and what is left: the whole or nothing.

use std::{
    collections::HashSet,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use driftline::{
    ids::PointId,
    repo::{Act, Gate, Operation, RepoError, Repository},
};

use super::support::{self, Place, guest, id, manifest, point_id, tool};

/// From the `n`-th operation on nothing happens any longer, as after a crash. Leases count too: they are files.
fn stopping_at(n: usize) -> (Gate, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let gate: Gate =
        Arc::new(
            move |_: &Operation| {
                if counted.fetch_add(1, Ordering::SeqCst) >= n { Err(io::Error::other("stopped")) } else { Ok(()) }
            },
        );
    (gate, count)
}

#[test]
fn initialise_stopped_at_any_operation_leaves_a_repository_or_a_folder_that_can_become_one() {
    for n in 0.. {
        let place = Place::new();
        let (gate, _) = stopping_at(n);
        let done = Repository::initialise(&place.roots().with_gate(gate), &place.path, &id(), &tool());
        match place.open() {
            Ok(repository) => assert_eq!(*repository.id(), id()),
            Err(RepoError::NotMounted { .. }) => assert!(done.is_err(), "at {n}"),
            Err(other) => panic!("at {n}: {other}"),
        }
        assert_eq!(*place.initialise().unwrap().id(), id(), "at {n}");
        if done.is_ok() {
            assert!(n > 4, "only {n} operations were seen");
            return;
        }
    }
}

/// The whole way of one point of two disks.
fn write(place: &Place, repository: &Repository, point: &PointId, n: u64) -> Result<(), RepoError> {
    let _lease = support::lease(repository)?;
    let partial = repository.create_point(&guest(), point)?;
    let dir = place.point_dir(point);
    let one = support::fill(&partial, &dir, "disk0", 1 << 20, &["write -P 1 0 64k".into()])?;
    let two = support::fill(&partial, &dir, "disk1", (1 << 20) + 512, &["write -P 2 1M 512".into()])?;
    partial.commit(&manifest(point, n, &[(&one, None), (&two, None)])).map(drop)
}

#[test]
fn a_point_stopped_at_any_operation_is_whole_or_invisible_and_recovery_clears_it_away() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    let mut committed = HashSet::new();
    for n in 0..400_usize {
        let point = point_id(n as u64);
        let (gate, _) = stopping_at(n);
        let sequence = repository.next_sequence(&guest()).unwrap();
        let done = place.open_gated(gate).and_then(|gated| write(&place, &gated, &point, sequence));

        let scan = repository.scan(&guest()).unwrap();
        let damage: Vec<_> = scan.findings.iter().collect();
        assert!(damage.is_empty(), "at {n}: {damage:?}");
        let visible = scan.points.iter().any(|stored| stored.manifest.identity.point == point);
        assert!(visible || done.is_err(), "at {n}: said to be done, and not there");

        // What recovery does: look whether it is there, else discard what was begun.
        let lease = support::lease(&repository).unwrap();
        if repository.point(&guest(), &point).unwrap().is_some() {
            committed.insert(point.clone());
            assert!(repository.partial_point(&guest(), &point).unwrap().is_none());
        } else if let Some(partial) = repository.partial_point(&guest(), &point).unwrap() {
            partial.discard().unwrap();
        }
        drop(lease);
        let scan = repository.scan(&guest()).unwrap();
        assert_eq!(scan.partial, [], "at {n}");
        assert_eq!(scan.points.len(), committed.len(), "at {n}");
        if done.is_ok() {
            assert!(n > 30, "only {n} operations were seen");
            let findings = driftline::repo::check::verify(&repository, None, None, &mut |_| (), &Default::default());
            assert_eq!(findings.unwrap(), []);
            return;
        }
    }
    panic!("400 operations were not enough");
}

#[test]
fn a_seal_that_was_cut_off_is_done_again_and_commits_the_same() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    let _lease = support::lease(&repository).unwrap();
    let point = point_id(1);
    let partial = repository.create_point(&guest(), &point).unwrap();
    let dir = place.point_dir(&point);
    let first = support::fill(&partial, &dir, "disk0", 1 << 20, &["write -P 1 0 64k".into()]).unwrap();
    std::fs::write(dir.join("disk0.digests.new"), b"half").unwrap();
    std::fs::write(dir.join("manifest.json.new"), b"{").unwrap();
    let again = repository.partial_point(&guest(), &point).unwrap().unwrap();
    let second = again.seal_disk(&support::disk("disk0"), &mut |_| ()).unwrap();
    assert_eq!(first, second);
    let manifest = manifest(&point, 1, &[(&second, None)]);
    let one = again.commit(&manifest).unwrap();
    let two = partial.commit(&manifest).unwrap();
    assert_eq!(one, two, "a commit that is repeated says the same");
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["disk0.1.digests", "disk0.qcow2", "manifest.json"]);
}

/// A rename counts only when what it names has reached the disk before, and the folder after.
#[test]
fn every_file_is_synced_before_its_rename_and_every_folder_after_it() {
    let place = Place::new();
    place.initialise().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    let gate: Gate = Arc::new(move |operation: &Operation| {
        kept.lock().unwrap().push(operation.clone());
        Ok(())
    });
    let repository = place.open_gated(gate).unwrap();
    write(&place, &repository, &point_id(1), 1).unwrap();
    let seen = seen.lock().unwrap();
    let at = |act: Act, end: &str| {
        let found = seen.iter().position(|operation| operation.act == act && operation.path.ends_with(end));
        found.unwrap_or_else(|| panic!("{act:?} of {end} is not among {seen:#?}"))
    };
    let commit = at(Act::Rename, "manifest.json");
    for file in ["disk0.qcow2", "disk1.qcow2", "disk0.digests.new", "disk1.digests.new", "manifest.json.new"] {
        assert!(at(Act::Sync, file) < commit, "{file} is synced too late");
    }
    for table in ["disk0.1.digests", "disk1.1.digests"] {
        assert!(at(Act::Rename, table) < commit);
    }
    let folder = place.point_dir(&point_id(1));
    let synced: Vec<_> = seen
        .iter()
        .enumerate()
        .filter(|(_, operation)| operation.act == Act::SyncFolder && operation.path == folder)
        .map(|(at, _)| at)
        .collect();
    assert!(synced.iter().any(|&at| at == commit + 1), "the folder is not synced after the commit: {seen:#?}");
    assert!(synced.iter().any(|&at| at < commit && at > commit - 3), "nor right before it: {seen:#?}");
    for parent in [folder.parent().unwrap(), folder.parent().unwrap().parent().unwrap()] {
        let sync = |o: &Operation| o.act == Act::SyncFolder && o.path == *parent;
        assert!(seen[..commit].iter().any(sync), "{} is not synced before the commit", parent.display());
    }
}
