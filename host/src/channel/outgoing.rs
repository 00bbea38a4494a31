//! Bytes on their way out.

/// A buffer that is filled at one end and emptied at the other. It keeps its memory, and never clears what is about to be overwritten.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Outgoing {
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Room for `bytes` more, or for some more than that, behind what is there; it holds anything.
    pub(super) fn room(&mut self, bytes: usize) -> &mut [u8] {
        if self.is_empty() {
            self.clear();
        }
        if self.bytes.len() < self.end + bytes {
            self.bytes.resize(self.end + bytes, 0);
        }
        &mut self.bytes[self.end..]
    }

    /// The first `bytes` of the room are filled.
    pub(super) fn add(&mut self, bytes: usize) {
        debug_assert!(self.end + bytes <= self.bytes.len(), "only the room can be filled");
        self.end += bytes;
    }

    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.add(bytes.len());
    }

    /// The first `bytes` of what is there have left.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.start += bytes;
    }

    pub(super) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Outgoing;

    #[test]
    fn what_went_in_comes_out_in_order() {
        let mut outgoing = Outgoing::default();
        outgoing.extend(b"abc");
        let room = outgoing.room(2);
        room[..2].copy_from_slice(b"de");
        outgoing.add(2);
        assert_eq!(outgoing.filled(), b"abcde");
        outgoing.sent(4);
        outgoing.extend(b"f");
        assert_eq!(outgoing.filled(), b"ef");
        outgoing.sent(2);
        assert!(outgoing.is_empty());
        outgoing.extend(b"g");
        assert_eq!(outgoing.filled(), b"g");
        outgoing.clear();
        assert!(outgoing.is_empty());
    }
}
