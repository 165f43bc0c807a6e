//! `driftline suspend`, `resume`, `bandwidth` and `cancel`: a person at the host changes the course of a machine's run, whoever
//! drives it. The monitor may be held by that one, so the machine is known by the journal, and asked only where that knows nothing.

use std::path::Path;

use serde::Serialize;

use super::{
    CliError, Exit,
    args::AtMonitor,
    guests::{Known, identity},
    host::Host,
    output::{Output, bytes},
};
use crate::{
    engine::{BackupRequest, CourseError, Engine, EngineError, Followed, Phase, RunState, course::HostWish},
    ids::GuestId,
    qmp::Monitor,
};

/// Changes the course and says what it is now.
pub(super) async fn run(at: &AtMonitor, wish: HostWish, output: &Output) -> Result<Exit, CliError> {
    let host = Host::load()?;
    let monitor = host.monitor(&at.qmp);
    // Only looks: the repository of the run is known then.
    let looking = host.engine(Path::new("/"))?;
    let guest = match found(&looking, &host, &monitor, at)? {
        Some(request) => request.guest.uuid,
        None => machine(&host, at, &monitor).await?,
    };
    let unfinished = looking.unfinished()?.into_iter().find(|request| request.guest.uuid == guest);
    let request = unfinished.ok_or_else(|| EngineError::from(CourseError::NoRun { guest }))?;
    let engine = host.engine(&request.repository.path)?;
    match engine.wish(&monitor, &request.guest.uuid, wish).await? {
        Followed::Course { run, course } => {
            let document = Document {
                run: &run,
                guest: &request.guest.name,
                suspended: course.is_suspended(),
                bandwidth: course.bandwidth.unwrap_or(request.bandwidth),
            };
            output.result(&document, || document.sentence(at, wish))?;
            Ok(Exit::Done)
        }
        Followed::Ended(state) => ended(&request, *state, wish, output),
    }
}

/// The run of the monitor at that socket, or of the machine that the host's file about it names.
fn found(engine: &Engine, host: &Host, monitor: &Monitor, at: &AtMonitor) -> Result<Option<BackupRequest>, CliError> {
    if let Some(request) = engine.run_at(monitor)? {
        return Ok(Some(request));
    }
    let Some(file) = host.guest_file(&at.qmp)? else { return Ok(None) };
    let of = |request: &BackupRequest| request.guest.name == file.name && request.guest.namespace == file.namespace;
    Ok(engine.unfinished()?.into_iter().find(of))
}

/// Who the machine is, where its run was begun by way of another monitor.
async fn machine(host: &Host, at: &AtMonitor, monitor: &Monitor) -> Result<GuestId, CliError> {
    let known = Known::look(host, &at.qmp)?;
    Ok(known.identify(&at.machine(), None, &identity(monitor).await?)?.uuid)
}

fn ended(request: &BackupRequest, state: RunState, wish: HostWish, output: &Output) -> Result<Exit, CliError> {
    let point = state.point.as_ref().map(|point| point.manifest.identity.point.to_string());
    if wish == HostWish::Cancel && state.phase == Phase::Cancelled {
        let document = Ended { run: &request.run_name, guest: &request.guest.name, message: &state.message };
        output.result(&document, || format!("Run {} of {}: {}", document.run, document.guest, document.message))?;
        return Ok(Exit::Done);
    }
    let how = match point {
        Some(point) => format!("Run {} had copied everything: point {point} is stored", request.run_name),
        None => format!("Run {} has ended meanwhile: {}", request.run_name, state.message),
    };
    Err(CliError::CameTooLate { how })
}

/// What a run's course is now.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    run: &'a str,
    guest: &'a str,
    suspended: bool,
    /// Bytes per second of each disk; 0 is without a limit.
    bandwidth: u64,
}

impl Document<'_> {
    fn sentence(&self, at: &AtMonitor, wish: HostWish) -> String {
        let Self { run, guest, .. } = self;
        match (wish, self.suspended) {
            (HostWish::Bandwidth(0), _) => format!("Run {run} of {guest} copies as fast as it can"),
            (HostWish::Bandwidth(rate), _) => {
                format!("Run {run} of {guest} copies at most {} per second of each disk", bytes(rate))
            }
            (HostWish::Resume, true) => {
                format!("Run {run} of {guest} still stands still: its BackupRun says suspend, and is where that ends")
            }
            (_, true) => format!(
                "Run {run} of {guest} stands still. Within an hour, before it is cancelled: driftline resume --qmp {}",
                at.qmp.display()
            ),
            (_, false) => format!("Run {run} of {guest} goes on"),
        }
    }
}

/// A run that was cancelled.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Ended<'a> {
    run: &'a str,
    guest: &'a str,
    message: &'a str,
}
