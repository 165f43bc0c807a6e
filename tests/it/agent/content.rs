//! What the agent tells of a repository in which something cannot be read.

use std::os::unix::fs::PermissionsExt;

use driftline::qmp::fake::Pace;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::{
    runs::{Lab, ended, run_until},
    *,
};

const OTHER: &str = "00000000-9a51-4c7e-8f2b-0d9f2f6f3a12";

async fn listed(lab: &Lab, agent: &Agent) -> Result<Vec<String>, String> {
    let request = v1::ListPointsRequest { repository: lab.address(), guest_uuid: String::new() };
    let mut points = agent.list_points(request).await.unwrap();
    let mut ids = Vec::new();
    while let Some(point) = points.next().await {
        ids.push(point.map_err(|error| error.reason().to_owned())?.id);
    }
    Ok(ids)
}

#[tokio::test]
async fn one_guest_that_cannot_be_read_hides_no_other_and_is_told_where_there_is_no_other() {
    // Root opens everything; this thread, and the threads of this test's runtime with it, no longer do.
    let mut sets = capabilities(None).unwrap();
    sets.effective.remove(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
    set_capabilities(None, sets).unwrap();
    let lab = Lab::new(Pace::AtOnce);
    let running = lab.host.start().await;
    let agent = lab.host.controller(&running);
    lab.ready(&agent).await;
    agent.start_backup(lab.request("run-1")).await.unwrap();
    let point = run_until(&agent, "run-1", ended).await.point.unwrap();
    let guests = lab.host.path("repos/one/guests");
    fs::write(guests.join("notes.txt"), "").unwrap();
    let closed = |name: &str, mode| {
        fs::set_permissions(guests.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    fs::create_dir(guests.join(OTHER)).unwrap();
    closed(OTHER, 0o000);
    assert_eq!(listed(&lab, &agent).await, Ok(vec![point.id]));
    let path = lab.host.path("repos/one").to_str().unwrap().to_owned();
    let action = Some(v1::repository_request::Action::Validate(String::new()));
    let answer = agent.repository(v1::RepositoryRequest { path, action }).await.unwrap();
    assert_eq!((answer.problem, answer.restore_points), (None, 1));
    fs::remove_dir(guests.join(OTHER)).unwrap();
    let own = fs::read_dir(&guests).unwrap().map(|entry| entry.unwrap().file_name()).find(|name| name != "notes.txt");
    let own = own.unwrap().to_str().unwrap().to_owned();
    closed(&own, 0o000);
    assert_eq!(listed(&lab, &agent).await, Err("RepositoryAccessDenied".to_owned()));
    closed(&own, 0o700);
}
