//! QEMU's command line as it may be stored beside a backup (pure): whoever reads a repository must not learn passwords
//! and keys from it. What is taken out leaves a mark, so that a person who starts the machine again sees what is missing.
//!
//! QEMU's forms, as `qemu-system-x86_64(1)` has them: `key=value,key=value` with `,,` for a comma, JSON, and the names of
//! network disks (`rbd:pool/image:key=…`, `scheme://user:password@host/…`).

use serde_json::Value;

/// Stands where a secret was.
pub const REMOVED: &str = "<removed>";

/// Keys whose values are secrets, wherever they stand; with dots before them too, as in `file.password`. Keys that end in
/// `-secret` or `id` name an object that holds one, and stay.
const SECRETS: [&str; 6] = ["password", "passwd", "key", "cookie", "data", "secret"];

/// Options whose values are handed to the guest, where passwords and tokens are commonly found: its first configuration.
const GUEST_DATA: [(&str, &str); 2] = [("-fw_cfg", "string"), ("-smbios", "value")];

/// The arguments without their secrets, the program's name first.
pub fn without_secrets(arguments: &[String]) -> Vec<String> {
    let option = |at: usize| at.checked_sub(1).and_then(|before| arguments.get(before)).map_or("", String::as_str);
    arguments.iter().enumerate().map(|(at, argument)| clean_argument(option(at), argument)).collect()
}

fn clean_argument(option: &str, argument: &str) -> String {
    // `--object` is `-object`.
    let option = if option.starts_with("--") { &option[1..] } else { option };
    if let Ok(mut json @ (Value::Object(_) | Value::Array(_))) = serde_json::from_str::<Value>(argument) {
        clean_json(&mut json);
        return json.to_string();
    }
    let parts = split(argument).into_iter().map(|part| match part.split_once('=') {
        Some((key, value)) if is_secret(option, key) && !is_switch(value) => format!("{key}={REMOVED}"),
        Some((key, value)) if !key.contains("://") => format!("{key}={}", clean_name(value)),
        _ => clean_name(part),
    });
    parts.collect::<Vec<_>>().join(",")
}

fn clean_json(json: &mut Value) {
    match json {
        Value::Object(members) => {
            for (key, value) in members {
                match value {
                    Value::String(text) if is_secret("", key) => REMOVED.clone_into(text),
                    value => clean_json(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(clean_json),
        Value::String(text) => *text = clean_name(text),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn is_secret(option: &str, key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    SECRETS.contains(&last) || GUEST_DATA.contains(&(option, key))
}

/// `-vnc …,password=on` says that there is a password, not which.
fn is_switch(value: &str) -> bool {
    matches!(value, "on" | "off" | "yes" | "no" | "true" | "false")
}

/// At single commas; doubled ones belong to a value.
fn split(argument: &str) -> Vec<&str> {
    let (mut parts, mut begin, mut at) = (Vec::new(), 0, 0);
    let bytes = argument.as_bytes();
    while at < bytes.len() {
        if bytes[at] != b',' {
            at += 1;
        } else if bytes.get(at + 1) == Some(&b',') {
            at += 2;
        } else {
            parts.push(&argument[begin..at]);
            at += 1;
            begin = at;
        }
    }
    parts.push(&argument[begin..]);
    parts
}

/// The name of a disk, without what it says to who serves it.
fn clean_name(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("json:")
        && let Ok(mut json) = serde_json::from_str::<Value>(rest)
    {
        clean_json(&mut json);
        return format!("json:{json}");
    }
    if name.starts_with("rbd:") {
        let parts = name.split(':').map(|part| match part.split_once('=') {
            Some((key, _)) if is_secret("", key) => format!("{key}={REMOVED}"),
            _ => part.to_owned(),
        });
        return parts.collect::<Vec<_>>().join(":");
    }
    let Some((scheme, rest)) = name.split_once("://") else { return name.to_owned() };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match host.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://{REMOVED}@{host}{path}"),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(option: &str, argument: &str) -> String {
        without_secrets(&[option.to_owned(), argument.to_owned()])[1].clone()
    }

    #[test]
    fn what_starts_a_machine_stays_to_the_letter() {
        for (option, argument) in [
            ("-blockdev", "driver=raw,node-name=disk0-image,file.driver=file,file.filename=/var/lib/a,,b.raw"),
            ("-device", "virtio-blk-pci,id=disk0,drive=disk0-image,serial=secretive"),
            ("-object", "secret,id=sec0,file=/etc/key,format=base64"),
            ("-drive", "file=/a.qcow2,format=qcow2,encrypt.key-secret=sec0"),
            ("-vnc", "127.0.0.1:1,password=on"),
            ("-append", "console=ttyS0 quiet root=UUID=1-2"),
            ("-drive", "file=nbd+unix:///disk?socket=/run/nbd,format=raw"),
            ("-smbios", "type=1,manufacturer=a,uuid=11111111-1111-4111-8111-111111111111"),
            ("-m", "256"),
        ] {
            assert_eq!(clean(option, argument), argument);
        }
    }

    #[test]
    fn passwords_and_keys_leave_a_mark_and_nothing_else() {
        for (option, argument, cleaned) in [
            ("-object", "secret,id=sec0,data=hunter2", "secret,id=sec0,data=<removed>"),
            ("--object", "secret,id=sec0,data=a,,b=c,format=raw", "secret,id=sec0,data=<removed>,format=raw"),
            (
                "-object",
                r#"{"qom-type":"secret","id":"s","data":"x"}"#,
                r#"{"qom-type":"secret","id":"s","data":"<removed>"}"#,
            ),
            ("-spice", "port=5900,password=hunter2", "port=5900,password=<removed>"),
            ("-drive", "file.driver=ssh,file.password=x,if=none", "file.driver=ssh,file.password=<removed>,if=none"),
            ("-iscsi", "user=me,password=x", "user=me,password=<removed>"),
            ("-drive", "file=rbd:pool/a:id=admin:key=AQx==:conf=/c", "file=rbd:pool/a:id=admin:key=<removed>:conf=/c"),
            ("-drive", "file=iscsi://me%pw@10.0.0.1/iqn/1,if=none", "file=iscsi://<removed>@10.0.0.1/iqn/1,if=none"),
            ("-cdrom", "https://me:pw@example.com/a@b.iso?x=1", "https://<removed>@example.com/a@b.iso?x=1"),
            (
                "-blockdev",
                r#"{"driver":"raw","file":{"driver":"https","url":"https://u:p@h/x","cookie":"c"}}"#,
                r#"{"driver":"raw","file":{"driver":"https","url":"https://<removed>@h/x","cookie":"<removed>"}}"#,
            ),
            ("-drive", r#"file=json:{"driver":"ssh"},,x"#, r#"file=json:{"driver":"ssh"},,x"#),
            ("-fw_cfg", "name=opt/com.coreos/config,string={secret}", "name=opt/com.coreos/config,string=<removed>"),
            ("-smbios", "type=11,value=io.systemd.credential:a=b", "type=11,value=<removed>"),
        ] {
            assert_eq!(clean(option, argument), cleaned, "{option} {argument}");
        }
    }

    #[test]
    fn the_form_of_names_with_json_is_kept() {
        let cleaned = clean("-hda", r#"json:{"driver":"https","url":"https://u:p@h/x"}"#);
        assert_eq!(cleaned, r#"json:{"driver":"https","url":"https://<removed>@h/x"}"#);
    }
}
