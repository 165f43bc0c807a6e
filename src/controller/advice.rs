//! What a person in a cluster does about an agent's reason (pure). The agent and the engine say what is wrong on their
//! host in words that hold for the command too; what to write into which object is said here.

use super::guest::plan::Node;

/// What to do where an agent does not answer.
pub const SEE_ITS_POD: &str =
    "see whether its pod runs; the pod's log says why it does not, such as a mistake in the node's host.toml";

/// What is wrong with a node whose agent does not answer, and what to do.
pub fn silent(node: &str, there: Node) -> String {
    match there {
        Node::Gone => format!("The cluster has no node {node}: name one of `kubectl get nodes` in a new object."),
        Node::There | Node::Unknown => format!("The agent of node {node} does not answer: {SEE_ITS_POD}."),
    }
}

/// The agent's sentence with the way out behind it, where there is one that the sentence does not tell.
pub fn with_way_out(reason: &str, message: &str) -> String {
    match way_out(reason) {
        Some(way_out) => format!("{}. {way_out}.", message.trim_end_matches('.')),
        None => message.to_owned(),
    }
}

fn way_out(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "TargetExists" => "Name another path in a new RestoreRun, or give it overwritePolicy Always",
        "OutsideRoots" => {
            "Name a path beneath the roots of the node's host.toml: repositoryRoots for a repository, the namespace's \
             restoreRoots for a restore; or have whoever runs the node add one"
        }
        "TargetFolderMissing" => "Make the folder on the node first",
        "TargetInRepository" => "Name a path outside of the repository in a new RestoreRun",
        "TargetInUse" => "Shut down the machine that uses the image, or name another path in a new RestoreRun",
        "TargetFull" => "Free some space there, or name another path in a new RestoreRun",
        "TargetReadOnly" => "Mount the file system for writing, or name another path in a new RestoreRun",
        "DigestMismatch" => "Restore another point; `driftline verify` on the node tells all that is damaged",
        "FolderMissing" => "Mount its file system, or make the folder on the node: an empty one becomes a repository",
        "RepositoryNotMounted" => "Mount its file system on the node",
        "RepositoryIdMismatch" => {
            "Mount the file system that the repository is on; where this folder is the one that is meant, delete the \
             BackupRepository and make it again, which touches no data"
        }
        "RepositoryNotEmpty" => "Name an empty folder, or the folder of a repository",
        "RepositoryReadOnly" => "Mount the repository's file system for writing on that node",
        "GuestBelongsToAnotherNamespace" => "Use another repository, or the namespace that the guest had",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::restore::OverwritePolicy;

    #[test]
    fn the_way_out_follows_the_sentence_and_other_sentences_stay() {
        let told = with_way_out("TargetFolderMissing", "There is no folder \"/x\"");
        assert_eq!(told, "There is no folder \"/x\". Make the folder on the node first.");
        assert_eq!(with_way_out("JobFailed", "No space"), "No space");
    }

    #[test]
    fn the_policy_that_is_advised_is_one_of_the_api() {
        let advice = way_out("TargetExists").unwrap();
        let word = advice.rsplit(' ').next().unwrap();
        assert!(serde_json::from_value::<OverwritePolicy>(word.into()).is_ok(), "{advice}");
    }
}
