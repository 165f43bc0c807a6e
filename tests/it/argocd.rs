//! Argo CD's script for the health of our objects, run by the Lua that Argo CD has (5.1).

use std::process::Command;

use serde_json::{Value, json};

/// What the script says of an object: its status and its message.
fn health(object: &Value) -> (String, String) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/driftline/argocd-health.lua");
    let run = format!(
        "obj = {}\nlocal health = dofile({})\nio.write(health.status, '\\n', health.message)",
        lua(object),
        lua(&json!(script))
    );
    let output = Command::new("lua5.1").args(["-e", &run]).output().unwrap();
    assert!(output.status.success(), "{run}\n{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let (status, message) = said.split_once('\n').unwrap();
    (status.to_owned(), message.to_owned())
}

/// JSON as Argo CD gives it to a script.
fn lua(value: &Value) -> String {
    match value {
        Value::Null => "nil".to_owned(),
        Value::Array(items) => format!("{{{}}}", items.iter().map(lua).collect::<Vec<_>>().join(",")),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| format!("[{}]={}", lua(&json!(name)), lua(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        }
        // Strings without control characters are written alike.
        plain => plain.to_string(),
    }
}

fn object(conditions: &[(&str, &str)]) -> Value {
    let conditions: Vec<_> = conditions
        .iter()
        .map(|(kind, status)| json!({ "type": kind, "status": status, "message": format!("{kind} says \"so\"") }))
        .collect();
    json!({ "metadata": { "generation": 3 }, "status": { "observedGeneration": 3, "conditions": conditions } })
}

#[test]
fn argo_cd_sees_the_health_of_every_state_of_an_object() {
    let says = |status: &str, kind: &str| (status.to_owned(), format!("{kind} says \"so\""));
    let waits = ("Progressing".to_owned(), "waiting for the controller".to_owned());
    assert_eq!(health(&json!({ "metadata": { "generation": 1 } })), waits);
    let mut old = object(&[("Complete", "True"), ("Ready", "True")]);
    old["status"]["observedGeneration"] = 2.into();
    assert_eq!(health(&old), waits, "what is said of an older spec says nothing of this one");
    for (conditions, wanted) in [
        (&[("Ready", "True"), ("Complete", "True"), ("Failed", "False")][..], says("Healthy", "Complete")),
        (&[("Ready", "False"), ("Complete", "False"), ("Failed", "True")], says("Degraded", "Failed")),
        (&[("Ready", "False"), ("Stalled", "True"), ("Reconciling", "False")], says("Degraded", "Stalled")),
        (&[("Ready", "False"), ("Stalled", "False"), ("Reconciling", "True")], says("Progressing", "Reconciling")),
        (&[("Ready", "True"), ("Stalled", "False"), ("Reconciling", "False")], says("Healthy", "Ready")),
        (&[("Ready", "Unknown"), ("Stalled", "False")], says("Progressing", "Ready")),
    ] {
        assert_eq!(health(&object(conditions)), wanted, "{conditions:?}");
    }
}
