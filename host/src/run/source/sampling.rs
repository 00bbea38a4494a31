//! Observing what the guest writes: memory for it, and what it costs.

use std::time::{Duration, Instant};

use dunlin_core::migrate::{ForesightNeed, ForesightStorage};
use dunlin_core::order::push::Scored;
use dunlin_core::strategy::Strategy;
use dunlin_core::units::Pages;

use crate::guest::Guest;

/// Memory for a strategy that looks ahead; none for one that does not.
pub(crate) struct ForesightMemory {
    words: Vec<u64>,
    scratch: Vec<u32>,
    ranking: Vec<Scored>,
}

impl ForesightMemory {
    pub(crate) fn new(strategy: &Strategy, end: Pages) -> Self {
        let need = ForesightNeed::of(strategy, end);
        Self {
            words: vec![0; need.words],
            scratch: vec![0; need.scratch],
            ranking: vec![Scored::default(); need.ranking],
        }
    }

    pub(crate) fn lend(&mut self) -> ForesightStorage<'_> {
        ForesightStorage {
            words: &mut self.words,
            scratch: &mut self.scratch,
            ranking: &mut self.ranking,
        }
    }
}

/// What observing the guest took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SamplingCost {
    /// How long the guest was observed before anything was copied.
    pub learning: Duration,
    /// Samples taken, then and in the rounds.
    pub samples: u64,
    /// Time that all samples took together: reading the dirty bits and learning from them.
    pub time: Duration,
    /// The longest of them.
    pub longest: Duration,
    /// Steps of the guest per second while it was observed; `None` if it was not.
    pub steps_per_second: Option<u64>,
}

/// Measures it.
#[derive(Debug, Default)]
pub(super) struct SamplingMeter {
    cost: SamplingCost,
    /// Since when the guest is observed, and its steps then.
    began: Option<(Instant, u64)>,
}

impl SamplingMeter {
    /// A sample that began then is taken and learned from.
    pub(super) fn sampled(&mut self, began: Instant) {
        let took = began.elapsed();
        self.cost.samples += 1;
        self.cost.time += took;
        self.cost.longest = self.cost.longest.max(took);
    }

    /// Dirty tracking has begun.
    pub(super) fn tracking_began(&mut self, guest: &dyn Guest) {
        self.began = Some((Instant::now(), guest.progress().steps()));
    }

    /// Something else than a sample follows: the guest is not only observed any more. Counts once.
    pub(super) fn observed(&mut self, guest: &dyn Guest) {
        let Some((began, before)) = self.began.take().filter(|_| self.cost.samples > 0) else {
            return;
        };
        self.cost.learning = began.elapsed();
        let steps = guest.progress().steps().saturating_sub(before);
        let micros = u64::try_from(self.cost.learning.as_micros()).unwrap_or(u64::MAX);
        self.cost.steps_per_second = steps.saturating_mul(1_000_000).checked_div(micros);
    }

    /// `None` if nothing was sampled.
    pub(super) fn cost(&self) -> Option<SamplingCost> {
        (self.cost.samples > 0).then_some(self.cost)
    }
}
