//! Where results and messages go.

use super::CliError;
use crate::report::Paint;
use serde::Serialize;
use std::io::{self, ErrorKind, IsTerminal, Write};

/// Writes a result. A reader that has gone away is no error.
pub(super) fn result(text: &str) -> Result<(), CliError> {
    offer(text).map(drop)
}

/// Writes a part of a result. False if the reader has gone away, who then wants no more parts.
pub(super) fn offer(text: &str) -> Result<bool, CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(CliError::Output(error)),
    }
}

/// Writes a result as a line of JSON.
pub(super) fn json(document: &impl Serialize) -> Result<(), CliError> {
    offer_json(document).map(drop)
}

/// Writes a part of a result as a line of JSON; false as with [`offer`].
pub(super) fn offer_json(document: &impl Serialize) -> Result<bool, CliError> {
    let line = serde_json::to_string(document).expect("reports always have a JSON form");
    offer(&(line + "\n"))
}

/// Writes a message for people.
pub(super) fn message(text: &str) {
    // Without stderr there is nobody to tell.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Whether results are read by a person who likes colours: <https://no-color.org>.
pub(super) fn paint() -> Paint {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    if io::stdout().is_terminal() && !refused && !dumb {
        Paint::Colour
    } else {
        Paint::Plain
    }
}
