//! `driftline verify`: reads everything that is stored and compares it with its digests. Damage is an answer with an
//! exit status of its own, not a failure of the command.

use serde::Serialize;

use super::{
    CliError, Exit,
    args::{PointName, Verify},
    blocking,
    host::Host,
    output::{Output, bytes},
    points,
    progress::{Item, Progress},
    signals::Interrupt,
};
use crate::{
    chain::finding::{Finding, Severity},
    ids::{GuestId, PointId},
    repo::check,
    sentence::counted,
};

/// Verifies what was asked for.
pub(super) async fn run(args: &Verify, output: &Output) -> Result<Exit, CliError> {
    let repository = Host::load()?.open(&args.from.repository).await?;
    let interrupt = Interrupt::listen(output)?;
    let (guest, point) = chosen(args, &repository).await?;
    let flag = interrupt.flag.clone();
    let mut progress = Progress::new(output);
    let (verified, read) = blocking(move || {
        let mut read = 0;
        let findings = check::verify(
            &repository,
            guest.as_ref(),
            point.as_ref(),
            &mut |at| {
                read = at.done;
                let item = Item { name: "stored".into(), done: at.done, total: at.total };
                progress.show("Verifying", &[item]);
            },
            &flag,
        );
        (findings, read)
    })
    .await;
    if interrupt.came() {
        return Err(CliError::Interrupted { what: "Verification".into() });
    }
    let document = Document { findings: verified?, verified_bytes: read };
    output.result(&document, || document.text())?;
    Ok(if document.damaged() { Exit::Damage } else { Exit::Done })
}

async fn chosen(
    args: &Verify,
    repository: &crate::repo::Repository,
) -> Result<(Option<GuestId>, Option<PointId>), CliError> {
    match (&args.point, &args.from.guest) {
        (None, None) => Ok((None, None)),
        (None, Some(guest)) => Ok((Some(points::find_guest(repository, guest).await?), None)),
        (Some(PointName::Id(id)), _) => {
            let guest = points::find_stored(repository, args.from.guest.as_deref(), id).await?;
            Ok((Some(guest), Some(id.clone())))
        }
        (Some(PointName::Latest), _) => {
            let (points, at) = points::find(repository, &args.from, &PointName::Latest).await?;
            let point = points.points[at].manifest.identity.point.clone();
            Ok((Some(points.guest), Some(point)))
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    findings: Vec<Finding>,
    verified_bytes: u64,
}

impl Document {
    fn damaged(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Damage)
    }

    fn text(&self) -> String {
        let mut lines: Vec<_> = self.findings.iter().map(line).collect();
        let read = bytes(self.verified_bytes);
        lines.push(if self.verified_bytes == 0 && self.findings.is_empty() {
            "Nothing is stored here: there are no points".to_owned()
        } else if self.damaged() {
            let damaged = self.findings.iter().filter(|finding| finding.severity == Severity::Damage).count();
            let findings = counted(damaged as u64, "finding");
            format!(
                "A backup with --type Full begins a chain without what is damaged\n\
                 DAMAGED: {findings} in {read} of stored data"
            )
        } else {
            format!("Intact: {read} of stored data are as they were written")
        });
        lines.join("\n")
    }
}

fn line(finding: &Finding) -> String {
    let mut place = Vec::new();
    place.extend(finding.guest.as_ref().map(|guest| format!("guest {guest}")));
    place.extend(finding.point.as_ref().map(|point| format!("point {point}")));
    place.extend(finding.disk.as_ref().map(|disk| format!("disk {disk}")));
    place.extend(finding.offset.map(|offset| format!("offset {offset}")));
    let place = if place.is_empty() { String::new() } else { format!(" ({})", place.join(", ")) };
    format!("{:?} {:?}: {}{place}", finding.severity, finding.kind, finding.message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::finding::Kind;

    #[test]
    fn one_finding_is_singular_and_notices_are_not_counted() {
        let finding = |severity| Finding::new(severity, Kind::FileMissing, "It is not there");
        let mut document =
            Document { findings: vec![finding(Severity::Damage), finding(Severity::Notice)], verified_bytes: 1 << 20 };
        assert!(document.text().ends_with("DAMAGED: 1 finding in 1.00 MiB of stored data"), "{}", document.text());
        document.findings.push(finding(Severity::Damage));
        assert!(document.text().ends_with("DAMAGED: 2 findings in 1.00 MiB of stored data"), "{}", document.text());
    }
}
