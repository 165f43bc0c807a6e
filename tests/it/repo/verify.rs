//! Verification finds what was changed behind our back, and says where.

use std::{
    fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use driftline::{
    chain::finding::{Finding, Kind, Severity},
    repo::{Repository, check},
};

use super::support::{Place, commit, disk, fill, guest, lease, manifest, point_id, run};

fn verify(repository: &Repository) -> Vec<Finding> {
    check::verify(repository, None, None, &mut |_| (), &Default::default()).unwrap()
}

fn kinds(findings: &[Finding]) -> Vec<Kind> {
    findings.iter().map(|finding| finding.kind).collect()
}

/// A point with data in the clusters 0, 1 and 5, zeros in 3, and an odd end.
fn place_with_point() -> (Place, Repository) {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    let size = (1 << 20) + 512;
    let commands = ["write -P 1 0 128k", "write -z 192k 64k", "write -P 5 320k 64k", "write -P 7 1M 512"];
    commit(&place, &repository, 1, size, None, &commands.map(String::from));
    (place, repository)
}

/// A point with 4096 bytes of firmware variables, and their file.
fn place_with_variables() -> (Place, Repository, PathBuf) {
    let place = Place::new();
    let repository = place.initialise().unwrap();
    let lease = lease(&repository).unwrap();
    let (point, pflash) = (point_id(1), disk("pflash1"));
    let partial = repository.create_point(&guest(), &point).unwrap();
    let sealed = fill(&partial, &place.point_dir(&point), "disk0", 1 << 20, &[]).unwrap();
    partial.store_variables(&pflash, &[7; 4096]).unwrap();
    let mut whole = manifest(&point, 1, &[(&sealed, None)]);
    whole.definition.variables.extend(partial.variables(&pflash).unwrap());
    partial.commit(&whole).unwrap();
    drop(lease);
    let file = place.point_dir(&point).join("pflash1.nvram");
    (place, repository, file)
}

/// Where the guest's byte stands in the image's file, by QEMU's own word.
fn host_offset(image: &Path, guest: u64) -> u64 {
    let map = run("qemu-img", &["map", "--output=json", "-f", "qcow2", image.to_str().unwrap()]);
    let map: Vec<serde_json::Value> = serde_json::from_str(&map).unwrap();
    let (start, length) = ("start", "length");
    let extent = map
        .iter()
        .find(|e| {
            e[start].as_u64().unwrap() <= guest && guest < e[start].as_u64().unwrap() + e[length].as_u64().unwrap()
        })
        .unwrap();
    extent["offset"].as_u64().unwrap() + guest - extent[start].as_u64().unwrap()
}

#[test]
fn a_point_that_is_nowhere_is_an_error_with_and_without_its_guest() {
    let (_place, repository) = place_with_point();
    for guest in [None, Some(guest())] {
        let found = check::verify(&repository, guest.as_ref(), Some(&point_id(9)), &mut |_| (), &Default::default());
        assert_eq!(found.unwrap_err().reason(), "PointNotFound", "{guest:?}");
    }
    let found = check::verify(&repository, None, Some(&point_id(1)), &mut |_| (), &Default::default());
    assert_eq!(found.unwrap(), []);
}

#[test]
fn numbers_that_nobody_can_have_written_are_findings_and_no_panic() {
    let (place, repository) = place_with_point();
    let path = place.point_dir(&point_id(1)).join("manifest.json");
    let good: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let damaged = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut manifest = good.clone();
        change(&mut manifest);
        fs::write(&path, manifest.to_string()).unwrap();
        kinds(&verify(&repository))
    };
    let huge = || serde_json::json!(u64::MAX);
    assert_eq!(damaged(&|m| m["identity"]["sequence"] = huge()), [Kind::ManifestUnreadable]);
    assert_eq!(damaged(&|m| m["identity"]["disks"][0]["virtualSize"] = huge()), [Kind::ManifestUnreadable]);
    assert_eq!(damaged(&|m| m["storage"]["disks"][0]["bytes"] = huge()), [Kind::ManifestUnreadable]);
    assert_eq!(repository.next_sequence(&guest()).unwrap(), 1);
}

#[test]
fn an_untouched_repository_has_no_findings_and_opens_with_stock_qemu_img() {
    let (place, repository) = place_with_point();
    assert_eq!(verify(&repository), []);
    let image = place.point_dir(&point_id(1)).join("disk0.qcow2");
    run("qemu-img", &["check", image.to_str().unwrap()]);
    let info = run("qemu-img", &["info", "--output=json", image.to_str().unwrap()]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!((info["format"].as_str(), info["virtual-size"].as_u64()), (Some("qcow2"), Some((1 << 20) + 512)));
}

#[test]
fn a_changed_byte_is_found_with_its_disk_and_offset() {
    let (place, repository) = place_with_point();
    let image = place.point_dir(&point_id(1)).join("disk0.qcow2");
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.write_all_at(&[9], host_offset(&image, 320 * 1024 + 77)).unwrap();
    let findings = verify(&repository);
    assert_eq!(kinds(&findings), [Kind::ClusterDamaged]);
    let finding = &findings[0];
    assert_eq!((finding.offset, finding.length), (Some(320 * 1024), Some(65_536)));
    assert_eq!(finding.severity, Severity::Damage);
    assert_eq!((finding.point.as_ref(), finding.guest.as_ref()), (Some(&point_id(1)), Some(&guest())));
}

#[test]
fn data_that_was_discarded_or_added_in_the_image_is_found() {
    let (place, repository) = place_with_point();
    let image = place.point_dir(&point_id(1)).join("disk0.qcow2");
    super::support::qemu_io(&image, &["write -z -u 0 64k".into(), "write -P 8 512k 64k".into()]);
    let findings = verify(&repository);
    assert!(kinds(&findings).contains(&Kind::ClusterDamaged), "{findings:?}");
    assert!(kinds(&findings).contains(&Kind::ClusterMissing), "{findings:?}");
}

#[test]
fn missing_and_cut_files_are_found() {
    let (place, repository) = place_with_point();
    let dir = place.point_dir(&point_id(1));
    let image = dir.join("disk0.qcow2");
    let bytes = fs::read(&image).unwrap();
    fs::write(&image, &bytes[..bytes.len() - 65_536]).unwrap();
    assert!(kinds(&verify(&repository)).contains(&Kind::ImageNotAsStored));
    fs::write(&image, []).unwrap();
    assert!(kinds(&verify(&repository)).contains(&Kind::ImageNotAsStored));
    fs::remove_file(&image).unwrap();
    assert_eq!(kinds(&verify(&repository)), [Kind::FileMissing]);
    fs::write(&image, &bytes).unwrap();
    assert_eq!(verify(&repository), []);

    let table = dir.join("disk0.1.digests");
    let mut bytes = fs::read(&table).unwrap();
    bytes[40] ^= 1;
    fs::write(&table, &bytes).unwrap();
    assert_eq!(kinds(&verify(&repository)), [Kind::TableDamaged]);
    fs::remove_file(&table).unwrap();
    assert_eq!(kinds(&verify(&repository)), [Kind::FileMissing]);
}

#[test]
fn variables_of_another_length_are_told_without_being_read_and_of_an_absurd_one_are_in_no_manifest() {
    let (_place, repository, file) = place_with_variables();
    assert_eq!(verify(&repository), []);
    // Reading it takes hours; its holes take no space. Where a file may not be as long, a shorter one does.
    let sparse = fs::OpenOptions::new().write(true).open(&file).unwrap();
    sparse.set_len(8 << 40).or_else(|_| sparse.set_len(1 << 40)).unwrap();
    let findings = verify(&repository);
    assert_eq!(kinds(&findings), [Kind::VariablesDamaged]);
    assert!(findings[0].message.contains("4096 were stored"), "{findings:?}");
    sparse.set_len(4096).unwrap();
    assert_eq!(verify(&repository), []);

    let path = file.with_file_name("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"bytes\": 4096", &format!("\"bytes\": {}", (64 << 20) + 1))).unwrap();
    let findings = verify(&repository);
    assert_eq!(kinds(&findings), [Kind::ManifestUnreadable]);
    assert!(findings[0].message.contains("variables of pflash1 are larger"), "{findings:?}");
}

#[test]
fn a_cancelled_verification_does_not_read_the_variables_and_finds_no_damage_in_them() {
    let (_place, repository, file) = place_with_variables();
    fs::write(&file, [8; 4096]).unwrap();
    assert_eq!(kinds(&verify(&repository)), [Kind::VariablesDamaged]);
    let cancel = true.into();
    let findings = check::verify(&repository, None, None, &mut |_| (), &cancel).unwrap();
    assert_eq!(kinds(&findings), [Kind::Unchecked]);
}

#[test]
fn a_manifest_that_cannot_be_read_hides_one_point_and_no_other() {
    let (place, repository) = place_with_point();
    commit(&place, &repository, 2, 1 << 20, None, &[]);
    let manifest = place.point_dir(&point_id(1)).join("manifest.json");
    for damage in [
        Box::new(|text: &str| text[..text.len() / 2].to_owned()) as Box<dyn Fn(&str) -> String>,
        Box::new(|text: &str| text.replace("\"file\": \"disk0.qcow2\"", "\"file\": \"/etc/passwd\"")),
        Box::new(|text: &str| text.replace(point_id(1).as_str(), point_id(7).as_str())),
        Box::new(|text: &str| text.replace("\"format\": 1", "\"format\": 2")),
    ] {
        let good = fs::read_to_string(&manifest).unwrap();
        fs::write(&manifest, damage(&good)).unwrap();
        let points = repository.points(&guest()).unwrap();
        assert_eq!(points.iter().map(|p| p.manifest.identity.point.clone()).collect::<Vec<_>>(), [point_id(2)]);
        let findings = verify(&repository);
        assert_eq!(kinds(&findings), [Kind::ManifestUnreadable]);
        assert_eq!(findings[0].point, Some(point_id(1)));
        fs::write(&manifest, good).unwrap();
    }
    assert_eq!(verify(&repository), []);
}

/// What is logged, as lines of JSON.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_point_that_a_list_leaves_out_is_logged_once_with_its_guest() {
    let (place, repository) = place_with_point();
    fs::write(place.point_dir(&point_id(1)).join("manifest.json"), "{").unwrap();
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone()).finish();
    let points = tracing::subscriber::with_default(subscriber, || repository.points(&guest()).unwrap());
    assert_eq!(points, []);
    let lines = log.0.lock().unwrap().clone();
    let line: serde_json::Value = serde_json::from_slice(&lines).expect("one line");
    let (guest, point) = (guest(), point_id(1));
    assert_eq!((line["level"].as_str(), line["kind"].as_str()), (Some("WARN"), Some("ManifestUnreadable")));
    assert_eq!((line["guest"].as_str(), line["point"].as_str()), (Some(guest.as_str()), Some(point.as_str())));
}

#[test]
fn a_missing_parent_is_found_at_its_child() {
    let (place, repository) = place_with_point();
    let base = repository.point(&guest(), &point_id(1)).unwrap().unwrap();
    commit(&place, &repository, 2, (1 << 20) + 512, Some(&base), &["write -P 2 64k 64k".into()]);
    assert_eq!(verify(&repository), []);
    fs::remove_dir_all(place.point_dir(&point_id(1))).unwrap();
    let findings = verify(&repository);
    assert_eq!(kinds(&findings), [Kind::ChainBroken]);
    assert_eq!(findings[0].point, Some(point_id(2)));
}

#[test]
fn a_damaged_parent_is_found_at_itself_and_at_its_child() {
    let (place, repository) = place_with_point();
    let base = repository.point(&guest(), &point_id(1)).unwrap().unwrap();
    commit(&place, &repository, 2, (1 << 20) + 512, Some(&base), &["write -P 2 64k 64k".into()]);
    fs::remove_file(place.point_dir(&point_id(1)).join("disk0.qcow2")).unwrap();
    let found = |findings: Vec<Finding>| -> Vec<_> { findings.into_iter().map(|f| (f.kind, f.point)).collect() };
    let child = (Kind::ChainBroken, Some(point_id(2)));
    assert_eq!(found(verify(&repository)), [(Kind::FileMissing, Some(point_id(1))), child.clone()]);
    let of_child = check::verify(&repository, None, Some(&point_id(2)), &mut |_| (), &Default::default());
    assert_eq!(found(of_child.unwrap()), [child]);
}

#[test]
fn progress_ends_with_all_that_is_stored() {
    let (_place, repository) = place_with_point();
    let mut last = None;
    check::verify(&repository, None, None, &mut |at| last = Some((at.done, at.total)), &Default::default()).unwrap();
    let (done, total) = last.unwrap();
    assert_eq!(done, total);
}

#[test]
fn a_changed_byte_is_told_of_every_point_above_and_where_one_of_them_is_asked_for() {
    let (place, repository) = place_with_point();
    let mut parent = repository.point(&guest(), &point_id(1)).unwrap().unwrap();
    for sequence in 2..=3 {
        commit(&place, &repository, sequence, (1 << 20) + 512, Some(&parent), &["write -P 2 64k 64k".into()]);
        parent = repository.point(&guest(), &point_id(sequence)).unwrap().unwrap();
    }
    let asked = || check::verify(&repository, None, Some(&point_id(3)), &mut |_| (), &Default::default()).unwrap();
    assert_eq!(asked(), []);
    let image = place.point_dir(&point_id(1)).join("disk0.qcow2");
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.write_all_at(&[9], host_offset(&image, 320 * 1024 + 77)).unwrap();
    let expected = [(Kind::ClusterDamaged, 1), (Kind::ChainBroken, 2), (Kind::ChainBroken, 3)];
    for findings in [verify(&repository), asked()] {
        let found: Vec<_> = findings.iter().map(|finding| (finding.kind, finding.point.clone())).collect();
        assert_eq!(found, expected.map(|(kind, point)| (kind, Some(point_id(point)))));
        assert!(findings[2].message.contains(point_id(1).as_str()), "{}", findings[2].message);
    }
}
