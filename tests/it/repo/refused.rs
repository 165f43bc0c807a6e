//! What is refused, with nothing written: foreign folders, other ids, newer formats, paths that lead elsewhere, full
//! and read-only file systems, other namespaces.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::Path,
};

use driftline::{
    chain::point::Parent,
    ids::{GuestId, RepositoryId},
    repo::{RepoError, Repository, Roots},
    retry::Retry,
};

use super::support::{self, Mount, Place, commit, disk, fill, guest, manifest, point_id, tool};

fn open_at(place: &Place, path: &Path) -> Result<Repository, RepoError> {
    Repository::initialise(&place.roots(), path, &support::id(), &tool())
}

#[test]
fn a_folder_with_anything_in_it_does_not_become_a_repository() {
    let place = Place::new();
    fs::write(place.path.join("holiday.jpg"), b"x").unwrap();
    let before = place.snapshot();
    assert_eq!(place.initialise().unwrap_err().reason(), "RepositoryNotEmpty");
    assert_eq!(place.open().unwrap_err().reason(), "RepositoryNotMounted");
    assert_eq!(place.snapshot(), before);
}

#[test]
fn the_empty_folder_below_an_unmounted_file_system_is_not_opened() {
    let place = Place::new();
    let before = place.snapshot();
    assert_eq!(place.open().unwrap_err().reason(), "RepositoryNotMounted");
    assert_eq!(open_at(&place, &place.path.join("gone")).unwrap_err().reason(), "FolderMissing");
    assert_eq!(place.snapshot(), before);
}

#[test]
fn another_repository_and_a_newer_one_are_refused_and_stay_as_they_are() {
    let place = Place::new();
    let other: RepositoryId = "00000000-9a51-4c7e-8f2b-0d9f2f6f3a10".parse().unwrap();
    Repository::initialise(&place.roots(), &place.path, &other, &tool()).unwrap();
    let before = place.snapshot();
    assert_eq!(place.initialise().unwrap_err().reason(), "RepositoryIdMismatch");
    assert_eq!(place.open().unwrap_err().reason(), "RepositoryIdMismatch");
    assert_eq!(place.snapshot(), before);

    let text = format!("{{\"format\": 2, \"id\": {{\"new\": \"{}\"}}}}", support::ID);
    fs::write(place.path.join("driftline.json"), text).unwrap();
    let before = place.snapshot();
    assert_eq!(place.initialise().unwrap_err().reason(), "RepositoryTooNew");
    assert_eq!(place.open().unwrap_err().reason(), "RepositoryTooNew");
    assert_eq!(place.snapshot(), before);
}

#[test]
fn a_path_that_no_run_could_be_written_down_with_is_refused_by_its_name_before_anything_is_made() {
    let place = Place::new();
    let path = place.path.join(OsStr::from_bytes(b"rep\xffo"));
    fs::create_dir(&path).unwrap();
    let error = open_at(&place, &path).unwrap_err();
    assert_eq!((error.reason(), error.retry()), ("PathNotUTF8", Retry::OnChange));
    assert!(error.to_string().contains("rep\\xFFo"), "{error}");
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);

    // One that got its name later can still be read.
    let named = place.path.join("named");
    fs::create_dir(&named).unwrap();
    open_at(&place, &named).unwrap();
    fs::remove_dir(&path).unwrap();
    fs::rename(&named, &path).unwrap();
    let repository = Repository::open(&place.roots(), &path, Some(&support::id()), &tool()).unwrap();
    let before = place.snapshot();
    assert_eq!(support::lease(&repository).err().unwrap().reason(), "PathNotUTF8");
    assert_eq!(place.snapshot(), before);
}

#[test]
fn an_initialised_repository_is_initialised_again_without_a_change() {
    let place = Place::new();
    place.initialise().unwrap();
    let before = place.snapshot();
    place.initialise().unwrap();
    assert_eq!(place.snapshot(), before);
}

#[test]
fn no_path_leads_out_of_the_roots() {
    let place = Place::new();
    let outside = tempfile::tempdir().unwrap();
    let roots = Roots::new(vec![place.path.clone()]);
    fs::create_dir(place.path.join("inner")).unwrap();
    symlink(outside.path(), place.path.join("link")).unwrap();
    symlink(place.path.join("inner"), place.path.join("inner-link")).unwrap();
    fs::create_dir(outside.path().join("repo")).unwrap();
    let name = place.path.display();
    let paths = [
        outside.path().display().to_string(),
        format!("{name}/../{}", outside.path().file_name().unwrap().display()),
        format!("{name}/inner/../inner"),
        format!("{name}/./inner"),
        format!("{name}/link"),
        format!("{name}/link/repo"),
        format!("{name}/inner-link"),
        format!("{name}-beside"),
        "repo".into(),
        String::new(),
    ];
    fs::create_dir(format!("{name}-beside")).unwrap();
    for path in paths {
        let error = Repository::initialise(&roots, Path::new(&path), &support::id(), &tool()).unwrap_err();
        assert_eq!(error.reason(), "OutsideRoots", "{path}");
    }
    assert_eq!(fs::read_dir(outside.path().join("repo")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(format!("{name}-beside")).unwrap().count(), 0);
    let none = Roots::new(Vec::new());
    assert_eq!(
        Repository::initialise(&none, &place.path, &support::id(), &tool()).unwrap_err().reason(),
        "OutsideRoots"
    );
    // The same folder by its own name is fine.
    Repository::initialise(&roots, &place.path.join("inner"), &support::id(), &tool()).unwrap();
}

#[test]
fn symbolic_links_inside_of_the_repository_are_not_followed() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(place.path.join("guests")).unwrap();
    symlink(outside.path(), place.path.join("guests").join(support::GUEST)).unwrap();
    assert_eq!(support::lease(&repository).err().unwrap().reason(), "OutsideRoots");
    assert_eq!(repository.points(&guest()).unwrap_err().reason(), "OutsideRoots");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn an_image_with_an_absolute_backing_file_is_refused_when_it_is_sealed() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    let _lease = support::lease(&repository).unwrap();
    let secret = place.root().join("secret");
    fs::write(&secret, vec![0x5a; 1 << 20]).unwrap();
    let point = point_id(1);
    let partial = repository.create_point(&guest(), &point).unwrap();
    partial.create_disk(&disk("disk0"), 1 << 20, 0, None).unwrap();
    let image = place.point_dir(&point).join("disk0.qcow2");
    support::run("qemu-img", &["rebase", "-u", "-F", "raw", "-b", secret.to_str().unwrap(), image.to_str().unwrap()]);
    let error = partial.seal_disk(&disk("disk0"), &mut |_| ()).unwrap_err();
    assert_eq!(error.reason(), "ImageNotAsStored", "{error}");
}

#[test]
fn an_image_that_is_no_qcow2_at_all_is_not_tried_again_until_something_changes() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    let _lease = support::lease(&repository).unwrap();
    let point = point_id(1);
    let partial = repository.create_point(&guest(), &point).unwrap();
    partial.create_disk(&disk("disk0"), 1 << 20, 0, None).unwrap();
    fs::write(place.point_dir(&point).join("disk0.qcow2"), vec![0; 1 << 20]).unwrap();
    let error = partial.seal_disk(&disk("disk0"), &mut |_| ()).unwrap_err();
    assert_eq!((error.reason(), error.retry()), ("QemuImgFailed", Retry::OnChange), "{error}");
}

#[test]
fn nothing_is_written_without_the_lease() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    assert_eq!(repository.create_point(&guest(), &point_id(1)).err().unwrap().reason(), "LeaseLost");
    let lease = support::lease(&repository).unwrap();
    let point = point_id(1);
    let partial = repository.create_point(&guest(), &point).unwrap();
    let sealed = fill(&partial, &place.point_dir(&point), "disk0", 1 << 20, &[]).unwrap();
    drop(lease);
    let error = partial.commit(&manifest(&point, 1, &[(&sealed, None)])).unwrap_err();
    assert_eq!(error.reason(), "LeaseLost");
    assert!(repository.points(&guest()).unwrap().is_empty());
}

#[test]
fn a_guest_belongs_to_the_namespace_of_its_first_manifest() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    commit(&place, &repository, 1, 1 << 20, None, &[]);
    repository.scan(&guest()).unwrap().check_namespace(&guest(), "team-a").unwrap();
    assert_eq!(
        repository.scan(&guest()).unwrap().check_namespace(&guest(), "team-b").unwrap_err().reason(),
        "GuestBelongsToAnotherNamespace"
    );
    let _lease = support::lease(&repository).unwrap();
    let point = point_id(2);
    let partial = repository.create_point(&guest(), &point).unwrap();
    let sealed = fill(&partial, &place.point_dir(&point), "disk0", 1 << 20, &[]).unwrap();
    let mut foreign = manifest(&point, 2, &[(&sealed, None)]);
    foreign.identity.guest.namespace = "team-b".into();
    assert_eq!(partial.commit(&foreign).unwrap_err().reason(), "GuestBelongsToAnotherNamespace");
    assert_eq!(repository.points(&guest()).unwrap().len(), 1);
}

#[test]
fn a_guest_of_no_namespace_is_claimed_by_the_first_one_that_backs_it_up() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    let _lease = support::lease(&repository).unwrap();
    let add = |n: u64, namespace: &str| {
        let point = point_id(n);
        let partial = repository.create_point(&guest(), &point).unwrap();
        let sealed = fill(&partial, &place.point_dir(&point), "disk0", 1 << 20, &[]).unwrap();
        let mut made = manifest(&point, n, &[(&sealed, None)]);
        made.identity.guest.namespace = namespace.into();
        partial.commit(&made)
    };
    add(1, "").unwrap();
    repository.scan(&guest()).unwrap().check_namespace(&guest(), "").unwrap();
    repository.scan(&guest()).unwrap().check_namespace(&guest(), "team-a").unwrap();
    add(2, "team-a").unwrap();
    repository.scan(&guest()).unwrap().check_namespace(&guest(), "team-a").unwrap();
    for other in ["team-b", ""] {
        assert_eq!(
            repository.scan(&guest()).unwrap().check_namespace(&guest(), other).unwrap_err().reason(),
            "GuestBelongsToAnotherNamespace"
        );
        assert_eq!(add(3, other).unwrap_err().reason(), "GuestBelongsToAnotherNamespace");
        fs::remove_dir_all(place.point_dir(&point_id(3))).unwrap();
    }
}

#[test]
fn a_manifest_that_is_not_about_what_is_stored_is_not_committed() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    let base = commit(&place, &repository, 1, 1 << 20, None, &[]);
    let _lease = support::lease(&repository).unwrap();
    let point = point_id(2);
    let partial = repository.create_point(&guest(), &point).unwrap();
    let sealed = fill(&partial, &place.point_dir(&point), "disk0", 1 << 20, &["write -P 3 0 64k".into()]).unwrap();
    let good = manifest(&point, 2, &[(&sealed, None)]);
    let parent = |point, digest: &str| Parent { point, disk: disk("disk0"), identity_digest: digest.into() };
    let gone = manifest(&point, 2, &[(&sealed, Some(parent(point_id(99), &base.identity_digest)))]);
    let changed = manifest(&point, 2, &[(&sealed, Some(parent(point_id(1), "another")))]);
    let mut cases = vec![(gone, "ParentGone"), (changed, "ParentGone")];
    let mut case = |change: &dyn Fn(&mut driftline::repo::Manifest), reason| {
        let mut manifest = good.clone();
        change(&mut manifest);
        cases.push((manifest, reason));
    };
    case(&|m| m.identity.sequence = 1, "ManifestMismatch");
    case(&|m| m.identity.point = point_id(3), "ManifestMismatch");
    case(
        &|m| m.identity.guest.uuid = "6f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a11".parse::<GuestId>().unwrap(),
        "ManifestMismatch",
    );
    case(&|m| m.identity.repository = "00000000-9a51-4c7e-8f2b-0d9f2f6f3a10".parse().unwrap(), "ManifestMismatch");
    case(&|m| m.storage.disks[0].bytes += 1, "ImageNotAsStored");
    case(&|m| m.identity.disks[0].virtual_size += 512, "ImageNotAsStored");
    case(&|m| m.storage.disks[0].file = "/etc/passwd".into(), "ManifestUnreadable");
    case(&|m| m.storage.disks[0].file = "../../other/disk0.qcow2".into(), "ManifestUnreadable");
    for (manifest, reason) in cases {
        assert_eq!(partial.commit(&manifest).unwrap_err().reason(), reason);
        assert_eq!(repository.points(&guest()).unwrap().len(), 1);
    }
    partial.commit(&good).unwrap();
    assert_eq!(repository.partial_point(&guest(), &point).unwrap().map(|_| ()), None);
    assert_eq!(partial.discard().unwrap_err().reason(), "PointExists");
    assert_eq!(repository.points(&guest()).unwrap().len(), 2);
}

#[test]
fn a_full_file_system_is_said_so_before_the_copy_and_the_point_can_be_discarded() {
    let place = Place::new();
    let Some(_mount) = Mount::new(&["-t", "tmpfs", "-o", "size=8m", "none"], &place.path) else { return };
    let repository = place.initialise().unwrap();
    let space = repository.space().unwrap();
    assert!(space.local && space.writable && space.capacity == 8 << 20, "{space:?}");
    let _lease = support::lease(&repository).unwrap();
    let partial = repository.create_point(&guest(), &point_id(1)).unwrap();
    let error = partial.create_disk(&disk("disk0"), 64 << 20, 64 << 20, None).unwrap_err();
    assert_eq!(error.reason(), "RepositoryFull", "{error}");
    partial.discard().unwrap();
    assert!(repository.space().unwrap().available > 7 << 20);

    // Full only when the point is sealed: the table does not fit.
    let point = point_id(2);
    let partial = repository.create_point(&guest(), &point).unwrap();
    partial.create_disk(&disk("disk0"), 64 << 20, 2 << 20, None).unwrap();
    support::qemu_io(&place.point_dir(&point).join("disk0.qcow2"), &["write -P 1 0 1M".into()]);
    let left = repository.space().unwrap().available;
    fs::write(place.path.join("filler"), vec![1; usize::try_from(left).unwrap()]).unwrap();
    fs::write(place.path.join("filler2"), [1]).unwrap_err();
    let sealed = partial.seal_disk(&disk("disk0"), &mut |_| ());
    // Sealing frees what was allocated ahead and not used: there is room again.
    let sealed = sealed.unwrap();
    let left = repository.space().unwrap().available;
    assert!(left > 0);
    fs::write(place.path.join("filler2"), vec![1; usize::try_from(left).unwrap()]).unwrap();
    let error = partial.commit(&manifest(&point, 1, &[(&sealed, None)])).unwrap_err();
    assert_eq!(error.reason(), "RepositoryFull", "{error}");
    assert!(repository.points(&guest()).unwrap().is_empty());
    fs::remove_file(place.path.join("filler")).unwrap();
    partial.commit(&manifest(&point, 1, &[(&sealed, None)])).unwrap();
}

#[test]
fn a_read_only_repository_is_read_and_not_written() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    commit(&place, &repository, 1, 1 << 20, None, &[]);
    drop(repository);
    let path = place.path.to_str().unwrap().to_owned();
    let Some(_mount) = Mount::new(&["--bind", "-o", "ro", &path], &place.path) else { return };
    let repository = place.open().unwrap();
    assert!(!repository.space().unwrap().writable);
    assert_eq!(repository.points(&guest()).unwrap().len(), 1);
    assert_eq!(support::lease(&repository).err().unwrap().reason(), "RepositoryReadOnly");
    let empty = place.root().join("empty");
    fs::create_dir(&empty).unwrap();
    let empty_path = empty.to_str().unwrap().to_owned();
    let Some(_mount) = Mount::new(&["--bind", "-o", "ro", &empty_path], &empty) else { return };
    assert_eq!(open_at(&place, &empty).unwrap_err().reason(), "RepositoryReadOnly");
}

#[test]
fn what_is_allocated_ahead_is_there_at_once_and_freed_when_the_disk_is_sealed() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    let repository = place.initialise().unwrap();
    let _lease = support::lease(&repository).unwrap();
    let point = point_id(1);
    let partial = repository.create_point(&guest(), &point).unwrap();
    partial.create_disk(&disk("disk0"), 64 << 20, 32 << 20, None).unwrap();
    let image = place.point_dir(&point).join("disk0.qcow2");
    let metadata = fs::metadata(&image).unwrap();
    assert!(metadata.blocks() * 512 >= 32 << 20, "{} blocks", metadata.blocks());
    assert!(metadata.len() < 1 << 20, "the length is kept");
    support::qemu_io(&image, &["write -P 9 0 3M".into()]);
    let sealed = partial.seal_disk(&disk("disk0"), &mut |_| ()).unwrap();
    let metadata = fs::metadata(&image).unwrap();
    assert_eq!(metadata.len(), sealed.bytes);
    assert!(metadata.blocks() * 512 < 5 << 20, "{} blocks are left", metadata.blocks());
    assert_eq!(sealed.clusters(), 48);
}
