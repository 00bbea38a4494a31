//! What a QEMU says, line by line.

use std::io::{self, BufRead, Read as _};

use serde_json::Value;

/// The longest line that is read at a time: nothing that a QEMU says is nearly as long.
const LINE_MAX: u64 = 16 << 20;
/// Characters shown of what is no message.
const SHOWN: usize = 100;

/// A message.
#[derive(Clone, PartialEq, Debug)]
pub enum Line {
    /// Something has happened.
    Event {
        /// What.
        name: String,
        /// More of it.
        data: Value,
    },
    /// The answer to a command.
    Answer {
        /// To which.
        id: String,
        /// All of it.
        message: Value,
    },
    /// Anything else: the greeting, or what is not for us.
    Other(Value),
}

/// Why there is none.
#[derive(Debug)]
pub enum Unread {
    /// The connection failed, or ended.
    Io(io::Error),
    /// The beginning of what came instead.
    Text(String),
}

/// Reads the next message. Of a line that is too long the rest passes for another.
///
/// # Errors
/// [`Unread`].
pub fn read_line(reader: &mut impl BufRead) -> Result<Line, Unread> {
    let mut line = Vec::new();
    let read = reader.take(LINE_MAX).read_until(b'\n', &mut line);
    if read.map_err(Unread::Io)? == 0 {
        return Err(Unread::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    let mut message: Value = serde_json::from_slice(&line).map_err(|_| {
        let text = String::from_utf8_lossy(&line);
        Unread::Text(shown(&text))
    })?;
    if let Some(name) = message["event"].as_str() {
        let name = name.to_owned();
        let data = message["data"].take();
        return Ok(Line::Event { name, data });
    }
    Ok(match message["id"].as_str() {
        Some(id) => Line::Answer {
            id: id.to_owned(),
            message,
        },
        None => Line::Other(message),
    })
}

/// The beginning of a text that others wrote.
pub(super) fn shown(text: &str) -> String {
    text.trim().chars().take(SHOWN).collect()
}
