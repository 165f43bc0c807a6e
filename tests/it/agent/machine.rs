//! A guest's jobs, bitmaps and events through the agent, which holds the one connection that QEMU serves.

use driftline::{qmp::fake::Pace, rpc::client::RpcError};
use serde_json::json;

use super::{
    runs::{Lab, copying, ended, run_until},
    *,
};

fn guest(lab: &Lab) -> v1::GuestRef {
    lab.request("").guest.unwrap()
}

async fn bitmaps(lab: &Lab, agent: &Agent, act: Option<v1::bitmaps_request::Act>) -> Result<Vec<String>, RpcError> {
    let answer = agent.bitmaps(v1::BitmapsRequest { guest: Some(guest(lab)), act }).await?;
    Ok(answer.bitmaps.into_iter().map(|bitmap| format!("{}/{} {}", bitmap.disk, bitmap.name, bitmap.ours)).collect())
}

fn add(name: &str, granularity: u32) -> v1::bitmaps_request::Act {
    let (disk, name) = ("disk0".to_owned(), name.to_owned());
    v1::bitmaps_request::Act::Add(v1::BitmapAdd { disk, name, granularity, persistent: false })
}

fn named(name: &str, foreign: bool) -> v1::BitmapName {
    v1::BitmapName { disk: "disk0".to_owned(), name: name.to_owned(), foreign }
}

#[tokio::test]
async fn jobs_are_told_while_a_run_goes_on_and_none_after_it() {
    let lab = Lab::new(Pace::Manual);
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    lab.ready(&agent).await;
    assert_eq!(agent.jobs(guest(&lab)).await.unwrap().jobs, vec![]);
    agent.start_backup(lab.request("run-1")).await.unwrap();
    run_until(&agent, "run-1", copying).await;
    let jobs = agent.jobs(guest(&lab)).await.unwrap().jobs;
    let told: Vec<_> =
        jobs.iter().map(|job| (job.r#type.as_str(), job.status.as_str(), job.ours, job.length)).collect();
    assert_eq!(told, [("backup", "running", true, 1 << 20)]);
    assert_eq!(jobs[0].block.as_ref().map(|block| (block.paused, block.io_status.as_str())), Some((false, "ok")));
    lab.qemu.finish_jobs();
    run_until(&agent, "run-1", ended).await;
    assert_eq!(agent.jobs(guest(&lab)).await.unwrap().jobs, vec![]);
}

#[tokio::test]
async fn bitmaps_are_listed_and_changed_and_what_a_backup_needs_is_kept() {
    let lab = Lab::new(Pace::AtOnce);
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    lab.ready(&agent).await;
    assert_eq!(bitmaps(&lab, &agent, None).await.unwrap(), Vec::<String>::new());
    let added = bitmaps(&lab, &agent, Some(add("mine", 0))).await.unwrap();
    assert_eq!(added, ["disk0/mine false"]);
    agent.start_backup(lab.request("run-1")).await.unwrap();
    run_until(&agent, "run-1", ended).await;
    let listed = bitmaps(&lab, &agent, None).await.unwrap();
    let ours = listed.iter().find_map(|line| line.strip_prefix("disk0/")?.strip_suffix(" true")).unwrap().to_owned();
    use v1::bitmaps_request::Act::{Clear, Remove};
    for (act, reason) in [
        (add("odd", 1000), "InvalidRequest"),
        (add("mine", 0), "BitmapExists"),
        (Clear(named(&ours, false)), "BitmapNeeded"),
        (Clear(named("mine", false)), "BitmapForeign"),
        (Remove(named("none", true)), "BitmapNotFound"),
    ] {
        assert_eq!(bitmaps(&lab, &agent, Some(act)).await.unwrap_err().reason(), reason);
        assert_eq!(bitmaps(&lab, &agent, None).await.unwrap(), listed, "{reason}");
    }
    bitmaps(&lab, &agent, Some(Clear(named("mine", true)))).await.unwrap();
    let left = bitmaps(&lab, &agent, Some(Remove(named("mine", true)))).await.unwrap();
    assert_eq!(left.len(), listed.len() - 1);
    // The inventory shows it soon: nobody waits for the next look.
    guests_until(&agent, |guests| {
        guests.iter().any(|guest| guest.disks.iter().any(|disk| disk.bitmaps.len() == left.len()))
    })
    .await;
}

#[tokio::test]
async fn events_come_as_they_happen_by_name_until_qemu_ends() {
    let lab = Lab::new(Pace::AtOnce);
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    lab.ready(&agent).await;
    let heard = async |name: &str| {
        agent.events(v1::EventsRequest { guest: Some(guest(&lab)), name: name.to_owned() }).await.unwrap()
    };
    let (mut all, mut some) = (heard("").await, heard("rtc_change").await);
    lab.qemu.emit("STOP", json!(null));
    lab.qemu.emit("RTC_CHANGE", json!({"offset": 7}));
    let next = async |events: &mut driftline::rpc::client::Answers<v1::Event>| {
        tokio::time::timeout(PATIENCE, events.next()).await.expect("an event or the end")
    };
    let first = next(&mut all).await.unwrap().unwrap();
    assert_eq!((first.name.as_str(), first.data.as_str(), first.missed), ("STOP", "", 0));
    assert!(first.timestamp > 1_600_000_000_000_000, "{first:?}");
    for events in [&mut all, &mut some] {
        let event = next(events).await.unwrap().unwrap();
        assert_eq!((event.name.as_str(), event.data.as_str()), ("RTC_CHANGE", r#"{"offset":7}"#));
    }
    lab.qemu.kill();
    while let Some(event) = next(&mut all).await {
        event.expect("no error: QEMU has ended");
    }
    assert!(next(&mut some).await.is_none());
}

#[tokio::test]
async fn another_machine_and_one_that_is_not_there_are_refused() {
    let lab = Lab::new(Pace::AtOnce);
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    lab.ready(&agent).await;
    let right = guest(&lab);
    for (asked, reason) in [
        (v1::GuestRef { name: "db-2".into(), ..right.clone() }, "GuestNotFound"),
        (v1::GuestRef { uuid: "22222222-1111-4111-8111-111111111111".into(), ..right.clone() }, "GuestIsAnother"),
        (v1::GuestRef { uuid: String::new(), ..right }, "InvalidRequest"),
    ] {
        assert_eq!(agent.jobs(asked.clone()).await.unwrap_err().reason(), reason);
        let request = v1::EventsRequest { guest: Some(asked), name: String::new() };
        assert_eq!(agent.events(request).await.err().unwrap().reason(), reason);
    }
}
