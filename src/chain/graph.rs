//! Points to chains: from a disk of a point down to the full that it rests on. Pure and total: a break is an answer.

use std::collections::{HashMap, HashSet};

use super::point::{Parent, Point, PointDisk};
use crate::ids::{DiskName, PointId};

/// What is wrong with stored images: a sentence for a disk of a point.
pub type Damage = HashMap<(PointId, DiskName), String>;

/// The points of one guest, ready to be asked for chains.
#[derive(Debug, Clone)]
pub struct Graph {
    points: Vec<Point>,
    index: HashMap<PointId, usize>,
    damage: Damage,
    disputed: HashSet<PointId>,
}

/// One link of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link<'a> {
    /// The point.
    pub point: &'a Point,
    /// The disk of that point.
    pub disk: &'a PointDisk,
}

/// Why a disk has no whole chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Break {
    /// The point itself is not there.
    #[error("There is no point {point}")]
    NoSuchPoint {
        /// Which.
        point: PointId,
    },
    /// The point has no such disk.
    #[error("Point {point} has no disk {disk}")]
    NoSuchDisk {
        /// The point.
        point: PointId,
        /// The disk.
        disk: DiskName,
    },
    /// The parent's point is not there.
    #[error("Point {child} continues point {parent}, which is not in the repository")]
    ParentMissing {
        /// Who continues.
        child: PointId,
        /// What it continues.
        parent: PointId,
    },
    /// Another point stands under the parent's id.
    #[error("Point {child} continues point {parent} as it was once; the one stored now is another")]
    ParentChanged {
        /// Who continues.
        child: PointId,
        /// What it continues.
        parent: PointId,
    },
    /// The parent belongs to another lineage.
    #[error("Disk {disk} of point {child} continues another disk's lineage in point {parent}")]
    LineageChanged {
        /// Who continues.
        child: PointId,
        /// Its disk.
        disk: DiskName,
        /// What it continues.
        parent: PointId,
    },
    /// The image is not the one that was stored.
    #[error("Disk {disk} of point {point} is not stored as its manifest says: {why}")]
    NotAsStored {
        /// The point.
        point: PointId,
        /// The disk.
        disk: DiskName,
        /// What is wrong.
        why: String,
    },
    /// The parents lead round in a circle.
    #[error("The parents of point {point} lead back to it")]
    Circle {
        /// Where the circle was noticed.
        point: PointId,
    },
}

impl Break {
    /// Reason word for conditions, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoSuchPoint { .. } => "PointNotFound",
            Self::NoSuchDisk { .. } => "DiskNotInPoint",
            Self::ParentMissing { .. } => "ParentMissing",
            Self::ParentChanged { .. } => "ParentChanged",
            Self::LineageChanged { .. } => "LineageChanged",
            Self::NotAsStored { .. } => "ImageNotAsStored",
            Self::Circle { .. } => "ChainCircular",
        }
    }
}

impl Graph {
    /// The graph of a guest's points, given in any order.
    pub fn new(mut points: Vec<Point>) -> Self {
        points.sort_by(|a, b| (a.sequence, &a.id).cmp(&(b.sequence, &b.id)));
        let index: HashMap<_, _> = points.iter().enumerate().map(|(at, point)| (point.id.clone(), at)).collect();
        let parents = points.iter().flat_map(|point| &point.disks).filter_map(|disk| disk.parent.as_ref());
        let is_another = |parent: &&Parent| {
            index.get(&parent.point).is_some_and(|&at| points[at].identity_digest != parent.identity_digest)
        };
        let disputed = parents.filter(is_another).map(|parent| parent.point.clone()).collect();
        Self { points, index, damage: Damage::new(), disputed }
    }

    /// The same with what is wrong with images: chains break there.
    #[must_use]
    pub fn with_damage(self, damage: Damage) -> Self {
        Self { damage, ..self }
    }

    /// What is wrong with images, as far as anybody has looked.
    pub fn damage(&self) -> &Damage {
        &self.damage
    }

    /// The points, oldest first.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// The point of that id.
    pub fn point(&self, id: &PointId) -> Option<&Point> {
        self.index.get(id).map(|&at| &self.points[at])
    }

    /// Whether some point knows this one, which it continues, as another.
    pub fn is_disputed(&self, point: &Point) -> bool {
        self.disputed.contains(&point.id)
    }

    /// The chain of one disk: the point itself first, the full that it rests on last.
    ///
    /// # Errors
    /// The first break on the way down.
    pub fn chain(&self, point: &PointId, disk: &DiskName) -> Result<Vec<Link<'_>>, Break> {
        let mut link = self.link(point, disk)?;
        let mut chain = vec![link];
        let mut seen = HashSet::from([(&link.point.id, &link.disk.name)]);
        while let Some(parent) = &link.disk.parent {
            let next = self.follow(link, parent)?;
            if !seen.insert((&next.point.id, &next.disk.name)) {
                return Err(Break::Circle { point: next.point.id.clone() });
            }
            chain.push(next);
            link = next;
        }
        Ok(chain)
    }

    fn link(&self, point: &PointId, disk: &DiskName) -> Result<Link<'_>, Break> {
        let found = self.point(point).ok_or_else(|| Break::NoSuchPoint { point: point.clone() })?;
        let disk = found.disk(disk).ok_or_else(|| Break::NoSuchDisk { point: point.clone(), disk: disk.clone() })?;
        self.whole(Link { point: found, disk })
    }

    fn whole<'a>(&self, link: Link<'a>) -> Result<Link<'a>, Break> {
        let Link { point: Point { id: point, .. }, disk: PointDisk { name: disk, .. } } = link;
        match self.damage.get(&(point.clone(), disk.clone())) {
            None => Ok(link),
            Some(why) => Err(Break::NotAsStored { point: point.clone(), disk: disk.clone(), why: why.clone() }),
        }
    }

    fn follow(&self, child: Link<'_>, parent: &Parent) -> Result<Link<'_>, Break> {
        let (from, to) = (child.point.id.clone(), parent.point.clone());
        let Some(point) = self.point(&parent.point) else {
            return Err(Break::ParentMissing { child: from, parent: to });
        };
        if point.identity_digest != parent.identity_digest {
            return Err(Break::ParentChanged { child: from, parent: to });
        }
        let Some(disk) = point.disk(&parent.disk) else {
            return Err(Break::NoSuchDisk { point: to, disk: parent.disk.clone() });
        };
        if disk.lineage != child.disk.lineage {
            return Err(Break::LineageChanged { child: from, disk: child.disk.name.clone(), parent: to });
        }
        self.whole(Link { point, disk })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::LineageId;

    fn id(n: u64) -> PointId {
        PointId::new(n, None, 0)
    }

    fn point(n: u64, parent: Option<u64>) -> Point {
        let parent = parent.map(|n| Parent {
            point: id(n),
            disk: "disk0".parse().unwrap(),
            identity_digest: format!("identity {n}"),
        });
        let disk = PointDisk {
            name: "disk0".parse().unwrap(),
            lineage: LineageId::from_random(1),
            virtual_size: 65_536,
            bytes: 1,
            copy: false,
            parent,
        };
        Point { id: id(n), sequence: n, identity_digest: format!("identity {n}"), disks: vec![disk] }
    }

    fn chain(points: Vec<Point>, of: u64) -> Result<Vec<u64>, Break> {
        let graph = Graph::new(points);
        let chain = graph.chain(&id(of), &"disk0".parse().unwrap())?;
        Ok(chain.iter().map(|link| link.point.sequence).collect())
    }

    #[test]
    fn a_chain_leads_from_the_point_to_its_full() {
        let points = vec![point(3, Some(2)), point(1, None), point(2, Some(1))];
        assert_eq!(chain(points, 3), Ok(vec![3, 2, 1]));
    }

    #[test]
    fn a_missing_parent_breaks_the_chain_and_is_named() {
        let broken = chain(vec![point(1, None), point(3, Some(2))], 3);
        assert_eq!(broken, Err(Break::ParentMissing { child: id(3), parent: id(2) }));
    }

    #[test]
    fn another_point_under_the_parents_id_breaks_the_chain() {
        let mut changed = point(1, None);
        changed.identity_digest = "another".into();
        assert_eq!(
            chain(vec![changed, point(2, Some(1))], 2),
            Err(Break::ParentChanged { child: id(2), parent: id(1) })
        );
    }

    #[test]
    fn a_parent_of_another_lineage_breaks_the_chain() {
        let mut other = point(1, None);
        other.disks[0].lineage = LineageId::from_random(2);
        assert!(matches!(chain(vec![other, point(2, Some(1))], 2), Err(Break::LineageChanged { .. })));
    }

    #[test]
    fn parents_in_a_circle_end_in_an_answer() {
        assert!(matches!(chain(vec![point(1, Some(2)), point(2, Some(1))], 2), Err(Break::Circle { .. })));
    }

    #[test]
    fn a_disk_that_the_point_has_not_is_said_so() {
        let graph = Graph::new(vec![point(1, None)]);
        assert!(matches!(graph.chain(&id(1), &"other".parse().unwrap()), Err(Break::NoSuchDisk { .. })));
    }
}
