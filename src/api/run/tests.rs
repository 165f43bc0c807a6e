//! The rules of a BackupRun's spec, evaluated as the API server does.

use super::*;

fn run() -> BackupRun {
    BackupRun::new(
        "b",
        BackupRunSpec {
            guest_ref: GuestRef { name: "db-1".to_owned() },
            repository_ref: RepositoryRef { name: "r".to_owned(), namespace: None },
            backup_type: BackupType::Full,
            disks: None,
            fleecing: None,
            quiesce: None,
            transfer: None,
            suspend: false,
            cancel: false,
            backoff_limit: 2,
            active_deadline: default_active_deadline(),
            ttl_after_finished: None,
        },
    )
}

#[test]
fn a_run_may_be_made_and_stays_as_it_is() {
    run().validate_cel().unwrap();
    run().validate_cel_update(&run()).unwrap();
}

/// A named change of a run's spec.
fn limited(bandwidth: &str) -> Transfer {
    Transfer { bandwidth: Some(bandwidth.to_owned()), data_path: DataPath::Auto }
}

type Change = (&'static str, fn(&mut BackupRunSpec));

#[test]
fn only_what_steers_a_run_may_change() {
    let changes: [Change; 11] = [
        ("guestRef", |s| s.guest_ref.name = "x".to_owned()),
        ("repositoryRef", |s| s.repository_ref.name = "x".to_owned()),
        ("repositoryRef.namespace", |s| s.repository_ref.namespace = Some("x".to_owned())),
        ("disks", |s| s.disks = Some(DiskSelection { include: vec!["a".to_owned()], exclude: vec![] })),
        ("fleecing", |s| s.fleecing = Some(Fleecing { mode: FleecingMode::Never })),
        ("quiesce", |s| s.quiesce = Some(Quiesce { mode: QuiesceMode::Required, ..Quiesce::default() })),
        ("transfer.dataPath", |s| {
            s.transfer = Some(Transfer { data_path: DataPath::Staged, ..limited("1Mi") });
        }),
        ("backoffLimit", |s| s.backoff_limit = 3),
        ("activeDeadline", |s| s.active_deadline = "1h".to_owned()),
        ("ttlAfterFinished", |s| s.ttl_after_finished = Some("1h".to_owned())),
        ("several", |s| {
            s.cancel = true;
            s.backoff_limit = 0;
        }),
    ];
    for (field, change) in changes {
        let mut new = run();
        change(&mut new.spec);
        assert!(new.validate_cel_update(&run()).is_err(), "{field} was set or changed");
        assert!(run().validate_cel_update(&new).is_err(), "{field} was removed or changed back");
    }
}

#[test]
fn cancel_can_be_set_and_not_taken_back() {
    let mut cancelled = run();
    cancelled.spec.cancel = true;
    cancelled.validate_cel_update(&run()).unwrap();
    assert!(run().validate_cel_update(&cancelled).is_err());
}

#[test]
fn a_disk_that_is_included_and_excluded_is_refused() {
    let mut object = run();
    let (a, b) = ("a".to_owned(), "b".to_owned());
    object.spec.disks = Some(DiskSelection { include: vec![a.clone()], exclude: vec![b.clone()] });
    object.validate_cel().unwrap();
    object.spec.disks = Some(DiskSelection { include: vec![a.clone(), b], exclude: vec![a] });
    assert!(object.validate_cel().is_err());
}

#[test]
fn durations_and_rates_are_refused_with_what_to_write() {
    let changes: [(Change, &str); 4] = [
        (("activeDeadline", |s| s.active_deadline = "soon".to_owned()), "such as 90s, 6h or 7d"),
        (("ttlAfterFinished", |s| s.ttl_after_finished = Some("1w".to_owned())), "such as 90s, 6h or 7d"),
        (("no bandwidth at all", |s| s.transfer = Some(limited("0Mi"))), "leave it out"),
        (("bandwidth", |s| s.transfer = Some(limited("-1Mi"))), "such as 100Mi"),
    ];
    for ((field, change), says) in changes {
        let mut object = run();
        change(&mut object.spec);
        let refusal = format!("{:?}", object.validate_cel().unwrap_err());
        assert!(refusal.contains(says), "{field}: {refusal}");
    }
    let mut object = run();
    object.spec.transfer = Some(limited("1.5Gi"));
    object.validate_cel().unwrap();
}

#[test]
fn what_a_person_leaves_out_has_its_default() {
    let spec: BackupRunSpec =
        serde_json::from_value(serde_json::json!({"guestRef": {"name": "g"}, "repositoryRef": {"name": "r"}})).unwrap();
    assert_eq!((spec.backup_type, spec.backoff_limit, spec.active_deadline.as_str()), (BackupType::Auto, 2, "24h"));
    assert!(!spec.cancel);
}

#[test]
fn a_run_is_suspended_resumed_and_given_another_bandwidth() {
    let changes: [Change; 4] = [
        ("suspend", |s| s.suspend = true),
        ("bandwidth", |s| s.transfer = Some(limited("1Mi"))),
        ("bandwidth", |s| s.transfer = Some(limited("2Mi"))),
        ("several", |s| {
            s.transfer = Some(limited("3Mi"));
            (s.suspend, s.cancel) = (true, true);
        }),
    ];
    let mut before = run();
    for (field, change) in changes {
        let mut new = before.clone();
        change(&mut new.spec);
        new.validate_cel_update(&before).unwrap_or_else(|errors| panic!("{field}: {errors:?}"));
        before = new;
    }
    let mut resumed = before.clone();
    resumed.spec.suspend = false;
    resumed.validate_cel_update(&before).unwrap();
}

#[test]
fn a_freeze_takes_some_seconds_at_most() {
    for (timeout, right) in [("1s", true), ("99s", true), ("0s", false), ("100s", false), ("1m", false), ("10", false)]
    {
        let mut new = run();
        new.spec.quiesce = Some(Quiesce { freeze_timeout: timeout.to_owned(), ..Quiesce::default() });
        assert_eq!(new.validate_cel().is_ok(), right, "{timeout}");
    }
}
