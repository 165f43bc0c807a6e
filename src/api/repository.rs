//! Kind BackupRepository: where points live. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where restore points live.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "driftline.dev",
    version = "v1alpha1",
    kind = "BackupRepository",
    plural = "backuprepositories",
    namespaced,
    category = "driftline",
    status = "BackupRepositoryStatus",
    derive = "PartialEq",
    cel,
    doc = "Where restore points live: a folder on a node, or one that every node sees. Deleting this object deletes no backup data.",
    printcolumn(
        name = "Type",
        type_ = "string",
        json_path = ".status.type",
        description = "How the repository is reached."
    ),
    printcolumn(
        name = "Access",
        type_ = "string",
        json_path = ".spec.accessMode",
        description = "ReadWrite or ReadOnly."
    ),
    printcolumn(
        name = "Points",
        type_ = "integer",
        json_path = ".status.restorePoints",
        description = "Restore points that it holds."
    ),
    printcolumn(
        name = "Used",
        type_ = "string",
        json_path = ".status.used",
        description = "Space in use on its file system."
    ),
    printcolumn(
        name = "Capacity",
        type_ = "string",
        json_path = ".status.capacity",
        description = "Size of its file system."
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether points can be read from it."
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        priority = 1,
        description = "Why it is ready, or why not."
    ),
    printcolumn(
        name = "Path",
        type_ = "string",
        json_path = ".spec.filesystem.path",
        priority = 1,
        description = "The folder."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct BackupRepositorySpec {
    /// A folder of the hosts. It must exist and be empty, or already be this repository, and lie beneath one of the
    /// `repositoryRoots` of the host's own configuration.
    pub filesystem: Filesystem,
    /// ReadWrite (the default) takes new points. ReadOnly only shows and restores those that are there; it is never
    /// initialised.
    #[serde(default)]
    pub access_mode: AccessMode,
    /// Who may use the repository. Without it: only objects of its own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage_policy: Option<UsagePolicy>,
    /// How often every agent looks whether the folder is still there, still this repository and writable, and how
    /// often the list of restore points is read anew. Default `5m`, at least 10s. Example: `1h`.
    #[serde(default = "default_validation_frequency")]
    #[schemars(length(max = 28))]
    #[x_kube(
        validation = Rule::new(crate::api::duration::RULE).message(crate::api::duration::RULE_SAYS),
        validation = Rule::new(format!("!({}) || duration(self.replace('d', 'h')) >= duration('10s')", crate::api::duration::RULE)).message("validationFrequency must be 10s or more, such as 5m")
    )]
    pub validation_frequency: String,
}

fn default_validation_frequency() -> String {
    "5m".to_owned()
}

/// A folder of the hosts.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Filesystem {
    /// The folder's absolute path on the hosts. Example: `/srv/backup/team-a`.
    #[schemars(length(min = 2, max = 1024))]
    #[x_kube(
        validation = Rule::new("self.startsWith('/')").message("path must be absolute, such as /srv/backup/team-a"),
        validation = Rule::new("!self.split('/').exists(p, p == '..' || p == '.')").message("path must not contain . or .. components: write the folder's real path"),
        validation = Rule::new("!self.endsWith('/') && !self.contains('//')").message("path must be plain: no // and no / at its end")
    )]
    pub path: String,
    /// The one node that has the folder. Without it the folder must be one that every agent sees, such as a mount of
    /// the same network file system at the same path. A backup to such a file system goes by way of the node's `[scratch]`
    /// folder, because one that hangs would stop the guest; without that folder it is refused (`TargetUnsafe`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub node_name: Option<String>,
}

/// Whether a repository takes new points.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessMode {
    /// Takes new points.
    #[default]
    ReadWrite,
    /// Only shows and restores what is there.
    ReadOnly,
}

/// Who may use a repository.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct UsagePolicy {
    /// Namespaces whose runs may use the repository, besides its own. `"*"` stands for all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 63)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(n, n == '*' || n.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$'))").message("allowedNamespaces takes names of namespaces, such as team-a, or \"*\" for all of them")
    )]
    pub allowed_namespaces: Vec<String>,
}

/// What is known about the repository.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BackupRepositoryStatus {
    /// The `metadata.generation` that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready (points can be read), Writable (and new ones taken), Reconciling and Stalled, each with a reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// How the repository is reached: Filesystem.
    #[serde(default, rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The repository's identity. It is chosen here before the folder is initialised; a folder of another id is never
    /// used.
    #[serde(default, rename = "repositoryID", skip_serializing_if = "Option::is_none")]
    pub repository_id: Option<String>,
    /// Whether the folder is known to be this repository; from then on it is never initialised again.
    #[serde(default, skip_serializing_if = "is_false")]
    pub initialised: bool,
    /// Version of the repository's format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format_version: Option<i32>,
    /// Size of the repository's file system, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<i64>,
    /// Bytes in use on that file system, by whatever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<i64>,
    /// `capacityBytes` for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub capacity: String,
    /// `usedBytes` for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub used: String,
    /// Restore points that it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_points: Option<i64>,
    /// When the agents last looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_validation_time: Option<Time>,
    /// How many agents see the repository, of those that should, such as `3/4`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub agents: String,
    /// Agents that do not see it, or cannot write to it, with the reason; at most 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["node".into()]))]
    pub unavailable_on: Vec<UnavailableOn>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// An agent that cannot use the repository.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct UnavailableOn {
    /// The agent's node.
    pub node: String,
    /// One word for the reason.
    pub reason: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl BackupRepositorySpec {
    /// Whether objects of `namespace` may use the repository, which itself stands in `own`.
    pub fn allows(&self, own: &str, namespace: &str) -> bool {
        own == namespace
            || self
                .usage_policy
                .as_ref()
                .is_some_and(|p| p.allowed_namespaces.iter().any(|n| n == "*" || n == namespace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(path: &str) -> BackupRepository {
        BackupRepository::new(
            "r",
            BackupRepositorySpec {
                filesystem: Filesystem { path: path.to_owned(), node_name: None },
                access_mode: AccessMode::ReadWrite,
                usage_policy: None,
                validation_frequency: "5m".to_owned(),
            },
        )
    }

    #[test]
    fn a_plain_absolute_path_is_taken() {
        repository("/srv/backup/..a/b.").validate_cel().unwrap();
    }

    #[test]
    fn a_path_that_climbs_or_is_not_plain_is_refused() {
        for path in ["srv/backup", "//srv", "/srv/../etc", "/srv/./x", "/srv/..", "/srv//x", "/srv/"] {
            assert!(repository(path).validate_cel().is_err(), "{path}");
        }
    }

    #[test]
    fn a_validation_every_second_is_refused() {
        for (frequency, good) in [("9s", false), ("often", false), ("10s", true), ("1m", true), ("1d", true)] {
            let mut object = repository("/srv/x");
            object.spec.validation_frequency = frequency.to_owned();
            assert_eq!(object.validate_cel().is_ok(), good, "{frequency}");
        }
    }

    #[test]
    fn namespaces_are_names_or_a_star() {
        for (names, good) in [(["a", "team-b"], true), (["a", "*"], true), (["a", "Team"], false), (["a", "b*"], false)]
        {
            let mut object = repository("/srv/x");
            object.spec.usage_policy = Some(UsagePolicy { allowed_namespaces: names.map(str::to_owned).to_vec() });
            assert_eq!(object.validate_cel().is_ok(), good, "{names:?}");
        }
    }

    #[test]
    fn another_namespace_may_use_it_only_where_the_policy_says_so() {
        let mut spec = repository("/srv/x").spec;
        assert!(spec.allows("a", "a") && !spec.allows("a", "b"));
        spec.usage_policy = Some(UsagePolicy { allowed_namespaces: vec!["b".to_owned()] });
        assert!(spec.allows("a", "b") && !spec.allows("a", "c"));
        spec.usage_policy = Some(UsagePolicy { allowed_namespaces: vec!["*".to_owned()] });
        assert!(spec.allows("a", "c"));
    }
}
