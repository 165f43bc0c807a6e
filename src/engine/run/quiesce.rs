//! The guest's file systems stand still for the instant and no longer: written down before, thawed whatever came of it, and
//! by whoever comes next where this process dies in between.

use std::time::{Duration, Instant};

use super::{Done, EngineError, Run};
use crate::{
    engine::{
        gate::Passage,
        journal::Record,
        quiesce::{NotFrozen, Quiesce, QuiesceMode, Quiesced, Unfrozen},
    },
    guest_agent::{FreezeStatus, GuestAgent, GuestAgentError},
    qmp::{block::RunState, command::QueryStatus},
    sentence::sentence,
};

const FREEZE: &str = "guest-fsfreeze-freeze";
const THAW: &str = "guest-fsfreeze-thaw";

/// A guest that is frozen.
pub(super) struct Frozen {
    agent: GuestAgent,
    since: Instant,
}

impl Run<'_> {
    /// Freezes the guest for what makes the instant, where that is asked for and can be done. `thaw` comes after it, whatever came
    /// of it.
    pub(super) async fn freeze(&mut self, record: &mut Record) -> Done<Option<Frozen>> {
        let asked = record.request.quiesce.clone();
        if asked.mode == QuiesceMode::Never {
            return Ok(None);
        }
        match self.try_freeze(record, &asked).await? {
            Ok(frozen) => Ok(Some(frozen)),
            Err(why) => self.not_frozen(record, why).await.map(|()| None),
        }
    }

    /// Thaws the guest, and says what became of the instant.
    pub(super) async fn thaw(&mut self, record: &mut Record, frozen: Option<Frozen>, instant: Done<()>) -> Done<()> {
        let Some(frozen) = frozen else { return instant };
        let thawed = self.try_thaw(record, frozen).await;
        instant?;
        match thawed? {
            true => Ok(()),
            false => self.not_frozen(record, NotFrozen::ThawedEarly.into()).await,
        }
    }

    async fn not_frozen(&mut self, record: &mut Record, why: Unfrozen) -> Done<()> {
        if record.request.quiesce.mode == QuiesceMode::Required {
            return Err(EngineError::NotQuiesced { reason: why.reason, message: why.message }.into());
        }
        self.update(record, |record| record.quiesced = Some(why.into())).await
    }

    async fn try_freeze(&mut self, record: &mut Record, asked: &Quiesce) -> Done<Result<Frozen, Unfrozen>> {
        let Some(path) = &asked.guest_agent else { return Ok(Err(NotFrozen::NoSocket.into())) };
        let client = self.client().await?;
        let status = self.execute(&client, "Asking QEMU for the guest's state", &QueryStatus {}).await?;
        if status.status != RunState::Running {
            return Ok(Err(NotFrozen::NotRunning.into()));
        }
        let mut agent = match GuestAgent::connect(path).await {
            Ok(agent) => agent,
            Err(error) => return Ok(Err(Unfrozen::from(&error))),
        };
        match agent.status().await {
            Ok(FreezeStatus::Thawed) => {}
            Ok(FreezeStatus::Frozen) => return Ok(Err(NotFrozen::FoundFrozen.into())),
            Err(error) => return Ok(Err(Unfrozen::from(&error))),
        }
        self.update(record, |record| record.freezing = true).await?;
        let since = Instant::now();
        self.engine.gates.pass(Passage::Sending(FREEZE)).await;
        let frozen = agent.freeze(Duration::from_secs(asked.freeze_timeout.into())).await;
        self.engine.gates.pass(Passage::Replied(FREEZE)).await;
        let Err(error) = frozen else { return Ok(Ok(Frozen { agent, since })) };
        // It may be done much later: what is sent behind it undoes it then. The answer to that may be the late one to the freeze.
        let undone = async {
            agent.thaw().await?;
            agent.sync().await?;
            agent.status().await
        };
        let is_thawed = matches!(undone.await, Ok(FreezeStatus::Thawed));
        if is_thawed || matches!(error, GuestAgentError::Refused { .. }) {
            self.update(record, |record| record.freezing = false).await?;
        }
        Ok(Err(Unfrozen::from(&error)))
    }

    /// Whether it was frozen until now.
    async fn try_thaw(&mut self, record: &mut Record, mut frozen: Frozen) -> Done<bool> {
        self.engine.gates.pass(Passage::Sending(THAW)).await;
        let thawed = frozen.agent.thaw().await;
        let frozen_for = u64::try_from(frozen.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.engine.gates.pass(Passage::Replied(THAW)).await;
        match thawed {
            Ok(count) => {
                self.update(record, |record| {
                    (record.freezing, record.quiesced) = (false, Some(Quiesced::Frozen { frozen_for }));
                })
                .await?;
                Ok(count > 0)
            }
            Err(error) => {
                tracing::error!(run = %record.request.run, "The guest is not thawed yet: {}", sentence(&error));
                self.update(record, |record| record.quiesced = Some(Quiesced::Frozen { frozen_for })).await?;
                Ok(true)
            }
        }
    }

    /// Thaws a guest that an attempt of ours may have frozen: before anything else. An agent that does not answer is asked again
    /// at the next step.
    pub(super) async fn thaw_guest(&mut self, record: &mut Record) -> Done<()> {
        let Some(path) = record.request.quiesce.guest_agent.clone().filter(|_| record.freezing) else { return Ok(()) };
        let thawed = async {
            let mut agent = GuestAgent::connect(&path).await?;
            agent.status().await?;
            agent.thaw().await
        };
        self.engine.gates.pass(Passage::Sending(THAW)).await;
        let thawed = thawed.await;
        self.engine.gates.pass(Passage::Replied(THAW)).await;
        match thawed {
            Ok(_) => self.update(record, |record| record.freezing = false).await,
            // With its QEMU its agent is gone, too.
            Err(GuestAgentError::Unreachable { .. }) if self.same_qemu(record).await.is_err() => Ok(()),
            Err(error) => {
                tracing::error!(run = %record.request.run, "The guest is not thawed yet: {}", sentence(&error));
                Ok(())
            }
        }
    }
}
