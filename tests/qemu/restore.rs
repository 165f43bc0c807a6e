//! Restores of chains made by the real `qemu-img` and `qemu-io`, and the map of images against QEMU's own word.

#[allow(dead_code, reason = "each of the two test binaries uses a part of it")]
#[path = "../support/repo.rs"]
mod support;

mod chain;
mod maps;
mod used;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use chain::chain;
use driftline::{
    engine::restore::{Format, Overwrite, RestoreError, RestoreRequest, RestoreRoots, Restored, Stage, flatten},
    qcow2::{
        header::Header,
        map::{Kind, Map},
        tool::{FileOwner, QemuImg},
    },
    repo::Repository,
};
use support::{Mount, Place, disk, guest, point_id, run};

fn request(point: u64, path: &Path, format: Format) -> RestoreRequest {
    RestoreRequest {
        run: String::new(),
        guest: guest(),
        point: point_id(point),
        disks: vec![(disk("disk0"), path.to_owned())],
        format,
        overwrite: Overwrite::Never,
        verify: true,
    }
}

fn restore(place: &Place, repository: &Repository, request: &RestoreRequest) -> Result<Restored, RestoreError> {
    flatten(repository, &roots(place), request, &mut |_| (), &AtomicBool::new(false))
}

/// The restore root: a folder beside the repository.
fn target(place: &Place) -> PathBuf {
    let target = place.root().join("target");
    fs::create_dir_all(&target).unwrap();
    target
}

fn roots(place: &Place) -> RestoreRoots {
    RestoreRoots::new(vec![target(place)])
}

#[test]
fn a_chain_restores_to_the_disk_as_it_was_in_both_formats() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    let (_, reference) = chain(&place, &repository);
    for (format, name) in [(Format::Raw, "raw"), (Format::Qcow2, "qcow2")] {
        let path = target(&place).join(format!("disk.{name}"));
        let mut stages = Vec::new();
        let restored = flatten(
            &repository,
            &roots(&place),
            &request(3, &path, format),
            &mut |progress| {
                assert!(progress.done <= progress.total);
                stages.push((progress.stage, progress.done == progress.total));
            },
            &AtomicBool::new(false),
        )
        .unwrap();
        assert!(restored.verified);
        assert_eq!(restored.disks[0].chain, [3, 2, 1].map(point_id));
        assert_eq!(stages.last(), Some(&(Stage::Verifying, true)));
        assert!(stages.contains(&(Stage::Copying, true)));
        reference.assert_equal(name, &path);
        if format == Format::Qcow2 {
            run("qemu-img", &["check", "-q", path.to_str().unwrap()]);
        }
    }
    let raw = fs::metadata(target(&place).join("disk.raw")).unwrap();
    assert_eq!(raw.len(), 3 * (1 << 20) + 512 + 65_536 + 1024);
    assert_eq!(fs::read_dir(target(&place)).unwrap().count(), 2, "nothing temporary is left");
}

#[test]
fn a_damaged_cluster_stops_the_restore_before_the_image_gets_its_name() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    chain(&place, &repository);
    // One byte in the data of the middle point, at 2 MiB of the disk.
    let image = place.point_dir(&point_id(2)).join("disk0.qcow2");
    let bytes = fs::read(&image).unwrap();
    let map = Map::read(&bytes, &Header::read(&bytes).unwrap(), bytes.len() as u64).unwrap();
    let extent = map.extents.iter().find(|extent| extent.first == 32).unwrap();
    let Kind::Data { host } = extent.kind else { panic!("{extent:?}") };
    let mut bytes = bytes;
    bytes[usize::try_from(host).unwrap() + 100] ^= 1;
    fs::write(&image, &bytes).unwrap();
    for format in [Format::Raw, Format::Qcow2] {
        let error = restore(&place, &repository, &request(3, &target(&place).join("disk"), format)).unwrap_err();
        assert_eq!(error.reason(), "DigestMismatch");
        let text = error.to_string();
        assert!(text.contains("at byte 2097152") && text.contains(point_id(2).as_str()), "{text}");
        assert_eq!(fs::read_dir(target(&place)).unwrap().count(), 0);
    }
    // Not asked to compare, it gives what is stored.
    let unverified = RestoreRequest { verify: false, ..request(3, &target(&place).join("disk"), Format::Raw) };
    assert!(!restore(&place, &repository, &unverified).unwrap().verified);
}

#[test]
fn data_where_no_point_stores_anything_is_noticed() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    let (points, _) = chain(&place, &repository);
    // The table of the full is exchanged for one that knows of fewer clusters, and its digests for the new one's.
    let image = place.point_dir(&point_id(1)).join("disk0.qcow2");
    support::qemu_io(&image, &["write -P 9 1536k 64k".into()]);
    let manifest = place.point_dir(&point_id(1)).join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    let stored = points[0].manifest.storage.disks[0].bytes;
    let now = fs::metadata(&image).unwrap().len();
    fs::write(&manifest, text.replace(&format!("\"bytes\": {stored}"), &format!("\"bytes\": {now}"))).unwrap();
    let error = restore(&place, &repository, &request(3, &target(&place).join("disk"), Format::Raw)).unwrap_err();
    assert!(matches!(&error, RestoreError::Damaged { clusters: 1, offset: 1_572_864, .. }), "{error:?}");
}

#[test]
fn a_file_that_is_there_is_replaced_only_when_the_request_says_so() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    let (_, reference) = chain(&place, &repository);
    let path = target(&place).join("disk");
    fs::write(&path, b"precious").unwrap();
    for overwrite in [Overwrite::Never, Overwrite::IfSameGuest] {
        let error = restore(&place, &repository, &RestoreRequest { overwrite, ..request(3, &path, Format::Raw) });
        assert_eq!(error.unwrap_err().reason(), "TargetExists");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
    let always = RestoreRequest { overwrite: Overwrite::Always, ..request(3, &path, Format::Raw) };
    restore(&place, &repository, &always).unwrap();
    reference.assert_equal("raw", &path);
    // Now it is an image that was restored for this guest.
    let same = RestoreRequest { overwrite: Overwrite::IfSameGuest, ..request(1, &path, Format::Raw) };
    restore(&place, &repository, &same).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 3 * (1 << 20) + 512);
}

#[test]
fn no_target_leads_out_of_the_restore_roots_or_into_the_repository() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    chain(&place, &repository);
    let outside = tempfile::tempdir().unwrap();
    let root = target(&place);
    std::os::unix::fs::symlink(outside.path(), root.join("link")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("file"), root.join("file-link")).unwrap();
    fs::create_dir(root.join("folder")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
    let before: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let root_text = root.display();
    for (path, reason) in [
        (outside.path().join("disk").display().to_string(), "OutsideRoots"),
        (format!("{root_text}/../disk"), "OutsideRoots"),
        (format!("{root_text}/link/disk"), "OutsideRoots"),
        (format!("{root_text}/file-link"), "OutsideRoots"),
        (format!("{root_text}/missing/disk"), "TargetFolderMissing"),
        (format!("{root_text}/disk/"), "RestoreInvalid"),
        (format!("{root_text}/folder"), "RestoreInvalid"),
        (format!("{root_text}/socket"), "RestoreInvalid"),
        (format!("{root_text}/.."), "RestoreInvalid"),
        ("disk".into(), "OutsideRoots"),
        (place.path.join("disk").display().to_string(), "OutsideRoots"),
    ] {
        for overwrite in [Overwrite::Never, Overwrite::IfSameGuest, Overwrite::Always] {
            let request = RestoreRequest { overwrite, ..request(1, Path::new(&path), Format::Raw) };
            assert_eq!(restore(&place, &repository, &request).unwrap_err().reason(), reason, "{path}");
        }
    }
    let none = flatten(
        &repository,
        &RestoreRoots::default(),
        &request(1, &root.join("d"), Format::Raw),
        &mut |_| (),
        &AtomicBool::new(false),
    );
    assert_eq!(none.unwrap_err().reason(), "OutsideRoots");
    let stored = place.point_dir(&point_id(1)).join("disk0.qcow2");
    let wide = RestoreRoots::new(vec![place.root()]);
    let into = RestoreRequest { overwrite: Overwrite::Always, ..request(3, &stored, Format::Raw) };
    let error = flatten(&repository, &wide, &into, &mut |_| (), &AtomicBool::new(false)).unwrap_err();
    assert_eq!(error.reason(), "TargetInRepository");
    let after: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(before, after);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn an_absolute_path_in_a_stored_header_is_refused_and_never_opened() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    chain(&place, &repository);
    let secret = place.root().join("secret");
    fs::write(&secret, vec![0x5a; 4 << 20]).unwrap();
    let image = place.point_dir(&point_id(1)).join("disk0.qcow2");
    run("qemu-img", &["rebase", "-u", "-F", "raw", "-b", secret.to_str().unwrap(), image.to_str().unwrap()]);
    // Even when the file's size is made to fit and nothing is compared.
    let request = RestoreRequest { verify: false, ..request(3, &target(&place).join("disk"), Format::Raw) };
    assert_eq!(restore(&place, &repository, &request).unwrap_err().reason(), "ImageNotAsStored");
    assert_eq!(fs::read_dir(target(&place)).unwrap().count(), 0);
}

#[test]
fn a_harmless_relative_name_in_a_header_is_not_followed() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    let (_, reference) = chain(&place, &repository);
    // The full is given a backing file that exists: another point's image. It must not shine through.
    let image = place.point_dir(&point_id(1)).join("disk0.qcow2");
    let name = format!("../{}/disk0.qcow2", point_id(3));
    run("qemu-img", &["rebase", "-u", "-F", "qcow2", "-b", &name, image.to_str().unwrap()]);
    let path = target(&place).join("disk");
    restore(&place, &repository, &request(3, &path, Format::Raw)).unwrap();
    reference.assert_equal("raw", &path);
}

#[test]
fn a_cancelled_restore_leaves_nothing() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    chain(&place, &repository);
    for stage in [Stage::Copying, Stage::Verifying] {
        let cancel = AtomicBool::new(false);
        let request = request(3, &target(&place).join("disk"), Format::Raw);
        let ended = flatten(
            &repository,
            &roots(&place),
            &request,
            &mut |progress| cancel.store(progress.stage == stage, Ordering::Relaxed),
            &cancel,
        );
        assert_eq!(ended.unwrap_err().reason(), "Cancelled", "{stage:?}");
        assert_eq!(fs::read_dir(target(&place)).unwrap().count(), 0);
    }
}

#[test]
fn the_leftover_of_a_killed_restore_is_removed_by_the_next_one() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    chain(&place, &repository);
    fs::write(target(&place).join(".driftline-0123456789abcdef.partial"), b"half").unwrap();
    restore(&place, &repository, &request(1, &target(&place).join("disk"), Format::Raw)).unwrap();
    let left: Vec<_> = fs::read_dir(target(&place)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["disk"]);
}

#[test]
fn a_full_or_read_only_target_is_said_so_and_nothing_is_left() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    chain(&place, &repository);
    let target = target(&place);
    {
        let Some(_mount) = Mount::new(&["-t", "tmpfs", "-o", "size=512k", "none"], &target) else { return };
        let error = restore(&place, &repository, &request(3, &target.join("disk"), Format::Raw)).unwrap_err();
        assert_eq!(error.reason(), "TargetFull", "{error}");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    }
    {
        // Enough by the size of the stored files, not enough once somebody else takes the room meanwhile.
        let Some(_mount) = Mount::new(&["-t", "tmpfs", "-o", "size=8m", "none"], &target) else { return };
        let mut taken = false;
        let mut take = |_| {
            if !std::mem::replace(&mut taken, true) {
                fs::write(target.join("filler"), vec![1; 9 << 20]).unwrap_err();
            }
        };
        let request = request(3, &target.join("disk"), Format::Raw);
        let error = flatten(&repository, &roots(&place), &request, &mut take, &AtomicBool::new(false)).unwrap_err();
        assert_eq!(error.reason(), "TargetFull", "{error}");
        let left: Vec<_> = fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["filler"]);
    }
    let path = target.to_str().unwrap();
    let Some(_mount) = Mount::new(&["--bind", "-o", "ro", path], &target) else { return };
    let error = restore(&place, &repository, &request(3, &target.join("disk"), Format::Raw)).unwrap_err();
    assert_eq!(error.reason(), "TargetReadOnly", "{error}");
}

#[test]
fn a_request_for_what_is_not_stored_or_twice_for_one_thing_is_refused() {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    chain(&place, &repository);
    let path = target(&place).join("disk");
    let good = request(3, &path, Format::Raw);
    let other = target(&place).join("other");
    let cases = [
        (RestoreRequest { disks: Vec::new(), ..good.clone() }, "RestoreInvalid"),
        (RestoreRequest { disks: vec![(disk("disk9"), path.clone())], ..good.clone() }, "DiskNotInPoint"),
        (
            RestoreRequest { disks: vec![(disk("disk0"), path.clone()), (disk("disk0"), other)], ..good.clone() },
            "RestoreInvalid",
        ),
        (RestoreRequest { point: point_id(77), ..good.clone() }, "PointNotFound"),
        (RestoreRequest { guest: support::ID.parse().unwrap(), ..good.clone() }, "PointNotFound"),
    ];
    for (request, reason) in cases {
        assert_eq!(restore(&place, &repository, &request).unwrap_err().reason(), reason);
    }
    fs::remove_dir_all(place.point_dir(&point_id(2))).unwrap();
    assert_eq!(restore(&place, &repository, &good).unwrap_err().reason(), "ParentMissing");
    assert_eq!(fs::read_dir(target(&place)).unwrap().count(), 0);
}

#[test]
fn qemu_img_runs_as_the_owner_of_the_files_and_reaches_nothing_else() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let place = Place::new();
    // As in a host where nobody but root may enter the folder.
    fs::set_permissions(&place.path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let owner = FileOwner { uid: 65_534, gid: 65_534 };
    let tool = QemuImg::new("qemu-img", Some(owner));
    let repository = Repository::initialise(&place.roots(), &place.path, &support::id(), &tool).unwrap();
    let (_, reference) = chain(&place, &repository);
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(place.point_dir(&point_id(1)).join("disk0.qcow2")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o777), (65_534, 65_534, 0o600));
    let path = target(&place).join("disk");
    restore(&place, &repository, &request(3, &path, Format::Qcow2)).unwrap();
    reference.assert_equal("qcow2", &path);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(
        (metadata.uid(), metadata.mode() & 0o777),
        (0, 0o600),
        "the restored image belongs to its folder's owner"
    );

    // What the child is, by its own word; and a file of another user stays closed to it.
    let script = place.root().join("tool");
    let text = "#!/bin/sh\nexec >&2\nid -u\nid -G\ngrep NoNewPrivs /proc/self/status\nulimit -c\ncat \"$7\"\nexit 1\n";
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::set_permissions(place.root(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let spy = QemuImg::new(&script, Some(owner));
    let foreign = fs::File::open(&path).unwrap();
    let error = spy.create(std::os::fd::AsFd::as_fd(&foreign), Format::Qcow2, 512).unwrap_err().to_string();
    let mut lines = error.lines();
    assert!(lines.next().unwrap().ends_with(": 65534"), "{error}");
    assert_eq!(lines.next(), Some("65534"), "{error}");
    assert_eq!(lines.next(), Some("NoNewPrivs:\t1"), "{error}");
    assert_eq!(lines.next(), Some("0"), "{error}");
    let last = lines.next().unwrap();
    assert!(last.contains("/proc/self/fd/") && last.ends_with("Permission denied"), "{error}");
}
