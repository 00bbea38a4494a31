//! Filling memory with words that depend on their address.

use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};

use super::ram::PAGE;
use super::{GuestMemory, MemoryError, Run};

/// Pages that make a further thread worth its start.
const PAGES_PER_THREAD: u64 = 4096;

impl GuestMemory {
    /// Writes `word(guest-physical address)` to every eighth address of a run, with as many threads as the host has
    /// processors; so a part can be made again by itself, anywhere.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`]; [`MemoryError::Populate`] when the host has no memory left.
    pub fn fill(&self, run: Run, word: impl Fn(u64) -> u64 + Sync) -> Result<(), MemoryError> {
        self.check(run)?;
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        let share = run.count.0.div_ceil(processors).max(PAGES_PER_THREAD);
        std::thread::scope(|scope| {
            let mut helpers = Vec::new();
            let mut first = share;
            while first < run.count.0 {
                let count = Pages(share.min(run.count.0 - first));
                let part = Run::new(Gfn(run.first.0 + first), count);
                let word = &word;
                helpers.push(scope.spawn(move || self.fill_part(part, word)));
                first += share;
            }
            let own = self.fill_part(Run::new(run.first, Pages(share.min(run.count.0))), &word);
            let join = |helper: std::thread::ScopedJoinHandle<'_, _>| {
                helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            helpers.into_iter().map(join).fold(own, Result::and)
        })
    }

    fn fill_part(&self, run: Run, word: &impl Fn(u64) -> u64) -> Result<(), MemoryError> {
        self.populate(run)?;
        let base = self.run_pointer(run)?.cast::<u64>();
        let words = usize::try_from(run.count.0).expect("bounded by the layout") * (PAGE / 8);
        for index in 0..words {
            let value = word(run.first.0 * PAGE_SIZE + 8 * index as u64);
            // SAFETY: `index` is below the number of words of the run, which is RAM.
            unsafe { base.add(index).write_volatile(value.to_le()) };
        }
        Ok(())
    }
}
