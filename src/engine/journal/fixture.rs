//! A record for tests: an attempt at two disks, one of which keeps its bitmaps.

use super::{Record, RecordDisk, State};
use crate::{
    chain::{
        next::{BackupType, Base, Choice, RequestedType, TypeReason},
        point::Parent,
    },
    engine::course::Course,
    engine::data_path::RequestedDataPath,
    engine::fleecing::RequestedFleecing,
    engine::quiesce::Quiesce,
    engine::request::{BackupRequest, DiskSelection, GuestRef, RepositoryRef},
    ids::{AttemptId, BitmapName, BitmapRole, LineageId, PointId},
};

/// The request of the record.
pub(in crate::engine) fn request() -> BackupRequest {
    BackupRequest {
        run: "run-uid".to_owned(),
        run_name: "run".to_owned(),
        guest: GuestRef {
            uuid: "11111111-2222-3333-4444-555555555555".parse().unwrap(),
            name: "db-1".to_owned(),
            namespace: "team-a".to_owned(),
        },
        repository: RepositoryRef {
            path: "/srv/backup".into(),
            id: "9f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10".parse().unwrap(),
        },
        kind: RequestedType::Full,
        fleecing: RequestedFleecing::Auto,
        data_path: RequestedDataPath::Auto,
        disks: DiskSelection::default(),
        bandwidth: 0,
        quiesce: Quiesce::default(),
        policy: None,
    }
}

/// The record.
pub(in crate::engine) fn fixture() -> Record {
    let disk = |name: &str, random, persistent| RecordDisk {
        name: name.parse().unwrap(),
        node: format!("n-{name}"),
        top: format!("n-{name}"),
        lineage: LineageId::from_random(random),
        virtual_size: 10_000_384,
        persistent,
        choice: Choice { kind: BackupType::Full, reason: TypeReason::FirstBackup, base: None },
        bound: 10_420_224,
        qdev: format!("/machine/peripheral/{name}/virtio-backend"),
        scratch: None,
        copied: None,
    };
    Record {
        format: Record::FORMAT,
        state: State::Intent,
        request: request(),
        started: "2026-01-02T03:04:05Z".parse().unwrap(),
        attempts: 1,
        attempt: AttemptId::from_random(0xabc),
        point: PointId::new(1_700_000_000_000, None, 7),
        process: None,
        qemu: "7.2.22".to_owned(),
        guest_was_well: true,
        disks: vec![disk("disk0", 1, false), disk("disk1", 2, true)],
        workers: Some(8),
        staging: None,
        stopping: false,
        freezing: false,
        quiesced: None,
        monitor: "/run/qemu/db-1.qmp".into(),
        course: Course::default(),
        block_graph: serde_json::Value::Null,
        command_line: None,
        variables: Vec::new(),
        committing: false,
        told: false,
        late: false,
    }
}

/// The same, where the first disk continues a point since which it has grown, and the second is a copy.
pub(in crate::engine) fn increment() -> Record {
    let mut record = fixture();
    let repository = record.request.repository.id.clone();
    let (point, lineage) = (PointId::new(1_600_000_000_000, None, 7), LineageId::from_random(1));
    let bitmap = |role| BitmapName::new(&repository, &point, &lineage, role);
    record.disks[0].choice = Choice {
        kind: BackupType::Incremental,
        reason: TypeReason::CheckpointFound,
        base: Some(Base {
            parent: Parent {
                point: point.clone(),
                disk: "before".parse().unwrap(),
                identity_digest: "identity".to_owned(),
            },
            lineage: lineage.clone(),
            checkpoint: bitmap(BitmapRole::Checkpoint),
            dirty: 65536,
            sentinel: bitmap(BitmapRole::Sentinel),
            resized: true,
        }),
    };
    record.disks[1].choice = Choice { kind: BackupType::Copy, reason: TypeReason::Requested, base: None };
    record
}
