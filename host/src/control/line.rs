//! Lines over a stream, of bounded length.

use super::ControlError;
use crate::channel::{ChannelError, Stream, Wait};
use serde::Serialize;

/// How much is read at once.
const PIECE_BYTES: usize = 4096;

/// Takes lines out of a stream. What was read of a line stays when a wait ends; the next call goes on from there.
#[derive(Debug)]
pub(super) struct LineReader {
    buffer: Vec<u8>,
    /// How much of the buffer is known to hold no end of line.
    searched: usize,
    limit_bytes: usize,
}

impl LineReader {
    pub(super) const fn new(limit_bytes: usize) -> Self {
        Self {
            buffer: Vec::new(),
            searched: 0,
            limit_bytes,
        }
    }

    /// What was read beyond the last line, for whoever reads on in another way.
    pub(super) fn take_rest(&mut self) -> Vec<u8> {
        self.searched = 0;
        std::mem::take(&mut self.buffer)
    }

    /// Puts it back.
    pub(super) fn put_rest(&mut self, rest: &[u8]) {
        self.buffer.extend_from_slice(rest);
    }

    /// The next line without its end; `None` when the peer has ended the stream, whatever it sent of an unfinished
    /// line.
    pub(super) fn next(&mut self, stream: &Stream, wait: Wait<'_>) -> Result<Option<Vec<u8>>, ControlError> {
        loop {
            if let Some(found) = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n') {
                let rest = self.buffer.split_off(self.searched + found + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.searched > self.limit_bytes {
                return Err(ControlError::LongLine {
                    limit_bytes: self.limit_bytes,
                });
            }
            let mut piece = [0; PIECE_BYTES];
            match stream.read_some(&mut piece, wait) {
                Ok(0) | Err(ChannelError::Closed { .. }) => return Ok(None),
                Ok(read) => self.buffer.extend_from_slice(&piece[..read]),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Any of the protocol's types as a line.
pub(super) fn encode(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("structs of strings and numbers always have a JSON form");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Cancel;
    use proptest::prelude::*;

    #[test]
    fn a_line_may_come_in_parts_and_a_long_one_is_refused() {
        let cancel = Cancel::new();
        let wait = Wait::within(std::time::Duration::ZERO, &cancel);
        let (near, far) = Stream::pair().unwrap();
        let mut reader = LineReader::new(10_000);
        near.write_all(b"first\nsec", wait).unwrap();
        assert_eq!(reader.next(&far, wait).unwrap().unwrap(), b"first");
        assert!(matches!(
            reader.next(&far, wait),
            Err(ControlError::Channel(ChannelError::TimedOut { .. }))
        ));
        near.write_all(b"ond\n", wait).unwrap();
        assert_eq!(reader.next(&far, wait).unwrap().unwrap(), b"second");
        near.write_all(&[b'x'; 20_000], wait).unwrap();
        assert!(matches!(
            reader.next(&far, wait),
            Err(ControlError::LongLine { limit_bytes: 10_000 })
        ));
        drop(near);
        assert_eq!(
            LineReader::new(100_000).next(&far, wait).unwrap(),
            None,
            "an unfinished line is none"
        );
    }

    proptest! {
        #[test]
        fn lines_come_out_as_they_went_in(
            lines in prop::collection::vec("[ -~]{0,200}", 0..20),
            cuts in prop::collection::vec(1usize..100, 1..20),
        ) {
            let cancel = Cancel::new();
            let wait = Wait::within(std::time::Duration::ZERO, &cancel);
            let (near, far) = Stream::pair().unwrap();
            let all: Vec<u8> = lines.iter().flat_map(|line| [line.as_bytes(), b"\n"].concat()).collect();
            let (mut rest, mut found, mut reader) = (all.as_slice(), Vec::new(), LineReader::new(300));
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at(rest.len().min(*cut));
                near.write_all(now, wait).unwrap();
                while let Ok(Some(line)) = reader.next(&far, wait) {
                    found.push(String::from_utf8(line).unwrap());
                }
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(found, lines);
        }
    }
}
