//! `driftline jobs`: the block jobs of a machine, ours and others', as QEMU tells them.

use serde::Serialize;

use super::{
    CliError, Exit,
    args::AtMonitor,
    host::Host,
    output::{Output, bytes, table},
};
use crate::engine::jobs::{BlockJobFacts, JobFacts, jobs};

/// Asks and prints.
pub(super) async fn run(at: &AtMonitor, output: &Output) -> Result<Exit, CliError> {
    let client = Host::load()?.monitor(&at.qmp).client().await?;
    let list = List { jobs: jobs(&client).await? };
    output.result(&list, || list.text())?;
    Ok(Exit::Done)
}

#[derive(Serialize)]
struct List {
    jobs: Vec<JobFacts>,
}

impl List {
    fn text(&self) -> String {
        if self.jobs.is_empty() {
            return "The machine has no job".to_owned();
        }
        let yes = |flag: bool| if flag { "yes" } else { "no" }.to_owned();
        let rows = self.jobs.iter().map(|job| {
            let block = job.block.as_ref();
            let word = |of: &dyn Fn(&BlockJobFacts) -> String| block.map(of).unwrap_or_default();
            vec![
                job.id.clone(),
                job.kind.clone(),
                job.status.clone(),
                format!("{} of {}", bytes(job.offset), bytes(job.length)),
                word(&|block| {
                    if block.speed == 0 { "no limit".to_owned() } else { format!("{}/s", bytes(block.speed)) }
                }),
                word(&|block| yes(block.busy)),
                word(&|block| yes(block.paused)),
                word(&|block| yes(block.ready)),
                word(&|block| block.io_status.clone()),
                yes(job.ours),
                job.error.clone().unwrap_or_default(),
            ]
        });
        table(
            &["JOB", "TYPE", "STATUS", "DONE", "SPEED", "BUSY", "PAUSED", "READY", "IO-STATUS", "OURS", "ERROR"],
            rows,
        )
    }
}
