//! What a person may do with which bitmap.

use super::*;
use crate::{
    engine::graph::fixture::{bitmap, disk},
    ids::{BitmapRole, LineageId},
};

const ADD: BitmapAct = BitmapAct::Add { granularity: 65536, persistent: true };

fn point() -> PointId {
    PointId::new(1, None, 0)
}

fn ours() -> String {
    let repository = "9f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10".parse().unwrap();
    BitmapName::new(&repository, &point(), &LineageId::from_random(1), BitmapRole::Checkpoint).to_string()
}

fn disks() -> Vec<DiskFacts> {
    let mut busy = bitmap("busy");
    busy.busy = true;
    let mut raw = disk("raw");
    (raw.persistent_bitmaps, raw.format) = (false, "raw".to_owned());
    vec![DiskFacts { bitmaps: vec![bitmap(&ours()), bitmap("theirs"), busy], ..disk("a") }, raw]
}

fn done(on: &str, name: &str, foreign: bool, act: BitmapAct, in_flight: &[PointId]) -> Result<String, &'static str> {
    let named = NamedBitmap { disk: on.parse().unwrap(), name: name.to_owned(), foreign };
    let in_flight = in_flight.iter().cloned().collect();
    check(&disks(), &named, act, &in_flight).map(str::to_owned).map_err(|refusal| {
        assert!(refusal.to_string().len() > 30, "{refusal}");
        refusal.reason()
    })
}

#[test]
fn a_bitmap_is_added_where_there_is_none_of_that_name() {
    assert_eq!(done("a", "mine", false, ADD, &[]), Ok("n-a".to_owned()));
    assert_eq!(done("a", "theirs", false, ADD, &[]), Err("BitmapExists"));
    assert_eq!(done("a", "driftline.mine", false, ADD, &[]), Err("BitmapNameReserved"));
    assert_eq!(done("nosuch", "mine", false, ADD, &[]), Err("DiskNotFound"));
    assert_eq!(done("raw", "mine", false, ADD, &[]), Err("BitmapNotStored"));
    let transient = BitmapAct::Add { granularity: 65536, persistent: false };
    assert_eq!(done("raw", "mine", false, transient, &[]), Ok("n-raw".to_owned()));
}

#[test]
fn what_others_build_on_goes_at_a_persons_word_only() {
    for act in [BitmapAct::Clear, BitmapAct::Remove] {
        assert_eq!(done("a", "theirs", false, act, &[]), Err("BitmapForeign"));
        assert_eq!(done("a", "theirs", true, act, &[]), Ok("n-a".to_owned()));
        assert_eq!(done("a", "busy", true, act, &[]), Err("BitmapBusy"));
        assert_eq!(done("a", "nosuch", true, act, &[]), Err("BitmapNotFound"));
    }
}

#[test]
fn a_checkpoint_is_never_emptied_and_not_removed_while_its_run_is_in_flight() {
    for foreign in [false, true] {
        assert_eq!(done("a", &ours(), foreign, BitmapAct::Clear, &[]), Err("BitmapNeeded"));
        assert_eq!(done("a", &ours(), foreign, BitmapAct::Remove, &[point()]), Err("BitmapInFlight"));
        assert_eq!(done("a", &ours(), foreign, BitmapAct::Remove, &[]), Ok("n-a".to_owned()));
    }
}
