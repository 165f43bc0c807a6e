//! What a RestorePoint shows, and what it does not.

use super::*;

fn spec_of(id: &str) -> RestorePointSpec {
    RestorePointSpec {
        point_id: id.to_owned(),
        guest: PointGuest { uuid: "u".to_owned(), name: "g".to_owned() },
        repository_ref: RepositoryRef { name: "r".to_owned(), namespace: None },
    }
}

#[test]
fn a_point_made_by_hand_says_that_the_repository_does_not_hold_it() {
    let plan = plan(None, (true, false), &spec_of("a"), None);
    assert_eq!(plan, Plan::NotInRepository);
    let forged = RestorePointStatus { size: "1Gi".to_owned(), ..RestorePointStatus::default() };
    let status = report(&plan, None, Some(&forged), Some(1), Timestamp::UNIX_EPOCH);
    assert!(status.size.is_empty());
    assert_eq!(condition::find(&status.conditions, condition::AVAILABLE).unwrap().status, "False");
}

#[test]
fn a_point_that_the_controller_showed_and_the_repository_lists_no_more_was_not_made_by_hand() {
    let plan = plan(None, (true, true), &spec_of("a"), None);
    let status = report(&plan, None, None, Some(1), Timestamp::UNIX_EPOCH);
    let available = condition::find(&status.conditions, condition::AVAILABLE).unwrap();
    assert_eq!(available.reason, "NotInRepository");
    assert!(available.message.contains("driftline verify") && !available.message.contains("by hand"));
}

#[test]
fn a_controller_that_just_started_leaves_what_is_shown_until_it_has_the_list() {
    let plan = plan(Some(Unknown::NotListed("x".to_owned())), (true, true), &spec_of("a"), None);
    assert_eq!(plan, Plan::Keep);
    let whole = v1::Point { id: "a".to_owned(), chain_intact: true, ..v1::Point::default() };
    let old = report(&Plan::Available, Some(&whole), None, Some(1), Timestamp::UNIX_EPOCH);
    assert_eq!(report(&plan, None, Some(&old), Some(1), Timestamp::MAX), old);
}

#[test]
fn another_point_under_the_name_is_not_shown_as_this_one() {
    let other = v1::Point { id: "b".to_owned(), chain_intact: true, ..v1::Point::default() };
    assert_eq!(plan(None, (true, false), &spec_of("a"), Some(&other)), Plan::NotInRepository);
}

#[test]
fn a_broken_chain_and_an_unread_repository_are_no_available_points() {
    let broken =
        v1::Point { id: "a".to_owned(), chain_problem: "Parent x is missing".to_owned(), ..v1::Point::default() };
    assert_eq!(
        plan(None, (true, false), &spec_of("a"), Some(&broken)),
        Plan::ChainBroken("Parent x is missing".to_owned())
    );
    let unknown =
        |why: fn(String) -> Unknown, shown| plan(Some(why("x".to_owned())), (shown, true), &spec_of("a"), None);
    assert_eq!(unknown(Unknown::Unusable, true), Plan::Unknown("x".to_owned()));
    assert_eq!(unknown(Unknown::NotListed, false), Plan::Unknown("x".to_owned()));
    let whole = v1::Point { chain_intact: true, ..broken };
    assert_eq!(plan(None, (true, false), &spec_of("a"), Some(&whole)), Plan::Available);
}
