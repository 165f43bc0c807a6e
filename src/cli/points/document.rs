//! How points look: as documents with the names of RestorePoint's spec and status fields, which are a contract, and as
//! tables for people. Pure.

use serde::Serialize;

use crate::{
    chain::graph::{Graph, Link},
    cli::output::{bytes, table},
    ids::PointId,
    repo::manifest::Manifest,
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct List {
    #[serde(rename = "repositoryID")]
    pub(super) repository_id: String,
    pub(super) points: Vec<PointDocument>,
}

/// A point with the names of RestorePoint's spec and status fields: a contract.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PointDocument {
    #[serde(rename = "pointID")]
    point_id: String,
    guest: GuestDocument,
    checkpoint_time: jiff::Timestamp,
    #[serde(skip_serializing_if = "String::is_empty")]
    requested_type: String,
    r#type: String,
    consistency: String,
    sequence: u64,
    manifest_digest: String,
    chain_intact: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain_problem: Option<String>,
    disks: Vec<DiskDocument>,
}

#[derive(Serialize)]
struct GuestDocument {
    uuid: String,
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DiskDocument {
    pub(super) name: String,
    pub(super) lineage: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) parent: Option<String>,
    pub(super) chain: ChainDocument,
    pub(super) virtual_size: u64,
    pub(super) stored_bytes: u64,
    pub(super) format: String,
    pub(super) r#type: String,
    pub(super) type_reason: String,
}

/// What a restore reads.
#[derive(Serialize)]
pub(in crate::cli) struct ChainDocument {
    /// The full that it rests on.
    pub(in crate::cli) root: String,
    /// Points, itself included.
    pub(in crate::cli) length: usize,
    /// Stored bytes of all of them.
    pub(in crate::cli) bytes: u64,
}

impl ChainDocument {
    /// Of one disk.
    pub(super) fn of_disk(chain: &[Link<'_>]) -> Self {
        Self {
            root: chain.last().map(|link| link.point.id.to_string()).unwrap_or_default(),
            length: chain.len(),
            bytes: chain.iter().map(|link| link.disk.bytes).sum(),
        }
    }

    /// Of a whole point: of its longest chain, with the bytes of all disks.
    pub(in crate::cli) fn of_point(point: &PointId, graph: &Graph) -> Self {
        let disks = graph.point(point).into_iter().flat_map(|point| &point.disks);
        let chains = disks.filter_map(|disk| graph.chain(point, &disk.name).ok()).map(|chain| Self::of_disk(&chain));
        let chains: Vec<_> = chains.collect();
        let bytes = chains.iter().map(|chain| chain.bytes).sum();
        let longest = chains.into_iter().max_by_key(|chain| chain.length);
        longest.map_or_else(|| Self::of_disk(&[]), |longest| Self { bytes, ..longest })
    }
}

impl PointDocument {
    pub(super) fn new(manifest: &Manifest, digest: &str, disks: Vec<DiskDocument>, problem: Option<String>) -> Self {
        let identity = &manifest.identity;
        Self {
            point_id: identity.point.to_string(),
            guest: GuestDocument {
                uuid: identity.guest.uuid.to_string(),
                name: identity.guest.name.clone(),
                namespace: identity.guest.namespace.clone(),
            },
            checkpoint_time: identity.checkpoint_time,
            requested_type: identity.requested_type.clone(),
            r#type: format!("{:?}", identity.kind),
            consistency: format!("{:?}", identity.consistency),
            sequence: identity.sequence,
            manifest_digest: digest.to_owned(),
            chain_intact: problem.is_none(),
            chain_problem: problem,
            disks,
        }
    }

    fn stored(&self) -> u64 {
        self.disks.iter().map(|disk| disk.stored_bytes).sum()
    }

    pub(super) fn text(&self) -> String {
        let rows = self.disks.iter().map(|disk| {
            vec![
                disk.name.clone(),
                disk.r#type.clone(),
                disk.type_reason.clone(),
                bytes(disk.virtual_size),
                bytes(disk.stored_bytes),
                disk.chain.length.to_string(),
                disk.lineage.clone(),
            ]
        });
        let disks = table(&["DISK", "TYPE", "REASON", "SIZE", "STORED", "CHAIN", "LINEAGE"], rows);
        let mut text = format!(
            "Point:       {}\nGuest:       {} ({})\nTime:        {:.3}\nType:        {}\nConsistency: {}\nSequence:    {}\n",
            self.point_id,
            self.guest.name,
            self.guest.uuid,
            self.checkpoint_time,
            self.r#type,
            self.consistency,
            self.sequence,
        );
        if let Some(problem) = &self.chain_problem {
            text = format!("{text}Chain:       broken: {problem}\n");
        }
        format!("{text}\n{disks}")
    }
}

/// Newest last, the points of one chain beneath each other: by guest, then by the sequence that they were made in.
pub(super) fn text(points: &[PointDocument]) -> String {
    if points.is_empty() {
        return "No points".to_owned();
    }
    let rows = points.iter().map(|point| {
        let root = point.disks.iter().map(|disk| disk.chain.root.as_str()).min().unwrap_or_default();
        let chain = match (&point.chain_problem, root == point.point_id) {
            (Some(_), _) => "broken".to_owned(),
            (None, true) => "begins here".to_owned(),
            (None, false) => format!("of {root}"),
        };
        vec![
            point.guest.name.clone(),
            point.point_id.clone(),
            format!("{:.0}", point.checkpoint_time),
            point.r#type.clone(),
            point.disks.len().to_string(),
            bytes(point.stored()),
            chain,
        ]
    });
    table(&["GUEST", "POINT", "TIME", "TYPE", "DISKS", "STORED", "CHAIN"], rows)
}
