//! Pages that the host wrote into a guest, which KVM does not see.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dunlin_core::pageset::Run;

use crate::memory::MemoryLayout;
use crate::track::pagemap::set_bits;

/// One bit per page, and whether there are any; counted only while pages are tracked.
#[derive(Debug)]
pub(super) struct Written {
    counts: AtomicBool,
    any: AtomicBool,
    words: Vec<AtomicU64>,
}

impl Written {
    pub(super) fn new(layout: &MemoryLayout) -> Self {
        Self {
            counts: AtomicBool::new(false),
            any: AtomicBool::new(false),
            words: (0..layout.words()).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// From now on pages count.
    pub(super) fn start(&self) {
        self.counts.store(true, Ordering::SeqCst);
    }

    /// Forgets all.
    pub(super) fn stop(&self) {
        self.counts.store(false, Ordering::SeqCst);
        self.any.store(false, Ordering::Release);
        self.words.iter().for_each(|word| word.store(0, Ordering::Release));
    }

    /// These pages of the guest were written.
    pub(super) fn mark(&self, run: Run) {
        if !self.counts.load(Ordering::SeqCst) {
            return;
        }
        let mut bit = run.first.0;
        while bit < run.end().0 {
            let mut word = [0];
            let next = (bit / 64 + 1) * 64;
            set_bits(&mut word, bit % 64, run.end().0.min(next) - bit / 64 * 64);
            self.words[usize::try_from(bit / 64).expect("an index of the bitmap")].fetch_or(word[0], Ordering::AcqRel);
            bit = next;
        }
        self.any.store(true, Ordering::Release);
    }

    /// Moves them into `dirty`.
    pub(super) fn harvest(&self, dirty: &mut [u64]) {
        if self.any.swap(false, Ordering::AcqRel) {
            for (word, written) in dirty.iter_mut().zip(&self.words) {
                *word |= written.swap(0, Ordering::AcqRel);
            }
        }
    }
}
