//! Choosing the strategy of a migration from what is seen of the guest just before it, and again on the way.

use heapless::Vec;

use super::check_strategy;
use crate::choose::{CANDIDATES, Choice, Goal, Limits, Link, Reviser, Revision, Uncertainty, candidates, choose};
use crate::message::Regions;
use crate::pageset::{PageSet, PageSetError, words_needed};
use crate::pattern::{Profile, Samples};
use crate::strategy::{First, Strategy};
use crate::switch::RoundEnd;
use crate::units::{Bytes, BytesPerSec, Nanos, Pages};

/// What a strategy is chosen by, besides the guest's writes.
#[derive(Clone, Debug)]
pub struct AdvisorSetting {
    /// What the migration is to be good at.
    pub goal: Goal,
    /// The way to the target; its storage is not used.
    pub link: Link,
    /// What the migration is run with.
    pub limits: Limits,
    /// Pages of the guest that are not all zero, before it is observed.
    pub used: Pages,
    /// How many vCPUs it has.
    pub vcpus: u32,
}

/// Chooses the strategy of a [`Source`](super::Source) that is [advised](super::Source::advised) by it: what the guest writes
/// while it is observed makes its [`Profile`], [`choose`] picks the best candidate for the goal, and a [`Reviser`] looks again
/// after every round.
///
/// Candidates are those [for the goal](candidates) that a live migration carries out without storage. Which way pages are written in, a
/// dirty bitmap does not tell: the class of the profile is unknown.
///
/// Memory: the caller's table, a word and a bit for each page, and about 20 kB. A sample costs O(pages written), the choice
/// a forecast for each candidate, a round at most five.
#[derive(Debug)]
pub struct Advisor<'w> {
    setting: AdvisorSetting,
    samples: Samples<'w>,
    window: PageSet<'w>,
    choice: Option<Choice>,
    reviser: Option<Reviser>,
    revised: Option<(u32, Revision)>,
}

impl<'w> Advisor<'w> {
    /// The shortest and the longest observation where nobody says how long.
    const OBSERVATION: (Nanos, Nanos) = (Nanos::from_secs(2), Nanos::from_secs(8));

    /// How long to observe a guest with this much memory before a choice where nobody says otherwise: as long as one copy of it takes,
    /// from 2 to 8 s. What is asked is how much a round leaves dirty; the first takes that long, and the curve is a guess beyond what
    /// was seen. But all the while nothing moves, so that it ends at 8 s, as the 2017 paper's observation does.
    pub const fn observation(memory: Bytes, bandwidth: BytesPerSec) -> Nanos {
        let (least, most) = Self::OBSERVATION;
        match bandwidth.time_to_send(memory) {
            copy if copy.0 < least.0 => least,
            copy if copy.0 > most.0 => most,
            copy => copy,
        }
    }

    /// Words of its table for a guest whose last page is the one before `end`; `usize::MAX` if they cannot be counted.
    pub const fn words_needed(end: Pages) -> usize {
        if end.0 > usize::MAX as u64 / 2 {
            return usize::MAX;
        }
        (end.0 as usize).saturating_add(words_needed(end))
    }

    /// Nothing seen yet of a guest whose last page is the one before `end`. What is in the table does not matter.
    ///
    /// # Errors
    /// [`PageSetError::StorageTooSmall`].
    pub fn new(table: &'w mut [u64], end: Pages, setting: AdvisorSetting) -> Result<Self, PageSetError> {
        let (needed, given) = (Self::words_needed(end), table.len());
        if given < needed {
            return Err(PageSetError::StorageTooSmall { needed, given });
        }
        let (window, samples) = table.split_at_mut(words_needed(end));
        Ok(Self {
            setting,
            samples: Samples::new(&mut samples[..end.0 as usize]),
            window: PageSet::new(window, end)?,
            choice: None,
            reviser: None,
            revised: None,
        })
    }

    /// What was chosen, with what it was expected to cost; `None` before.
    pub const fn choice(&self) -> Option<&Choice> {
        self.choice.as_ref()
    }

    /// The round after which it was last changed, and to what.
    pub const fn revised(&self) -> Option<&(u32, Revision)> {
        self.revised.as_ref()
    }

    /// A window of observation. Pages outside the guest are left out.
    pub(super) fn sample(&mut self, written: &[u64]) {
        self.window.clear();
        if self.window.union_words(0, written).is_ok() {
            // The table has a word for each page of the window.
            let _ = self.samples.on_window(&self.window);
        }
    }

    /// The best strategy for a guest that was observed so long. `None` if none can be forecast: over a link without bandwidth.
    pub(super) fn choose(&mut self, regions: &Regions, span: Nanos) -> Option<Strategy> {
        let setting = &self.setting;
        let total = crate::message::total_pages(regions);
        // What it has written since they were counted is used, too.
        let used = setting.used.max(self.samples.distinct());
        let profile = Profile::new(total, used, self.samples.curve(span), span, setting.vcpus);
        let (link, limits, goal) = (&setting.link, &setting.limits, &setting.goal);
        let candidates: Vec<Strategy, { CANDIDATES.len() }> = candidates(goal)
            .into_iter()
            .filter(|strategy| strategy.first == First::Serial && check_strategy(strategy).is_ok())
            .collect();
        let choice = choose(&candidates, &profile, link, limits, goal, Uncertainty::DEFAULT).ok()?;
        let strategy = choice.best.strategy;
        self.reviser = Reviser::new(strategy, &profile, *link, *limits, goal)
            .ok()
            .map(Reviser::without_slowing);
        self.choice = Some(choice);
        Some(strategy)
    }

    /// After a round that does not end pre-copy: another strategy, if it is better from here.
    pub(super) fn revise(&mut self, end: &RoundEnd, idle: Nanos) -> Option<Strategy> {
        let revision = self.reviser.as_mut()?.on_round(end, idle);
        if !revision.changed {
            return None;
        }
        self.revised = Some((end.round, revision));
        Some(revision.strategy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_observed_as_long_as_a_copy_takes_within_bounds() {
        let observation = |mebibytes: u64, rate| Advisor::observation(Bytes(mebibytes << 20), BytesPerSec(rate));
        let secs = Nanos::from_secs;
        assert_eq!(observation(256, 50 << 20), Nanos::from_millis(5120));
        assert_eq!(observation(100, 50 << 20), secs(2));
        assert_eq!(observation(101, 50 << 20), Nanos::from_millis(2020));
        assert_eq!(observation(399, 50 << 20), Nanos::from_millis(7980));
        assert_eq!(observation(401, 50 << 20), secs(8));
        assert_eq!((observation(0, 0), observation(1, 0)), (secs(2), secs(8)));
        assert_eq!(observation(u64::MAX >> 20, u64::MAX), secs(2));
    }
}
