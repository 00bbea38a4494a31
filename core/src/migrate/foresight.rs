//! What looking ahead takes: which predictor, which pages wait, and memory for it.

use core::fmt;

use crate::order::filter::{HoldBack, scratch_needed};
use crate::order::push::Scored;
use crate::pageset::{PageSet, PageSetError, words_needed};
use crate::predict::{AnyPredictor, Frequency, Hazard, Markov, Ppm, PredictError, Predictor, Score};
use crate::strategy::{Filter, Push, Strategy, SwitchRule};
use crate::units::{Nanos, Pages};

/// How often what the guest has written is looked at: the 2017 paper's 50 ms.
pub(super) const SAMPLE_EVERY: Nanos = Nanos::from_millis(50);
/// What counts as one sync for the bitmap of frequently updated pages; about a round of Ma et al. 2010.
const FREQUENCY_SPAN: Nanos = Nanos::from_secs(1);
/// What a bit of history stands for in prediction by partial matching.
const PPM_SPAN: Nanos = Nanos::from_millis(500);

/// How much memory looking ahead takes.
///
/// Per page of the guest, up to its last one: a quarter of a byte for two sets of pages; for the predictor 20.5 bytes with
/// `markov`, 8 with `hazard` and with `push=forecast` alone, half a byte with `ppm` and `frequency`, and up to 136 KiB; 4 bytes to
/// choose the half that waits (`markov:half`); 16 bytes for the ranking of `push=forecast`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ForesightNeed {
    /// Words of 8 bytes.
    pub words: usize,
    /// Entries of 4 bytes.
    pub scratch: usize,
    /// Entries of 16 bytes.
    pub ranking: usize,
}

impl ForesightNeed {
    /// What a strategy needs for a guest whose last page is the one before `end`: nothing if it has neither a filter nor
    /// `push=forecast`. `usize::MAX` stands for more than can be counted.
    pub const fn of(strategy: &Strategy, end: Pages) -> Self {
        let Some(predictor) = predictor_words(strategy, end) else {
            return Self {
                words: 0,
                scratch: 0,
                ranking: 0,
            };
        };
        Self {
            words: predictor.saturating_add(words_needed(end).saturating_mul(2)),
            scratch: match strategy.filter {
                Filter::MarkovHalf => scratch_needed(end),
                _ => 0,
            },
            ranking: match strategy.push {
                Push::Forecast if end.0 > usize::MAX as u64 / 16 => usize::MAX,
                Push::Forecast => end.0 as usize,
                _ => 0,
            },
        }
    }

    const fn exceeds(&self, given: &Self) -> bool {
        self.words > given.words || self.scratch > given.scratch || self.ranking > given.ranking
    }
}

/// Words of the predictor that the strategy goes by; `None` if it does not look ahead.
const fn predictor_words(strategy: &Strategy, end: Pages) -> Option<usize> {
    Some(match (strategy.filter, strategy.push) {
        (Filter::MarkovHalf | Filter::Markov, _) => Markov::words_needed(end, end),
        (Filter::Hazard, _) | (Filter::None, Push::Forecast) => Hazard::words_needed(end),
        (Filter::Ppm, _) => Ppm::words_needed(end),
        (Filter::Frequency, _) => Frequency::words_needed(end),
        (Filter::None, _) => return None,
    })
}

/// Memory for looking ahead, of at least the lengths that [`ForesightNeed::of`] says. What is in it does not matter.
#[derive(Debug, Default)]
pub struct ForesightStorage<'w> {
    /// For the predictor and the pages that wait.
    pub words: &'w mut [u64],
    /// For choosing the half that waits.
    pub scratch: &'w mut [u32],
    /// For the order of the push.
    pub ranking: &'w mut [Scored],
}

impl ForesightStorage<'_> {
    const fn given(&self) -> ForesightNeed {
        ForesightNeed {
            words: self.words.len(),
            scratch: self.scratch.len(),
            ranking: self.ranking.len(),
        }
    }
}

/// Memory for looking ahead is too small.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ForesightError {
    /// What the strategy needs.
    pub needed: ForesightNeed,
    /// What there was.
    pub given: ForesightNeed,
}

impl fmt::Display for ForesightError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { needed, given } = self;
        write!(
            f,
            "a strategy with this filter and push needs {} words, {} entries of scratch and {} of a ranking but was given {}, \
             {} and {}: size them with ForesightNeed::of()",
            needed.words, needed.scratch, needed.ranking, given.words, given.scratch, given.ranking
        )
    }
}

impl core::error::Error for ForesightError {}

/// Memory for a source does not do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourceStorageError {
    /// That for the pages that the target does not have, or the regions do not fit it.
    Pages(PageSetError),
    /// That for looking ahead.
    Foresight(ForesightError),
}

impl fmt::Display for SourceStorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pages(error) => error.fmt(f),
            Self::Foresight(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for SourceStorageError {}

impl From<PageSetError> for SourceStorageError {
    fn from(error: PageSetError) -> Self {
        Self::Pages(error)
    }
}

impl From<ForesightError> for SourceStorageError {
    fn from(error: ForesightError) -> Self {
        Self::Foresight(error)
    }
}

/// What a source that looks ahead knows of the guest's writes.
#[derive(Debug)]
pub(super) struct Foresight<'w> {
    pub(super) predictor: AnyPredictor<'w>,
    /// Which dirty pages a round holds back; `None` without a filter.
    pub(super) rule: Option<HoldBack>,
    /// Dirty, and not to be sent in this round: held back, or found by a sample since the round began.
    pub(super) waiting: PageSet<'w>,
    /// Collected at the end of a round in the window under way.
    window: PageSet<'w>,
    pub(super) scratch: &'w mut [u32],
    pub(super) ranking: &'w mut [Scored],
}

impl<'w> Foresight<'w> {
    /// `None` for a strategy that does not look ahead.
    pub(super) fn new(
        strategy: &Strategy,
        end: Pages,
        storage: ForesightStorage<'w>,
    ) -> Result<Option<Self>, ForesightError> {
        let Some(predictor_words) = predictor_words(strategy, end) else {
            return Ok(None);
        };
        let (needed, given) = (ForesightNeed::of(strategy, end), storage.given());
        let too_small = ForesightError { needed, given };
        if needed.exceeds(&given) {
            return Err(too_small);
        }
        let (predictor, sets) = storage.words.split_at_mut(predictor_words);
        let (waiting, window) = sets.split_at_mut(words_needed(end));
        let predictor = predictor_of(strategy, end, predictor).map_err(|_| too_small)?;
        Ok(Some(Self {
            predictor,
            rule: hold_back_rule(strategy),
            waiting: PageSet::new(waiting, end).map_err(|_| too_small)?,
            window: PageSet::new(window, end).map_err(|_| too_small)?,
            scratch: storage.scratch,
            ranking: storage.ranking,
        }))
    }

    /// A sample ends the window under way: what it found was written in it, and what rounds that ended in it collected. False
    /// for pages outside the VM.
    ///
    /// What the predictor has no room for it leaves out and counts: a forecast may be wrong.
    pub(super) fn learn(&mut self, now: Nanos, written: &[u64]) -> bool {
        let inside = self.window.union_words(0, written).is_ok();
        let _ = self.predictor.on_window(self.window.words(), now);
        self.window.clear();
        inside
    }

    /// A round ended; its pages were written in the window under way.
    pub(super) fn collected(&mut self, written: &[u64]) {
        let inside = self.window.union_words(0, written);
        debug_assert!(inside.is_ok(), "the pending set took them, too");
    }
}

fn predictor_of<'w>(strategy: &Strategy, end: Pages, words: &'w mut [u64]) -> Result<AnyPredictor<'w>, PredictError> {
    Ok(match strategy.filter {
        Filter::MarkovHalf | Filter::Markov => AnyPredictor::Markov(Markov::new(words, end, end)?),
        Filter::Hazard | Filter::None => AnyPredictor::Hazard(Hazard::new(words, end)?),
        Filter::Ppm => AnyPredictor::Ppm(Ppm::new(words, end, PPM_SPAN)?),
        Filter::Frequency => AnyPredictor::Frequency(Frequency::new(words, end, FREQUENCY_SPAN)?),
    })
}

/// `markov:half` holds the half, whatever the forecast says; the others what is likelier written again than 1 − α, where the
/// rule has an α, or than not: see [`order::filter`](crate::order::filter).
fn hold_back_rule(strategy: &Strategy) -> Option<HoldBack> {
    let threshold = match strategy.switch {
        SwitchRule::Sdf(alpha) => {
            let rest = 1000_u64.saturating_sub(u64::from(alpha.milli()));
            Score((u64::from(Score::CERTAIN.0) * rest / 1000) as u32)
        }
        _ => Score::EVEN,
    };
    match strategy.filter {
        Filter::None => None,
        Filter::MarkovHalf => Some(HoldBack::Half),
        Filter::Markov | Filter::Hazard | Filter::Ppm | Filter::Frequency => Some(HoldBack::Above(threshold)),
    }
}
