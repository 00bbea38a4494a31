//! Pages from two channels into one memory: what came on the migration channel is newer and stays.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};
use twox_hash::XxHash3_64;

use super::SharedTarget;
use crate::memory::{GuestMemory, MemoryError};
use crate::storage::Content;

#[cfg(test)]
pub(super) mod tests;

/// Pages under one lock: those of one word of a bitmap.
const STRIPE_PAGES: u64 = 64;
/// Locks; stripes share them.
const LOCKS: usize = 256;

/// Which pages have come, by whatever channel, and the locks under which the static copy puts its own in.
///
/// The migration channel claims its pages and only then reads into them; the static copy looks and writes under the lock of
/// the stripe. So a claim waits for a static page that is being written, and after it no static page is.
pub(super) struct Merge {
    received: Vec<AtomicU64>,
    locks: Vec<Mutex<()>>,
}

impl Merge {
    pub(super) fn new(end: Gfn) -> Self {
        let words = end.0.div_ceil(STRIPE_PAGES) as usize;
        Self {
            received: (0..words).map(|_| AtomicU64::new(0)).collect(),
            locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
        }
    }

    /// Keeps the static copy away from these pages from now on.
    pub(super) fn claim(&self, run: Run) {
        for (stripe, mask) in stripes(run) {
            let _lock = self.lock(stripe);
            self.received[stripe].fetch_or(mask, Ordering::Relaxed);
        }
    }

    /// Puts those pages of a run in that have not come yet. Memory that nothing was put into is zero already.
    ///
    /// # Errors
    /// [`MemoryError`] if the run is not RAM.
    pub(super) fn put_absent(
        &self,
        memory: &GuestMemory,
        shared: &SharedTarget<'_>,
        run: Run,
        content: Content<'_>,
    ) -> Result<(), MemoryError> {
        memory.check(run)?;
        for (stripe, mask) in stripes(run) {
            let _lock = self.lock(stripe);
            let absent = mask & !self.received[stripe].load(Ordering::Relaxed);
            if let Content::Data(bytes) = content {
                for part in runs_of(stripe, absent) {
                    let at = (part.first.0 - run.first.0) * PAGE_SIZE;
                    let bytes = &bytes[at as usize..(at + part.count.bytes().0) as usize];
                    memory.write_run(part, bytes)?;
                    shared.keep_hashes(part.first, bytes);
                }
            }
            self.received[stripe].fetch_or(mask, Ordering::Relaxed);
        }
        Ok(())
    }

    fn lock(&self, stripe: usize) -> MutexGuard<'_, ()> {
        self.locks[stripe % LOCKS]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl SharedTarget<'_> {
    /// Keeps the hash of each of these pages, if the source will ask for it.
    pub(super) fn keep_hashes(&self, first: Gfn, pages: &[u8]) {
        for (index, page) in pages.chunks_exact(PAGE_SIZE as usize).enumerate() {
            if let Some(hash) = self.hashes.get(first.0 as usize + index) {
                hash.store(XxHash3_64::oneshot(page), Ordering::Relaxed);
            }
        }
    }
}

/// The stripes of a run, each with its pages as bits.
fn stripes(run: Run) -> impl Iterator<Item = (usize, u64)> {
    let (first, end) = (run.first.0, run.end().0);
    (first / STRIPE_PAGES..end.div_ceil(STRIPE_PAGES)).map(move |stripe| {
        let from = first.saturating_sub(stripe * STRIPE_PAGES).min(STRIPE_PAGES);
        let to = (end - stripe * STRIPE_PAGES).min(STRIPE_PAGES);
        let mask = (u64::MAX << from) & (u64::MAX >> (STRIPE_PAGES - to));
        (stripe as usize, mask)
    })
}

/// The runs of pages whose bits are set in a stripe.
fn runs_of(stripe: usize, mut bits: u64) -> impl Iterator<Item = Run> {
    let base = stripe as u64 * STRIPE_PAGES;
    std::iter::from_fn(move || {
        let from = bits.trailing_zeros();
        if from == u64::BITS {
            return None;
        }
        let count = (bits >> from).trailing_ones();
        bits &= !(u64::MAX.checked_shr(u64::BITS - count).unwrap_or(0) << from);
        Some(Run::new(Gfn(base + u64::from(from)), Pages(u64::from(count))))
    })
}
