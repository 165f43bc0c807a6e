//! What people ask of a guest's machine itself (edge): its jobs, its bitmaps, its events.

use std::sync::Arc;

use futures::stream;
use tokio::sync::broadcast::error::RecvError;

use super::{Answers, Service, answers::ending, identified, key};
use crate::{
    agent::guest::Socket,
    chain::next::GRANULARITY,
    engine::{
        DiskFacts, EngineError, GuestRef,
        bitmaps::{BitmapAct, NamedBitmap, is_granularity},
        graph::inspect,
        jobs::{JobFacts, jobs},
    },
    qmp::{Client, Event},
    rpc::{
        convert::{self, invalid},
        status::{Kind, Refusal},
        v1::{self, bitmaps_request::Act},
    },
    sentence::sentence,
};

impl Service {
    pub(super) async fn jobs_of(&self, request: v1::JobsRequest) -> Result<v1::JobsResponse, Refusal> {
        let (_, socket) = self.machine(request.guest).await?;
        let jobs = jobs(&client(&socket).await?).await.map_err(|error| refused(&error))?;
        Ok(v1::JobsResponse { jobs: jobs.into_iter().map(job).collect() })
    }

    pub(super) async fn bitmaps_of(&self, request: v1::BitmapsRequest) -> Result<v1::BitmapsResponse, Refusal> {
        let change = request.act.map(change).transpose()?;
        let (guest, socket) = self.machine(request.guest).await?;
        if let Some((bitmap, act)) = change {
            let changed = self.engine.change_bitmap(&socket.monitor, &guest.uuid, &bitmap, act).await;
            changed.map_err(|error| refused(&error))?;
            self.guests.look(&key(&guest));
        }
        let found = inspect(&client(&socket).await?).await.map_err(|error| refused(&error))?;
        Ok(v1::BitmapsResponse { bitmaps: found.disks.iter().flat_map(bitmaps).collect() })
    }

    /// Holds no connection: where nobody else needs it any more, it may go, and the stream with it.
    pub(super) async fn events_of(&self, request: v1::EventsRequest) -> Result<Answers<v1::Event>, Refusal> {
        let (_, socket) = self.machine(request.guest).await?;
        let events = client(&socket).await?.events();
        let (end, name) = (self.end.clone(), request.name);
        Ok(Box::pin(stream::unfold(Some((events, 0)), move |state| {
            let (end, name) = (end.clone(), name.clone());
            async move {
                let (mut events, mut missed) = state?;
                loop {
                    let heard = tokio::select! {
                        heard = events.recv() => heard,
                        () = end.cancelled() => return Some((Err(ending().into()), None)),
                    };
                    match heard {
                        Ok(event) if !name.is_empty() && !event.name.eq_ignore_ascii_case(&name) => {}
                        Ok(event) => return Some((Ok(told(&event, missed)), Some((events, 0)))),
                        Err(RecvError::Lagged(more)) => missed += more,
                        Err(RecvError::Closed) => return None,
                    }
                }
            }
        })))
    }

    /// The socket of a guest that is here and is the one that is meant, whatever else is wrong with it.
    async fn machine(&self, guest: Option<v1::GuestRef>) -> Result<(GuestRef, Arc<Socket>), Refusal> {
        let guest = convert::guest(guest)?;
        self.guests.scanned().await;
        let listing = self.guests.listing().borrow().clone();
        identified(self.view(&listing, &guest)?, &guest)?;
        let key = key(&guest);
        let socket = self.guests.socket(&key).ok_or_else(|| {
            Refusal::new(Kind::Unavailable, "GuestNotSeen", format!("The file of guest {key} is just being changed"))
        })?;
        Ok((guest, socket))
    }
}

async fn client(socket: &Socket) -> Result<Client, Refusal> {
    socket.monitor.client().await.map_err(|source| refused(&EngineError::Connect { source }))
}

fn refused(error: &EngineError) -> Refusal {
    Refusal::new(Kind::Precondition, error.reason(), sentence(error)).retry(error.retry())
}

/// What is to be done to which bitmap.
fn change(act: Act) -> Result<(NamedBitmap, BitmapAct), Refusal> {
    let named = |of: v1::BitmapName| {
        Ok::<_, Refusal>(NamedBitmap { disk: of.disk.parse()?, name: of.name, foreign: of.foreign })
    };
    match act {
        Act::Clear(of) => Ok((named(of)?, BitmapAct::Clear)),
        Act::Remove(of) => Ok((named(of)?, BitmapAct::Remove)),
        Act::Add(v1::BitmapAdd { disk, name, granularity, persistent }) => {
            let granularity = if granularity == 0 { GRANULARITY } else { granularity };
            if !is_granularity(granularity) {
                return Err(invalid(format!(
                    "{granularity} is no granularity: it is a power of two from 512 to 2 GiB"
                )));
            }
            let of = NamedBitmap { disk: disk.parse()?, name, foreign: false };
            Ok((of, BitmapAct::Add { granularity, persistent }))
        }
    }
}

fn job(job: JobFacts) -> v1::Job {
    let block = job.block.map(|block| v1::BlockJob {
        busy: block.busy,
        paused: block.paused,
        ready: block.ready,
        io_status: block.io_status,
        speed: block.speed,
    });
    v1::Job {
        id: job.id,
        r#type: job.kind,
        status: job.status,
        ours: job.ours,
        length: job.length,
        offset: job.offset,
        block,
        error: job.error.unwrap_or_default(),
    }
}

fn bitmaps(disk: &DiskFacts) -> impl Iterator<Item = v1::DiskBitmap> {
    disk.bitmaps.iter().map(|bitmap| v1::DiskBitmap {
        disk: disk.name.to_string(),
        name: bitmap.name.clone(),
        bytes: bitmap.bytes,
        ours: bitmap.ours,
        recording: bitmap.recording,
        busy: bitmap.busy,
        persistent: bitmap.persistent,
        inconsistent: bitmap.inconsistent,
    })
}

fn told(event: &Event, missed: u64) -> v1::Event {
    let at = event.timestamp.map(|at| u64::try_from(at.as_microsecond()).unwrap_or_default());
    v1::Event {
        name: event.name.clone(),
        timestamp: at.unwrap_or_default(),
        data: if event.data.is_null() { String::new() } else { event.data.to_string() },
        missed,
    }
}
