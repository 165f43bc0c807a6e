//! From the request to the intent: look at guest and repository, tidy up what others left, decide, write it down.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use super::{Before, Done, EngineError, Run, Store, fleece::device_of, follow::is_migrating, scratch::Shares};
use crate::{
    chain::graph::Graph,
    engine::{
        choose::{Refusal, bases, choose},
        definition,
        graph::{DiskFacts, GuestFacts, Ineligible, PowerState, inspect},
        journal::{Record, RecordDisk, RecordVariables, State},
        orphans, plan,
        progress::Phase,
        request::BackupRequest,
        space,
    },
    ids::{AttemptId, BitmapName, LineageId, PointId},
    qmp::{
        Address, Client, Process,
        command::{BlockDirtyBitmapRemove, BlockdevBackup, Command, QueryMigrate},
        process::FileSystem,
    },
    repo::{RepoError, Scan, Space, VARIABLES_LIMIT},
};

/// Milliseconds after which a folder without a manifest that no journal of this host knows is nobody's any more. Until
/// then it may be a finished copy of another host's agent, which commits it when it is back.
const ABANDONED_MS: u64 = 7 * 24 * 3600 * 1000;

/// How long reading QEMU's command line or a small file of it may take.
const READING: Duration = Duration::from_secs(2);

/// What a request led to.
pub(super) enum Begun {
    /// A new attempt, in its first state.
    Now(Box<Record>),
    /// The run was done before, though its end was forgotten: this is its point.
    Before(PointId),
}

impl Run<'_> {
    /// Everything up to the first state of the journal. Nothing is left behind when it fails.
    pub(super) async fn begin(&mut self, request: &BackupRequest, before: &Before) -> Done<Begun> {
        self.check()?;
        let attempts = before.attempts + 1;
        self.state.attempts = attempts;
        self.phase(Phase::Preparing);
        // A machine that is not there costs the repository nothing.
        self.client().await?;
        // The lease and the manifests can take their time, so the machine is looked at afterwards: it may change meanwhile.
        let (space, scan) = self.look_at_repository(request).await?;
        let path = &request.repository.path;
        if let Some(stored) = scan.points.iter().find(|point| point.manifest.identity.run == request.run) {
            return Ok(Begun::Before(stored.manifest.identity.point.clone()));
        }
        if !space.writable {
            return Err(EngineError::ReadOnly { path: path.clone() }.into());
        }
        let client = self.client().await?;
        let guest = inspect(&client).await?;
        self.give_up_kept(&client, &request.guest.uuid, guest.power_state == PowerState::Running).await?;
        // One that has begun still says `running`.
        let migration = self.execute(&client, "Asking QEMU for a migration", &QueryMigrate {}).await?;
        if migration.status.is_some_and(|status| is_migrating(&status)) {
            return Err(EngineError::Refused(Refusal::Migrating).into());
        }
        let (scan, graph) = self.look_at_chains(request, &guest.disks, scan).await?;
        let chosen = choose(request, &guest, &graph).map_err(EngineError::Refused)?;
        self.remove_leftovers(&client, request, &guest.disks, &scan).await?;
        self.discard_leftover_staging(&request.guest.uuid).await?;
        let readable = client.process().filter(|_| client.file_system() == FileSystem::Host);
        let command_line = command_line(readable).await;
        // Nothing that may hang from here on: every other run of the host waits for the turn.
        let _turn = self.scratch_turn().await?;
        let Shares { staging, fleece } = self.shares(request, &client, &guest, &chosen, space.local).await?;
        let disks: Vec<_> = chosen
            .into_iter()
            .zip(fleece)
            .map(|(disk, scratch)| RecordDisk {
                qdev: device_of(&guest, &disk.node),
                scratch,
                bound: space::bound(disk.virtual_size, disk.choice.base.as_ref()),
                top: top_of(&guest, &disk.node),
                name: disk.name,
                node: disk.node,
                lineage: match &disk.choice.base {
                    Some(base) => base.lineage.clone(),
                    None => LineageId::from_random(rand::random()),
                },
                virtual_size: disk.virtual_size,
                persistent: disk.persistent,
                choice: disk.choice,
                copied: None,
            })
            .collect();
        let reserve = self.engine.settings.reserve_bytes;
        if let Some(missing) = space::missing(disks.iter().map(|disk| disk.bound), reserve, space.available) {
            return Err(EngineError::NoSpace {
                path: path.clone(),
                available: space.available,
                needed: space.available.saturating_add(missing),
                reserve,
                missing,
            }
            .into());
        }
        let now_ms = u64::try_from(self.now().as_millisecond()).unwrap_or(0);
        let newest = newest(&scan, now_ms);
        let record = Record {
            format: Record::FORMAT,
            state: State::Intent,
            request: request.clone(),
            started: before.started,
            attempts,
            attempt: AttemptId::from_random(rand::random()),
            point: PointId::new(now_ms, newest.as_ref(), rand::random()),
            process: client.process().cloned(),
            monitor: socket(self.monitor.address()),
            qemu: guest.version.to_string(),
            guest_was_well: guest.power_state != PowerState::IoError,
            workers: client.schema().has_argument(BlockdevBackup::NAME, "x-perf").then(|| plan::workers(disks.len())),
            disks,
            staging,
            stopping: false,
            freezing: false,
            quiesced: None,
            course: before.course,
            block_graph: serde_json::to_value(&guest.disks).unwrap_or_default(),
            command_line,
            variables: variables(&guest.disks, readable.is_some()),
            committing: false,
            told: false,
            late: false,
        };
        self.check()?;
        self.save(&record).await?;
        Ok(Begun::Now(Box::new(record)))
    }

    async fn look_at_repository(&mut self, request: &BackupRequest) -> Done<(Space, Scan)> {
        let Store { repository, .. } = self.store(request).await?;
        self.discard_left(request).await?;
        let guest = request.guest.clone();
        self.blocking("scan", "Reading the repository", move || {
            let scan = repository.scan(&guest.uuid)?;
            scan.check_namespace(&guest.uuid, &guest.namespace)?;
            Ok((repository.space()?, scan))
        })
        .await
    }

    /// The guest's points, with what is found wrong with the images that an increment of these disks would be put on.
    async fn look_at_chains(
        &mut self,
        request: &BackupRequest,
        disks: &[DiskFacts],
        scan: Scan,
    ) -> Done<(Scan, Graph)> {
        let Store { repository, .. } = self.store(request).await?;
        let (request, disks) = (request.clone(), disks.to_vec());
        self.blocking("scan", "Reading the repository", move || {
            let guest = &request.guest.uuid;
            let graph = repository.graph_with_damage(guest, &scan, |graph| bases(&request, &disks, graph))?;
            for ((point, disk), why) in graph.damage() {
                tracing::warn!(%guest, %point, %disk, "No increment is put on a damaged image: {why}");
            }
            Ok((scan, graph))
        })
        .await
    }

    /// Removes bitmaps of ours that are of no use any more, and folders that were given up long ago.
    async fn remove_leftovers(
        &mut self,
        client: &Client,
        request: &BackupRequest,
        disks: &[DiskFacts],
        scan: &Scan,
    ) -> Done<()> {
        let guest = request.guest.uuid.clone();
        // What this guest's record holds was undone before a new attempt begins.
        let own = guest.clone();
        let in_flight = self.journal(move |journal| journal.in_flight(Some(&own))).await?;
        let committed = self.committed(request, disks, scan).await?;
        for bitmap in orphans::at_start(disks, &request.repository.id, &committed, &in_flight) {
            tracing::info!(node = %bitmap.node, name = %bitmap.name, "removing a bitmap that is of no use any more");
            let (act, bitmap) = (format!("Removing bitmap {}", bitmap.name), BlockDirtyBitmapRemove(bitmap));
            self.try_to_remove(client, &act, &bitmap).await?;
        }
        let now = u64::try_from(self.now().as_millisecond()).unwrap_or(0);
        let abandoned: Vec<_> = scan
            .partial
            .iter()
            .filter(|point| !in_flight.contains(point) && point.unix_ms() + ABANDONED_MS < now)
            .cloned()
            .collect();
        if abandoned.is_empty() {
            return Ok(());
        }
        let store = self.store(request).await?;
        self.blocking("discard", "Removing files that were given up", move || {
            for point in abandoned {
                if let Some(partial) = store.repository.partial_point(&guest, &point)? {
                    partial.discard()?;
                }
            }
            Ok(())
        })
        .await
    }

    /// The points, among those that bitmaps on the disks continue, that are in the repository: whole or not readable
    /// now, of this guest or of another one that the disk was moved from.
    async fn committed(
        &mut self,
        request: &BackupRequest,
        disks: &[DiskFacts],
        scan: &Scan,
    ) -> Done<BTreeSet<PointId>> {
        let mut committed: BTreeSet<_> =
            scan.points.iter().map(|point| point.manifest.identity.point.clone()).collect();
        committed.extend(scan.findings.iter().filter_map(|finding| finding.point.clone()));
        let unknown: BTreeSet<_> = disks
            .iter()
            .flat_map(|disk| &disk.bitmaps)
            .filter_map(|bitmap| bitmap.name.parse::<BitmapName>().ok())
            .filter(|name| name.is_of(&request.repository.id) && !committed.contains(&name.point))
            .map(|name| name.point)
            .collect();
        if unknown.is_empty() {
            return Ok(committed);
        }
        let Store { repository, .. } = self.store(request).await?;
        let found = self
            .blocking("scan", "Reading the repository", move || {
                let mut found = Vec::new();
                for guest in repository.guests()? {
                    for point in &unknown {
                        match repository.point(&guest, point) {
                            Ok(None) => {}
                            Ok(Some(_)) | Err(RepoError::Manifest { .. } | RepoError::ManifestMismatch { .. }) => {
                                found.push(point.clone());
                            }
                            Err(error) => return Err(error),
                        }
                    }
                }
                Ok(found)
            })
            .await?;
        committed.extend(found);
        Ok(committed)
    }
}

/// QEMU's command line, without its secrets.
async fn command_line(process: Option<&Process>) -> Option<Vec<String>> {
    let line = read(process, Process::command_line).await?;
    Some(definition::without_secrets(&line))
}

/// The drives whose files hold the firmware's variables, with their files where those are this host's.
fn variables(disks: &[DiskFacts], readable: bool) -> Vec<RecordVariables> {
    let firmware = disks.iter().filter(|disk| disk.ineligible == Some(Ineligible::FirmwareVariables));
    firmware
        .map(|disk| {
            let plain = readable && disk.driver == "raw" && disk.filters.is_empty() && !disk.file.starts_with("json:");
            RecordVariables { disk: disk.name.clone(), file: plain.then(|| disk.file.clone().into()) }
        })
        .collect()
}

pub(super) async fn read_variables(process: Option<&Process>, file: PathBuf) -> Option<Vec<u8>> {
    read(process, move |process| process.read_open_file(&file, VARIABLES_LIMIT)).await
}

/// Reads something of QEMU's process. One that hangs in the kernel can hold its reader too, and so can its files: a backup
/// does not wait for that.
async fn read<T: Send + 'static>(
    process: Option<&Process>,
    what: impl FnOnce(&Process) -> Option<T> + Send + 'static,
) -> Option<T> {
    let process = process?.clone();
    let read = tokio::task::spawn_blocking(move || what(&process));
    tokio::time::timeout(READING, read).await.ok()?.ok()?
}

fn top_of(guest: &GuestFacts, node: &str) -> String {
    guest.disks.iter().find(|disk| disk.node_name == node).map(|disk| disk.top_node.clone()).unwrap_or_default()
}

/// The largest id among the guest's points, whole or not. A folder of the future that is no whole point does not count: one
/// with the name of the last instant there is, made by whomever, would leave no newer id for any point.
fn newest(scan: &Scan, now_ms: u64) -> Option<PointId> {
    let whole = scan.points.iter().map(|point| &point.manifest.identity.point);
    let of_this_time = |point: &&PointId| point.unix_ms() < now_ms.saturating_add(ABANDONED_MS);
    let damaged = scan.findings.iter().filter_map(|finding| finding.point.as_ref());
    whole.chain(scan.partial.iter().chain(damaged).filter(of_this_time)).max().cloned()
}

/// As it is found from any folder.
fn socket(Address::Unix(path): &Address) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.clone())
}
