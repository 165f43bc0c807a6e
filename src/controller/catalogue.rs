//! The points that repositories hold, as their agents listed them last (in). What a restore reads is found here, by
//! the repository's own word; a RestorePoint object is only a view of it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

use super::context::locked;
use crate::rpc::v1;

/// Namespace and name of a RestorePoint object.
pub type PointName = (String, String);

/// One repository's points by the names of their objects.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shelf {
    /// The repository's id.
    pub repository_id: String,
    /// Where each point is shown.
    pub points: BTreeMap<PointName, Arc<v1::Point>>,
}

/// What is known of one repository.
#[derive(Default)]
struct Known {
    shelf: Shelf,
    /// Whether the shelf is all that the repository holds: single points are added before it was listed.
    listed: bool,
}

/// All points that are known.
#[derive(Default)]
pub struct Catalogue {
    repositories: Mutex<HashMap<String, Known>>,
}

impl Catalogue {
    /// Sets what the repository object of this UID holds.
    pub fn set(&self, repository_uid: &str, shelf: Shelf) {
        locked(&self.repositories).insert(repository_uid.to_owned(), Known { shelf, listed: true });
    }

    /// Adds a point that was just made.
    pub fn add(&self, repository_uid: &str, repository_id: &str, name: PointName, point: v1::Point) {
        let mut repositories = locked(&self.repositories);
        let shelf = &mut repositories.entry(repository_uid.to_owned()).or_default().shelf;
        repository_id.clone_into(&mut shelf.repository_id);
        shelf.points.insert(name, Arc::new(point));
    }

    /// Forgets a repository whose object is gone.
    pub fn forget(&self, repository_uid: &str) {
        locked(&self.repositories).remove(repository_uid);
    }

    /// Whether the repository's points have been listed since the controller started.
    pub fn knows(&self, repository_uid: &str) -> bool {
        locked(&self.repositories).get(repository_uid).is_some_and(|known| known.listed)
    }

    /// All that is known of what the repository holds.
    pub fn shelf(&self, repository_uid: &str) -> Option<Shelf> {
        locked(&self.repositories).get(repository_uid).map(|known| known.shelf.clone())
    }

    /// How many points the repository holds, where they have been listed.
    pub fn count(&self, repository_uid: &str) -> Option<usize> {
        let repositories = locked(&self.repositories);
        repositories.get(repository_uid).filter(|known| known.listed).map(|known| known.shelf.points.len())
    }

    /// The point that is shown by the object of this name.
    pub fn point(&self, repository_uid: &str, name: &PointName) -> Option<Arc<v1::Point>> {
        locked(&self.repositories).get(repository_uid)?.shelf.points.get(name).cloned()
    }

    /// Where a point is shown.
    pub fn place(&self, repository_uid: &str, point_id: &str) -> Option<PointName> {
        let repositories = locked(&self.repositories);
        repositories
            .get(repository_uid)?
            .shelf
            .points
            .iter()
            .find(|(_, p)| p.id == point_id)
            .map(|(name, _)| name.clone())
    }

    /// The newest point of a guest that is shown in this namespace, with its object's name.
    pub fn newest(&self, namespace: &str, guest_uuid: &str) -> Option<(PointName, Arc<v1::Point>)> {
        let repositories = locked(&self.repositories);
        let mut newest: Option<(&PointName, &Arc<v1::Point>)> = None;
        for (name, point) in repositories.values().flat_map(|known| &known.shelf.points) {
            let own = name.0 == namespace && point.guest.as_ref().is_some_and(|g| g.uuid == guest_uuid);
            if own && newest.is_none_or(|(_, n)| n.checkpoint_time < point.checkpoint_time) {
                newest = Some((name, point));
            }
        }
        newest.map(|(name, point)| (name.clone(), point.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_that_was_just_made_does_not_make_the_others_unknown_to_the_repository() {
        let catalogue = Catalogue::default();
        let name = ("team-a".to_owned(), "p".to_owned());
        catalogue.add("uid", "id", name.clone(), v1::Point::default());
        assert!(!catalogue.knows("uid") && catalogue.count("uid").is_none());
        assert!(catalogue.point("uid", &name).is_some());
        catalogue.set("uid", catalogue.shelf("uid").unwrap());
        assert!(catalogue.knows("uid") && catalogue.count("uid") == Some(1));
    }
}
