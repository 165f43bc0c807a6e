//! `driftline points`: what a repository holds. Also how the other verbs find the point that a person means.

mod document;

use std::path::Path;

pub(super) use document::ChainDocument;
use document::{DiskDocument, List, PointDocument, text};

use super::{
    CliError, Exit,
    args::{PointName, PointSelection, Points, PointsShow, PointsVerb},
    blocking,
    host::Host,
    output::Output,
};
use crate::{
    chain::graph::Graph,
    ids::{GuestId, PointId},
    repo::{RepoError, Repository, StoredPoint},
    sentence::sentence,
};

/// Lists the points, or shows one.
pub(super) async fn run(args: &Points, output: &Output) -> Result<Exit, CliError> {
    // The arguments' own rules do not let this through.
    let Some(repository) = args.repository() else { return Ok(Exit::Usage) };
    match &args.show {
        Some(PointsVerb::Show(show)) => {
            let from = PointSelection { repository: repository.to_owned(), guest: args.guest().map(str::to_owned) };
            self::show(show, &from, output).await
        }
        None => list(repository, args.guest(), output).await,
    }
}

async fn list(repository: &Path, guest: Option<&str>, output: &Output) -> Result<Exit, CliError> {
    let repository = Host::load()?.open(repository).await?;
    let all = read(&repository).await?;
    let mut chosen = Vec::new();
    match guest {
        Some(asked) => {
            let id = guest_of(&repository, &all, Some(asked))?;
            for points in all.into_iter().filter(|points| points.guest == id) {
                chosen.push(points.whole()?);
            }
        }
        None => {
            for points in all {
                let guest = points.guest.clone();
                match points.whole() {
                    Ok(points) => chosen.push(points),
                    Err(error) => output.note(format!("Guest {guest} is left out: {}", sentence(&error))),
                }
            }
        }
    }
    let points: Vec<_> = chosen.iter().flat_map(GuestPoints::documents).collect();
    let document = List { repository_id: repository.id().to_string(), points };
    output.result(&document, || text(&document.points))?;
    Ok(Exit::Done)
}

async fn show(args: &PointsShow, from: &PointSelection, output: &Output) -> Result<Exit, CliError> {
    let repository = Host::load()?.open(&from.repository).await?;
    let (points, at) = find(&repository, from, &args.id).await?;
    if args.definition {
        let definition = &points.points[at].manifest.definition;
        output.result(definition, || serde_json::to_string_pretty(definition).unwrap_or_default())?;
        return Ok(Exit::Done);
    }
    let document = points.document(at);
    output.result(&document, || document.text())?;
    Ok(Exit::Done)
}

/// The points of one guest, oldest first.
pub(super) struct GuestPoints {
    /// The guest.
    pub(super) guest: GuestId,
    /// Its points.
    pub(super) points: Vec<StoredPoint>,
    graph: Graph,
    /// Why its folder cannot be read; it has no points here then, and may have some.
    unread: Option<RepoError>,
}

/// All points of the repository, guest by guest. A guest whose folder cannot be read hides no other.
async fn read(repository: &Repository) -> Result<Vec<GuestPoints>, CliError> {
    let repository = repository.clone();
    Ok(blocking(move || {
        let guests = repository.guests()?.into_iter();
        let read = guests.map(|guest| {
            let (points, unread) = match repository.points(&guest) {
                Ok(points) => (points, None),
                Err(error) => (Vec::new(), Some(error)),
            };
            let graph = Graph::new(points.iter().map(|stored| stored.manifest.point()).collect());
            GuestPoints { guest, points, graph, unread }
        });
        Ok::<_, RepoError>(read.collect())
    })
    .await?)
}

/// The point that a person means: its guest's points, and its place among them.
pub(super) async fn find(
    repository: &Repository,
    selection: &PointSelection,
    name: &PointName,
) -> Result<(GuestPoints, usize), CliError> {
    let all = read(repository).await?;
    let missing = |point: &str| CliError::NoSuchPoint { path: repository.path().to_owned(), point: point.to_owned() };
    let guest = match (name, &selection.guest) {
        // The id alone is enough.
        (PointName::Id(_), None) => None,
        (_, asked) => Some(guest_of(repository, &all, asked.as_deref())?),
    };
    let mut chosen = all.into_iter().filter(|points| guest.as_ref().is_none_or(|guest| *guest == points.guest));
    match name {
        PointName::Latest => {
            let points = chosen.next().ok_or_else(|| missing("at all"))?.whole()?;
            let at = points.points.len().checked_sub(1).ok_or_else(|| missing("at all"))?;
            Ok((points, at))
        }
        PointName::Id(id) => {
            let mut unread = None;
            for points in chosen {
                if let Some(at) = points.points.iter().position(|stored| stored.manifest.identity.point == *id) {
                    return Ok((points, at));
                }
                unread = unread.or(points.unread);
            }
            // It may stand where nobody could look.
            Err(unread.map_or_else(|| missing(id.as_str()), CliError::from))
        }
    }
}

/// The guest that a person means: by UUID, by a name that its points have, or the only one there is.
pub(super) async fn find_guest(repository: &Repository, asked: &str) -> Result<GuestId, CliError> {
    guest_of(repository, &read(repository).await?, Some(asked))
}

/// The guest in whose folder a point stands, whole or damaged beyond its manifest.
pub(super) async fn find_stored(
    repository: &Repository,
    guest: Option<&str>,
    point: &PointId,
) -> Result<GuestId, CliError> {
    let asked = match guest {
        Some(guest) => Some(find_guest(repository, guest).await?),
        None => None,
    };
    let (all, wanted) = (repository.clone(), point.clone());
    let found = blocking(move || {
        let mut unread = None;
        for guest in all.guests()? {
            if asked.as_ref().is_some_and(|asked| *asked != guest) {
                continue;
            }
            let scan = match all.scan(&guest) {
                Ok(scan) => scan,
                Err(error) => {
                    unread.get_or_insert(error);
                    continue;
                }
            };
            let whole = scan.points.iter().any(|stored| stored.manifest.identity.point == wanted);
            let damaged = scan.findings.iter().any(|finding| finding.point.as_ref() == Some(&wanted));
            if whole || damaged || scan.partial.contains(&wanted) {
                return Ok(Some(guest));
            }
        }
        // It may stand where nobody could look.
        unread.map_or(Ok(None), Err)
    })
    .await?;
    let path = repository.path().to_owned();
    found.ok_or_else(|| CliError::NoSuchPoint { path, point: point.to_string() })
}

fn guest_of(repository: &Repository, all: &[GuestPoints], asked: Option<&str>) -> Result<GuestId, CliError> {
    let path = || repository.path().to_owned();
    let known = |points: &[&GuestPoints]| {
        let each = points.iter().map(|points| format!("{} ({})", points.name(), points.guest));
        if points.is_empty() { "none".to_owned() } else { each.collect::<Vec<_>>().join(", ") }
    };
    let id = asked.and_then(|asked| asked.parse::<GuestId>().ok());
    let matching: Vec<_> = all
        .iter()
        .filter(|points| match (&id, asked) {
            (Some(id), _) => points.guest == *id,
            (None, Some(name)) => points.is_called(name),
            (None, None) => true,
        })
        .collect();
    match (matching.as_slice(), asked) {
        ([one], _) => Ok(one.guest.clone()),
        ([], None) => Err(CliError::NoSuchPoint { path: path(), point: "at all".into() }),
        ([], Some(asked)) => {
            let all: Vec<_> = all.iter().collect();
            Err(CliError::NoSuchGuest { path: path(), guest: asked.to_owned(), known: known(&all) })
        }
        (several, _) => Err(CliError::AmbiguousGuest { path: path(), known: known(several) }),
    }
}

impl GuestPoints {
    /// The same, if its folder was read.
    fn whole(self) -> Result<Self, CliError> {
        match self.unread {
            Some(error) => Err(error.into()),
            None => Ok(self),
        }
    }

    fn name(&self) -> &str {
        self.points.last().map_or("", |newest| &newest.manifest.identity.guest.name)
    }

    /// Whether any of its points, each of which is shown under its own name, has this one.
    fn is_called(&self, name: &str) -> bool {
        self.points.iter().any(|stored| stored.manifest.identity.guest.name == name)
    }

    fn documents(&self) -> impl Iterator<Item = PointDocument> {
        (0..self.points.len()).map(|at| self.document(at))
    }

    fn document(&self, at: usize) -> PointDocument {
        let stored = &self.points[at];
        let manifest = &stored.manifest;
        let identity = &manifest.identity;
        let mut problem = None;
        let disks: Vec<_> = identity
            .disks
            .iter()
            .map(|disk| {
                let chain = self.graph.chain(&identity.point, &disk.name);
                let chain = chain.map_err(|error| problem = Some(error.to_string())).unwrap_or_default();
                let kept = manifest.stored(&disk.name);
                DiskDocument {
                    name: disk.name.to_string(),
                    lineage: disk.lineage.to_string(),
                    parent: kept.and_then(|kept| kept.parent.as_ref()).map(|parent| parent.point.to_string()),
                    chain: ChainDocument::of_disk(&chain),
                    virtual_size: disk.virtual_size,
                    stored_bytes: kept.map_or(0, |kept| kept.bytes),
                    format: kept.map(|kept| kept.format.clone()).unwrap_or_default(),
                    r#type: format!("{:?}", disk.kind),
                    type_reason: disk.type_reason.clone(),
                }
            })
            .collect();
        PointDocument::new(manifest, &stored.manifest_digest, disks, problem)
    }
}
