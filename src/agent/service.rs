//! The contract's server side (edge): parses requests, asks guests, runs, restores and repositories, and says what they
//! say. It decides nothing by itself, but refuses what no state of the world could make right.

mod answers;
mod content;
mod machine;

use std::{path::PathBuf, pin::Pin, sync::Arc};

use futures::Stream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use self::content::{look, send_points};
use super::{
    enrolment::{Enrolment, EnrolmentError},
    guest::Guests,
    inventory::{GuestView, Listing},
    problem::Problem,
    restores::{RestoreOrder, Restores},
    runs::Runs,
    storage::Storage,
    view,
};
use crate::{
    engine::{Engine, GuestRef},
    ids::{GuestId, RepositoryId, SessionId},
    metrics::AgentMetrics,
    repo::{QemuImg, RepoError, Repository, Roots},
    retry::Retry,
    rpc::{
        convert,
        status::{Kind, Refusal},
        v1::{self, agent_server::Agent},
    },
    sentence::sentence,
};

/// What the calls need.
pub struct Service {
    /// The node's name.
    pub node: String,
    /// This start of the agent.
    pub session: SessionId,
    /// The guests.
    pub guests: Guests,
    /// The backups.
    pub runs: Runs,
    /// The restores.
    pub restores: Restores,
    /// For runs that ended before this start.
    pub engine: Engine,
    /// Bounds of repositories.
    pub roots: Roots,
    /// Runs `qemu-img`.
    pub tool: QemuImg,
    /// Calls to file systems.
    pub storage: Storage,
    /// How it gets its certificate; none where that is in files of the host.
    pub enrolment: Option<Enrolment>,
    /// Counts calls.
    pub metrics: AgentMetrics,
    /// The agent ends: streams end with it.
    pub end: CancellationToken,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Agent for Service {
    async fn describe(&self, _: Request<v1::DescribeRequest>) -> Result<Response<v1::DescribeResponse>, Status> {
        self.counted("Describe", async {
            Ok(v1::DescribeResponse {
                node: self.node.clone(),
                session: self.session.to_string(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            })
        })
        .await
    }

    type WatchGuestsStream = Answers<v1::WatchGuestsResponse>;

    async fn watch_guests(
        &self,
        _: Request<v1::WatchGuestsRequest>,
    ) -> Result<Response<Self::WatchGuestsStream>, Status> {
        self.counted("WatchGuests", async {
            self.guests.scanned().await;
            let listing = self.guests.listing();
            Ok(self.follow(listing, |listing: &Arc<Listing>| (view::guests(listing), false)))
        })
        .await
    }

    async fn start_backup(
        &self,
        request: Request<v1::StartBackupRequest>,
    ) -> Result<Response<v1::StartBackupResponse>, Status> {
        self.counted("StartBackup", async {
            let mut request = convert::backup_request(request.into_inner())?;
            let state = match self.known_run(&request.run).await? {
                Some(state) => state,
                None => {
                    self.guests.scanned().await;
                    request.quiesce.guest_agent = self.admit(&request.guest)?;
                    self.runs.start(request)?
                }
            };
            let state = convert::run_state(&state.borrow(), self.session.as_str());
            Ok(v1::StartBackupResponse { state: Some(state) })
        })
        .await
    }

    type WatchRunStream = Answers<v1::RunState>;

    async fn watch_run(&self, request: Request<v1::WatchRunRequest>) -> Result<Response<Self::WatchRunStream>, Status> {
        self.counted("WatchRun", async {
            let run = convert::run_uid(&request.into_inner().run_uid)?;
            let state = self.known_run(&run).await?.ok_or_else(|| unknown_run(&run))?;
            let session = self.session.clone();
            Ok(self.follow(state, move |state| (convert::run_state(state, session.as_str()), state.phase.is_final())))
        })
        .await
    }

    async fn control_run(
        &self,
        request: Request<v1::ControlRunRequest>,
    ) -> Result<Response<v1::ControlRunResponse>, Status> {
        self.counted("ControlRun", async {
            let request = request.into_inner();
            let run = convert::run_uid(&request.run_uid)?;
            let state = self.known_run(&run).await?.ok_or_else(|| unknown_run(&run))?;
            let before = convert::run_state(&state.borrow(), self.session.as_str());
            match request.control {
                // False only where the run has ended, which the state says.
                Some(v1::control_run_request::Control::Cancel(true)) => drop(self.runs.cancel(&run)),
                Some(v1::control_run_request::Control::Course(course)) => {
                    self.runs.steer(&run, convert::owner_wish(course));
                }
                Some(v1::control_run_request::Control::Cancel(false)) | None => {}
            }
            Ok(v1::ControlRunResponse { state: Some(before) })
        })
        .await
    }

    async fn start_restore(
        &self,
        request: Request<v1::StartRestoreRequest>,
    ) -> Result<Response<v1::StartRestoreResponse>, Status> {
        self.counted("StartRestore", async {
            let request = request.into_inner();
            let order = RestoreOrder {
                run: convert::run_uid(&request.run_uid)?,
                namespace: request.namespace.clone(),
                repository: convert::repository(request.repository.clone())?,
                request: convert::restore_request(&request)?,
            };
            let state = self.restores.start(order).await?;
            let state = view::restore(&state.borrow(), self.session.as_str());
            Ok(v1::StartRestoreResponse { state: Some(state) })
        })
        .await
    }

    type WatchRestoreStream = Answers<v1::RestoreState>;

    async fn watch_restore(
        &self,
        request: Request<v1::WatchRestoreRequest>,
    ) -> Result<Response<Self::WatchRestoreStream>, Status> {
        self.counted("WatchRestore", async {
            let run = convert::run_uid(&request.into_inner().run_uid)?;
            let state = self.restores.state(&run).await?.ok_or_else(|| unknown_run(&run))?;
            let session = self.session.clone();
            Ok(self.follow(state, move |state| (view::restore(state, session.as_str()), state.phase.is_final())))
        })
        .await
    }

    async fn control_restore(
        &self,
        request: Request<v1::ControlRestoreRequest>,
    ) -> Result<Response<v1::ControlRestoreResponse>, Status> {
        self.counted("ControlRestore", async {
            let request = request.into_inner();
            let run = convert::run_uid(&request.run_uid)?;
            let state = self.restores.state(&run).await?.ok_or_else(|| unknown_run(&run))?;
            let before = view::restore(&state.borrow(), self.session.as_str());
            match request.control {
                Some(v1::control_restore_request::Control::Cancel(true)) => drop(self.restores.cancel(&run)),
                Some(v1::control_restore_request::Control::Cancel(false)) | None => {}
            }
            Ok(v1::ControlRestoreResponse { state: Some(before) })
        })
        .await
    }

    async fn repository(
        &self,
        request: Request<v1::RepositoryRequest>,
    ) -> Result<Response<v1::RepositoryResponse>, Status> {
        self.counted("Repository", async {
            use v1::repository_request::Action;
            let v1::RepositoryRequest { path, action } = request.into_inner();
            // Nothing to expect: the controller asks which repository the folder is.
            let expected = |id: String| if id.is_empty() { Ok(None) } else { id.parse::<RepositoryId>().map(Some) };
            let (initialise, id) = match action {
                Some(Action::Initialise(id)) => (true, Some(id.parse()?)),
                Some(Action::Validate(id)) => (false, expected(id)?),
                None => {
                    let message = "The request says neither initialise nor validate";
                    return Err(Refusal::new(Kind::Invalid, "InvalidRequest", message));
                }
            };
            let at = PathBuf::from(&path);
            let (roots, tool, folder) = (self.roots.clone(), self.tool.clone(), at.clone());
            let looked = self.storage.call(&at, move || {
                let repository = match id {
                    Some(id) if initialise => Repository::initialise(&roots, &folder, &id, &tool)?,
                    id => Repository::open(&roots, &folder, id.as_ref(), &tool)?,
                };
                look(&repository)
            });
            Ok(looked.await?.unwrap_or_else(|error| v1::RepositoryResponse {
                problem: Some(v1::Problem {
                    subject: path,
                    reason: error.reason().to_owned(),
                    message: sentence(&error),
                }),
                ..v1::RepositoryResponse::default()
            }))
        })
        .await
    }

    type ListPointsStream = Answers<v1::Point>;

    async fn list_points(
        &self,
        request: Request<v1::ListPointsRequest>,
    ) -> Result<Response<Self::ListPointsStream>, Status> {
        self.counted("ListPoints", async {
            let request = request.into_inner();
            let address = convert::repository(request.repository)?;
            let only: Option<GuestId> =
                if request.guest_uuid.is_empty() { None } else { Some(request.guest_uuid.parse()?) };
            let (roots, tool, path) = (self.roots.clone(), self.tool.clone(), address.path.clone());
            let opened = self.storage.call(&path, move || {
                let repository = Repository::open(&roots, &address.path, Some(&address.id), &tool)?;
                let guests = match only {
                    Some(guest) => vec![guest],
                    None => repository.guests()?,
                };
                Ok((repository, guests))
            });
            let (repository, guests) = opened.await?.map_err(|error| refused(&error))?;
            let (sender, points) = mpsc::channel(64);
            let (storage, end) = (self.storage.clone(), self.end.clone());
            tokio::spawn(async move {
                let sending = send_points(storage, path, repository, guests, sender);
                tokio::select! { () = sending => {} () = end.cancelled() => {} }
            });
            Ok(Box::pin(ReceiverStream::new(points)) as Answers<v1::Point>)
        })
        .await
    }

    async fn jobs(&self, request: Request<v1::JobsRequest>) -> Result<Response<v1::JobsResponse>, Status> {
        self.counted("Jobs", self.jobs_of(request.into_inner())).await
    }

    async fn bitmaps(&self, request: Request<v1::BitmapsRequest>) -> Result<Response<v1::BitmapsResponse>, Status> {
        self.counted("Bitmaps", self.bitmaps_of(request.into_inner())).await
    }

    type EventsStream = Answers<v1::Event>;

    async fn events(&self, request: Request<v1::EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        self.counted("Events", self.events_of(request.into_inner())).await
    }

    async fn request_certificate(
        &self,
        _: Request<v1::RequestCertificateRequest>,
    ) -> Result<Response<v1::RequestCertificateResponse>, Status> {
        self.counted("RequestCertificate", async {
            let (signing_request, token) = self.enrolment()?.request().map_err(|error| not_enrolled(&error))?;
            Ok(v1::RequestCertificateResponse { signing_request, token })
        })
        .await
    }

    async fn install_certificate(
        &self,
        request: Request<v1::InstallCertificateRequest>,
    ) -> Result<Response<v1::InstallCertificateResponse>, Status> {
        self.counted("InstallCertificate", async {
            self.enrolment()?.install(&request.into_inner().certificate).map_err(|error| not_enrolled(&error))?;
            tracing::info!("The controller gave this agent a certificate");
            Ok(v1::InstallCertificateResponse {})
        })
        .await
    }
}

impl Service {
    fn enrolment(&self) -> Result<&Enrolment, Refusal> {
        self.enrolment.as_ref().ok_or_else(|| {
            let message =
                format!("The certificate of node {}'s agent is that of its files: it was given no token", self.node);
            Refusal::new(Kind::Precondition, "CertificateOfFiles", message)
        })
    }

    /// A run's state, live or ended; none: nobody has heard of it.
    async fn known_run(&self, run: &str) -> Result<Option<watch::Receiver<crate::engine::RunState>>, Refusal> {
        if let Some(state) = self.runs.state(run) {
            return Ok(Some(state));
        }
        let (engine, uid) = (self.engine.clone(), run.to_owned());
        let ended = tokio::task::spawn_blocking(move || engine.finished(&uid)).await.map_err(|error| {
            Refusal::new(Kind::Internal, "AgentBroken", format!("Looking up run {run} broke off: {error}"))
        })?;
        Ok(ended.map(|state| watch::channel(state).1))
    }

    /// Whether a new run may begin: the guest is here, is the one that is meant, and nothing is wrong with it. Gives the socket of
    /// its guest agent.
    fn admit(&self, guest: &GuestRef) -> Result<Option<PathBuf>, Refusal> {
        let listing = self.guests.listing().borrow().clone();
        let view = self.view(&listing, guest)?;
        if let Some(Problem { reason, message, .. }) = &view.seen.problem {
            // A monitor comes back by itself; what the files say does not.
            let retry = if reason.starts_with("QMP") { Retry::Backoff } else { Retry::OnChange };
            return Err(Refusal::new(Kind::Precondition, reason, message.clone()).retry(retry));
        }
        identified(view, guest)?;
        Ok(view.file.as_ref().and_then(|file| file.guest_agent.clone()))
    }

    /// A guest that a file of this node names.
    fn view<'listing>(&self, listing: &'listing Listing, guest: &GuestRef) -> Result<&'listing GuestView, Refusal> {
        let key = key(guest);
        listing.guest(&key).ok_or_else(|| {
            Refusal::new(Kind::NotFound, "GuestNotFound", format!("No file of node {} names guest {key}", self.node))
        })
    }
}

fn key(guest: &GuestRef) -> String {
    format!("{}/{}", guest.namespace, guest.name)
}

/// Whether it is the guest that is meant.
fn identified(view: &GuestView, guest: &GuestRef) -> Result<(), Refusal> {
    let key = &view.key;
    match &view.seen.uuid {
        Some(uuid) if *uuid == guest.uuid => Ok(()),
        Some(uuid) => {
            let message = format!("Guest {key} has UUID {uuid}, not {}: another machine", guest.uuid);
            Err(Refusal::new(Kind::Precondition, "GuestIsAnother", message))
        }
        None => {
            let message = format!("The agent does not know guest {key} yet: its monitor was not asked so far");
            Err(Refusal::new(Kind::Unavailable, "GuestNotSeen", message))
        }
    }
}

fn unknown_run(run: &str) -> Refusal {
    Refusal::new(Kind::NotFound, "RunNotFound", format!("This agent has never heard of run {run}"))
}

fn not_enrolled(error: &EnrolmentError) -> Refusal {
    Refusal::new(Kind::Precondition, error.reason(), sentence(error)).retry(Retry::Backoff)
}

fn refused(error: &RepoError) -> Refusal {
    Refusal::new(Kind::Precondition, error.reason(), sentence(error)).retry(error.retry())
}
