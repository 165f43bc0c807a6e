//! Between the contract's messages and the types of engine and repository (edge). What comes in is parsed once and is
//! typed from then on; what goes out is said in full.

use std::path::PathBuf;

use super::{
    status::{Kind, Refusal},
    v1,
};
use crate::{
    chain::graph::Graph,
    engine::{
        BackupRequest, BackupType, DiskFacts, DiskSelection, GuestRef, Phase, PolicyRef, PowerState, RepositoryRef,
        RequestedDataPath, RequestedFleecing, RequestedType, RunState,
        course::OwnerWish,
        quiesce::{FREEZE_TIMEOUT, Quiesce, QuiesceMode, Quiesced},
        restore::{Overwrite, RestoreRequest},
    },
    ids::{DiskName, ParseIdError},
    qcow2::tool::Format,
    repo::manifest::{Consistency, Manifest, PointType},
};

/// A run's UID comes from Kubernetes and becomes part of file names: letters, digits and `-`, at most 64.
///
/// # Errors
/// `InvalidRequest`.
pub fn run_uid(text: &str) -> Result<String, Refusal> {
    let right = !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if right { Ok(text.to_owned()) } else { Err(invalid(format!("{text:?} is not a run's UID"))) }
}

/// What a request breaks.
pub fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(Kind::Invalid, "InvalidRequest", message)
}

impl From<ParseIdError> for Refusal {
    fn from(error: ParseIdError) -> Self {
        invalid(error.to_string())
    }
}

/// The request of a backup.
///
/// # Errors
/// `InvalidRequest` with what is wrong.
pub fn backup_request(request: v1::StartBackupRequest) -> Result<BackupRequest, Refusal> {
    let kind = match request.r#type() {
        v1::BackupType::Auto => RequestedType::Auto,
        v1::BackupType::Incremental => RequestedType::Incremental,
        v1::BackupType::Full => RequestedType::Full,
        v1::BackupType::Copy => RequestedType::Copy,
        v1::BackupType::Unspecified => {
            return Err(invalid("The request names no type of backup that this agent knows"));
        }
    };
    let fleecing = match request.fleecing() {
        v1::Fleecing::Auto => RequestedFleecing::Auto,
        v1::Fleecing::Always => RequestedFleecing::Always,
        v1::Fleecing::Never => RequestedFleecing::Never,
    };
    let data_path = match request.data_path() {
        v1::DataPath::Auto => RequestedDataPath::Auto,
        v1::DataPath::Direct => RequestedDataPath::Direct,
        v1::DataPath::Staged => RequestedDataPath::Staged,
    };
    let mode = match request.quiesce() {
        v1::Quiesce::Never => QuiesceMode::Never,
        v1::Quiesce::Preferred => QuiesceMode::Preferred,
        v1::Quiesce::Required => QuiesceMode::Required,
    };
    // The agent's socket stands in the guest's file.
    let freeze_timeout = if request.freeze_timeout == 0 { FREEZE_TIMEOUT } else { request.freeze_timeout };
    let quiesce = Quiesce { mode, freeze_timeout, guest_agent: None };
    let names = |names: Vec<String>| names.iter().map(|name| name.parse()).collect::<Result<Vec<DiskName>, _>>();
    let policy = PolicyRef { name: request.policy_name, uid: request.policy_uid };
    Ok(BackupRequest {
        run: run_uid(&request.run_uid)?,
        run_name: request.run_name,
        guest: guest(request.guest)?,
        repository: repository(request.repository)?,
        kind,
        fleecing,
        data_path,
        disks: DiskSelection { include: names(request.include_disks)?, exclude: names(request.exclude_disks)? },
        bandwidth: request.bandwidth,
        quiesce,
        policy: (!policy.uid.is_empty()).then_some(policy),
    })
}

/// A guest by its names and its identity.
///
/// # Errors
/// `InvalidRequest`.
pub fn guest(guest: Option<v1::GuestRef>) -> Result<GuestRef, Refusal> {
    let guest = guest.ok_or_else(|| invalid("The request names no guest"))?;
    Ok(GuestRef { uuid: guest.uuid.parse()?, name: guest.name, namespace: guest.namespace })
}

/// A repository's path and id.
///
/// # Errors
/// `InvalidRequest`: a request without an id could reach a folder that is not mounted.
pub fn repository(address: Option<v1::RepositoryAddress>) -> Result<RepositoryRef, Refusal> {
    let address = address.ok_or_else(|| invalid("The request names no repository"))?;
    Ok(RepositoryRef { path: PathBuf::from(address.path), id: address.id.parse()? })
}

/// What a restore writes where.
///
/// # Errors
/// `InvalidRequest` with what is wrong.
pub fn restore_request(request: &v1::StartRestoreRequest) -> Result<RestoreRequest, Refusal> {
    let disks = request.disks.iter().map(|disk| Ok((disk.name.parse()?, PathBuf::from(&disk.path))));
    Ok(RestoreRequest {
        run: run_uid(&request.run_uid)?,
        guest: request.guest_uuid.parse()?,
        point: request.point_id.parse()?,
        disks: disks.collect::<Result<_, Refusal>>()?,
        format: match request.format() {
            v1::ImageFormat::Qcow2 => Format::Qcow2,
            v1::ImageFormat::Raw => Format::Raw,
            v1::ImageFormat::Unspecified => {
                return Err(invalid("The request names no format of image that this agent knows"));
            }
        },
        // What this agent does not know must not overwrite anything.
        overwrite: match request.overwrite_policy() {
            v1::OverwritePolicy::Always => Overwrite::Always,
            v1::OverwritePolicy::Never | v1::OverwritePolicy::Unspecified => Overwrite::Never,
        },
        verify: request.verify_digests,
    })
}

/// Milliseconds since 1970; 0 for what has not happened.
pub fn millis(time: Option<jiff::Timestamp>) -> u64 {
    time.map_or(0, |time| u64::try_from(time.as_millisecond()).unwrap_or(0))
}

/// A run's state.
pub fn run_state(state: &RunState, session: &str) -> v1::RunState {
    let phase = match state.phase {
        Phase::Waiting => v1::RunPhase::Waiting,
        Phase::Preparing => v1::RunPhase::Preparing,
        Phase::Copying => v1::RunPhase::Copying,
        Phase::Finishing => v1::RunPhase::Finishing,
        Phase::Complete => v1::RunPhase::Complete,
        Phase::Failed => v1::RunPhase::Failed,
        Phase::Cancelled => v1::RunPhase::Cancelled,
    };
    let disks = state.disks.iter().map(|disk| v1::DiskState {
        name: disk.name.to_string(),
        r#type: backup_type(disk.kind).into(),
        type_reason: disk.type_reason.as_str().to_owned(),
        job_id: disk.job_id.to_string(),
        job_status: disk.job_status.clone(),
        io_status: disk.io_status.clone(),
        paused: disk.paused,
        speed: disk.speed,
        total_bytes: disk.total_bytes,
        done_bytes: disk.done_bytes,
        stored_bytes: disk.stored_bytes,
        error: disk.error.clone(),
    });
    v1::RunState {
        run_uid: state.run.clone(),
        phase: phase.into(),
        session: session.to_owned(),
        reason: state.reason.clone(),
        message: state.message.clone(),
        start_time: millis(Some(state.start_time)),
        checkpoint_time: millis(state.checkpoint_time),
        completion_time: millis(state.completion_time),
        requested_type: requested_type(state.requested_type).into(),
        r#type: state.kind.map_or(v1::BackupType::Unspecified, backup_type).into(),
        type_reason: state.type_reason.map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
        disks: disks.collect(),
        attempts: state.attempts,
        point: state
            .point
            .as_ref()
            .map(|made| point(&made.manifest, &made.manifest_digest, &Graph::new(made.chain.clone()))),
        retriable: state.retriable,
        staged: state.staged,
        fleeced: state.fleeced,
        quiesced: state.quiesced.as_ref().map(quiesced),
        heard: Some(heard(state)),
        suspended_since: millis(state.course.since),
        suspended_by_host: state.course.host_suspends,
    }
}

/// The owner's wish as it was heard, by this start of the agent or by an earlier one.
fn heard(state: &RunState) -> v1::RunCourse {
    let (now, before) = (state.heard, state.course.owner);
    v1::RunCourse {
        suspend: now.suspend.or(before.suspend).unwrap_or(false),
        bandwidth: now.bandwidth.or(before.bandwidth).unwrap_or(state.requested_bandwidth),
    }
}

/// What the owner of a run wishes of its course.
pub fn owner_wish(course: v1::RunCourse) -> OwnerWish {
    OwnerWish { suspend: Some(course.suspend), bandwidth: Some(course.bandwidth) }
}

fn requested_type(kind: RequestedType) -> v1::BackupType {
    match kind {
        RequestedType::Auto => v1::BackupType::Auto,
        RequestedType::Incremental => v1::BackupType::Incremental,
        RequestedType::Full => v1::BackupType::Full,
        RequestedType::Copy => v1::BackupType::Copy,
    }
}

fn backup_type(kind: BackupType) -> v1::BackupType {
    match kind {
        BackupType::Full => v1::BackupType::Full,
        BackupType::Incremental => v1::BackupType::Incremental,
        BackupType::Copy => v1::BackupType::Copy,
    }
}

/// A stored point; `graph` holds the points that it can continue.
pub fn point(manifest: &Manifest, manifest_digest: &str, graph: &Graph) -> v1::Point {
    let identity = &manifest.identity;
    let mut problem = String::new();
    let mut disks = Vec::new();
    for disk in &identity.disks {
        let stored = manifest.stored(&disk.name);
        let chain = graph.chain(&identity.point, &disk.name).unwrap_or_else(|found| {
            if problem.is_empty() {
                problem = found.to_string();
            }
            Vec::new()
        });
        disks.push(v1::PointDisk {
            name: disk.name.to_string(),
            lineage: disk.lineage.to_string(),
            r#type: point_type(disk.kind).into(),
            type_reason: disk.type_reason.clone(),
            virtual_size: disk.virtual_size,
            stored_bytes: stored.map_or(0, |stored| stored.bytes),
            format: stored.map(|stored| stored.format.clone()).unwrap_or_default(),
            parent: disk.parent.as_ref().map(|parent| parent.point.to_string()).unwrap_or_default(),
            chain_root: chain.last().map(|link| link.point.id.to_string()).unwrap_or_default(),
            chain_length: u32::try_from(chain.len()).unwrap_or(u32::MAX),
            chain_bytes: chain.iter().map(|link| link.disk.bytes).sum(),
        });
    }
    let policy = identity.policy.as_ref();
    v1::Point {
        id: identity.point.to_string(),
        sequence: identity.sequence,
        guest: Some(v1::GuestRef {
            namespace: identity.guest.namespace.clone(),
            name: identity.guest.name.clone(),
            uuid: identity.guest.uuid.to_string(),
        }),
        repository_id: identity.repository.to_string(),
        checkpoint_time: millis(Some(identity.checkpoint_time)),
        r#type: point_type(identity.kind).into(),
        consistency: match identity.consistency {
            Consistency::Crash => "Crash".to_owned(),
            Consistency::Application => "Application".to_owned(),
        },
        disks,
        manifest_digest: manifest_digest.to_owned(),
        run_uid: identity.run.clone(),
        policy_name: policy.map(|policy| policy.name.clone()).unwrap_or_default(),
        policy_uid: policy.map(|policy| policy.uid.clone()).unwrap_or_default(),
        chain_intact: problem.is_empty(),
        chain_problem: problem,
    }
}

fn point_type(kind: PointType) -> v1::BackupType {
    match kind {
        PointType::Full => v1::BackupType::Full,
        PointType::Incremental => v1::BackupType::Incremental,
        PointType::Copy => v1::BackupType::Copy,
    }
}

/// A machine's power state.
pub fn power_state(state: PowerState) -> v1::PowerState {
    match state {
        PowerState::Running => v1::PowerState::Running,
        PowerState::Paused => v1::PowerState::Paused,
        PowerState::Off => v1::PowerState::Off,
        PowerState::IoError => v1::PowerState::IoError,
        PowerState::Migrating => v1::PowerState::Migrating,
    }
}

/// A machine's disk.
pub fn disk(disk: &DiskFacts) -> v1::Disk {
    v1::Disk {
        name: disk.name.to_string(),
        qdev: disk.qdev.clone(),
        node_name: disk.node_name.clone(),
        driver: disk.driver.clone(),
        format: disk.format.clone(),
        file: disk.file.clone(),
        virtual_size: disk.virtual_size,
        eligible: disk.eligible(),
        ineligible_reason: disk.ineligible_reason().to_owned(),
        bitmaps: disk
            .bitmaps
            .iter()
            .map(|bitmap| v1::Bitmap { name: bitmap.name.clone(), bytes: bitmap.bytes, ours: bitmap.ours })
            .collect(),
    }
}

fn quiesced(quiesced: &Quiesced) -> v1::Quiesced {
    match quiesced {
        Quiesced::Frozen { frozen_for } => v1::Quiesced { frozen: true, frozen_for: *frozen_for, ..Default::default() },
        Quiesced::NotFrozen { reason, message } => {
            v1::Quiesced { reason: reason.clone(), message: message.clone(), ..Default::default() }
        }
    }
}
