//! `driftline restore`: writes a point's disks into new images, each compared with its digests before it gets its name.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{
    CliError, Exit,
    args::{ImageFormat, Overwrite, Restore, RestoreMode},
    blocking,
    host::Host,
    output::{Output, bytes, table},
    points::{self, GuestPoints},
    progress::{Item, Progress},
    signals::Interrupt,
};
use crate::engine::restore::{self, RestoreError, RestoreProgress, RestoreRequest, Stage};

/// Restores, or says what would be restored.
pub(super) async fn run(args: &Restore, output: &Output) -> Result<Exit, CliError> {
    let host = Host::load()?;
    let repository = host.open(&args.from.repository).await?;
    let interrupt = Interrupt::listen(output)?;
    let (points, at) = points::find(&repository, &args.from, &args.point).await?;
    let identity = &points.points[at].manifest.identity;
    let document = Document::new(args, &points, at)?;
    let targets: Vec<PathBuf> = args.to.iter().map(|to| file(&host, &to.path)).collect::<Result<_, _>>()?;
    let roots = host.restore_roots(&identity.guest.namespace, &targets);
    let request = RestoreRequest {
        run: String::new(),
        guest: points.guest.clone(),
        point: identity.point.clone(),
        disks: args.to.iter().map(|to| to.disk.clone()).zip(targets).collect(),
        format: match args.format {
            ImageFormat::Qcow2 => restore::Format::Qcow2,
            ImageFormat::Raw => restore::Format::Raw,
        },
        overwrite: match args.overwrite {
            Overwrite::Never => restore::Overwrite::Never,
            Overwrite::IfSameGuest => restore::Overwrite::IfSameGuest,
            Overwrite::Always => restore::Overwrite::Always,
        },
        verify: true,
    };
    if args.dry_run {
        blocking(move || restore::check(&repository, &roots, &request)).await?;
        output.result(&document, || document.text("Would restore"))?;
        return Ok(Exit::Done);
    }
    let flag = interrupt.flag.clone();
    let mut shown = Shown { progress: Progress::new(output), items: document.items() };
    let restored =
        blocking(move || restore::flatten(&repository, &roots, &request, &mut |at| shown.take(&at), &flag)).await;
    match restored {
        Err(_) if interrupt.came() => Err(CliError::Interrupted { what: "Restore".into() }),
        restored => {
            restored?;
            output.result(&document, || document.text("Restored"))?;
            Ok(Exit::Done)
        }
    }
}

/// The file as the roots expect it: in an existing folder, absolute.
fn file(host: &Host, given: &Path) -> Result<PathBuf, CliError> {
    let absolute = absolute(given)?;
    let no_file = || RestoreError::NotAFileName { path: absolute.clone() };
    // A path that ends in a folder's sign has a file name all the same, which is not what was meant.
    if given.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err(no_file().into());
    }
    let (Some(folder), Some(name)) = (absolute.parent(), absolute.file_name()) else { return Err(no_file().into()) };
    Ok(host.folder(folder)?.join(name))
}

fn absolute(given: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(given).map_err(|source| CliError::Path { path: given.to_owned(), source })
}

struct Shown {
    progress: Progress,
    items: Vec<Item>,
}

impl Shown {
    fn take(&mut self, at: &RestoreProgress) {
        if let Some(item) = self.items.iter_mut().find(|item| item.name == at.disk.as_str()) {
            (item.done, item.total) = (at.done, at.total);
        }
        let step = match at.stage {
            Stage::Copying => "Restoring",
            Stage::Verifying => "Verifying",
        };
        self.progress.show(step, &self.items);
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    restore_point: String,
    checkpoint_time: jiff::Timestamp,
    mode: &'static str,
    format: &'static str,
    dry_run: bool,
    verified: bool,
    disks: Vec<Disk>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Disk {
    name: String,
    path: String,
    virtual_size: u64,
}

impl Document {
    fn new(args: &Restore, points: &GuestPoints, at: usize) -> Result<Self, CliError> {
        let identity = &points.points[at].manifest.identity;
        let disk = |to: &super::args::Target| {
            let Some(disk) = identity.disks.iter().find(|disk| disk.name == to.disk) else {
                let known = identity.disks.iter().map(|disk| disk.name.to_string());
                return Err(CliError::NoSuchDisk {
                    point: identity.point.to_string(),
                    disk: to.disk.to_string(),
                    known: known.collect::<Vec<_>>().join(", "),
                });
            };
            let path = absolute(&to.path)?.display().to_string();
            Ok(Disk { name: disk.name.to_string(), path, virtual_size: disk.virtual_size })
        };
        Ok(Self {
            restore_point: identity.point.to_string(),
            checkpoint_time: identity.checkpoint_time,
            mode: match args.mode {
                RestoreMode::Flatten => "Flatten",
            },
            format: match args.format {
                ImageFormat::Qcow2 => "Qcow2",
                ImageFormat::Raw => "Raw",
            },
            dry_run: args.dry_run,
            verified: !args.dry_run,
            disks: args.to.iter().map(disk).collect::<Result<_, _>>()?,
        })
    }

    fn items(&self) -> Vec<Item> {
        let item = |disk: &Disk| Item { name: disk.name.clone(), done: 0, total: disk.virtual_size };
        self.disks.iter().map(item).collect()
    }

    fn text(&self, did: &str) -> String {
        let rows = self.disks.iter().map(|disk| vec![disk.name.clone(), bytes(disk.virtual_size), disk.path.clone()]);
        let disks = table(&["DISK", "SIZE", "PATH"], rows);
        format!("{did} point {} of {:.3} as {}\n{disks}", self.restore_point, self.checkpoint_time, self.format)
    }
}
