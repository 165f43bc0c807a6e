//! `driftline backup`: one backup of a running machine, by the engine in this process, followed until it ends.

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use super::{
    CliError, Exit,
    args::{
        Backup, BackupType as AskedType, DataPath as AskedDataPath, Fleecing as AskedFleecing, Quiesce as AskedQuiesce,
    },
    guests::{Known, identity},
    host::Host,
    output::{Output, bytes, table},
    points::ChainDocument,
    progress::{Item, Progress},
    signals::Interrupt,
};
use crate::{
    chain::{
        graph::Graph,
        next::{BackupType, RequestedType},
    },
    engine::{
        BackupRequest, DiskSelection, NOTHING_LEFT, Phase, RepositoryRef, RequestedDataPath, RequestedFleecing,
        RunControl, RunState,
        quiesce::{FREEZE_TIMEOUT, NotFrozen, Quiesce, QuiesceMode, Quiesced},
    },
    ids::{DiskName, PointId},
};

/// Does the backup and says what was stored.
pub(super) async fn run(args: &Backup, output: &Output) -> Result<Exit, CliError> {
    let host = Host::load()?;
    let known = Known::look(&host, &args.machine.qmp)?;
    let interrupt = Interrupt::listen(output)?;
    // The machine first: nothing is made of an empty folder for a machine that is not there.
    let monitor = host.monitor(&args.machine.qmp);
    let guest = known.identify(&args.machine, args.name.as_deref(), &identity(&monitor).await?)?;
    let (repository, new) = host.open_or_initialise(&args.repository).await?;
    if new {
        let path = repository.path().display();
        output.note(format!("Initialised repository {} in the empty folder {path}", repository.id()));
    }
    let engine = host.engine(repository.path())?;

    let request = BackupRequest {
        run: uuid::Uuid::new_v4().to_string(),
        run_name: format!("driftline backup (process {})", std::process::id()),
        guest,
        repository: RepositoryRef { path: repository.path().to_owned(), id: repository.id().clone() },
        kind: match args.kind {
            AskedType::Auto => RequestedType::Auto,
            AskedType::Incremental => RequestedType::Incremental,
            AskedType::Full => RequestedType::Full,
            AskedType::Copy => RequestedType::Copy,
        },
        fleecing: match args.fleecing {
            AskedFleecing::Auto => RequestedFleecing::Auto,
            AskedFleecing::Always => RequestedFleecing::Always,
            AskedFleecing::Never => RequestedFleecing::Never,
        },
        data_path: match args.data_path {
            AskedDataPath::Auto => RequestedDataPath::Auto,
            AskedDataPath::Direct => RequestedDataPath::Direct,
            AskedDataPath::Staged => RequestedDataPath::Staged,
        },
        disks: DiskSelection { include: args.disks.clone(), exclude: args.exclude.clone() },
        bandwidth: args.bandwidth.unwrap_or(0),
        quiesce: Quiesce {
            mode: match args.quiesce {
                AskedQuiesce::Required => QuiesceMode::Required,
                AskedQuiesce::Preferred => QuiesceMode::Preferred,
                AskedQuiesce::Never => QuiesceMode::Never,
            },
            freeze_timeout: FREEZE_TIMEOUT,
            guest_agent: args.guest_agent.clone().or_else(|| known.guest_agent()),
        },
        policy: None,
    };
    let control = RunControl { cancel: interrupt.token.clone(), ..RunControl::new(&request, Timestamp::now()) };
    let states = control.state.subscribe();
    let end = tokio::select! {
        end = engine.backup(&monitor, &request, &control) => end,
        never = follow(states, Progress::new(output)) => match never {},
    };
    finish(&request.guest.name, &end, &interrupt, output)
}

/// Shows each state; never ends by itself.
async fn follow(mut states: watch::Receiver<RunState>, mut progress: Progress) -> std::convert::Infallible {
    let mut tick = tokio::time::interval(std::time::Duration::from_secs(1));
    loop {
        {
            let state = states.borrow_and_update();
            let items = state.disks.iter().map(|disk| Item {
                name: disk.name.to_string(),
                done: disk.done_bytes,
                total: disk.total_bytes,
            });
            progress.show(&step(&state), &items.collect::<Vec<_>>());
        }
        tokio::select! {
            _ = tick.tick() => {}
            Ok(()) = states.changed() => {}
        }
    }
}

/// What is being done; a run that waits says for what.
fn step(state: &RunState) -> String {
    if state.phase == Phase::Waiting && !state.message.is_empty() {
        return state.message.clone();
    }
    let word = match state.phase {
        Phase::Waiting | Phase::Preparing => "Preparing",
        Phase::Copying if state.course.is_suspended() => "Suspended: driftline resume lets it go on",
        Phase::Copying => "Copying",
        Phase::Finishing => "Finishing",
        Phase::Complete => "Complete",
        Phase::Failed => "Failed",
        Phase::Cancelled => "Cancelled",
    };
    word.to_owned()
}

fn finish(guest: &str, end: &RunState, interrupt: &Interrupt, output: &Output) -> Result<Exit, CliError> {
    let failed = || CliError::Run {
        guest: guest.to_owned(),
        reason: end.reason.clone(),
        message: end.message.clone(),
        retriable: end.retriable,
    };
    match end.phase {
        Phase::Complete => {}
        // One that still waits, for the lock or for an earlier run to be finished, has not begun.
        Phase::Cancelled | Phase::Waiting if interrupt.came() => {
            let what = format!("Backup of {guest}");
            return Err(match end.phase {
                Phase::Cancelled if end.message != NOTHING_LEFT => {
                    CliError::InterruptedLate { what, left: end.message.clone() }
                }
                _ => CliError::Interrupted { what },
            });
        }
        Phase::Failed | Phase::Cancelled | Phase::Waiting | Phase::Preparing | Phase::Copying | Phase::Finishing => {
            return Err(failed());
        }
    }
    let document = Document::new(end).ok_or_else(failed)?;
    if interrupt.came() {
        output.note("The interruption came too late: everything was copied already, and the point is stored.");
    }
    match &end.quiesced {
        Some(Quiesced::NotFrozen { reason, message }) if reason != NotFrozen::NoSocket.reason() => {
            output.note(format!("{message}. The point shows the machine as after a power cut."));
        }
        _ => {}
    }
    output.result(&document, || document.text(guest))?;
    Ok(Exit::Done)
}

/// What `-o json` gives: a contract.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    restore_point: PointId,
    chain: ChainDocument,
    r#type: &'static str,
    checkpoint_time: Timestamp,
    data_path: &'static str,
    fleeced: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    quiesce: Option<Quiesced>,
    disks: Vec<Disk>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Disk {
    name: String,
    r#type: &'static str,
    type_reason: &'static str,
    virtual_size: u64,
    stored_bytes: u64,
}

impl Document {
    fn new(end: &RunState) -> Option<Self> {
        let manifest = &end.point.as_ref()?.manifest;
        let size = |name: &DiskName| {
            manifest.identity.disks.iter().find(|disk| disk.name == *name).map(|disk| disk.virtual_size)
        };
        let disks = end.disks.iter().map(|disk| Disk {
            name: disk.name.to_string(),
            r#type: disk.kind.as_str(),
            type_reason: disk.type_reason.as_str(),
            virtual_size: size(&disk.name).unwrap_or_default(),
            stored_bytes: disk.stored_bytes,
        });
        Some(Self {
            restore_point: manifest.identity.point.clone(),
            chain: ChainDocument::of_point(&manifest.identity.point, &Graph::new(end.point.as_ref()?.chain.clone())),
            r#type: end.kind.map_or("", BackupType::as_str),
            checkpoint_time: manifest.identity.checkpoint_time,
            data_path: if end.staged { "Staged" } else { "Direct" },
            fleeced: end.fleeced,
            quiesce: end.quiesced.clone(),
            disks: disks.collect(),
        })
    }

    fn text(&self, guest: &str) -> String {
        let rows = self.disks.iter().map(|disk| {
            let reason = format!("{} ({})", disk.r#type, disk.type_reason);
            vec![disk.name.clone(), reason, bytes(disk.virtual_size), bytes(disk.stored_bytes)]
        });
        let disks = table(&["DISK", "TYPE", "SIZE", "STORED"], rows);
        let (point, time) = (&self.restore_point, self.checkpoint_time);
        let way = match (self.fleeced, self.data_path) {
            (true, _) => ", fleeced",
            (false, "Staged") => ", staged",
            (false, _) => "",
        };
        let frozen = match self.quiesce {
            Some(Quiesced::Frozen { frozen_for }) => format!(", frozen for {frozen_for} ms"),
            Some(Quiesced::NotFrozen { .. }) | None => String::new(),
        };
        format!("Point {point} holds {guest} as it was at {time:.3}{way}{frozen}\n{disks}")
    }
}
