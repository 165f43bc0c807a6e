//! The pod that stands for an agent's process: nobody runs it, but the API server binds the agent's token to it, and by it
//! to a node, as a kubelet has it done.

use serde_json::json;

use super::NAMESPACE;
use crate::controlplane::ControlPlane;

/// Makes node and pod.
pub(super) fn place(plane: &ControlPlane, node: &str) {
    let object = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node } });
    plane.apply(NAMESPACE, &object.to_string()).ok();
    let template = ["get", "daemonset", "driftline-agent", "-n", NAMESPACE, "-o", "jsonpath={.spec.template.spec}"];
    let mut spec: serde_json::Value = serde_json::from_str(&plane.kubectl(template).ok()).expect("kubectl prints JSON");
    spec["nodeName"] = node.into();
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name(node) }, "spec": spec });
    plane.apply(NAMESPACE, &pod.to_string()).ok();
}

/// A token as the chart's projected volume asks for it.
pub(super) fn token(plane: &ControlPlane, node: &str) -> String {
    let source = "jsonpath={.spec.volumes[?(@.name=='token')].projected.sources[0].serviceAccountToken.audience}";
    let audience = plane.kubectl(["get", "pod", &name(node), "-n", NAMESPACE, "-o", source]).ok();
    let uid = plane.kubectl(["get", "pod", &name(node), "-n", NAMESPACE, "-o", "jsonpath={.metadata.uid}"]).ok();
    let (audience, uid) = (format!("--audience={audience}"), format!("--bound-object-uid={uid}"));
    let bound = ["--bound-object-kind=Pod", "--bound-object-name", &name(node), &uid, &audience];
    plane.kubectl(["create", "token", "driftline-agent", "-n", NAMESPACE].into_iter().chain(bound)).ok()
}

fn name(node: &str) -> String {
    format!("driftline-agent-{node}")
}
