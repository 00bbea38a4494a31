//! Filling memory with bytes that no compression or zero detection helps with.

use dunlin_core::units::{PAGE_SIZE, Pages};

use super::ram::PAGE;
use super::{GuestMemory, MemoryError, Run};

impl GuestMemory {
    /// Fills a run with pseudo-random words that depend on the seed and each page's number only, so that every part of
    /// it can be made again anywhere. No page becomes zero.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`]; [`MemoryError::Populate`] when the host has no memory left.
    pub fn fill_random(&self, run: Run, seed: u64) -> Result<(), MemoryError> {
        self.populate(run)?;
        let base = self.run_pointer(run)?.cast::<u64>();
        for index in 0..run.count.0 {
            let mut state = mix(seed ^ mix(run.first.0 + index));
            let offset = usize::try_from(index).expect("bounded by the layout") * (PAGE / 8);
            for word in 0..PAGE / 8 {
                // splitmix64 (Steele, Lea and Flood 2014): a counter passed through a mixer.
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                // SAFETY: `index` is below the run's length and `word` below a page's, and the run is RAM.
                unsafe { base.add(offset + word).write_volatile(mix(state).to_le()) };
            }
        }
        Ok(())
    }

    /// [`fill_random`](Self::fill_random) by as many threads as the host has processors.
    ///
    /// # Errors
    /// As `fill_random`.
    pub fn fill_random_parallel(&self, run: Run, seed: u64) -> Result<(), MemoryError> {
        let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        let share = run.count.0.div_ceil(threads).max(1);
        std::thread::scope(|scope| {
            let parts: Vec<_> = (0..run.count.0)
                .step_by(usize::try_from(share).unwrap_or(usize::MAX))
                .map(|first| {
                    let part = Run {
                        first: dunlin_core::units::Gfn(run.first.0 + first),
                        count: Pages(share.min(run.count.0 - first)),
                    };
                    scope.spawn(move || self.fill_random(part, seed))
                })
                .collect();
            parts.into_iter().try_for_each(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }
}

const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

const _: () = assert!(PAGE_SIZE.is_multiple_of(8));
