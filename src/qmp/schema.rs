//! What this QEMU can do, from its own `query-qmp-schema`: features are asked for by name, never guessed from a
//! version. Pure but for one table that lets guests of the same QEMU share one schema; `store` keeps schemas on disk.

mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use serde::{Deserialize, Serialize};

pub use store::Schemas;

/// The commands with their arguments, the events and the block drivers of one QEMU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    commands: BTreeMap<Box<str>, Box<[Box<str>]>>,
    events: BTreeSet<Box<str>>,
    drivers: BTreeSet<Box<str>>,
}

impl Schema {
    /// True when the command exists.
    pub fn has_command(&self, command: &str) -> bool {
        self.commands.contains_key(command)
    }

    /// True when the command exists and takes the argument.
    pub fn has_argument(&self, command: &str, argument: &str) -> bool {
        self.commands.get(command).is_some_and(|arguments| arguments.iter().any(|name| **name == *argument))
    }

    /// True when the event exists.
    pub fn has_event(&self, event: &str) -> bool {
        self.events.contains(event)
    }

    /// True when `blockdev-add` knows the driver.
    pub fn has_driver(&self, driver: &str) -> bool {
        self.drivers.contains(driver)
    }

    /// The same schema, shared with all others of this process that are equal: a node with fifty guests of one QEMU
    /// keeps one.
    pub(super) fn shared(self) -> Arc<Schema> {
        static LIVING: Mutex<Vec<Weak<Schema>>> = Mutex::new(Vec::new());
        let mut living = LIVING.lock().unwrap_or_else(PoisonError::into_inner);
        living.retain(|schema| schema.strong_count() > 0);
        if let Some(equal) = living.iter().filter_map(Weak::upgrade).find(|schema| **schema == self) {
            return equal;
        }
        let schema = Arc::new(self);
        living.push(Arc::downgrade(&schema));
        schema
    }
}

/// The answer of `query-qmp-schema`, as it comes: types are known by made-up names.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct SchemaAnswer(Vec<Entity>);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Entity {
    name: Box<str>,
    meta_type: Box<str>,
    arg_type: Option<Box<str>>,
    #[serde(default)]
    members: Vec<Member>,
    #[serde(default)]
    variants: Vec<Variant>,
}

/// A member of an object by name, or of an alternate, which has none.
#[derive(Debug, Deserialize)]
struct Member {
    name: Option<Box<str>>,
}

#[derive(Debug, Deserialize)]
struct Variant {
    case: Box<str>,
}

impl From<SchemaAnswer> for Schema {
    fn from(SchemaAnswer(entities): SchemaAnswer) -> Schema {
        let objects: BTreeMap<&str, &Entity> =
            entities.iter().filter(|e| &*e.meta_type == "object").map(|e| (&*e.name, e)).collect();
        let mut schema = Schema::default();
        for entity in &entities {
            let arguments = entity.arg_type.as_deref().and_then(|name| objects.get(name));
            match &*entity.meta_type {
                "command" => {
                    let names = arguments.map_or(&[][..], |object| &object.members);
                    let names = names.iter().filter_map(|member| member.name.clone()).collect();
                    schema.commands.insert(entity.name.clone(), names);
                    if &*entity.name == "blockdev-add" {
                        let variants = arguments.map_or(&[][..], |object| &object.variants);
                        schema.drivers = variants.iter().map(|variant| variant.case.clone()).collect();
                    }
                }
                "event" => {
                    schema.events.insert(entity.name.clone());
                }
                _ => {}
            }
        }
        schema
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cut out of the answer of QEMU 7.2.22.
    const ANSWER: &str = r#"[
        {"name":"blockdev-backup","ret-type":"0","meta-type":"command","arg-type":"31"},
        {"name":"31","members":[{"name":"job-id","default":null,"type":"str"},{"name":"x-perf","default":null,
            "type":"282","features":["unstable"]}],"meta-type":"object"},
        {"name":"blockdev-add","ret-type":"0","meta-type":"command","arg-type":"30"},
        {"name":"30","members":[{"name":"driver","type":"200"}],"tag":"driver",
            "variants":[{"case":"qcow2","type":"201"},{"case":"snapshot-access","type":"202"}],"meta-type":"object"},
        {"name":"290","members":[{"type":"str"},{"type":"null"}],"meta-type":"alternate"},
        {"name":"BLOCK_IO_ERROR","meta-type":"event","arg-type":"55"},
        {"name":"query-jobs","ret-type":"[7]","meta-type":"command","arg-type":"0","features":["from-the-future"]}]"#;

    fn schema() -> Schema {
        serde_json::from_str::<SchemaAnswer>(ANSWER).unwrap().into()
    }

    #[test]
    fn commands_arguments_events_and_drivers_are_found_by_name() {
        let schema = schema();
        assert!(schema.has_command("query-jobs") && !schema.has_command("31"));
        assert!(schema.has_argument("blockdev-backup", "x-perf"));
        assert!(!schema.has_argument("blockdev-backup", "on-cbw-error"));
        assert!(schema.has_event("BLOCK_IO_ERROR") && !schema.has_event("query-jobs"));
        assert!(schema.has_driver("snapshot-access") && !schema.has_driver("copy-before-write"));
    }

    #[test]
    fn guests_of_one_qemu_share_one_schema() {
        let first = schema().shared();
        assert!(Arc::ptr_eq(&first, &schema().shared()));
        assert!(!Arc::ptr_eq(&first, &Schema::default().shared()));
    }
}
