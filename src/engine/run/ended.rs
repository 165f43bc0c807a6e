//! Runs that end without a record: those that could not begin, and those whose point is stored already.

use super::{Halt, Run};
use crate::{
    engine::{error::cancelled, request::BackupRequest},
    ids::PointId,
};

impl Run<'_> {
    /// Ends a run whose point is stored, though nobody remembered.
    pub(super) async fn done_before(&mut self, request: &BackupRequest, point: PointId) {
        match self.stored(request, point).await {
            Ok(point) => {
                self.completed(point);
                self.keep_end(request).await;
            }
            Err(halt) => self.not_begun(request, halt).await,
        }
    }

    /// Ends a run of which nothing is left.
    pub(super) async fn not_begun(&mut self, request: &BackupRequest, halt: Halt) {
        let failure = match halt {
            Halt::Detached => return,
            Halt::Cancelled => cancelled(),
            Halt::Failed(error) => error.failure(),
        };
        self.state.fail(&failure, self.now());
        self.keep_end(request).await;
    }

    /// Writes down how a run ended that has no record, or whose record is of no use any more.
    async fn keep_end(&mut self, request: &BackupRequest) {
        let ended = self.state.clone();
        let guest = request.guest.uuid.clone();
        let now = self.now();
        let written = self
            .journal(move |journal| {
                journal.finish(&ended, now)?;
                journal.remove(&guest)
            })
            .await;
        if let Err(Halt::Failed(error)) = written {
            tracing::error!(error = %error.failure().message, run = %request.run, "how the run ended could not be kept");
            return;
        }
        self.publish();
    }
}
