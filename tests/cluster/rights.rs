//! The tables of docs/security.md and what the chart renders are the same, in both directions.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{controlplane::ControlPlane, guides::tree, installation::Installation};

const NAMESPACE: &str = "driftline-system";
const PAGE: &str = "docs/security.md";

/// One right: account, API group, resource, verb, where.
type Right = [String; 5];

/// The objects that the chart renders.
fn rendered(values: &[&str]) -> Vec<Value> {
    let chart = tree("charts/driftline").display().to_string();
    let words = ["template", "driftline", chart.as_str(), "--namespace", NAMESPACE];
    let text = ControlPlane::shared().helm(words.into_iter().chain(values.iter().copied())).ok();
    let objects = text.split("\n---\n").map(|text| text.trim_start_matches("---\n"));
    objects
        .filter(|text| text.lines().any(|line| line.starts_with("kind:")))
        .map(|text| serde_saphyr::from_str(text).unwrap())
        .collect()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// The rights that the rendered roles give, through the rendered bindings.
fn given(objects: &[Value]) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for binding in objects.iter().filter(|object| object["kind"].as_str().unwrap().ends_with("RoleBinding")) {
        let everywhere = binding["kind"] == "ClusterRoleBinding";
        let role = objects
            .iter()
            .find(|role| {
                role["kind"] == binding["roleRef"]["kind"] && role["metadata"]["name"] == binding["roleRef"]["name"]
            })
            .unwrap_or_else(|| panic!("no role for {binding:#}"));
        for subject in binding["subjects"].as_array().unwrap() {
            assert_eq!((&subject["kind"], &subject["namespace"]), (&"ServiceAccount".into(), &NAMESPACE.into()));
            for rule in role["rules"].as_array().unwrap() {
                let known = ["apiGroups", "resources", "verbs", "resourceNames"];
                assert!(rule.as_object().unwrap().keys().all(|key| known.contains(&key.as_str())), "{rule}");
                let names = texts(&rule["resourceNames"]);
                let place = if everywhere { "everywhere" } else { NAMESPACE };
                let places = match names.as_slice() {
                    [] => vec![place.to_owned()],
                    names => names.iter().map(|name| format!("{place}: {name}")).collect(),
                };
                for group in texts(&rule["apiGroups"]) {
                    let group = if group.is_empty() { "core".to_owned() } else { group };
                    for resource in texts(&rule["resources"]) {
                        for (verb, place) in
                            texts(&rule["verbs"]).iter().flat_map(|verb| places.iter().map(move |place| (verb, place)))
                        {
                            let account = subject["name"].as_str().unwrap().to_owned();
                            rights.insert([account, group.clone(), resource.clone(), verb.clone(), place.clone()]);
                        }
                    }
                }
            }
        }
    }
    rights
}

/// The rows of the table whose first column is called `first`, without the marks of code.
fn table(text: &str, first: &str) -> Vec<Vec<String>> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&format!("| {first} |"))).skip(2);
    let rows: Vec<Vec<String>> = lines
        .by_ref()
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect())
        .collect();
    assert!(!rows.is_empty(), "{PAGE} has no table of {first:?}");
    rows
}

/// The rights that a page says there are.
fn said(text: &str) -> BTreeSet<Right> {
    let (mut rights, mut without) = (BTreeSet::<Right>::new(), Vec::new());
    let words = |cell: &str| cell.split(", ").map(str::to_owned).collect::<Vec<_>>();
    for row in table(text, "account") {
        let [account, group, resources, verbs, place, why] = row.as_slice() else { panic!("{row:?}") };
        assert!(!why.is_empty(), "{row:?} has no reason");
        if verbs == "none" {
            without.push(account.clone());
            continue;
        }
        for resource in words(resources) {
            for verb in words(verbs) {
                rights.insert([account.clone(), group.clone(), resource.clone(), verb, place.clone()]);
            }
        }
    }
    assert!(rights.iter().all(|[account, ..]| !without.contains(account)), "{without:?} has none and some");
    rights
}

fn page() -> String {
    std::fs::read_to_string(tree(PAGE)).unwrap()
}

#[track_caller]
fn assert_same<T: Ord + std::fmt::Debug>(what: &str, said: &BTreeSet<T>, given: &BTreeSet<T>) {
    let (only_said, only_given) =
        (said.difference(given).collect::<Vec<_>>(), given.difference(said).collect::<Vec<_>>());
    assert!(
        only_said.is_empty() && only_given.is_empty(),
        "{what}: {PAGE} says what the chart does not give: {only_said:#?}\nthe chart gives what the page does not say: \
         {only_given:#?}"
    );
}

#[test]
fn the_page_says_every_right_of_both_accounts_and_no_other() {
    let objects = rendered(&[]);
    assert_same("rights", &said(&page()), &given(&objects));
    let named = |of: &[Value], kind: &str| -> BTreeSet<String> {
        let of_kind = of.iter().filter(|object| object["kind"] == kind);
        of_kind.map(|object| object["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let accounts = table(&page(), "account").into_iter().map(|row| row[0].clone()).collect();
    assert_same("accounts", &accounts, &named(&objects, "ServiceAccount"));
}

/// What `kubectl auth can-i --list` says that an account may do in a namespace: verb, group, resource and name.
fn listed(namespace: &str, account: &str) -> BTreeSet<[String; 4]> {
    let who = format!("--as=system:serviceaccount:{account}");
    let text = ControlPlane::shared().kubectl(["auth", "can-i", "--list", "--namespace", namespace, &who]).ok();
    let mut rights = BTreeSet::new();
    // Columns: resource.group/subresource, URLs, names, verbs; a line about URLs has no resource.
    for line in text.lines().skip(1).filter(|line| !line.starts_with(' ')) {
        let words = |cell: Option<&str>| -> Vec<String> {
            let cell = cell.and_then(|cell| cell.split(']').next()).unwrap_or_else(|| panic!("{line}"));
            cell.split_whitespace().map(str::to_owned).collect()
        };
        let mut cells = line.split('[');
        let resource = cells.next().unwrap().trim().to_owned();
        let [urls, names, verbs] = [(); 3].map(|()| words(cells.next()));
        assert!(urls.is_empty(), "{line}");
        let (resource, sub) = resource.find('/').map_or((resource.as_str(), ""), |slash| resource.split_at(slash));
        let (resource, group) = resource.split_once('.').unwrap_or((resource, "core"));
        let names = if names.is_empty() { vec![String::new()] } else { names };
        for (verb, name) in verbs.iter().flat_map(|verb| names.iter().map(move |name| (verb, name))) {
            rights.insert([verb.clone(), group.to_owned(), format!("{resource}{sub}"), name.clone()]);
        }
    }
    rights
}

#[test]
fn the_servers_list_of_what_both_accounts_may_is_the_pages_table() {
    Installation::shared();
    let page = said(&page());
    for account in ["driftline-controller", "driftline-agent"] {
        let ours = format!("{NAMESPACE}:{account}");
        // What every account may: ask what it may.
        let of_all = |namespace| listed(namespace, &format!("{NAMESPACE}:nobody"));
        let everywhere = listed("default", &ours);
        let here: BTreeSet<_> = listed(NAMESPACE, &ours).difference(&everywhere).cloned().collect();
        let mut given = BTreeSet::new();
        let rows = [("everywhere", &everywhere - &of_all("default")), (NAMESPACE, &here - &of_all(NAMESPACE))];
        for (place, rights) in rows {
            given.extend(rights.into_iter().map(|[verb, group, resource, name]| {
                let place = if name.is_empty() { place.to_owned() } else { format!("{place}: {name}") };
                [account.to_owned(), group, resource, verb, place]
            }));
        }
        let said = page.iter().filter(|right| right[0] == account).cloned().collect();
        assert_same("rights by the server", &said, &given);
    }
}

#[test]
fn an_authority_of_somebody_else_is_only_read() {
    let rights = given(&rendered(&["--set=certificates.authoritySecret=ours"]));
    let secrets: Vec<_> = rights.iter().filter(|[_, _, resource, ..]| resource == "secrets").collect();
    let only = ["driftline-controller", "core", "secrets", "get", "driftline-system: ours"].map(str::to_owned);
    assert_eq!(secrets, [&only]);
}

#[test]
fn a_right_that_one_side_alone_has_is_noticed() {
    let given = given(&rendered(&[]));
    let more = "| `driftline-agent` | core | `pods` | `list` | everywhere | it would like to |";
    let page = page();
    let row = page.lines().find(|line| line.starts_with("| `driftline-controller` | core | `secrets`")).unwrap();
    assert_ne!(said(&page.replace(row, "")), given);
    let agents = page.lines().find(|line| line.starts_with("| `driftline-agent` | none")).unwrap();
    assert_ne!(said(&page.replace(agents, more)), given);
    assert_ne!(said(&page.replace("`get`, `patch` | `driftline-system`", "`get` | `driftline-system`")), given);
}

#[test]
fn the_page_says_what_the_agents_pod_may_and_what_it_has_of_its_host() {
    let objects = rendered(&["--set=agent.hostPaths.restores={/var/lib/machines}"]);
    let agent = objects.iter().find(|object| object["kind"] == "DaemonSet").unwrap();
    let pod = &agent["spec"]["template"]["spec"];
    let [container] = pod["containers"].as_array().unwrap().as_slice() else { panic!("{pod:#}") };
    let context = &container["securityContext"];
    let capabilities: BTreeSet<String> = table(&page(), "capability").into_iter().map(|row| row[0].clone()).collect();
    assert_same("capabilities", &capabilities, &texts(&context["capabilities"]["add"]).into_iter().collect());
    assert_eq!(texts(&context["capabilities"]["drop"]), ["ALL"]);
    for (field, expected) in [("privileged", Value::Null), ("allowPrivilegeEscalation", false.into())] {
        assert_eq!(context[field], expected, "{field}");
    }
    assert_eq!(context["readOnlyRootFilesystem"], true);
    for other in ["hostNetwork", "hostIPC", "initContainers"] {
        assert_eq!(pod[other], Value::Null, "{other}");
    }

    let mut given = BTreeSet::new();
    if pod["hostPID"] == true {
        given.insert(("process ids (hostPID)".to_owned(), "sees"));
    }
    for volume in pod["volumes"].as_array().unwrap() {
        let Some(path) = volume["hostPath"]["path"].as_str() else { continue };
        let mounts =
            container["volumeMounts"].as_array().unwrap().iter().filter(|mount| mount["name"] == volume["name"]);
        for mount in mounts {
            assert_eq!(mount["mountPath"], path, "at its own path");
            let name = match path {
                "/srv/backup" => "agent.hostPaths.repositories: /srv/backup",
                "/var/lib/machines" => "agent.hostPaths.restores",
                "/run/qemu" => "agent.hostPaths.sockets: /run/qemu",
                path => path,
            };
            given.insert((name.to_owned(), if mount["readOnly"] == true { "reads" } else { "writes" }));
        }
    }
    let rows = table(&page(), "of the host");
    let said = rows.iter().map(|row| (row[0].clone(), row[1].as_str())).collect();
    assert_same("the host", &said, &given);
}
