//! The course of a run while its jobs are there: what is wished is written down first, then the jobs follow.

use jiff::Timestamp;

use super::{Done, Run};
use crate::{
    engine::{
        CourseError, EngineError,
        course::{Course, HostWish},
        error::{SUSPEND_NEEDS_FLEECING, cancelled},
        journal::{Journal, Record, State, Waiting},
    },
    qmp::{
        Client,
        block::{JobInfo, JobStatus},
        command::{BlockJobSetSpeed, JobPause, JobResume},
    },
};

impl Run<'_> {
    /// Takes over what is wished of the run, durable before anything follows it. False: it is cancelled, and the record says so.
    pub(super) async fn hear(&mut self, record: &mut Record) -> Done<bool> {
        let now = self.now();
        let mut course = record.course;
        if self.own {
            course = course.heard_owner(*self.control.owner.borrow(), record.request.bandwidth, now);
        }
        let wishes = self.wishes(record).await?;
        let cancel = wishes.iter().any(|waiting| waiting.wish == HostWish::Cancel);
        course = wishes.iter().fold(course, |course, waiting| course.heard_host(waiting.wish, now));
        if course.is_suspended() && !record.is_fleeced() {
            course = course.going();
            if self.state.reason != SUSPEND_NEEDS_FLEECING {
                let refused = CourseError::SuspendNeedsFleecing { run: record.request.run_name.clone() };
                self.say(refused.reason(), &refused.to_string());
            }
        } else if self.state.reason == SUSPEND_NEEDS_FLEECING {
            self.say("", "");
        }
        if course != record.course {
            self.update(record, |record| record.course = course).await?;
        }
        if cancel {
            self.fail(record, cancelled()).await?;
        }
        if !wishes.is_empty() {
            self.journal(move |journal| wishes.iter().try_for_each(|waiting| journal.forget_wish(&waiting.path)))
                .await?;
        }
        if self.own {
            self.state.course = record.course;
            self.publish();
        }
        Ok(!cancel)
    }

    /// Looked for each second, so not an act of its own: reads a folder of the host.
    async fn wishes(&self, record: &Record) -> Done<Vec<Waiting>> {
        let journal: Journal = self.engine.journal.clone();
        let (guest, run) = (record.request.guest.uuid.clone(), record.request.run.clone());
        let found = tokio::task::spawn_blocking(move || journal.wishes(&guest, &run)).await;
        let found = found.map_err(|source| EngineError::Broken { act: "Reading the journal", source })?;
        Ok(found.map_err(EngineError::Journal)?)
    }

    /// Has the jobs follow the record's course; `steered` is the one that they are known to have. QEMU refuses what they do
    /// already, and what comes after their end (both measured on 7.2 and 10.0).
    pub(super) async fn steer(
        &self,
        client: &Client,
        record: &Record,
        jobs: &[JobInfo],
        steered: &mut Course,
    ) -> Done<()> {
        if *steered == record.course {
            return Ok(());
        }
        for disk in &record.disks {
            let id = record.job(disk).to_string();
            if !jobs.iter().any(|job| job.id == id && job.status != JobStatus::Concluded) {
                continue;
            }
            if record.course.is_suspended() {
                self.lenient(client, "Suspending a job", &JobPause { id: id.clone() }).await?;
            }
            let speed = BlockJobSetSpeed { device: id.clone(), speed: record.bandwidth() };
            self.lenient(client, "Bounding a job's bandwidth", &speed).await?;
            if !record.course.is_suspended() {
                self.lenient(client, "Resuming a job", &JobResume { id }).await?;
            }
        }
        *steered = record.course;
        Ok(())
    }

    /// Takes over what is wished of a run that nobody drives, and has its jobs follow.
    pub(in crate::engine) async fn steer_once(&mut self, record: &mut Record) -> Done<()> {
        self.free_guest(record).await?;
        let goes = matches!(record.state, State::Intent | State::Sending { .. } | State::Running { .. });
        if !goes || !self.hear(record).await? {
            return Ok(());
        }
        let Ok(client) = self.same_qemu(record).await else { return Ok(()) };
        let jobs = self.jobs(&client).await?;
        self.steer(&client, record, &jobs, &mut Course::default()).await
    }

    /// A run does not stand still for ever: what the guest overwrites meanwhile fills the scratch.
    pub(super) fn check_suspended(&self, record: &Record) -> Done<()> {
        let most = self.engine.patience.suspended;
        match record.course.since {
            Some(since) if stood(since, self.now()) >= most => {
                Err(EngineError::from(CourseError::SuspendedTooLong { minutes: most.as_secs() / 60 }).into())
            }
            _ => Ok(()),
        }
    }
}

/// How long a run has stood still. A clock that was set back counts as no time.
fn stood(since: Timestamp, now: Timestamp) -> std::time::Duration {
    now.duration_since(since).try_into().unwrap_or_default()
}
