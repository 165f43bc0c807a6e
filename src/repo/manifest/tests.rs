//! What a manifest keeps, what its identity digest covers, and what is no manifest.

use serde_json::json;

use super::*;

fn sample() -> Value {
    let parent = json!({
        "point": "01hf7yat00000000000000000a", "disk": "sda", "identityDigest": "ab".repeat(32),
    });
    json!({
        "format": 1,
        "identity": {
            "repository": "9f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10",
            "point": "01hf7yat00000000000000000b",
            "sequence": 2,
            "guest": {"uuid": "5f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a11", "name": "db-1", "namespace": "team-a"},
            "policy": {"name": "nightly", "uid": "u"},
            "run": "r",
            "attempt": "0000000a",
            "checkpointTime": "2026-11-01T00:00:00.123Z",
            "consistency": "Crash",
            "type": "Incremental",
            "disks": [{
                "name": "vda", "lineage": "00000001", "virtualSize": 1_048_576, "type": "Incremental",
                "typeReason": "", "tableDigest": "cd".repeat(32), "parent": parent,
            }],
        },
        "storage": {"disks": [{
            "name": "vda", "file": "vda.qcow2", "format": "qcow2", "bytes": 262_144, "table": "vda.1.digests",
            "generation": 1, "tableDigest": "cd".repeat(32), "parent": parent,
        }]},
        "definition": {"blockGraph": [1, {"b": 1, "a": null}], "commandLine": ["qemu"]},
        "versions": {"driftline": "0.1.0", "qemu": "10.0.13"},
    })
}

fn parse(value: &Value) -> Result<Manifest, ManifestError> {
    Manifest::parse(value.to_string().as_bytes())
}

#[test]
fn a_manifest_reads_back_as_what_was_written() {
    let manifest = parse(&sample()).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&manifest.to_bytes()).unwrap(), sample());
    assert_eq!(Manifest::parse(&manifest.to_bytes()).unwrap(), manifest);
}

/// Every object of the manifest, by its path.
const OBJECTS: &[&str] = &[
    "",
    "/identity",
    "/identity/guest",
    "/identity/policy",
    "/identity/disks/0",
    "/storage",
    "/storage/disks/0",
    "/definition",
    "/versions",
];

#[test]
fn keys_that_this_version_does_not_know_are_kept_at_every_level() {
    let mut value = sample();
    for path in OBJECTS {
        value.pointer_mut(path).unwrap()["tomorrow"] = json!({"z": 1, "a": [true, null]});
    }
    let manifest = parse(&value).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&manifest.to_bytes()).unwrap(), value);
}

#[test]
fn the_identity_digest_covers_the_whole_identity_and_nothing_else() {
    let digest = parse(&sample()).unwrap().identity_digest();
    for path in OBJECTS {
        let mut value = sample();
        value.pointer_mut(path).unwrap()["tomorrow"] = json!(1);
        let changed = parse(&value).unwrap().identity_digest() != digest;
        assert_eq!(changed, path.starts_with("/identity"), "{path}");
    }
    let mut moved = sample();
    moved["storage"]["disks"][0]["bytes"] = json!(7);
    assert_eq!(parse(&moved).unwrap().identity_digest(), digest);
}

/// Children of every repository name their parents by it: it must never change for a manifest that is stored.
#[test]
fn the_identity_digest_of_a_stored_manifest_stays_what_it_was() {
    let digest = parse(&sample()).unwrap().identity_digest();
    insta::assert_snapshot!(digest, @"91e836d6fee6b892814d4f41479e1c41c11732827a2ffd36921b6bb6a670930c");
    let mut turned = serde_json::Map::new();
    let value = sample();
    for (key, value) in value["identity"].as_object().unwrap().iter().rev() {
        turned.insert(key.clone(), value.clone());
    }
    let mut other = sample();
    other["identity"] = Value::Object(turned);
    assert_eq!(parse(&other).unwrap().identity_digest(), digest, "the order of keys means nothing");
}

#[test]
fn a_newer_format_is_told_apart_from_a_damaged_manifest() {
    let newer = json!({"format": 2, "identity": "all is different"});
    assert_eq!(parse(&newer).unwrap_err().reason(), "RepositoryTooNew");
    assert_eq!(Manifest::parse(b"{\"format\": 1").unwrap_err().reason(), "ManifestUnreadable");
}

#[test]
fn contradictions_are_refused() {
    let cases: &[(&str, Value)] = &[
        ("/identity/disks", json!([])),
        ("/identity/disks/0/name", json!("vdb")),
        ("/storage/disks/0/file", json!("../x.qcow2")),
        ("/storage/disks/0/file", json!("vdb.qcow2")),
        ("/storage/disks/0/table", json!("/etc/passwd")),
        ("/storage/disks/0/generation", json!(2)),
        ("/storage/disks/0/format", json!("raw")),
        ("/storage/disks/0/tableDigest", json!("other")),
        ("/identity/disks/0/parent", Value::Null),
        ("/identity/disks/0/type", json!("Full")),
        ("/identity/point", json!("../../x")),
        ("/identity/guest/uuid", json!("..")),
    ];
    for (path, wrong) in cases {
        let mut value = sample();
        *value.pointer_mut(path).unwrap() = wrong.clone();
        assert_eq!(parse(&value).map(drop).unwrap_err().reason(), "ManifestUnreadable", "{path}");
    }
    let mut twice = sample();
    for list in ["/identity/disks", "/storage/disks"] {
        let list = twice.pointer_mut(list).unwrap().as_array_mut().unwrap();
        list.push(list[0].clone());
    }
    assert!(parse(&twice).is_err());
}
