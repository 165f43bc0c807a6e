//! Asks QEMU what `graph` puts together. Reads only.

use std::collections::HashMap;

use super::{Answers, GuestFacts, PowerState, disks};
use crate::{
    engine::EngineError,
    qmp::{
        Client, Command, ExecuteError,
        command::{
            QomGet, QomList, QueryBlock, QueryBlockGraph, QueryName, QueryNamedBlockNodes, QueryStatus, QueryUuid,
        },
        process::FileSystem,
        quirks::DANGERS,
    },
};

/// The guest's facts, read afresh.
pub async fn inspect(client: &Client) -> Result<GuestFacts, EngineError> {
    let status = ask(client, &QueryStatus {}).await?;
    let uuid = ask(client, &QueryUuid {}).await?;
    let name = ask(client, &QueryName {}).await?;
    let version = client.version();
    Ok(GuestFacts {
        uuid: uuid.uuid.parse().ok(),
        name: name.name,
        power_state: PowerState::new(&status.status, status.running),
        disks: disks(&answers(client).await?),
        capabilities: capabilities(client),
        quirks: quirks(client),
        version: version.clone(),
    })
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

async fn answers(client: &Client) -> Result<Answers, EngineError> {
    let mut answers = Answers {
        devices: ask(client, &QueryBlock {}).await?,
        nodes: ask(client, &QueryNamedBlockNodes { flat: true }).await?,
        graph: Some(ask(client, &QueryBlockGraph {}).await?),
        types: HashMap::new(),
        peripherals: Vec::new(),
    };
    for device in &answers.devices {
        let Some(qdev) = &device.qdev else { continue };
        let path = if qdev.starts_with('/') { qdev.clone() } else { format!("/machine/peripheral/{qdev}") };
        // A device without a readable type is judged by its nodes alone.
        if let Some(kind) = optional(client, &QomGet { path, property: "type".to_owned() }).await?
            && let Some(kind) = kind.as_str()
        {
            answers.types.insert(qdev.clone(), kind.to_owned());
        }
    }
    for path in ["/machine/peripheral", "/machine/peripheral-anon"] {
        let found = optional(client, &QomList { path: path.to_owned() }).await?.unwrap_or_default();
        answers.peripherals.extend(found.into_iter().filter_map(|child| {
            let kind = child.kind.strip_prefix("child<")?.strip_suffix('>')?.to_owned();
            Some((format!("{path}/{}", child.name), kind))
        }));
    }
    Ok(answers)
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
