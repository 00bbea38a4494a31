//! Hashes of all pages, for the target to compare with its own.

use std::time::Instant;

use dunlin_core::message::{CHUNK_BYTES_MAX, Message};
use dunlin_core::migrate::Source;
use dunlin_core::units::Gfn;

use super::worker::Worker;
use crate::channel::FrameError;
use crate::memory::GuestMemory;

impl Worker<'_, '_, '_, '_> {
    /// Hashes frozen memory: the guest runs on the target already, so this is outside the downtime.
    pub(super) fn send_hashes(&mut self) -> Result<(), FrameError> {
        self.verifying = Some(Instant::now());
        let (regions, zeroed) = {
            let source = self.shared.lock();
            (source.config().regions.clone(), Zeroed::of(&source))
        };
        let zero = GuestMemory::hash_of_zero_page();
        let mut bytes = Vec::with_capacity(CHUNK_BYTES_MAX);
        for region in &regions {
            let end = region.first.0 + region.pages.0;
            for first in (region.first.0..end).step_by(CHUNK_BYTES_MAX / 8) {
                bytes.clear();
                for gfn in (first..end.min(first + (CHUNK_BYTES_MAX / 8) as u64)).map(Gfn) {
                    let hash = if zeroed.get(gfn) {
                        zero
                    } else {
                        self.memory.hash_page(gfn)?
                    };
                    bytes.extend_from_slice(&hash.to_le_bytes());
                }
                self.message(&Message::Hashes {
                    first: Gfn(first),
                    bytes: &bytes,
                })?;
            }
        }
        self.message(&Message::HashesEnd)
    }
}

/// Pages that are zero on the target whatever is in them here.
struct Zeroed(Vec<u64>);

impl Zeroed {
    fn of(source: &Source<'_>) -> Self {
        Self(source.zeroed().map_or_else(Vec::new, |pages| pages.words().to_vec()))
    }

    fn get(&self, gfn: Gfn) -> bool {
        let word = usize::try_from(gfn.0 / 64).ok().and_then(|index| self.0.get(index));
        word.is_some_and(|word| word & 1 << (gfn.0 % 64) != 0)
    }
}
