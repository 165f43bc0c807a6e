//! Asks QEMU what `graph` puts together. Reads only.

use futures::future::try_join_all;

use super::{Answers, GuestFacts, PowerState, disks};
use crate::{
    engine::EngineError,
    ids::GuestId,
    qmp::{
        Client, Command, ExecuteError,
        block::qom_path,
        command::{
            QomGet, QomList, QueryBlock, QueryBlockGraph, QueryName, QueryNamedBlockNodes, QueryStatus, QueryUuid,
        },
        process::FileSystem,
        quirks::DANGERS,
    },
};

/// The guest's facts, read afresh.
pub async fn inspect(client: &Client) -> Result<GuestFacts, EngineError> {
    // QEMU does one after the other; waiting for each would cost more than all of them.
    let (status, Identity { uuid, name }, answers) =
        tokio::try_join!(ask(client, &QueryStatus {}), identity(client), answers(client))?;
    let version = client.version();
    Ok(GuestFacts {
        uuid,
        name,
        power_state: PowerState::new(&status.status, status.running),
        disks: disks(&answers),
        capabilities: capabilities(client),
        quirks: quirks(client),
        version: version.clone(),
    })
}

/// Who a guest is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its UUID; none when QEMU was started without.
    pub uuid: Option<GuestId>,
    /// The name that QEMU was started with.
    pub name: Option<String>,
}

/// Asks QEMU for it.
pub async fn identity(client: &Client) -> Result<Identity, EngineError> {
    let (uuid, name) = tokio::try_join!(ask(client, &QueryUuid {}), ask(client, &QueryName {}))?;
    Ok(Identity { uuid: uuid.uuid.parse().ok(), name: name.name })
}

fn quirks(client: &Client) -> Vec<String> {
    let dangers = DANGERS.iter().filter(|danger| danger.is_in(client.version())).map(|danger| danger.word);
    let files = match client.file_system() {
        FileSystem::Host => None,
        FileSystem::Own => Some("OwnFileSystem"),
        FileSystem::Unknown => Some("FileSystemUnknown"),
    };
    dangers.chain(files).map(str::to_owned).collect()
}

fn capabilities(client: &Client) -> Vec<String> {
    let schema = client.schema();
    [("FdPassing", "add-fd"), ("DirtyBitmaps", "block-dirty-bitmap-merge"), ("Yank", "yank")]
        .into_iter()
        .filter(|(_, command)| schema.has_command(command))
        .map(|(word, _)| word.to_owned())
        .collect()
}

/// How the disks stand now, without what is known of their devices.
///
/// # Errors
/// When QEMU does not answer.
pub(in crate::engine) async fn look_again(client: &Client) -> Result<Answers, EngineError> {
    let flat = QueryNamedBlockNodes { flat: true };
    let (devices, nodes, graph) =
        tokio::try_join!(ask(client, &QueryBlock {}), ask(client, &flat), ask(client, &QueryBlockGraph {}))?;
    Ok(Answers { devices, nodes, graph: Some(graph), ..Answers::default() })
}

async fn answers(client: &Client) -> Result<Answers, EngineError> {
    let (seen, named, unnamed) = tokio::try_join!(
        look_again(client),
        peripherals(client, "/machine/peripheral"),
        peripherals(client, "/machine/peripheral-anon")
    )?;
    let types =
        try_join_all(seen.devices.iter().filter_map(|device| device.qdev.as_deref()).map(|qdev| kind(client, qdev)));
    let types = types.await?.into_iter().flatten().collect();
    Ok(Answers { types, peripherals: named.into_iter().chain(unnamed).collect(), ..seen })
}

/// A device and its type. One without a readable type is judged by its nodes alone.
async fn kind(client: &Client, qdev: &str) -> Result<Option<(String, String)>, EngineError> {
    let kind = optional(client, &QomGet { path: qom_path(qdev), property: "type".to_owned() }).await?;
    Ok(kind.and_then(|kind| Some((qdev.to_owned(), kind.as_str()?.to_owned()))))
}

/// The paths of the devices at a place, with their types.
async fn peripherals(client: &Client, place: &str) -> Result<Vec<(String, String)>, EngineError> {
    let found = optional(client, &QomList { path: place.to_owned() }).await?.unwrap_or_default();
    let typed = found.into_iter().filter_map(|child| {
        let kind = child.kind.strip_prefix("child<")?.strip_suffix('>')?.to_owned();
        Some((format!("{place}/{}", child.name), kind))
    });
    Ok(typed.collect())
}

async fn ask<C: Command>(client: &Client, command: &C) -> Result<C::Reply, EngineError> {
    client.execute(command).await.map_err(|source| EngineError::Inspect { command: C::NAME, source })
}

/// `None` when QEMU refuses to answer; a lost connection stays an error.
async fn optional<C: Command>(client: &Client, command: &C) -> Result<Option<C::Reply>, EngineError> {
    match client.execute(command).await {
        Ok(reply) => Ok(Some(reply)),
        Err(ExecuteError::Qemu { .. }) => Ok(None),
        Err(source) => Err(EngineError::Inspect { command: C::NAME, source }),
    }
}
