//! Restores that wait for their turn.

use prometheus_client::registry::Registry;

use super::*;

/// Longer than anything here takes; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

fn restores(state: &Path) -> Restores {
    let settings = RestoreSettings {
        state: state.to_owned(),
        repositories: Roots::new(Vec::new()),
        targets: BTreeMap::new(),
        tool: QemuImg::new("qemu-img", None),
        clock: crate::clock::system(),
    };
    Restores::new(settings, AgentMetrics::register(&mut Registry::default()))
}

fn order(run: &str) -> RestoreOrder {
    RestoreOrder {
        run: run.to_owned(),
        namespace: "team-a".to_owned(),
        repository: RepositoryRef {
            path: "/nowhere".into(),
            id: "9f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a10".parse().unwrap(),
        },
        request: RestoreRequest {
            run: run.to_owned(),
            guest: "5f0c7e1e-9a51-4c7e-8f2b-0d9f2f6f3a11".parse().unwrap(),
            point: crate::ids::PointId::new(1, None, 0),
            disks: Vec::new(),
            format: crate::qcow2::tool::Format::Raw,
            overwrite: crate::engine::restore::Overwrite::Never,
            verify: false,
        },
    }
}

async fn ended(state: &mut watch::Receiver<RestoreState>) -> RestoreState {
    let ended = tokio::time::timeout(PATIENCE, state.wait_for(|state| state.phase.is_final()));
    ended.await.expect("it waits for a place").unwrap().clone()
}

#[tokio::test]
async fn a_restore_that_is_cancelled_while_it_waits_for_its_turn_ends_at_once_and_is_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let restores = restores(folder.path());
    let _all = restores.0.places.clone().acquire_many_owned(AT_ONCE.try_into().unwrap()).await.unwrap();
    let mut state = restores.start(order("waits")).await.unwrap();
    assert!(restores.cancel("waits"));
    let last = ended(&mut state).await;
    assert_eq!((last.phase, last.reason.as_str()), (RestorePhase::Cancelled, "Cancelled"), "{last:?}");
    let again = restores.start(order("waits")).await.unwrap().borrow().clone();
    assert_eq!(again, last);
}

#[tokio::test]
async fn a_restore_that_waits_when_the_agent_ends_goes_without_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let restores = restores(folder.path());
    let _all = restores.0.places.clone().acquire_many_owned(AT_ONCE.try_into().unwrap()).await.unwrap();
    let mut state = restores.start(order("waits")).await.unwrap();
    restores.abandon();
    let gone = tokio::time::timeout(PATIENCE, async { while state.changed().await.is_ok() {} });
    gone.await.expect("it waits for a place");
    assert_eq!(state.borrow().phase, RestorePhase::Preparing);
    assert!(!folder.path().join("restores").exists());
}
