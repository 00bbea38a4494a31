//! Lines of a text that may be anything, in bounded memory.

use std::io::{self, BufRead, Read};

use super::error::{Fault, Field, Place, TextError};

/// Bytes that a line may have; what a trace says of itself needs some hundreds.
pub(super) const LINE_BYTES_MAX: usize = 4096;

/// What some editors put before the first line, in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A source of lines. The last line read is kept.
#[derive(Debug)]
pub(super) struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) const fn new(reader: R) -> Self {
        Self {
            reader,
            buffer: Vec::new(),
            number: 0,
        }
    }

    /// Reads the next line that is not blank; false at the end of the text.
    pub(super) fn advance(&mut self) -> Result<bool, TextError> {
        loop {
            self.number += 1;
            if !self.read()? {
                return Ok(false);
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(self.wrong(0, None, Fault::EndlessLine { max: LINE_BYTES_MAX }));
            }
            if !self.buffer.trim_ascii().is_empty() {
                break;
            }
        }
        if let Err(error) = str::from_utf8(&self.buffer) {
            return Err(self.wrong(error.valid_up_to(), None, Fault::NotUtf8));
        }
        self.buffer.push(b'\n');
        Ok(true)
    }

    /// The line, with a line feed behind it, whatever its end was.
    pub(super) fn terminated(&self) -> &str {
        str::from_utf8(&self.buffer).unwrap_or_default()
    }

    /// The line.
    pub(super) fn text(&self) -> &str {
        let terminated = self.terminated();
        terminated.strip_suffix('\n').unwrap_or(terminated)
    }

    /// That something is wrong at a byte of the line.
    pub(super) fn wrong(&self, byte: usize, field: Option<Field>, fault: Fault) -> TextError {
        let before = String::from_utf8_lossy(&self.buffer[..byte.min(self.buffer.len())]);
        let place = Place {
            line: self.number,
            column: before.chars().count() as u64 + 1,
            field,
        };
        TextError::Wrong { place, fault }
    }

    /// Reads a line into the buffer, or as much as shows that it is too long. False at the end of the text.
    fn read(&mut self) -> io::Result<bool> {
        self.buffer.clear();
        let most = BYTE_ORDER_MARK.len() + LINE_BYTES_MAX + "\r\n".len();
        self.reader
            .by_ref()
            .take(most as u64)
            .read_until(b'\n', &mut self.buffer)?;
        if self.buffer.is_empty() {
            return Ok(false);
        }
        for end in [b'\n', b'\r'] {
            if self.buffer.last() == Some(&end) {
                self.buffer.pop();
            }
        }
        if self.number == 1 && self.buffer.starts_with(BYTE_ORDER_MARK) {
            self.buffer.drain(..BYTE_ORDER_MARK.len());
        }
        Ok(true)
    }
}
