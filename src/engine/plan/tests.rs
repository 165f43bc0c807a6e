//! The plan of an attempt, as it is printed.

use super::*;
use crate::engine::journal::{fixture, increment};

/// The actions of the last transaction.
fn sent(record: &Record) -> Vec<Action> {
    match steps(record).pop() {
        Some(Step::Send { actions }) => actions,
        other => panic!("{other:?}"),
    }
}

/// The same record, fleeced.
fn fleeced(mut record: Record) -> Record {
    record.disks.iter_mut().for_each(|disk| disk.scratch = Some(1 << 20));
    record
}

#[test]
fn the_plan_of_a_fleeced_increment() {
    insta::assert_yaml_snapshot!(steps(&fleeced(increment())));
}

#[test]
fn what_undoes_a_fleeced_increment() {
    insta::assert_yaml_snapshot!(undo(&fleeced(increment())));
}

#[test]
fn staged_images_are_made_before_qemu_opens_them_and_removed_after_it_has_closed_them() {
    let staged = |record| Record { staging: Some("/var/lib/driftline/scratch".into()), ..record };
    for record in [staged(fixture()), staged(increment()), staged(fleeced(increment()))] {
        let (steps, undo) = (steps(&record), undo(&record));
        let made = steps.iter().position(|step| *step == Step::CreateStaging).unwrap();
        let first = steps.iter().position(|step| matches!(step, Step::CreateDisk { .. })).unwrap();
        assert!(made < first, "{steps:?}");
        assert_eq!(undo[undo.len() - 2..], [Undo::DiscardStaging, Undo::DiscardPoint], "{undo:?}");
    }
    assert!(!steps(&fixture()).contains(&Step::CreateStaging));
}

#[test]
fn the_plan_of_two_disks() {
    insta::assert_yaml_snapshot!(steps(&fixture()));
}

#[test]
fn the_plan_of_an_increment_and_of_a_copy() {
    insta::assert_yaml_snapshot!(steps(&increment()));
}

#[test]
fn what_undoes_an_increment() {
    insta::assert_yaml_snapshot!(undo(&increment()));
}

#[test]
fn what_undoes_it() {
    insta::assert_yaml_snapshot!(undo(&fixture()));
}

#[test]
fn checkpoints_come_before_jobs_and_only_node_names_are_used() {
    let record = fixture();
    let actions = sent(&record);
    let first_job = actions.iter().position(|action| matches!(action, Action::BlockdevBackup(_))).unwrap();
    assert!(actions[first_job..].iter().all(|action| matches!(action, Action::BlockdevBackup(_))));
    for action in &actions {
        let node = match action {
            Action::BlockDirtyBitmapAdd(add) => &add.node,
            Action::BlockDirtyBitmapMerge(merge) => &merge.node,
            Action::BlockdevBackup(backup) => &backup.device,
            other => panic!("{other:?}"),
        };
        assert!(record.disks.iter().any(|disk| disk.node == *node), "{node}");
    }
}

#[test]
fn a_limit_of_zero_is_no_limit() {
    let mut record = fixture();
    let speeds = |record: &Record| -> Vec<_> {
        let speed = |action| match action {
            Action::BlockdevBackup(backup) => Some(backup.speed),
            _ => None,
        };
        sent(record).into_iter().filter_map(speed).collect()
    };
    assert_eq!(speeds(&record), vec![None, None]);
    record.request.bandwidth = 1 << 20;
    assert_eq!(speeds(&record), vec![Some(1 << 20), Some(1 << 20)]);
}

#[test]
fn all_jobs_together_leave_the_guest_most_of_the_threads() {
    for disks in 1..40 {
        let all = workers(disks) as usize * disks;
        assert!(workers(disks) >= 1 && all <= disks.max(16), "{disks} disks: {all}");
    }
    let perf = |record: &Record| -> Vec<_> {
        let perf = |action| match action {
            Action::BlockdevBackup(backup) => Some(backup.x_perf),
            _ => None,
        };
        sent(record).into_iter().filter_map(perf).collect()
    };
    assert_eq!(perf(&fixture()), vec![Some(BackupPerf { max_workers: 8 }); 2]);
    assert_eq!(perf(&Record { workers: None, ..fixture() }), vec![None; 2], "a QEMU that cannot be told");
}
