//! The YAML under `examples/` is what the API takes: every file fits its kind, names no field that does not exist, and
//! passes the validation rules. (That the real API server takes them is a test against the real one.)

use std::{fs, path::PathBuf};

use driftline::api::{BackupRepository, BackupRun, RestoreRun};
use kube::core::cel::ValidationErrors;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

fn examples() -> Vec<(String, Value)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut found = vec![];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            found.push((name, serde_saphyr::from_str(&fs::read_to_string(&path).unwrap()).unwrap()));
        }
    }
    assert!(!found.is_empty());
    found
}

/// Every key of `given` is in `read`, which has what the type knows: a misspelt field is lost on the way.
fn lost(given: &Value, read: &Value, path: &str, out: &mut Vec<String>) {
    match (given, read) {
        (Value::Object(given), Value::Object(read)) => {
            for (key, value) in given {
                match read.get(key) {
                    Some(other) => lost(value, other, &format!("{path}.{key}"), out),
                    None => out.push(format!("{path}.{key}")),
                }
            }
        }
        (Value::Array(given), Value::Array(read)) => {
            given.iter().zip(read).enumerate().for_each(|(i, (g, r))| lost(g, r, &format!("{path}[{i}]"), out));
        }
        (given, read) => assert_eq!(given, read, "{path}"),
    }
}

fn check<K: DeserializeOwned + Serialize>(name: &str, value: &Value, rules: fn(&K) -> Result<(), ValidationErrors>) {
    let object: K = serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut gone = vec![];
    lost(value, &serde_json::to_value(&object).unwrap(), "", &mut gone);
    assert!(gone.is_empty(), "{name} names fields that do not exist: {gone:?}");
    rules(&object).unwrap_or_else(|e| panic!("{name}: {e:?}"));
}

#[test]
fn every_example_fits_its_kind_and_its_rules() {
    for (name, value) in examples() {
        match value["kind"].as_str().unwrap() {
            "BackupRepository" => check::<BackupRepository>(&name, &value, BackupRepository::validate_cel),
            "BackupRun" => check::<BackupRun>(&name, &value, BackupRun::validate_cel),
            "RestoreRun" => check::<RestoreRun>(&name, &value, RestoreRun::validate_cel),
            other => panic!("{name}: no person makes objects of kind {other}"),
        }
    }
}

#[test]
fn a_misspelt_field_of_an_example_is_noticed() {
    let (given, read) = (serde_json::json!({"spec": {"typ": "Full"}}), serde_json::json!({"spec": {"type": "Full"}}));
    let mut gone = vec![];
    lost(&given, &read, "", &mut gone);
    assert_eq!(gone, [".spec.typ"]);
}
