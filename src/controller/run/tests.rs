//! What a run's next step is, and what its status says.

use jiff::Timestamp;

use super::{plan::*, report::*, *};
use crate::rpc::v1::{DiskState, RunPhase, RunState};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn world() -> World {
    World {
        settled: None,
        deleted: None,
        finalizer: false,
        cancel: false,
        course: Course::default(),
        created: at(0),
        known_since: at(0),
        deadline: Duration::from_secs(3_600),
        ttl: None,
        backoff_limit: 2,
        attempts: 0,
        retry_at: None,
        started: None,
        ready: Ok("n1".to_owned()),
        in_front: None,
    }
}

fn going(on_agent: OnAgent) -> World {
    let started = Started { node: "n1".to_owned(), accepted: true, on_agent, lost_since: None };
    World { started: Some(started), attempts: 1, finalizer: true, ..world() }
}

fn state(phase: RunPhase) -> OnAgent {
    OnAgent::State(Box::new(RunState {
        phase: phase.into(),
        session: "s1".to_owned(),
        start_time: 1_000,
        ..RunState::default()
    }))
}

fn failed(retriable: bool) -> OnAgent {
    let state = RunState {
        phase: RunPhase::Failed.into(),
        reason: "X".into(),
        message: "m".into(),
        retriable,
        ..RunState::default()
    };
    OnAgent::State(Box::new(state))
}

fn reason_of(plan: &Plan) -> &str {
    match plan {
        Plan::Fail { reason, .. } => reason,
        other => panic!("not a failure: {other:?}"),
    }
}

fn shown(plan: &Plan, world: &World, old: Option<&BackupRunStatus>) -> BackupRunStatus {
    report::report(plan, world, &Facts { generation: 1, ..Facts::default() }, old, at(100))
}

#[test]
fn the_intent_is_written_before_the_agent_is_asked() {
    assert_eq!(plan::plan(&world(), at(1)), Plan::Intend { node: "n1".to_owned(), attempt: 1 });
    let mut asked = going(OnAgent::Silent);
    asked.started.as_mut().unwrap().accepted = false;
    assert_eq!(plan::plan(&asked, at(1)), Plan::Start { node: "n1".to_owned() });
}

#[test]
fn a_run_that_its_agent_took_is_followed_and_never_started_again_after_a_restart() {
    assert_eq!(plan::plan(&going(OnAgent::Silent), at(1)), Plan::Follow);
    assert_eq!(plan::plan(&going(state(RunPhase::Copying)), at(1)), Plan::Follow);
}

#[test]
fn a_run_that_its_agent_has_forgotten_is_tried_anew_under_another_id() {
    let plan = plan::plan(&going(OnAgent::Unknown), at(1));
    assert!(matches!(&plan, Plan::Retry { reason, .. } if reason == "RunUnknownToAgent"));
    assert_ne!(naming::agent_run("u", 1), naming::agent_run("u", 2));
}

#[test]
fn what_a_person_has_to_mend_fails_after_a_grace_and_what_passes_is_waited_for() {
    let stays = World { ready: Err(Blocker::stays(Reason::GuestNotFound, "x")), ..world() };
    assert!(matches!(plan::plan(&stays, at(29)), Plan::Wait { .. }));
    assert_eq!(reason_of(&plan::plan(&stays, at(30))), "GuestNotFound");
    let young = World { known_since: at(1_000), ..stays };
    assert!(matches!(plan::plan(&young, at(1_001)), Plan::Wait { .. }), "the controller has only just started");
    let problem = World { ready: Err(Blocker::problem(Reason::GuestNotReady, "x")), ..world() };
    assert!(matches!(plan::plan(&problem, at(59)), Plan::Wait { .. }));
    assert_eq!(reason_of(&plan::plan(&problem, at(60))), "GuestNotReady");
    let away = World { ready: Err(Blocker::away(Reason::AgentUnavailable, "x")), ..world() };
    assert!(matches!(plan::plan(&away, at(599)), Plan::Wait { .. }));
    assert_eq!(reason_of(&plan::plan(&away, at(600))), "AgentUnavailable");
    let late = plan::plan(&World { deadline: Duration::from_secs(100), ..away }, at(100));
    assert_eq!(reason_of(&late), "DeadlineExceeded");
    assert!(matches!(late, Plan::Fail { message, .. } if message.ends_with("because: x")));
}

#[test]
fn a_retriable_failure_is_tried_again_with_growing_pauses_up_to_the_limit() {
    let mut world = going(failed(true));
    let mut pauses = vec![];
    for attempts in 1..=2 {
        world.attempts = attempts;
        let Plan::Retry { pause, .. } = plan::plan(&world, at(1)) else { panic!("no retry after try {attempts}") };
        pauses.push(pause.as_secs());
    }
    assert_eq!(pauses, [10, 20]);
    world.attempts = 3;
    assert_eq!(reason_of(&plan::plan(&world, at(1))), "X");
}

#[test]
fn what_cannot_be_mended_by_trying_again_is_not_tried_again() {
    assert_eq!(reason_of(&plan::plan(&going(failed(false)), at(1))), "X");
}

#[test]
fn a_retry_waits_for_its_time_and_is_the_next_try() {
    let world = World { attempts: 1, retry_at: Some(at(20)), ..world() };
    assert!(matches!(plan::plan(&world, at(19)), Plan::Pause { .. }));
    assert_eq!(plan::plan(&world, at(20)), Plan::Intend { node: "n1".to_owned(), attempt: 2 });
}

#[test]
fn runs_of_one_guest_go_one_after_the_other() {
    let world = World { in_front: Some(("first".to_owned(), 2)), ..world() };
    let plan = plan::plan(&world, at(1));
    assert_eq!(plan, Plan::Queue { behind: "first".to_owned(), position: 2 });
    let status = shown(&plan, &world, None);
    assert_eq!((status.phase.as_str(), status.queue_position), ("Queued", Some(2)));
}

#[test]
fn cancel_stops_what_has_not_started_and_asks_the_agent_about_what_has() {
    assert_eq!(reason_of(&plan::plan(&World { cancel: true, ..world() }, at(1))), "Cancelled");
    let copying = World { cancel: true, ..going(state(RunPhase::Copying)) };
    assert!(matches!(plan::plan(&copying, at(1)), Plan::Cancel { reason: Reason::Cancelled, .. }));
    let cancelled = World { cancel: true, ..going(state(RunPhase::Cancelled)) };
    assert_eq!(reason_of(&plan::plan(&cancelled, at(1))), "Cancelled");
}

#[test]
fn a_cancel_that_comes_too_late_leaves_the_run_complete() {
    let world = World { cancel: true, deleted: Some(at(1)), ..going(state(RunPhase::Complete)) };
    assert_eq!(plan::plan(&world, at(2)), Plan::Complete);
}

#[test]
fn what_is_left_of_a_cancelled_run_is_told_in_the_agents_words() {
    let words = "The run was cancelled. Whether point p was committed is not known";
    let ended = RunState { phase: RunPhase::Cancelled.into(), message: words.into(), ..RunState::default() };
    let ended = going(OnAgent::State(Box::new(ended)));
    let told = |world: &World, now| match plan::plan(world, at(now)) {
        Plan::Fail { message, .. } => message,
        other => panic!("not a failure: {other:?}"),
    };
    assert_eq!(told(&World { cancel: true, ..ended.clone() }, 1), words);
    assert!(told(&ended, 3_601).ends_with(words));
}

#[test]
fn what_holds_a_run_that_has_begun_is_told() {
    let held = RunState {
        phase: RunPhase::Preparing.into(),
        reason: "GuestStopped".into(),
        message: "The guest stands still".into(),
        ..RunState::default()
    };
    let status = shown(&Plan::Follow, &going(OnAgent::State(Box::new(held))), None);
    let ready = condition::find(&status.conditions, "Ready").unwrap();
    assert_eq!((ready.reason.as_str(), ready.message.as_str()), ("GuestStopped", "The guest stands still"));
    assert_eq!(status.phase, "Preparing");
}

#[test]
fn the_deadline_cancels_a_run_and_is_its_reason() {
    assert!(matches!(
        plan::plan(&going(state(RunPhase::Copying)), at(3_600)),
        Plan::Cancel { reason: Reason::DeadlineExceeded, .. }
    ));
    assert_eq!(reason_of(&plan::plan(&going(state(RunPhase::Cancelled)), at(3_601))), "DeadlineExceeded");
}

#[test]
fn a_deleted_run_is_cancelled_first_and_released_at_its_end() {
    let copying = World { deleted: Some(at(5)), ..going(state(RunPhase::Copying)) };
    assert!(matches!(plan::plan(&copying, at(6)), Plan::Cancel { .. }));
    let never_started = World { deleted: Some(at(5)), finalizer: true, ..world() };
    assert_eq!(plan::plan(&never_started, at(6)), Plan::Release);
    let unheard_of = World { deleted: Some(at(5)), ..going(OnAgent::Unknown) };
    assert_eq!(plan::plan(&unheard_of, at(6)), Plan::Release);
    let ended = World { settled: Some(Settled { at: at(7) }), ..copying };
    assert_eq!(plan::plan(&ended, at(8)), Plan::Release);
}

#[test]
fn an_agent_is_given_up_after_ten_minutes_and_no_sooner() {
    let mut world = World { deadline: Duration::from_secs(86_400), ..going(state(RunPhase::Copying)) };
    world.started.as_mut().unwrap().lost_since = Some(at(100));
    assert_eq!(plan::plan(&world, at(699)), Plan::Follow);
    assert_eq!(reason_of(&plan::plan(&world, at(700))), "AgentLost");
    world.deleted = Some(at(600));
    assert_eq!(plan::plan(&world, at(1_199)), Plan::Follow);
    assert_eq!(reason_of(&plan::plan(&world, at(1_200))), "AgentLost");
}

#[test]
fn a_run_that_has_ended_stays_as_it_is_until_its_time_to_live_is_over() {
    let mut world = World { settled: Some(Settled { at: at(10) }), cancel: true, ..going(state(RunPhase::Copying)) };
    world.finalizer = false;
    assert_eq!(plan::plan(&world, at(11)), Plan::Keep { expires_in: None });
    world.ttl = Some(Duration::from_secs(60));
    assert_eq!(plan::plan(&world, at(20)), Plan::Keep { expires_in: Some(Duration::from_secs(50)) });
    assert_eq!(plan::plan(&world, at(70)), Plan::Expire);
}

#[test]
fn every_status_has_the_conditions_of_kstatus_and_of_a_run() {
    let world = World { ready: Err(Blocker::problem(Reason::GuestNotReady, "x")), ..world() };
    let status = shown(&plan::plan(&world, at(1)), &world, None);
    for kind in ["Ready", "Reconciling", "Stalled", "Complete", "Failed", "CheckpointCreated"] {
        assert!(condition::find(&status.conditions, kind).is_some(), "{kind}");
    }
    assert_eq!(status.phase, "Pending");
}

#[test]
fn progress_and_checkpoint_are_shown_and_the_checkpoint_latches() {
    let disk =
        DiskState { name: "d".into(), total_bytes: 200, done_bytes: 86, job_id: "j".into(), ..DiskState::default() };
    let copying = RunState {
        phase: RunPhase::Copying.into(),
        start_time: 1_000,
        checkpoint_time: 2_000,
        disks: vec![disk],
        staged: true,
        fleeced: true,
        ..RunState::default()
    };
    let world = going(OnAgent::State(Box::new(copying)));
    let status = shown(&Plan::Follow, &world, None);
    assert_eq!((status.data_path.as_str(), status.fleeced), ("Staged", Some(true)));
    assert_eq!((status.progress.as_str(), status.phase.as_str()), ("43%", "Copying"));
    assert_eq!((status.disks[0].job_id.as_str(), status.attempts), ("j", Some(1)));
    assert!(condition::is_true(&status.conditions, "CheckpointCreated"));
    let later = shown(&Plan::Follow, &going(state(RunPhase::Finishing)), Some(&status));
    assert!(condition::is_true(&later.conditions, "CheckpointCreated") && later.checkpoint_time.is_some());
    assert_eq!(
        (later.data_path.as_str(), later.fleeced),
        ("Staged", Some(true)),
        "of an answer without disks nothing is known"
    );
}

#[test]
fn a_complete_run_names_its_point_size_and_duration() {
    let made =
        v1::Point { disks: vec![v1::PointDisk { stored_bytes: 3 << 30, ..Default::default() }], ..Default::default() };
    let done = RunState {
        phase: RunPhase::Complete.into(),
        start_time: 1_000,
        completion_time: 84_000,
        point: Some(made),
        ..RunState::default()
    };
    let world = going(OnAgent::State(Box::new(done)));
    let point = crate::api::run::RestorePointRef { name: "p".to_owned(), namespace: "a".to_owned() };
    let facts = Facts { point: Some(point.clone()), generation: 1, ..Facts::default() };
    let status = report::report(&Plan::Complete, &world, &facts, None, at(100));
    assert_eq!((status.size.as_str(), status.duration.as_str(), status.progress.as_str()), ("3Gi", "1m23s", "100%"));
    assert_eq!(status.restore_point_ref, Some(point));
    assert!(condition::is_true(&status.conditions, "Complete") && condition::is_true(&status.conditions, "Ready"));
    assert!(!condition::is_true(&status.conditions, "Failed"));
}

#[test]
fn nothing_new_makes_no_new_status() {
    let world = going(state(RunPhase::Copying));
    let first = shown(&Plan::Follow, &world, None);
    let facts = Facts { generation: 1, ..Facts::default() };
    assert_eq!(report::report(&Plan::Follow, &world, &facts, Some(&first), at(100)), first);
    let silent = going(OnAgent::Silent);
    assert_eq!(report::report(&Plan::Follow, &silent, &facts, Some(&first), at(900)), first);
}

#[test]
fn a_run_that_its_spec_suspends_is_not_started_and_lets_others_pass() {
    let course = Course { suspend: true, bandwidth: 0 };
    let waiting = World { course, ..world() };
    let step = plan(&waiting, at(600));
    assert_eq!(step, Plan::Suspend { left: Duration::from_secs(3_000) });
    let status = report(&step, &waiting, &Facts::default(), None, at(600));
    assert_eq!(status.phase, "Suspended", "not Queued, which would hold up later runs");
    let told = crate::api::condition::find(&status.conditions, "Suspended").unwrap();
    assert_eq!((told.status.as_str(), told.reason.as_str()), ("True", "Suspended"));
    let going = World { course: Course::default(), ..waiting.clone() };
    let step = plan(&going, at(601));
    assert!(matches!(step, Plan::Intend { .. }), "{step:?}");
    let status = report(&step, &going, &Facts::default(), Some(&status), at(601));
    let told = crate::api::condition::find(&status.conditions, "Suspended").unwrap();
    assert_eq!((told.status.as_str(), told.reason.as_str()), ("False", "Resumed"));
    assert!(matches!(plan(&World { cancel: true, ..waiting.clone() }, at(600)), Plan::Fail { .. }));
    assert!(matches!(plan(&waiting, at(3_600)), Plan::Fail { .. }), "its deadline goes on counting");
}

#[test]
fn an_agent_is_told_the_course_that_it_has_not_heard() {
    let wanted = Course { suspend: true, bandwidth: 7 };
    let heard = |phase: RunPhase, course: Course| {
        let heard = Some(crate::rpc::v1::RunCourse { suspend: course.suspend, bandwidth: course.bandwidth });
        let state = RunState { phase: phase.into(), heard, ..RunState::default() };
        World { course: wanted, ..going(OnAgent::State(Box::new(state))) }
    };
    for phase in [RunPhase::Waiting, RunPhase::Preparing, RunPhase::Copying] {
        let step = plan(&heard(phase, Course::default()), at(10));
        assert_eq!(step, Plan::Steer { node: "n1".to_owned(), course: wanted }, "{phase:?}");
        assert_eq!(plan(&heard(phase, wanted), at(10)), Plan::Follow, "{phase:?}");
    }
    assert_eq!(plan(&heard(RunPhase::Finishing, Course::default()), at(10)), Plan::Follow, "it comes too late");
    let cancelled = World { cancel: true, ..heard(RunPhase::Copying, Course::default()) };
    assert!(matches!(plan(&cancelled, at(10)), Plan::Cancel { .. }));
}

#[test]
fn a_status_says_whether_a_run_stands_still_and_because_of_whom() {
    let shown = |course: Course, state: RunState, old: Option<&BackupRunStatus>| {
        let world = World { course, ..going(OnAgent::State(Box::new(state))) };
        report(&Plan::Follow, &world, &Facts::default(), old, at(10))
    };
    let told = |status: &BackupRunStatus| {
        let found = crate::api::condition::find(&status.conditions, "Suspended");
        found.map(|told| (told.status.clone(), told.reason.clone()))
    };
    let of = |word: &str, reason: &str| Some((word.to_owned(), reason.to_owned()));
    let copying = RunState { phase: RunPhase::Copying.into(), ..RunState::default() };
    let still = RunState { suspended_since: 1, ..copying.clone() };
    let suspended = Course { suspend: true, bandwidth: 0 };
    assert_eq!(told(&shown(Course::default(), copying.clone(), None)), None);
    let status = shown(suspended, still.clone(), None);
    assert_eq!((told(&status), status.phase.as_str()), (of("True", "Suspended"), "Suspended"));
    let status = shown(Course::default(), RunState { suspended_by_host: true, ..still.clone() }, None);
    assert_eq!(told(&status), of("True", "SuspendedOnHost"));
    // Until an agent says otherwise, it is as it was; at its end it does not stand still.
    let waiting = RunState { phase: RunPhase::Waiting.into(), ..RunState::default() };
    assert_eq!(told(&shown(Course::default(), waiting, Some(&status))), of("True", "SuspendedOnHost"));
    let finishing = RunState { phase: RunPhase::Finishing.into(), ..still.clone() };
    assert_eq!(told(&shown(suspended, finishing, Some(&status))), of("False", "Resumed"));
    let fails = Plan::Fail { reason: "SuspendedTooLong".into(), message: "An hour".into() };
    let ended = report(&fails, &going(OnAgent::State(Box::new(still))), &Facts::default(), Some(&status), at(10));
    assert_eq!(told(&ended), of("False", "SuspendedTooLong"));
    assert_eq!(told(&shown(Course::default(), copying.clone(), Some(&status))), of("False", "Resumed"));
    let refused = RunState { reason: "SuspendNeedsFleecing".into(), message: "It goes on".into(), ..copying };
    assert_eq!(told(&shown(suspended, refused, None)), of("False", "SuspendNeedsFleecing"));
}

#[test]
fn a_status_says_whether_the_guest_was_frozen_and_why_not() {
    let shown = |quiesced: Option<crate::rpc::v1::Quiesced>| {
        let state = RunState { phase: RunPhase::Copying.into(), quiesced, ..RunState::default() };
        let status = report(&Plan::Follow, &going(OnAgent::State(Box::new(state))), &Facts::default(), None, at(10));
        let told = crate::api::condition::find(&status.conditions, "Quiesced").cloned();
        (told.map(|told| (told.status, told.reason, told.message)), status.quiesce)
    };
    assert_eq!(shown(None), (None, None));
    let frozen = crate::rpc::v1::Quiesced { frozen: true, frozen_for: 12, ..Default::default() };
    let (told, quiesce) = shown(Some(frozen));
    assert_eq!(told.map(|told| (told.0, told.1)), Some(("True".to_owned(), "Frozen".to_owned())));
    assert_eq!(quiesce.map(|quiesce| quiesce.frozen_for), Some(Some("12ms".to_owned())));
    let (reason, message) = ("GuestAgentSilent".to_owned(), "It did not answer".to_owned());
    let (told, quiesce) = shown(Some(crate::rpc::v1::Quiesced { reason, message, ..Default::default() }));
    let wanted = ("False".to_owned(), "GuestAgentSilent".to_owned(), "It did not answer".to_owned());
    assert_eq!(told, Some(wanted));
    let quiesce = quiesce.unwrap();
    assert_eq!((quiesce.outcome.as_str(), quiesce.frozen_for), ("NotFrozen", None));
}
