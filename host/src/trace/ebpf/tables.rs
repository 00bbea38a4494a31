//! Tables that the programs fill in the kernel, in two halves: one is written, the other one is read and cleared.

use std::sync::atomic::{AtomicU64, Ordering};

use dunlin_core::record::control;
use dunlin_core::units::Pages;
use rustix::thread::{MembarrierCommand, membarrier};

use crate::memory::SharedWords;

/// The tables of one recording.
#[derive(Debug)]
pub(super) struct Tables {
    pages: usize,
    written: SharedWords,
    counts: Option<SharedWords>,
}

impl Tables {
    /// Of `pages` in each half, a multiple of 64: bits, and counts if there are any.
    pub(super) fn new(pages: Pages, written: SharedWords, counts: Option<SharedWords>) -> Self {
        Self {
            pages: usize::try_from(pages.0).expect("a table in memory"),
            written,
            counts,
        }
    }

    /// Ends a window: lets the programs write the other half, and moves what they have written in this one to the caller. Bits
    /// are ORed to `written`, counts added to `counts`.
    pub(super) fn turn_over(&self, control: &SharedWords, written: &mut [u64], mut counts: Option<&mut [u64]>) {
        let half = &control.words()[control::HALF];
        let ended = usize::from(half.fetch_xor(1, Ordering::SeqCst) & 1 == 1);
        // Programs that saw the old half are done when all processors have passed a quiet state, for which this call waits. Where
        // it is refused, a write of this very moment is found at the end of the window after the next one; none is lost.
        let _ = membarrier(MembarrierCommand::Global);
        let words = self.pages / 64;
        let bits = &self.written.words()[ended * words..][..words];
        let found = self
            .counts
            .as_ref()
            .map(|all| &all.words()[ended * self.pages..][..self.pages]);
        for (index, (word, into)) in bits.iter().zip(written).enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let bits = word.swap(0, Ordering::AcqRel);
            *into |= bits;
            if let (Some(found), Some(into)) = (found, counts.as_deref_mut()) {
                take_counts(bits, &found[index * 64..], &mut into[index * 64..]);
            }
        }
    }
}

/// Moves the counts of the pages whose bits are set.
fn take_counts(mut bits: u64, found: &[AtomicU64], into: &mut [u64]) {
    while bits != 0 {
        let page = bits.trailing_zeros() as usize;
        bits &= bits - 1;
        into[page] += found[page].swap(0, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_counts_of_written_pages_are_taken() {
        let found: Vec<_> = (0..64).map(AtomicU64::new).collect();
        let mut into = vec![1; 64];
        take_counts(1 | 1 << 5 | 1 << 63, &found, &mut into);
        assert_eq!((into[0], into[5], into[63], into[6]), (1, 6, 64, 1));
        assert_eq!(found[5].load(Ordering::Relaxed), 0);
        assert_eq!(found[6].load(Ordering::Relaxed), 6);
    }
}
