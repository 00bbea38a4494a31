//! What the payload logs: defmt frames through a port, as lines on stderr.

use std::io::{self, Write};
use std::sync::OnceLock;

use defmt_decoder::{DecodeError, StreamDecoder, Table};

/// A frame that is still not complete after so many bytes is none.
const FRAME_MAX: usize = 64 * 1024;

/// The log of one vCPU. Without format strings for the payload everything is dropped: a guest does not fail for its log. So it is for a
/// guest without a name, which nobody waits to hear of.
pub(super) struct Log {
    guest: String,
    vcpu: u32,
    decoder: Option<Box<dyn StreamDecoder + Send + Sync>>,
    pending: usize,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log")
            .field("vcpu", &self.vcpu)
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}

impl Log {
    pub(super) fn new(guest: &str, vcpu: u32) -> Self {
        Self {
            // The name may come from another host; it is no place for terminal commands.
            guest: guest.replace(char::is_control, ""),
            vcpu,
            decoder: if guest.is_empty() { None } else { new_decoder() },
            pending: 0,
        }
    }

    /// Takes bytes from the port and prints what they complete. A vCPU that took over in the middle of a frame prints from
    /// the next one on.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        for line in self.lines(bytes) {
            // A log that nobody can write is no reason to fail.
            let _ = writeln!(io::stderr(), "{}: vCPU {}: {line}", self.guest, self.vcpu);
        }
    }

    fn lines(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        let Some(decoder) = &mut self.decoder else { return lines };
        decoder.received(bytes);
        self.pending += bytes.len();
        loop {
            match decoder.decode() {
                Ok(frame) => lines.push(frame.display(false).to_string()),
                Err(DecodeError::Malformed) => {}
                Err(DecodeError::UnexpectedEof) => break,
            }
            self.pending = 0;
        }
        if self.pending > FRAME_MAX {
            self.decoder = new_decoder();
            self.pending = 0;
        }
        lines
    }
}

fn new_decoder() -> Option<Box<dyn StreamDecoder + Send + Sync>> {
    static TABLE: OnceLock<Option<Table>> = OnceLock::new();
    let table = TABLE
        .get_or_init(|| Table::parse(super::boot::PAYLOAD_ELF).ok().flatten())
        .as_ref()?;
    Some(table.new_stream_decoder())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_dropped_and_does_not_pile_up() {
        let mut log = Log::new("noisy", 0);
        assert!(log.decoder.is_some(), "the payload has format strings");
        for _ in 0..300 {
            assert!(log.lines(&[0x55; 1024]).is_empty());
        }
        assert!(log.pending <= FRAME_MAX);
        assert!(log.lines(&[0, 1, 2, 0, 0]).is_empty());
    }
}
