//! A stray entry among the guests' folders: the verbs work on the others.

use super::*;

#[test]
fn a_file_among_the_guests_folders_keeps_no_verb_from_the_points_that_are_there() {
    let host = Host::new();
    let machine = Plan::new().disk(Disk::raw("disk0", MIB)).paused().start();
    let reference = Reference::take(&machine);
    let made = host.backup(&machine);
    let point = made["restorePoint"].as_str().unwrap_or_else(|| panic!("{made}"));
    let repository = host.repository();
    std::fs::write(Path::new(&repository).join("guests/00000000-9a51-4c7e-8f2b-0d9f2f6f3a12"), "x").unwrap();
    let points = host.json(&["points", "--repository", &repository]);
    assert_eq!(points["points"][0]["pointID"], json!(point));
    let verified = host.json(&["verify", "--repository", &repository]);
    assert_eq!(verified["findings"][0]["kind"], json!("UnknownFile"));
    assert_eq!(host.json(&["verify", "--repository", &repository, "--point", point])["findings"], json!([]));
    let file = host.path("restored/disk0");
    let to = format!("disk0={}", file.display());
    host.json(&["restore", "--repository", &repository, "--point", point, "--to", &to]);
    reference.assert_equal("disk0", &file, Format::Qcow2);
}
