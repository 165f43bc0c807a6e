//! The course of a run whose jobs copy: whether they stand still, and how fast they may be. Pure. Two wish: whoever asked for
//! the run, and people at its host. A run stands still while either wishes it; of two bandwidths the later one holds.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What whoever asked for a run wishes of its course, told as it is now and not as a change: hearing it twice is no matter.
/// None: as it was when the run was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerWish {
    /// Whether it stands still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// Bytes per second over each disk's job; 0 is without a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<u64>,
}

/// What a person at the host wishes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HostWish {
    /// It stands still.
    Suspend,
    /// It goes on, as far as the host is concerned.
    Resume,
    /// Bytes per second over each disk's job; 0 is without a limit.
    Bandwidth(u64),
    /// It ends without a point.
    Cancel,
}

/// The course of a run, as the journal keeps it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Course {
    /// What whoever asked for the run wishes.
    #[serde(default)]
    pub owner: OwnerWish,
    /// Whether the host wishes it to stand still.
    #[serde(default)]
    pub host_suspends: bool,
    /// The bandwidth that was wished last; none: that of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<u64>,
    /// Whether anything was ever wished: the jobs may have heard it, though all is again as it was.
    #[serde(default)]
    pub steered: bool,
    /// Since when it stands still; none while it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

impl Course {
    /// Whether nobody has wished anything.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the jobs stand still.
    pub fn is_suspended(&self) -> bool {
        self.since.is_some()
    }

    /// The course after what the owner wishes now. A wish that stands already, from the request of the run on, changes nothing:
    /// above all not a bandwidth that the host has wished since.
    #[must_use]
    pub fn heard_owner(mut self, wish: OwnerWish, requested: u64, now: Timestamp) -> Self {
        let before = self;
        let stands = self.owner.bandwidth.unwrap_or(requested);
        self.bandwidth = wish.bandwidth.filter(|wished| *wished != stands).or(self.bandwidth);
        self.owner = OwnerWish {
            suspend: wish.suspend.or(self.owner.suspend),
            bandwidth: wish.bandwidth.or(self.owner.bandwidth),
        };
        self.standing(before, now)
    }

    /// The course after what the host wishes; a cancel is no course.
    #[must_use]
    pub fn heard_host(mut self, wish: HostWish, now: Timestamp) -> Self {
        let before = self;
        match wish {
            HostWish::Suspend => self.host_suspends = true,
            HostWish::Resume => self.host_suspends = false,
            HostWish::Bandwidth(bandwidth) => self.bandwidth = Some(bandwidth),
            HostWish::Cancel => {}
        }
        self.standing(before, now)
    }

    /// The same course of a run that may not stand still: what the guest writes would still go to its target.
    #[must_use]
    pub fn going(self) -> Self {
        Self { owner: OwnerWish { suspend: None, ..self.owner }, host_suspends: false, since: None, ..self }
    }

    fn standing(mut self, before: Course, now: Timestamp) -> Self {
        let wished = self.owner.suspend == Some(true) || self.host_suspends;
        self.since = wished.then(|| self.since.unwrap_or(now));
        self.steered |= self != before;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn owner(suspend: bool, bandwidth: u64) -> OwnerWish {
        OwnerWish { suspend: Some(suspend), bandwidth: Some(bandwidth) }
    }

    #[test]
    fn a_run_stands_still_while_either_wishes_it() {
        let course = Course::default().heard_owner(owner(true, 0), 0, at(1)).heard_host(HostWish::Suspend, at(2));
        assert_eq!(course.since, Some(at(1)), "since the first of them");
        let course = course.heard_owner(owner(false, 0), 0, at(3));
        assert_eq!(course.since, Some(at(1)), "the host still does");
        let course = course.heard_host(HostWish::Resume, at(4));
        assert!(!course.is_suspended());
        assert_eq!(course.heard_host(HostWish::Suspend, at(5)).since, Some(at(5)));
        assert!(Course::default().is_default() && !course.is_default());
    }

    #[test]
    fn of_two_bandwidths_the_later_one_holds() {
        let course = Course::default().heard_owner(owner(false, 100), 0, at(1));
        assert_eq!(course.bandwidth, Some(100));
        let course = course.heard_host(HostWish::Bandwidth(7), at(2));
        assert_eq!(course.heard_owner(owner(false, 100), 0, at(3)).bandwidth, Some(7), "what it has wished before");
        assert_eq!(course.heard_owner(owner(false, 0), 0, at(3)).bandwidth, Some(0), "a new wish: no limit");
        let nothing = OwnerWish::default();
        assert_eq!(
            course.heard_owner(nothing, 0, at(3)),
            course,
            "an agent that was started again has heard nothing yet"
        );
        assert_eq!(course.heard_host(HostWish::Cancel, at(3)), course);
    }

    #[test]
    fn what_the_request_says_is_no_new_wish_of_its_owner() {
        let course = Course::default().heard_host(HostWish::Bandwidth(7), at(1));
        assert_eq!(course.heard_owner(owner(true, 100), 100, at(2)).bandwidth, Some(7), "only the suspend is new");
        assert_eq!(course.heard_owner(owner(true, 100), 0, at(2)).bandwidth, Some(100));
    }

    #[test]
    fn a_run_that_goes_again_is_not_one_that_was_never_steered() {
        let course = Course::default().heard_host(HostWish::Suspend, at(1)).heard_host(HostWish::Resume, at(2));
        assert!(!course.is_suspended() && !course.is_default() && course != Course::default());
        assert!(Course::default().heard_owner(OwnerWish::default(), 5, at(1)).is_default());
    }

    #[test]
    fn a_run_that_may_not_stand_still_goes_with_its_bandwidth() {
        let course =
            Course::default().heard_owner(owner(true, 5), 0, at(1)).heard_host(HostWish::Suspend, at(1)).going();
        assert!(!course.is_suspended() && !course.host_suspends);
        assert_eq!((course.bandwidth, course.owner.suspend), (Some(5), None));
    }
}
