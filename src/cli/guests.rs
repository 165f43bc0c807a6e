//! `driftline guests`: the machines of this host, their disks, and whether they can be backed up. Also who a machine at
//! a monitor socket is, which the other verbs ask.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{
    CliError, Exit,
    args::{Guests, Machine},
    host::{Host, guest_files},
    output::{Output, bytes, table},
};
use crate::{
    config::GuestFile,
    engine::{
        GuestRef,
        graph::{self, GuestFacts, Identity, PowerState, inspect},
    },
    ids::GuestId,
    qmp::Monitor,
    sentence::sentence,
};

/// Finds the machines and says what they are.
pub(super) async fn run(args: &Guests, output: &Output) -> Result<Exit, CliError> {
    let host = Host::load()?;
    let mut guests = Vec::new();
    if let Some(socket) = &args.qmp {
        let known = Known::look(&host, socket)?;
        let facts = facts(&host.monitor(socket)).await?;
        guests.push(Document::new(known.file.as_ref(), socket, Ok(&facts)));
    } else {
        let (folder, files) = match &args.guests_dir {
            Some(named) => (named, guest_files(named)?),
            None => (&host.config.guests, host.guest_files()?),
        };
        for path in files {
            match GuestFile::load(&path) {
                Ok(file) => {
                    let found = facts(&host.monitor(&file.qmp)).await;
                    guests.push(Document::new(Some(&file), &file.qmp, found.as_ref()));
                }
                // One machine's wrong file does not hide the others.
                Err(error) => guests.push(Document::unreadable(&path, &error.into())),
            }
        }
        if guests.is_empty() {
            output.note(format!(
                "No file of a machine is in {}. Look at one by its monitor: driftline guests --qmp SOCKET",
                folder.display()
            ));
        }
    }
    tell_doubles(&mut guests);
    output.result(&List { guests: &guests }, || text(&guests))?;
    Ok(Exit::Done)
}

/// Two files of one machine, or two machines of one UUID: an agent backs up neither. The two ends of a migration are one machine.
fn tell_doubles(guests: &mut [Document]) {
    let named: Vec<_> =
        guests.iter().map(|guest| guest.counted().cloned().map(|uuid| (guest.name.clone(), uuid))).collect();
    for (at, guest) in guests.iter_mut().enumerate() {
        let same = |(other, (_, uuid)): &(usize, &(String, GuestId))| *other != at && guest.counted() == Some(uuid);
        let others = named.iter().enumerate().filter_map(|(other, named)| Some((other, named.as_ref()?)));
        let others: Vec<_> = others.filter(same).map(|(_, (name, _))| name.as_str()).collect();
        if guest.problem.is_none() && !others.is_empty() {
            let message = format!(
                "Other guests have the same UUID ({}): keep one file for each machine, and start QEMU with a -uuid of its own",
                others.join(", ")
            );
            guest.problem = Some(Problem { reason: "DuplicateUUID".to_owned(), message });
        }
    }
}

/// What the host's own files say of the machine at a socket.
pub(super) struct Known {
    file: Option<GuestFile>,
}

impl Known {
    pub(super) fn look(host: &Host, socket: &Path) -> Result<Self, CliError> {
        Ok(Self { file: host.guest_file(socket)? })
    }

    /// The guest agent's socket, as its file says.
    pub(super) fn guest_agent(&self) -> Option<PathBuf> {
        self.file.as_ref().and_then(|file| file.guest_agent.clone())
    }

    /// Who it is: by QEMU's UUID, or by the one given where QEMU has none.
    pub(super) fn identify(
        &self,
        machine: &Machine,
        name: Option<&str>,
        found: &Identity,
    ) -> Result<GuestRef, CliError> {
        let file = self.file.as_ref();
        let given = machine.uuid.as_ref().or_else(|| file.and_then(|file| file.uuid.as_ref()));
        let socket = || machine.qmp.clone();
        let uuid: GuestId = match (&found.uuid, given) {
            (Some(uuid), Some(given)) if uuid != given => {
                return Err(CliError::OtherUuid { socket: socket(), found: uuid.clone(), given: given.clone() });
            }
            (Some(uuid), _) | (None, Some(uuid)) => uuid.clone(),
            (None, None) => return Err(CliError::NoUuid { socket: socket() }),
        };
        let name = name.or_else(|| file.map(|file| file.name.as_str())).or(found.name.as_deref());
        let name = name.map_or_else(|| uuid.to_string(), str::to_owned);
        Ok(GuestRef { uuid, name, namespace: file.map(|file| file.namespace.clone()).unwrap_or_default() })
    }
}

/// Whom QEMU says that it is.
pub(super) async fn identity(monitor: &Monitor) -> Result<Identity, CliError> {
    let client = monitor.client().await?;
    Ok(graph::identity(&client).await?)
}

/// What QEMU says of itself.
async fn facts(monitor: &Monitor) -> Result<GuestFacts, CliError> {
    let client = monitor.client().await?;
    Ok(inspect(&client).await?)
}

#[derive(Serialize)]
struct List<'a> {
    guests: &'a [Document],
}

/// A machine with the field names of the API's Guest.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    uuid: Option<GuestId>,
    qmp: String,
    #[serde(flatten)]
    found: Option<Found>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    power_state: &'static str,
    qemu_version: String,
    connection: &'static str,
    capabilities: Vec<String>,
    quirks: Vec<String>,
    disks: Vec<Disk>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Disk {
    name: String,
    qdev: String,
    node_name: String,
    driver: String,
    format: String,
    file: String,
    virtual_size: u64,
    eligible: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    ineligible_reason: &'static str,
    bitmaps: Vec<Bitmap>,
}

#[derive(Serialize)]
struct Bitmap {
    name: String,
    bytes: u64,
    ours: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Problem {
    reason: String,
    message: String,
}

impl Document {
    /// Its UUID, where an agent counts the machine when it looks for doubles.
    fn counted(&self) -> Option<&GuestId> {
        let elsewhere = [PowerState::Migrating, PowerState::Off].map(PowerState::as_str);
        self.uuid.as_ref().filter(|_| self.found.as_ref().is_some_and(|found| !elsewhere.contains(&found.power_state)))
    }

    fn unreadable(file: &Path, error: &CliError) -> Self {
        let problem = Problem { reason: error.reason().to_owned(), message: sentence(error) };
        Self {
            name: file.file_stem().map_or_else(|| "-".to_owned(), |name| name.to_string_lossy().into_owned()),
            namespace: String::new(),
            uuid: None,
            qmp: String::new(),
            found: None,
            problem: Some(problem),
        }
    }

    fn new(file: Option<&GuestFile>, socket: &Path, facts: Result<&GuestFacts, &CliError>) -> Self {
        let found = facts.ok();
        let name = file.map(|file| file.name.clone()).or_else(|| found.and_then(|facts| facts.name.clone()));
        let given = file.and_then(|file| file.uuid.clone());
        let uuid = found.and_then(|facts| facts.uuid.clone()).or(given);
        let problem = match facts {
            Err(error) => Some(Problem { reason: error.reason().to_owned(), message: sentence(error) }),
            Ok(_) => uuid.is_none().then(|| {
                let error = CliError::NoUuid { socket: socket.to_owned() };
                Problem { reason: error.reason().to_owned(), message: sentence(&error) }
            }),
        };
        Self {
            name: name.unwrap_or_else(|| "-".to_owned()),
            namespace: file.map(|file| file.namespace.clone()).unwrap_or_default(),
            uuid,
            qmp: socket.display().to_string(),
            found: found.map(Found::new),
            problem,
        }
    }
}

impl Found {
    fn new(facts: &GuestFacts) -> Self {
        let disks = facts.disks.iter().map(|disk| Disk {
            name: disk.name.to_string(),
            qdev: disk.qdev.clone(),
            node_name: disk.node_name.clone(),
            driver: disk.driver.clone(),
            format: disk.format.clone(),
            file: disk.file.clone(),
            virtual_size: disk.virtual_size,
            eligible: disk.eligible(),
            ineligible_reason: disk.ineligible_reason(),
            bitmaps: disk
                .bitmaps
                .iter()
                .map(|bitmap| Bitmap { name: bitmap.name.clone(), bytes: bitmap.bytes, ours: bitmap.ours })
                .collect(),
        });
        Self {
            power_state: facts.power_state.as_str(),
            qemu_version: facts.version.to_string(),
            connection: "QMP",
            capabilities: facts.capabilities.clone(),
            quirks: facts.quirks.clone(),
            disks: disks.collect(),
        }
    }
}

fn text(guests: &[Document]) -> String {
    if guests.is_empty() {
        return "No machines".to_owned();
    }
    let mut rows = Vec::new();
    for guest in guests {
        let uuid = guest.uuid.as_ref().map_or("-".to_owned(), ToString::to_string);
        let problem = guest.problem.as_ref().map(|problem| format!("{}: {}", problem.reason, problem.message));
        let Some(found) = &guest.found else {
            let none = || "-".to_owned();
            rows.push(vec![guest.name.clone(), uuid, none(), none(), none(), none(), problem.unwrap_or_default()]);
            continue;
        };
        for (at, disk) in found.disks.iter().enumerate() {
            let first = |text: &str| if at == 0 { text.to_owned() } else { String::new() };
            let state = match (&problem, disk.eligible) {
                (Some(problem), _) => problem.clone(),
                (None, true) => "can be backed up".to_owned(),
                (None, false) => disk.ineligible_reason.to_owned(),
            };
            let size = bytes(disk.virtual_size);
            rows.push(vec![
                first(&guest.name),
                first(&uuid),
                first(found.power_state),
                disk.name.clone(),
                size,
                disk.format.clone(),
                state,
            ]);
        }
        if found.disks.is_empty() {
            let none = || "-".to_owned();
            let state = problem.unwrap_or_else(|| "NoDisks".to_owned());
            rows.push(vec![guest.name.clone(), uuid, found.power_state.to_owned(), none(), none(), none(), state]);
        }
    }
    table(&["NAME", "UUID", "POWER", "DISK", "SIZE", "FORMAT", "STATE"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_list_has_no_header() {
        assert_eq!(text(&[]), "No machines");
    }
}
