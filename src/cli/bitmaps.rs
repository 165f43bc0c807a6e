//! `driftline bitmaps`: the dirty bitmaps of a machine's disks, Driftline's and others'.

use serde::Serialize;

use super::{
    CliError, Exit,
    args::{AtMonitor, Bitmaps, Machine},
    guests::{Known, identity},
    host::Host,
    output::{Output, bytes, table},
};
use crate::{
    engine::{
        bitmaps::{BitmapAct, NamedBitmap},
        graph::{BitmapFacts, DiskFacts, inspect},
    },
    ids::DiskName,
};

/// Lists or changes them, and says what was done.
pub(super) async fn run(args: &Bitmaps, output: &Output) -> Result<Exit, CliError> {
    let (machine, disk, name, foreign, act) = match args {
        Bitmaps::List(at) => return list(at, output).await,
        Bitmaps::Add(add) => {
            let act = BitmapAct::Add { granularity: add.granularity, persistent: add.persistent };
            (&add.machine, &add.disk, &add.name, false, act)
        }
        Bitmaps::Clear(named) => (&named.machine, &named.disk, &named.name, named.foreign, BitmapAct::Clear),
        Bitmaps::Remove(named) => (&named.machine, &named.disk, &named.name, named.foreign, BitmapAct::Remove),
    };
    let bitmap = NamedBitmap { disk: disk.clone(), name: name.clone(), foreign };
    change(machine, &bitmap, act).await?;
    let done = match act {
        BitmapAct::Add { .. } => "records from now on",
        BitmapAct::Clear => "is empty, and records on",
        BitmapAct::Remove => "is removed",
    };
    let document = Changed { disk, name };
    output.result(&document, || format!("Bitmap {name} of disk {disk} {done}"))?;
    Ok(Exit::Done)
}

async fn change(machine: &Machine, bitmap: &NamedBitmap, act: BitmapAct) -> Result<(), CliError> {
    let host = Host::load()?;
    let known = Known::look(&host, &machine.qmp)?;
    let monitor = host.monitor(&machine.qmp);
    let guest = known.identify(machine, None, &identity(&monitor).await?)?;
    // No repository is touched.
    let engine = host.engine(std::path::Path::new("/"))?;
    Ok(engine.change_bitmap(&monitor, &guest.uuid, bitmap, act).await?)
}

async fn list(at: &AtMonitor, output: &Output) -> Result<Exit, CliError> {
    let client = Host::load()?.monitor(&at.qmp).client().await?;
    let list = List::new(&inspect(&client).await?.disks);
    output.result(&list, || list.text())?;
    Ok(Exit::Done)
}

/// What was changed.
#[derive(Serialize)]
struct Changed<'a> {
    disk: &'a DiskName,
    name: &'a str,
}

#[derive(Serialize)]
struct List {
    bitmaps: Vec<Document>,
}

/// One bitmap of a disk.
#[derive(Serialize)]
struct Document {
    disk: DiskName,
    #[serde(flatten)]
    facts: BitmapFacts,
}

impl List {
    fn new(disks: &[DiskFacts]) -> Self {
        let of = |disk: &DiskFacts| {
            let name = disk.name.clone();
            disk.bitmaps.clone().into_iter().map(move |facts| Document { disk: name.clone(), facts })
        };
        Self { bitmaps: disks.iter().flat_map(of).collect() }
    }

    fn text(&self) -> String {
        if self.bitmaps.is_empty() {
            return "The machine's disks have no bitmap".to_owned();
        }
        let rows = self.bitmaps.iter().map(|Document { disk, facts }| {
            let state = match (facts.inconsistent, facts.busy, facts.recording) {
                (true, _, _) => "inconsistent",
                (_, true, _) => "busy",
                (_, _, true) => "recording",
                _ => "frozen",
            };
            let yes = |flag: bool| if flag { "yes" } else { "no" }.to_owned();
            let marked = bytes(facts.bytes);
            vec![disk.to_string(), facts.name.clone(), marked, state.to_owned(), yes(facts.persistent), yes(facts.ours)]
        });
        table(&["DISK", "BITMAP", "MARKED", "STATE", "PERSISTENT", "OURS"], rows)
    }
}
