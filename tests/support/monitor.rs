//! The test's own monitor connection: blocking, by hand, independent of the client that is under test.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

use super::child::wait_for;

/// A negotiated QMP connection. One command at a time; events are skipped.
pub struct Monitor {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Monitor {
    /// Connects as soon as the socket is there, and negotiates.
    pub fn connect(socket: &Path) -> Monitor {
        let stream = wait_for(&format!("a monitor at {}", socket.display()), Duration::from_secs(20), || {
            UnixStream::connect(socket).ok()
        });
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket takes a timeout");
        let mut monitor =
            Monitor { writer: stream.try_clone().expect("a socket can be doubled"), reader: BufReader::new(stream) };
        monitor.line();
        monitor.execute("qmp_capabilities", json!({}));
        monitor
    }

    /// The return value of a command; panics when QEMU refuses it.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        self.try_execute(command, arguments).unwrap_or_else(|error| panic!("{command} was refused: {error}"))
    }

    /// The return value of a command, or QEMU's description of the error.
    pub fn try_execute(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let mut text = json!({ "execute": command, "arguments": arguments }).to_string();
        text.push('\n');
        self.writer.write_all(text.as_bytes()).unwrap_or_else(|error| panic!("Cannot send {command}: {error}"));
        loop {
            let mut answer = self.line();
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
            if let Some(error) = answer.get("error") {
                return Err(error["desc"].as_str().unwrap_or_default().to_owned());
            }
        }
    }

    /// A command of the human monitor; its text.
    pub fn human(&mut self, line: &str) -> String {
        let text = self.execute("human-monitor-command", json!({ "command-line": line }));
        text.as_str().unwrap_or_default().to_owned()
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        let got = self.reader.read_line(&mut line).expect("QEMU answers in time");
        assert!(got > 0, "QEMU closed its monitor");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("QEMU sent {line:?}: {error}"))
    }
}
