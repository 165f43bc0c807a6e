//! What is generated and committed is what the code gives: `crds/`, the chart's `kinds/` and `docs/reference/`. With
//! `DRIFTLINE_WRITE_GENERATED=1` (`make crds`) the files are written instead of compared. And every word that other
//! programs may rely on stands in `docs/operations.md`.

use std::{fmt::Write, fs, path::PathBuf};

use driftline::{
    api::{self, words},
    qmp::{quirks, version::Version},
};

fn root(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn compare(folder: &str, files: Vec<(String, String)>) {
    let folder = root(folder);
    if std::env::var_os("DRIFTLINE_WRITE_GENERATED").is_some() {
        fs::create_dir_all(&folder).unwrap();
        for (name, text) in &files {
            fs::write(folder.join(name), text).unwrap();
        }
    }
    for (name, text) in &files {
        let stored = fs::read_to_string(folder.join(name)).unwrap_or_default();
        assert!(&stored == text, "{name} is not what the code gives: run `make crds` and commit it");
    }
    let mut there: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let mut wanted: Vec<_> = files.into_iter().map(|(name, _)| name).collect();
    there.sort();
    wanted.sort();
    assert_eq!(there, wanted, "a file of a kind that is no more, or one made by hand");
}

#[test]
fn the_committed_crds_are_what_the_code_gives() {
    // The chart has its own: what packs or fetches one takes real files of its folder alone.
    for folder in ["crds", "charts/driftline/kinds"] {
        compare(folder, api::crds().iter().map(|crd| api::crd_file(crd).unwrap()).collect());
    }
}

#[test]
fn the_committed_reference_is_what_the_code_gives() {
    compare("docs/reference", api::crds().iter().map(api::reference::page).collect());
}

/// What works on which QEMU, and what it does to a guest.
fn qemu_table() -> String {
    let versions = [(6, 0), (7, 2), (8, 2), (10, 0)].map(|(major, minor)| Version {
        major,
        minor,
        micro: 0,
        package: String::new(),
    });
    let mut text = String::from("|");
    versions.iter().for_each(|version| write!(text, " | {}.{}", version.major, version.minor).unwrap());
    text += " |\n| --- | --- | --- | --- | --- |\n";
    let mut row = |what: &str, cell: &dyn Fn(&Version) -> &'static str| {
        write!(text, "| {what}").unwrap();
        versions.iter().for_each(|version| write!(text, " | {}", cell(version)).unwrap());
        text += " |\n";
    };
    let spoken_to = |version: &Version| version.at_least(Version::OLDEST.0, Version::OLDEST.1);
    row("full, incremental and copy, direct or staged", &|version| if spoken_to(version) { "yes" } else { "refused" });
    row("fleeced", &|version| if quirks::FLEECING.is_in(version) { "never" } else { "yes" });
    for danger in quirks::DANGERS {
        let here = |version: &Version| if danger.is_in(version) { "danger" } else { "mended" };
        row(&format!("`{}`: {}", danger.word, danger.what), &here);
    }
    text
}

#[test]
fn the_committed_table_of_qemu_versions_is_what_the_code_gives() {
    const BEGIN: &str = "<!-- generated: make crds -->\n";
    let page = root("docs/qemu.md");
    let stored = fs::read_to_string(&page).unwrap();
    let (head, rest) = stored.split_once(BEGIN).unwrap();
    let (_, tail) = rest.split_once("<!-- end -->").unwrap();
    let wanted = format!("{head}{BEGIN}{}<!-- end -->{tail}", qemu_table());
    if std::env::var_os("DRIFTLINE_WRITE_GENERATED").is_some() {
        fs::write(&page, &wanted).unwrap();
    }
    assert_eq!(fs::read_to_string(&page).unwrap(), wanted, "run `make crds` and commit it");
}

#[test]
fn the_committed_crds_can_be_read_by_kubernetes() {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
    for crd in api::crds() {
        let (name, yaml) = api::crd_file(&crd).unwrap();
        let read: CustomResourceDefinition = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::to_value(&crd).unwrap(), "{name}");
    }
}

/// All schemas of a CRD with their paths.
fn schemas(value: &serde_json::Value, path: &str, out: &mut Vec<(String, serde_json::Value)>) {
    out.push((path.to_owned(), value.clone()));
    for (name, field) in value["properties"].as_object().into_iter().flatten() {
        schemas(field, &format!("{path}.{name}"), out);
    }
    if value["items"].is_object() {
        schemas(&value["items"], &format!("{path}[]"), out);
    }
}

fn all_schemas() -> Vec<(String, serde_json::Value)> {
    let mut out = vec![];
    for crd in api::crds() {
        let value = serde_json::to_value(&crd).unwrap();
        let schema = &value["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        schemas(schema, crd.spec.names.kind.as_str(), &mut out);
    }
    out
}

#[test]
fn every_text_and_list_of_a_spec_has_its_bound() {
    for (path, schema) in all_schemas() {
        if !path.split_once('.').is_some_and(|(_, rest)| rest.starts_with("spec")) {
            continue;
        }
        match schema["type"].as_str() {
            Some("string") if schema["enum"].is_null() => assert!(schema["maxLength"].is_u64(), "{path}: maxLength"),
            Some("array") => assert!(schema["maxItems"].is_u64(), "{path}: maxItems"),
            _ => {}
        }
    }
}

#[test]
fn no_schema_has_a_format_that_the_api_server_warns_about() {
    for (path, schema) in all_schemas() {
        if let Some(format) = schema["format"].as_str() {
            assert!(["int32", "int64", "date-time"].contains(&format), "{path}: {format}");
        }
    }
}

#[test]
fn a_status_has_no_defaults_that_the_server_would_fill_in() {
    for (path, schema) in all_schemas() {
        if path.contains(".status") {
            assert!(schema["default"].is_null(), "{path}: {}", schema["default"]);
        }
    }
}

#[test]
fn every_field_says_what_it_means() {
    for (path, schema) in all_schemas() {
        let known = path.contains(".conditions[]") || path.ends_with("[]") || path.matches('.').count() == 0;
        let ours = path.contains(".spec") || path.contains(".status");
        assert!(!ours || known || schema["description"].is_string(), "{path} has no description");
    }
}

#[test]
fn the_columns_are_those_that_a_person_looks_for() {
    let mut table = String::new();
    for crd in api::crds() {
        let names: Vec<_> = crd.spec.versions[0]
            .additional_printer_columns
            .iter()
            .flatten()
            .map(|c| if c.priority.unwrap_or(0) > 0 { format!("({})", c.name) } else { c.name.clone() })
            .collect();
        table += &format!("{}: {}\n", crd.spec.names.kind, names.join(" "));
    }
    insta::assert_snapshot!(table, @r"
    Guest: Node Power Disks Last-Point Ready Reason (QEMU) (UUID) Age
    BackupRepository: Type Access Points Used Capacity Ready (Reason) (Path) Age
    BackupRun: Guest Type Phase Progress Size Duration Point (Reason) (Node) Age
    RestorePoint: Guest Type Time Size Chain Ready (Reason) Age
    RestoreRun: Point Mode Phase Progress (Reason) (Node) Age
    ");
}

#[test]
fn every_word_that_others_may_rely_on_is_documented() {
    let text = fs::read_to_string(root("docs/operations.md")).unwrap_or_default();
    let missing: Vec<_> = words::Reason::ALL
        .iter()
        .map(|r| r.as_str())
        .chain(words::NAMES.iter().map(|(name, _)| *name))
        .chain(driftline::controller::metrics::NAMES.iter().map(|(name, _)| *name))
        .filter(|word| !text.contains(&format!("`{word}`")))
        .collect();
    assert!(missing.is_empty(), "docs/operations.md does not name {missing:?}");
}
