//! An overlay that somebody has put on a filter of ours, by a snapshot while the run was fleeced. Its header names the
//! filter as the format of its base, so that no machine can be started from it: the run ends, and the filter is taken out
//! from below the overlay, which makes the header right (ADR 0007).

use std::time::{Duration, Instant};

use crate::{
    engine::EngineError,
    qmp::{
        Client, ExecuteError,
        block::{BlockGraph, BlockNode},
        command::{BlockStream, QueryBlockGraph, QueryNamedBlockNodes},
    },
};

use super::{doors::ask, fleece::below};

/// How long taking a filter out may take: nothing is copied by it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The overlay whose base is a filter of ours.
pub(super) fn overlay_on<'a>(graph: &'a BlockGraph, filter: &str) -> Option<&'a str> {
    graph.parent(filter, "backing")
}

/// What takes the filter out from below an overlay; none where it is below none.
fn stream(graph: &BlockGraph, nodes: &[BlockNode], filter: &str) -> Option<BlockStream> {
    let overlay = overlay_on(graph, filter)?;
    let node = nodes.iter().find(|node| node.node_name == overlay);
    // What the overlay calls its base is right, but where QEMU has made up a text for the filter.
    let backing_file =
        node.and_then(|node| node.image.backing_filename.clone()).filter(|name| !name.starts_with("json:"));
    let (job_id, device) = (filter.to_owned(), overlay.to_owned());
    Some(BlockStream { job_id, device, base_node: below(graph, filter)?.to_owned(), backing_file })
}

/// Takes a filter out from below whatever overlay is on it. Nothing is done where there is none.
///
/// # Errors
///
/// `FilterStuck` where QEMU refuses to, or does not get to it; what the connection says.
pub(super) async fn free(client: &Client, filter: &str) -> Result<(), EngineError> {
    let (until, mut asked) = (Instant::now() + PATIENCE, false);
    loop {
        let graph = ask(client, "Asking QEMU for its block graph", &QueryBlockGraph {}).await?;
        let nodes = ask(client, "Asking QEMU for its nodes", &QueryNamedBlockNodes { flat: true }).await?;
        let Some(stream) = stream(&graph, &nodes, filter) else { return Ok(()) };
        let stuck = |why: String| EngineError::FilterStuck {
            filter: filter.to_owned(),
            overlay: stream.device.clone(),
            base: stream.base_node.clone(),
            why,
        };
        if Instant::now() > until {
            return Err(stuck("it is still there".to_owned()));
        }
        if !asked {
            asked = true;
            match ask(client, "Taking a filter out from below an overlay", &stream).await {
                Err(EngineError::Qemu { source: ExecuteError::Qemu { description, .. }, .. }) => {
                    return Err(stuck(description));
                }
                done => {
                    done?;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[cfg(test)]
mod tests;
