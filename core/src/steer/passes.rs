//! Rounds out of counters.

use crate::switch::RoundEnd;
use crate::units::{Nanos, Pages};

/// What a hypervisor says of its pre-copy at some moment. Of QEMU: `ram` of `query-migrate`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// When, since the migration began.
    pub at: Nanos,
    /// How often it has read the dirty log; 1 after the first time, which begins round 1 (`dirty-sync-count`).
    pub syncs: u32,
    /// What is left to send (`remaining`).
    pub remaining: Pages,
    /// Pages sent so far, in all rounds, without those that were zero (`normal`).
    pub sent: Pages,
    /// Pages so far that went as a few bytes because they were zero (`duplicate`).
    pub zero: Pages,
}

/// A round that has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pass {
    /// What a rule is told of it.
    pub end: RoundEnd,
    /// Pages that were dirty, too, and went as a few bytes because they were zero.
    pub zero: Pages,
}

/// Makes rounds of counters.
///
/// A round lasts from one reading of the dirty log to the next, as far as these are noticed. Where counters come late, what was sent beyond
/// what the round had to send is the next one's; up to that, it counts for the round before. If several readings were missed, their rounds
/// are one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Passes {
    total: Pages,
    began: Option<Counters>,
}

impl Passes {
    /// Of a guest of so many pages.
    pub const fn new(total: Pages) -> Self {
        Self { total, began: None }
    }

    /// A round that has ended since the counters before. O(1).
    pub fn on_counters(&mut self, counters: &Counters) -> Option<Pass> {
        let Some(began) = self.began else {
            // Nothing was sent before round 1: all of it counts, whenever the first counters came. Of a later round the beginning is
            // not known.
            self.began = match counters.syncs {
                0 => None,
                1 => Some(Counters {
                    syncs: 1,
                    remaining: self.total,
                    ..Counters::default()
                }),
                _ => Some(*counters),
            };
            return None;
        };
        if counters.syncs <= began.syncs {
            return None;
        }
        let zero = counters.zero.saturating_sub(began.zero);
        let sent = counters.sent.saturating_sub(began.sent);
        let early = match counters.syncs - began.syncs {
            1 => sent.saturating_sub(began.remaining.saturating_sub(zero)),
            _ => Pages::ZERO,
        };
        let dirty = counters.remaining.saturating_add(early);
        self.began = Some(Counters {
            sent: counters.sent.saturating_sub(early),
            remaining: dirty,
            ..*counters
        });
        Some(Pass {
            end: RoundEnd {
                round: counters.syncs - 1,
                sent: sent.saturating_sub(early),
                dirty,
                previous_dirty: began.remaining.saturating_sub(zero),
                duration: counters.at.saturating_sub(began.at),
                elapsed: counters.at,
            },
            zero,
        })
    }
}
