//! How much of its memory a guest can do without while it is moved.
//!
//! What a balloon has taken is zero, and does not move: a guest that gives away what it does not use moves in the time that the rest takes
//! (dynamic self-ballooning, Magenheimer 2008; survey 001 counts it among the means that cost least). Taken too much, and the guest swaps, or
//! kills what it was for. So the guest's own words decide: it keeps a reserve of memory that it could use at once, gets some back as soon as it
//! swaps or waits for memory, and after that nothing more is taken from it.

use crate::units::{Bytes, PAGE_SIZE};

const MIB: u64 = 1 << 20;
/// Least reserve of any guest.
const RESERVE_MIN: Bytes = Bytes(32 * MIB);
/// Reserve of larger guests: a sixteenth of their memory.
const RESERVE_SHARE: u64 = 16;
/// What is not worth a command.
const STEP_MIN: Bytes = Bytes(4 * MIB);
/// Swap space that may be taken in use while the balloon grows without being its fault.
const SWAP_NOISE: Bytes = Bytes(MIB);
/// Share of time in which something waits for memory from which on the guest is taken to be short of it, in thousandths.
const PRESSURE_MAX_MILLI: u32 = 100;

/// What a guest says of its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemoryUse {
    /// Memory that could be used without swapping.
    pub available: Bytes,
    /// Swap space in use.
    pub swap_used: Bytes,
    /// Share of time in which something waited for memory, in thousandths.
    pub pressure_milli: u32,
}

/// A balloon that follows what a guest says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Balloon {
    original: Bytes,
    reserve: Bytes,
    swap_at_first: Option<Bytes>,
    /// It was short of memory once.
    was_short: bool,
}

impl Balloon {
    /// For a guest that has so much memory (what it had before the balloon grew), of which it shall always be able to use `reserve` at once;
    /// `None` for a sixteenth of it, at least 32 MiB.
    pub fn new(original: Bytes, reserve: Option<Bytes>) -> Self {
        let usual = Bytes(original.0 / RESERVE_SHARE).max(RESERVE_MIN);
        Self {
            original,
            reserve: reserve.unwrap_or(usual),
            swap_at_first: None,
            was_short: false,
        }
    }

    /// What the guest had, and gets back in the end.
    pub const fn original(&self) -> Bytes {
        self.original
    }

    /// Whether it was short of memory once, so that nothing more is taken from it.
    pub const fn was_short(&self) -> bool {
        self.was_short
    }

    /// How much the guest shall have, if it has `actual` now and says this of itself; `None` if it is to stay as it is. Whole pages, at most
    /// what it had at first. O(1).
    pub fn on_use(&mut self, actual: Bytes, memory: &MemoryUse) -> Option<Bytes> {
        let swap = *self.swap_at_first.get_or_insert(memory.swap_used);
        let swaps = memory.swap_used > swap.saturating_add(SWAP_NOISE);
        let is_short = swaps || memory.pressure_milli > PRESSURE_MAX_MILLI || memory.available.0 < self.reserve.0 / 2;
        if is_short {
            self.was_short = true;
            // Twice the reserve, so that one step is enough, and memory that is lacking for the reserve.
            let lacking = Bytes(
                self.reserve
                    .0
                    .saturating_mul(2)
                    .saturating_sub(memory.available.0)
                    .max(self.reserve.0),
            );
            let more = actual.saturating_add(lacking).min(self.original);
            return (more > actual).then_some(more);
        }
        let spare = memory.available.saturating_sub(self.reserve);
        if self.was_short || spare < STEP_MIN {
            return None;
        }
        let pages = actual.saturating_sub(spare).0.div_ceil(PAGE_SIZE);
        let target = Bytes(pages.saturating_mul(PAGE_SIZE)).max(self.reserve);
        (target < actual).then_some(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn mib(count: u64) -> Bytes {
        Bytes(count * MIB)
    }

    const fn use_of(available: Bytes) -> MemoryUse {
        MemoryUse {
            available,
            swap_used: Bytes::ZERO,
            pressure_milli: 0,
        }
    }

    #[test]
    fn what_is_not_used_is_taken_but_for_the_reserve() {
        let mut balloon = Balloon::new(mib(1024), None);
        assert_eq!(balloon.on_use(mib(1024), &use_of(mib(900))), Some(mib(1024 - 900 + 64)));
        assert_eq!(balloon.on_use(mib(188), &use_of(mib(66))), None, "not worth it");
        assert_eq!(
            balloon.on_use(mib(188), &use_of(mib(84))),
            Some(mib(168)),
            "it has freed some"
        );
    }

    #[test]
    fn a_guest_that_is_short_gets_some_back_and_keeps_it() {
        let swapping = MemoryUse {
            swap_used: mib(12),
            ..use_of(mib(70))
        };
        let waiting = MemoryUse {
            pressure_milli: 101,
            ..use_of(mib(70))
        };
        for short in [use_of(mib(31)), swapping, waiting] {
            let mut balloon = Balloon::new(mib(1024), None);
            let calm = MemoryUse {
                swap_used: mib(10),
                ..use_of(mib(800))
            };
            assert_eq!(balloon.on_use(mib(1024), &calm), Some(mib(1024 - 800 + 64)));
            let more = balloon.on_use(mib(288), &short).expect("more");
            assert!(more >= mib(288 + 64) && more <= mib(1024), "{more:?}");
            assert_eq!(balloon.on_use(more, &calm), None, "nothing more is taken");
        }
    }

    proptest! {
        /// Whatever a guest says: it never gets more than it had, never less than the reserve, and never less than it uses and the reserve.
        #[test]
        fn bounds_hold(
            original in 64..4096u64,
            reserve in prop::option::of(16..64u64),
            uses in prop::collection::vec((0..5000u64, 0..100u64, 0..200u32), 1..40),
        ) {
            let original = mib(original);
            let mut balloon = Balloon::new(original, reserve.map(mib));
            let kept = balloon.reserve;
            let mut actual = original;
            for (available, swap, pressure_milli) in uses {
                let memory = MemoryUse { available: mib(available).min(actual), swap_used: mib(swap), pressure_milli };
                let used = actual.saturating_sub(memory.available);
                if let Some(target) = balloon.on_use(actual, &memory) {
                    prop_assert!(target <= original);
                    if target < actual {
                        prop_assert!(!balloon.was_short());
                        prop_assert!(target >= used.saturating_add(kept).min(actual));
                    }
                    actual = target;
                }
            }
        }

        #[test]
        fn any_numbers_are_taken(original in any::<u64>(), actual in any::<u64>(), available in any::<u64>(), swap in any::<u64>()) {
            let mut balloon = Balloon::new(Bytes(original), None);
            let memory = MemoryUse { available: Bytes(available), swap_used: Bytes(swap), pressure_milli: 0 };
            balloon.on_use(Bytes(actual), &memory);
            balloon.on_use(Bytes(actual), &memory);
        }
    }
}
