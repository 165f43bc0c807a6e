//! The connection to QEMU is cut, or a reply is dropped or comes late, at each command of a run in turn: the run ends
//! Complete, exactly, with one transaction, or Failed with the reason before anything was done; nothing is left behind.

use std::{collections::BTreeMap, time::Duration};

use driftline::engine::{Phase, RunState};
use futures::StreamExt;

use super::{
    MIB, assert_complete,
    host::{Going, Host, assert_clean},
};
use crate::lab::{
    machine::{Disk, Machine, Plan},
    proxy::{Action, Proxy},
    reference::Reference,
};

/// Polls are part of a run: the number of its commands differs a little from one to the next.
const SPREAD: u32 = 12;

/// More than the longest deadline of a command, with the question again.
const LONGEST: Duration = Duration::from_secs(900);

/// A machine that nobody writes to, a repository, and the proxy between.
struct Bench {
    host: Host,
    machine: Machine,
    proxy: Proxy,
    reference: Reference,
}

impl Bench {
    fn new() -> Bench {
        let host = Host::new();
        let machine = Plan::new().disk(Disk::qcow2("disk0", 2 * MIB)).disk(Disk::raw("disk1", MIB + 512)).start();
        machine.write("disk0", 7, 0, MIB);
        machine.write("disk1", 8, MIB - 4096, 4096 + 512);
        let (proxy, reference) = (Proxy::start(&machine), Reference::take(&machine));
        Bench { host, machine, proxy, reference }
    }

    async fn back_up(&self, run: &str) -> RunState {
        let request = self.host.request(&self.machine, run, 0);
        Going::start(&self.host.engine(), self.proxy.qmp(), &request).end_within(LONGEST).await
    }

    fn transactions(&self) -> usize {
        self.proxy.count("transaction")
    }

    /// A run that meets the rule that was set. False: the rule found nothing to act on.
    async fn survives(&self, what: &str) -> bool {
        let (before, fired) = (self.transactions(), self.proxy.state().fired);
        let state = self.back_up(what).await;
        let sent = self.transactions() - before;
        let hit = self.proxy.state().fired > fired;
        self.proxy.clear();
        let text = format!("{what}: {:?} {} {}", state.phase, state.reason, state.message);
        if state.phase == Phase::Complete {
            assert_eq!(sent, 1, "{text}");
            self.host.assert_equal(&self.machine, &state, &self.reference);
        } else {
            // Before the intent was written nothing has happened.
            assert!(state.phase == Phase::Failed && state.retriable && !state.reason.is_empty(), "{text}");
            assert_eq!(sent, 0, "{text}");
        }
        self.host.assert_tidy(&self.machine);
        assert_clean(&self.machine);
        hit
    }

    async fn commands(&self) -> u32 {
        assert_complete(&self.back_up("counted").await);
        u32::try_from(self.proxy.state().commands.len()).unwrap()
    }
}

/// One run after the other on one machine, as on a host whose monitor is troubled all day.
async fn at_each_command(action: Action) {
    let bench = Bench::new();
    let commands = bench.commands().await;
    assert!(commands > 30, "only {commands} commands were seen");
    for nth in 1..=commands {
        bench.proxy.on_any(nth, action);
        let hit = bench.survives(&format!("{action:?} at command {nth}")).await;
        assert!(hit || nth + SPREAD > commands, "a run had fewer than {nth} commands, the first had {commands}");
    }
    assert_complete(&bench.back_up("undisturbed").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_before_each_command_leaves_an_exact_point_or_nothing() {
    at_each_command(Action::CutBefore).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_instead_of_each_reply_leaves_an_exact_point_or_nothing() {
    at_each_command(Action::CutReply).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_reply_to_each_command_changes_nothing() {
    at_each_command(Action::DelayReply(200)).await;
}

/// A dropped reply is waited for to its deadline, so each has a machine of its own and all wait at once. Closing a target
/// may take ten minutes, for it brings the copy to the disk: those replies are dropped where there is time (`make soak`).
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_never_comes_to_each_command_leaves_an_exact_point_or_nothing() {
    let counted = Bench::new();
    counted.commands().await;
    let mut sent: BTreeMap<String, u32> = BTreeMap::new();
    counted.proxy.state().commands.into_iter().for_each(|one| *sent.entry(one.command).or_default() += 1);
    if std::env::var_os("DRIFTLINE_SOAK").is_none() {
        sent.remove("blockdev-del");
    }
    let each = sent.into_iter().flat_map(|(command, times)| (1..=times).map(move |nth| (command.clone(), nth)));
    let dropped: Vec<_> = each
        .map(|(command, nth)| {
            tokio::spawn(async move {
                let bench = tokio::task::block_in_place(Bench::new);
                bench.proxy.on(&command, nth, Action::DropReply);
                let hit = bench.survives(&format!("{command} {nth} without a reply")).await;
                // How often is asked how far the jobs are, or whether their filters have gone, differs from run to run.
                assert!(hit || command.contains("query-"), "{command} was not sent {nth} times");
                assert_complete(&bench.back_up("undisturbed").await);
            })
        })
        .collect();
    futures::stream::iter(dropped).buffer_unordered(usize::MAX).for_each(|done| async move { done.unwrap() }).await;
}
