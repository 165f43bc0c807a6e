//! Lines and messages, whatever comes in.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob", {"from": "the future"}]}}"#;

fn lines_of(bytes: &[u8], piece: usize, limit: usize) -> Result<Vec<Vec<u8>>, WireError> {
    let mut lines = Lines::new(limit);
    let mut found = Vec::new();
    for piece in bytes.chunks(piece) {
        lines.feed(piece);
        while let Some(line) = lines.next_line()? {
            found.push(line);
        }
    }
    Ok(found)
}

#[test]
fn a_greeting_is_read_though_it_names_capabilities_of_a_new_kind() {
    let Message::Greeting { version, capabilities } = parse(GREETING.as_bytes()).unwrap() else {
        panic!("no greeting")
    };
    assert_eq!((version.to_string().as_str(), capabilities.as_slice()), ("7.2.22", &["oob".to_owned()][..]));
}

#[test]
fn unknown_fields_and_events_are_harmless() {
    let line = br#"{"timestamp": {"seconds": 1795396565, "microseconds": 70062}, "event": "FROM_THE_FUTURE", "colour": 7, "data": {"a": [1]}}"#;
    let Message::Event(event) = parse(line).unwrap() else { panic!("no event") };
    assert_eq!((event.name.as_str(), &event.data), ("FROM_THE_FUTURE", &json!({"a": [1]})));
    assert_eq!(event.timestamp.unwrap().as_microsecond(), 1_795_396_565_070_062);
}

#[test]
fn an_event_without_data_or_with_a_failed_clock_is_still_an_event() {
    let line = br#"{"timestamp": {"seconds": -1, "microseconds": -1}, "event": "STOP"}"#;
    let Message::Event(event) = parse(line).unwrap() else { panic!("no event") };
    assert_eq!((event.data, event.timestamp), (Value::Null, None));
}

#[test]
fn a_reply_keeps_whatever_id_it_has() {
    for (line, id) in [
        (r#"{"return": {}, "id": "x"}"#, Some(json!("x"))),
        (r#"{"return": null, "id": 7}"#, Some(json!(7))),
        (r#"{"error": {"class": "GenericError", "desc": "JSON parse error"}}"#, None),
    ] {
        assert_eq!(parse(line.as_bytes()).unwrap(), Message::Reply { id });
    }
}

#[test]
fn an_answer_is_the_value_or_qemus_refusal() {
    let read = |line: &str| read_answer::<Vec<u32>>(line.as_bytes());
    assert_eq!(read(r#"{"return": [1, 2], "id": "x"}"#).unwrap(), Ok(vec![1, 2]));
    let error = read(r#"{"id": "x", "error": {"class": "GenericError", "desc": "no"}}"#).unwrap().unwrap_err();
    assert_eq!((error.class.as_str(), error.desc.as_str()), ("GenericError", "no"));
    assert!(read(r#"{"return": "of another type"}"#).is_err());
    assert_eq!(read_answer::<Value>(br#"{"return": null}"#).unwrap(), Ok(Value::Null));
}

#[test]
fn a_command_is_one_line_and_leaves_out_empty_arguments() {
    assert_eq!(encode("stop", &json!({}), "a-1", false), b"{\"execute\":\"stop\",\"id\":\"a-1\"}\n");
    let yank = encode("yank", &json!({"instances": ["a\nb"]}), "a-2", true);
    assert_eq!(yank.iter().filter(|byte| **byte == b'\n').count(), 1);
    let sent: Value = serde_json::from_slice(&yank).unwrap();
    assert_eq!(sent, json!({"exec-oob": "yank", "arguments": {"instances": ["a\nb"]}, "id": "a-2"}));
}

#[test]
fn a_line_without_an_end_is_given_up_at_the_bound() {
    let mut lines = Lines::new(1000);
    lines.feed(&[b'x'; 1000]);
    assert_eq!(lines.next_line(), Ok(None));
    lines.feed(b"x");
    assert_eq!(lines.next_line(), Err(WireError::TooLong { limit: 1000 }));
}

#[test]
fn a_line_of_the_bound_passes_and_one_byte_more_does_not() {
    assert_eq!(lines_of(b"12345678\n", 3, 8).unwrap(), [b"12345678"]);
    assert!(lines_of(b"123456789\n", 100, 8).is_err());
}

#[test]
fn json_nested_without_end_is_refused_and_not_followed() {
    let deep = "[".repeat(1 << 20);
    assert!(parse(deep.as_bytes()).is_err());
    let deep = format!("{{\"return\": {deep}");
    assert!(parse(deep.as_bytes()).is_err());
}

proptest! {
    #[test]
    fn lines_do_not_depend_on_how_they_were_cut(
        texts in prop::collection::vec("[a-z{}\" ]{0,40}[a-z]", 0..20),
        piece in 1_usize..64,
    ) {
        let bytes: Vec<u8> = texts.iter().flat_map(|text| format!("{text}\r\n\r\n").into_bytes()).collect();
        let expected: Vec<Vec<u8>> = texts.iter().map(|text| text.clone().into_bytes()).collect();
        prop_assert_eq!(lines_of(&bytes, piece, 1 << 10).unwrap(), expected);
    }

    #[test]
    fn garbage_never_panics_and_never_becomes_a_message(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for line in lines_of(&bytes, 7, 1 << 10).unwrap() {
            // Nobody types a whole message by chance.
            prop_assert!(parse(&line).is_err());
        }
    }

    #[test]
    fn a_message_with_any_byte_changed_never_panics(at in 0..GREETING.len(), byte in any::<u8>()) {
        let mut bytes = GREETING.as_bytes().to_vec();
        bytes[at] = byte;
        let _ = parse(&bytes);
        let _ = read_answer::<Value>(&bytes);
    }

    #[test]
    fn any_text_in_arguments_stays_one_line(text in ".*") {
        let line = encode("human-monitor-command", &json!({"command-line": text.clone()}), "i", false);
        prop_assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let sent: Value = serde_json::from_slice(&line).unwrap();
        prop_assert_eq!(sent["arguments"]["command-line"].as_str(), Some(text.as_str()));
    }
}
