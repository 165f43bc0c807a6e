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
const SECRETS: [&str; 4] = ["key", "cookie", "data", "secret"];

/// Options whose values are handed to the guest, where passwords and tokens are commonly found: its first configuration.
const GUEST_DATA: [(&str, &str); 2] = [("-fw_cfg", "string"), ("-smbios", "value")];

/// Parts of the names of kernel arguments that hold secrets, such as `systemd.set_credential`.
const KERNEL_SECRETS: [&str; 6] = ["credential", "password", "passwd", "token", "secret", "key"];

/// The arguments without their secrets, the program's name first.
pub fn without_secrets(arguments: &[String]) -> Vec<String> {
    let option = |at: usize| at.checked_sub(1).and_then(|before| arguments.get(before)).map_or("", String::as_str);
    arguments.iter().enumerate().map(|(at, argument)| clean_argument(option(at), argument)).collect()
}

fn clean_argument(option: &str, argument: &str) -> String {
    // `--object` is `-object`.
    let option = if option.starts_with("--") { &option[1..] } else { option };
    if argument.starts_with(['{', '[']) {
        return clean_document(argument);
    }
    if argument.starts_with("json:") {
        return clean_name(argument);
    }
    match option {
        "-append" => return argument.split(' ').map(clean_kernel_argument).collect::<Vec<_>>().join(" "),
        // A command of the shell.
        "-incoming" if argument.starts_with("exec:") => return format!("exec:{REMOVED}"),
        _ => {}
    }
    let parts = split(argument).into_iter().map(|part| match part.split_once('=') {
        Some((key, value)) if is_secret(option, key, value) && !is_switch(value) => format!("{key}={REMOVED}"),
        Some(("guestfwd", value)) => match value.split_once("-cmd:") {
            Some((from, _)) => format!("guestfwd={from}-cmd:{REMOVED}"),
            None => part.to_owned(),
        },
        // Commas of a value are doubled.
        Some((key, value)) if value.starts_with("json:") => {
            format!("{key}={}", clean_name(&value.replace(",,", ",")).replace(',', ",,"))
        }
        Some((key, value)) if !key.contains("://") => format!("{key}={}", clean_name(value)),
        _ => clean_name(part),
    });
    parts.collect::<Vec<_>>().join(",")
}

/// QEMU's JSON, which takes more than JSON is, such as single quotes: what cannot be read here is taken out as a whole.
fn clean_document(text: &str) -> String {
    match serde_json::from_str(text) {
        Ok(mut json) => {
            clean_json(&mut json);
            json.to_string()
        }
        Err(_) => REMOVED.to_owned(),
    }
}

fn clean_json(json: &mut Value) {
    match json {
        Value::Object(members) => {
            for (key, value) in members {
                match value {
                    Value::String(text) if is_secret("", key, text) => REMOVED.clone_into(text),
                    value => clean_json(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(clean_json),
        Value::String(text) => *text = clean_name(text),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn clean_kernel_argument(argument: &str) -> String {
    match argument.split_once('=') {
        Some((name, _)) if KERNEL_SECRETS.iter().any(|word| name.to_ascii_lowercase().contains(word)) => {
            format!("{name}={REMOVED}")
        }
        _ => argument.to_owned(),
    }
}

fn is_secret(option: &str, key: &str, value: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    SECRETS.contains(&last)
        || last.ends_with("password")
        || last.ends_with("passwd")
        || GUEST_DATA.contains(&(option, key))
        // The data of cloud-init can stand in any of these texts.
        || (option == "-smbios" && value.contains([';', '=']))
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
pub(super) fn clean_name(name: &str) -> String {
    if let Some(document) = name.strip_prefix("json:") {
        return format!("json:{}", clean_document(document));
    }
    if let Some(at) = name.find("rbd:") {
        let (before, rbd) = name.split_at(at);
        return format!("{before}{}", clean_rbd(rbd));
    }
    let Some((scheme, rest)) = name.split_once("://") else { return name.to_owned() };
    let authority = rest.find('/').unwrap_or(rest.len());
    // libiscsi takes all up to the last @ for user and password.
    let user = if scheme.ends_with("iscsi") { rest.rfind('@') } else { rest[..authority].rfind('@') };
    let (user, rest) = match user {
        Some(at) => (format!("{REMOVED}@"), &rest[at + 1..]),
        None => (String::new(), rest),
    };
    // What a web server is asked beside the path can be a signature that stands for a password.
    let rest = match rest.split_once('?') {
        Some((path, _)) if scheme.ends_with("http") || scheme.ends_with("https") => format!("{path}?{REMOVED}"),
        _ => rest.to_owned(),
    };
    format!("{scheme}://{user}{rest}")
}

/// `rbd:pool/image:key=…`, where a colon of a value has a backslash before it.
fn clean_rbd(name: &str) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in name.split(':') {
        match parts.last_mut() {
            Some(last) if last.ends_with('\\') => *last = format!("{last}:{part}"),
            _ => parts.push(part.to_owned()),
        }
    }
    let clean = parts.into_iter().map(|part| match part.split_once('=') {
        Some((key, value)) if is_secret("", key, value) => format!("{key}={REMOVED}"),
        _ => part,
    });
    clean.collect::<Vec<_>>().join(":")
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
            ("-cdrom", "https://me:pw@example.com/a@b.iso?x=1", "https://<removed>@example.com/a@b.iso?<removed>"),
            ("-drive", "file=iscsi://me%p/w@10.0.0.1/iqn/1,if=none", "file=iscsi://<removed>@10.0.0.1/iqn/1,if=none"),
            ("-drive", r"file=blkdebug::rbd:p/a:key=A\:B:conf=/c", "file=blkdebug::rbd:p/a:key=<removed>:conf=/c"),
            (
                "-drive",
                r#"file=json:{"driver":"https",,"cookie":"c"},if=none"#,
                r#"file=json:{"driver":"https",,"cookie":"<removed>"},if=none"#,
            ),
            ("-object", "{'qom-type':'secret','id':'s1','data':'x'}", "<removed>"),
            ("-spice", "port=1,x509-key-password=x", "port=1,x509-key-password=<removed>"),
            (
                "-append",
                "console=ttyS0 systemd.set_credential=a:b api_token=t quiet",
                "console=ttyS0 systemd.set_credential=<removed> api_token=<removed> quiet",
            ),
            ("-smbios", "type=1,serial=ds=nocloud;password:x", "type=1,serial=<removed>"),
            ("-incoming", "exec:curl -u me:x https://h", "exec:<removed>"),
            (
                "-netdev",
                "user,id=n,guestfwd=tcp:10.0.2.1:1-cmd:nc -p x",
                "user,id=n,guestfwd=tcp:10.0.2.1:1-cmd:<removed>",
            ),
            (
                "-blockdev",
                r#"{"driver":"raw","file":{"driver":"https","url":"https://u:p@h/x","cookie":"c"}}"#,
                r#"{"driver":"raw","file":{"driver":"https","url":"https://<removed>@h/x","cookie":"<removed>"}}"#,
            ),
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
