//! Lines of a text that may be anything, in bounded memory.

use super::error::{Column, Fault, LogError, Place};
use std::io::{self, BufRead, Read};

/// Bytes that a line may have; four numbers need 83.
const LINE_BYTES_MAX: usize = 4096;

/// What some editors put before the first line, in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A line, without a byte order mark.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    number: u64,
    terminated: &'a str,
}

impl<'a> Line<'a> {
    /// Which it is, from 1.
    pub(super) const fn number(self) -> u64 {
        self.number
    }

    /// What stands in it.
    pub(super) fn text(self) -> &'a str {
        &self.terminated[..self.terminated.len() - 1]
    }

    /// The same with a line feed behind it, whatever its end was.
    pub(super) const fn terminated(self) -> &'a str {
        self.terminated
    }

    /// That something is wrong at a byte of the text, or right behind it.
    pub(super) fn wrong(self, byte: usize, name: Option<Column>, fault: Fault) -> LogError {
        let place = Place {
            line: self.number,
            column: self.text()[..byte].chars().count() as u64 + 1,
            name,
        };
        LogError::Wrong { place, fault }
    }
}

/// A source of lines.
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

    /// The next line that is not blank. `None` at the end of the text.
    pub(super) fn next(&mut self) -> Result<Option<Line<'_>>, LogError> {
        loop {
            self.number += 1;
            if !self.read()? {
                return Ok(None);
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(self.wrong(1, Fault::LongLine { max: LINE_BYTES_MAX }));
            }
            if !self.buffer.trim_ascii().is_empty() {
                break;
            }
        }
        self.buffer.push(b'\n');
        match str::from_utf8(&self.buffer) {
            Ok(terminated) => Ok(Some(Line {
                number: self.number,
                terminated,
            })),
            Err(error) => {
                let good = String::from_utf8_lossy(&self.buffer[..error.valid_up_to()]);
                Err(self.wrong(good.chars().count() as u64 + 1, Fault::NotUtf8))
            }
        }
    }

    /// That something is missing where the text has ended.
    pub(super) fn wrong_end(&self, fault: Fault) -> LogError {
        self.wrong(1, fault)
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

    fn wrong(&self, column: u64, fault: Fault) -> LogError {
        let place = Place {
            line: self.number,
            column,
            name: None,
        };
        LogError::Wrong { place, fault }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> Vec<(u64, String)> {
        let mut lines = Lines::new(text);
        let mut seen = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            assert_eq!(line.terminated(), format!("{}\n", line.text()));
            seen.push((line.number, line.text().to_owned()));
        }
        seen
    }

    #[test]
    fn ends_of_lines_and_the_byte_order_mark_are_no_content() {
        let expected = [(1, "a".to_owned()), (3, "b c".into()), (5, "\u{feff}d".into())];
        assert_eq!(lines(b"\xef\xbb\xbfa\r\n\r\nb c\n \t\n\xef\xbb\xbfd"), expected);
        assert_eq!(lines(b""), []);
        assert_eq!(lines(b"\xef\xbb\xbf"), []);
    }

    #[test]
    fn a_line_has_up_to_4096_bytes() {
        let long = "x".repeat(LINE_BYTES_MAX);
        for text in [long.clone(), format!("\u{feff}{long}\r\n"), format!("{long}\n")] {
            assert_eq!(lines(text.as_bytes()), [(1, long.clone())]);
        }
        for text in [
            format!("{long}y"),
            format!("{long}y\n"),
            format!("\u{feff}{long}yy\r\n"),
        ] {
            let error = Lines::new(text.as_bytes()).next().unwrap_err().to_string();
            assert!(
                error.starts_with("line 1, column 1: the line is longer than 4096 bytes"),
                "{error}"
            );
        }
    }

    #[test]
    fn endless_lines_are_not_collected() {
        let mut lines = Lines::new(io::BufReader::new(io::repeat(b'1')));
        assert!(lines.next().is_err());
        assert!(lines.buffer.capacity() < 64 << 10);
    }
}
