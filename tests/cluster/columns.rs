//! What `kubectl get` shows of each kind: the answers that a person wants without `-o yaml`.

use std::time::Duration;

use crate::{
    installation::{Installation, NODES},
    lab::machine::{Disk, Plan},
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);

#[test]
fn kubectl_get_of_every_kind_answers_at_a_glance() {
    let installation = Installation::shared();
    let tenant = installation.tenant();
    let node = NODES[0];
    let machine = Plan::new().disk(Disk::qcow2("disk0", 8 * MIB)).start();
    machine.write("disk0", 0x42, 0, MIB);
    tenant.repository(node, "local");
    tenant.guest(node, "db-1", &machine.qmp());
    tenant.back_up("nightly", "db-1", "local");
    tenant.wait_for("backupruns.driftline.dev/nightly", "Complete", SOON);
    let point = tenant.point_of("nightly");
    tenant.wait_for(&format!("restorepoints.driftline.dev/{point}"), "Available", SOON);
    tenant.restore("back", &point, node, &["disk0"], "Raw");
    tenant.wait_for("restoreruns.driftline.dev/back", "Complete", SOON);

    let mut all = String::new();
    for kind in ["guests", "backuprepositories", "backupruns", "restorepoints", "restoreruns"] {
        let table = tenant.kubectl(["get", &format!("{kind}.driftline.dev")]).ok();
        all.push_str(&format!("{kind}\n{}\n", plain(&table, &point)));
    }
    insta::assert_snapshot!(all);
}

/// The table without what differs from run to run: times, ages, sizes of the file system, the point's name; columns
/// parted by one bar.
fn plain(table: &str, point: &str) -> String {
    let head = table.lines().next().unwrap_or_default();
    let mut starts: Vec<usize> =
        (0..head.len()).filter(|&at| !head[at..].starts_with(' ') && (at == 0 || head[..at].ends_with(' '))).collect();
    starts.push(usize::MAX);
    let column = |line: &str, at: usize| {
        let end = starts[at + 1].min(line.len());
        line.get(starts[at]..end).unwrap_or_default().trim().to_owned()
    };
    let mut text = String::new();
    for line in table.lines() {
        let cells = (0..starts.len() - 1).map(|at| match (column(head, at).as_str(), column(line, at)) {
            ("AGE" | "DURATION" | "TIME" | "USED" | "CAPACITY" | "LAST-POINT", cell)
                if line != head && !cell.is_empty() =>
            {
                "…".to_owned()
            }
            (_, cell) => cell.replace(point, "POINT"),
        });
        text.push_str(&format!("{}\n", cells.collect::<Vec<_>>().join(" | ")));
    }
    text
}
