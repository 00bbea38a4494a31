//! Whether to go on as chosen, now that rounds have been measured.

use core::fmt;

use super::choice::Candidate;
use super::forecast::{ForecastError, Given, check};
use super::goal::Goal;
use super::setting::{Limits, Link, Uncertainty};
use super::walk::{Assumed, End, Standing, switcher};
use super::words::{Memory, Name};
use crate::pattern::Profile;
use crate::strategy::{Slow, Strategy, SwitchRule};
use crate::switch::{RoundEnd, Switcher};
use crate::units::{Bytes, BytesPerSec, Nanos, Pages};

/// By how much another strategy must be better, in thousandths of what the present one is expected to cost from here.
const MARGIN_PERMILLE: u64 = 100;
/// In how many rounds in a row it must be.
const ROUNDS_IN_A_ROW: u32 = 2;
/// The weight of the last round against those before it, in thousandths: KubeVirt smooths bandwidth by 0.4, too.
const LAST_ROUND_PERMILLE: u128 = 400;
/// Bounds of the correction of what the guest dirties, in thousandths.
const CORRECTION: (u32, u32) = (50, 20_000);

/// What to do after a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Revision {
    /// The strategy to go on with: the present one, or another that can be entered from here; `rounds:N` after round N is
    /// post-copy at once.
    pub strategy: Strategy,
    /// True if it is another one than before the round.
    pub changed: bool,
    /// What going on as before would cost from here, in millionths of a point.
    pub keep_micro: u64,
    /// What the strategy that looks best would cost from here, whether it was taken or not.
    pub best_micro: u64,
    /// Goodput, smoothed.
    pub bandwidth: BytesPerSec,
    /// Pages dirtied, relative to the profile, smoothed, in thousandths.
    pub dirtying_permille: u32,
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent =
            self.keep_micro.saturating_sub(self.best_micro) as u128 * 100 / u128::from(self.keep_micro.max(1));
        let verb = if self.changed { "go on with" } else { "keep" };
        write!(
            f,
            "{verb} {}: the link carries {}/s and the guest dirties {} % of what it did when observed; the best would cost {} % less than what was planned",
            Name(&self.strategy),
            Memory(Bytes(self.bandwidth.0)),
            self.dirtying_permille / 10,
            percent
        )
    }
}

/// Watches a migration until it pauses the guest, and says whether to go on otherwise.
///
/// After each round it forecasts the rest of the migration from where it stands, with the bandwidth and dirtying measured
/// so far in place of the profile's, for the present strategy and for those that can still be entered: a switch to post-copy now
/// or after one or two more rounds, pre-copy until it converges, and pre-copy of a guest that is slowed down. What has been
/// spent is spent and counts for none of them; only bounds look at the whole. Once post-copy has begun there is no way back,
/// so it is to be asked only between rounds.
///
/// Hysteresis: another strategy is proposed only if in two rounds in a row it (any other) was better by a tenth of what the
/// present one costs from here, or kept the goal's bounds better.
///
/// A static copy that still runs counts as done: ask when it is. Less than 3 kB; a round costs at most six forecasts without an
/// interval.
#[derive(Clone, Debug)]
pub struct Reviser {
    profile: Profile,
    limits: Limits,
    goal: Goal,
    /// Whether the guest can be slowed down.
    can_slow: bool,
    link: Link,
    strategy: Strategy,
    switcher: Switcher,
    dirtying_permille: u32,
    sent: u64,
    measured: bool,
    /// Rounds in a row in which another strategy was better.
    better_elsewhere: u32,
}

impl Reviser {
    /// Before the first round of a migration by this strategy.
    ///
    /// # Errors
    /// [`ForecastError`] if the strategy cannot be forecast over this link.
    pub fn new(
        strategy: Strategy,
        profile: &Profile,
        link: Link,
        limits: Limits,
        goal: &Goal,
    ) -> Result<Self, ForecastError> {
        check(&strategy, &link)?;
        let given = Given {
            profile,
            link: &link,
            limits: &limits,
            uncertainty: Uncertainty::NONE,
            dirtying_permille: 1000,
        };
        let switcher = switcher(&strategy, &given.likely());
        Ok(Self {
            profile: profile.clone(),
            limits,
            goal: goal.clone(),
            can_slow: true,
            link,
            strategy,
            switcher,
            dirtying_permille: 1000,
            sent: 0,
            measured: false,
            better_elsewhere: 0,
        })
    }

    /// The same where nobody can slow the guest down: no such strategy is proposed.
    #[must_use]
    pub fn without_slowing(self) -> Self {
        Self {
            can_slow: false,
            ..self
        }
    }

    /// The strategy it goes on with.
    pub const fn strategy(&self) -> &Strategy {
        &self.strategy
    }

    /// Judges a round, `idle` being how long it waited for the minimum round. To be told of every round in order.
    pub fn on_round(&mut self, end: &RoundEnd, idle: Nanos) -> Revision {
        self.measure(end, idle);
        self.switcher.on_round(end);
        let standing = Standing::after(end, self.sent, idle);
        let keep = self.candidate(self.strategy, &self.switcher, standing);
        let mut best = keep;
        for strategy in self.reachable(end.round) {
            let mut switcher = switcher(&strategy, &self.given().likely());
            // Rules that look back start with this round.
            switcher.on_round(end);
            let candidate = self.candidate(strategy, &switcher, standing);
            if candidate.rank() < best.rank() {
                best = candidate;
            }
        }
        let enough = u128::from(keep.cost_micro) * u128::from(1000 - MARGIN_PERMILLE) / 1000;
        let better = best.keeps < keep.keeps || (best.keeps == keep.keeps && u128::from(best.cost_micro) < enough);
        self.better_elsewhere = if better { self.better_elsewhere + 1 } else { 0 };
        let changed = self.better_elsewhere >= ROUNDS_IN_A_ROW;
        if changed {
            self.better_elsewhere = 0;
            self.strategy = best.strategy;
            self.switcher = switcher(&self.strategy, &self.given().likely());
            self.switcher.on_round(end);
        }
        Revision {
            strategy: self.strategy,
            changed,
            keep_micro: keep.cost_micro,
            best_micro: best.cost_micro,
            bandwidth: self.link.bandwidth,
            dirtying_permille: self.dirtying_permille,
        }
    }

    /// Takes a round's bandwidth and dirtying into the means.
    fn measure(&mut self, end: &RoundEnd, idle: Nanos) {
        self.sent = self.sent.saturating_add(end.sent.0);
        let smooth = |mean: u64, last: u128| {
            let mean = if self.measured {
                (last * LAST_ROUND_PERMILLE + u128::from(mean) * (1000 - LAST_ROUND_PERMILLE)) / 1000
            } else {
                last
            };
            u64::try_from(mean).unwrap_or(u64::MAX)
        };
        if end.sent == Pages::ZERO || end.duration == Nanos::ZERO {
            return;
        }
        let bandwidth = u128::from(end.sent.bytes().0) * 1_000_000_000 / u128::from(end.duration.0);
        self.link.bandwidth = BytesPerSec(smooth(self.link.bandwidth.0, bandwidth).max(1));
        let expected = self.profile.dirtied_in(end.duration.saturating_add(idle));
        if expected > Pages::ZERO {
            let correction = u128::from(end.dirty.0) * 1000 / u128::from(expected.0);
            let smoothed = smooth(u64::from(self.dirtying_permille), correction);
            let (least, most) = CORRECTION;
            self.dirtying_permille = u32::try_from(smoothed).unwrap_or(u32::MAX).clamp(least, most);
        }
        self.measured = true;
    }

    /// What can be entered after round i: the same first copy, filter and order with another rule.
    fn reachable(&self, round: u32) -> impl Iterator<Item = Strategy> + use<> {
        let present = self.strategy;
        let with = move |switch| {
            let mut other = Strategy { switch, ..present };
            // Unless somebody said otherwise, what happens at a cut follows from whether there is a post-copy to cut.
            if present.cut == Strategy::with_switch(present.switch).cut {
                other.cut = Strategy::with_switch(switch).cut;
            }
            other
        };
        let rules = [
            SwitchRule::Rounds(round),
            SwitchRule::Rounds(round.saturating_add(1)),
            SwitchRule::Rounds(round.saturating_add(2)),
            SwitchRule::Never,
        ];
        let slowed = Strategy {
            slow: Slow::AutoConverge,
            ..with(SwitchRule::Never)
        };
        let slowed = Some(slowed).filter(|_| self.can_slow);
        rules.into_iter().map(with).chain(slowed)
    }

    fn given(&self) -> Given<'_> {
        Given {
            profile: &self.profile,
            link: &self.link,
            limits: &self.limits,
            uncertainty: Uncertainty::NONE,
            dirtying_permille: self.dirtying_permille,
        }
    }

    /// The rest of the migration: bounds look at all of it, costs at what is still to come.
    fn candidate(&self, strategy: Strategy, switcher: &Switcher, standing: Standing) -> Candidate {
        let from = |_: &Assumed<'_>| (switcher.clone(), standing);
        let whole = self.given().forecast(&strategy, from);
        let mut candidate = Candidate::new(strategy, whole, &self.goal);
        if whole.end != End::Never {
            let rest = whole.without(standing.elapsed, Pages(standing.sent).bytes());
            candidate.cost_micro = Candidate::new(strategy, rest, &self.goal).cost_micro;
        }
        candidate
    }
}

impl super::forecast::Forecast {
    /// Less what is spent already.
    fn without(mut self, time: Nanos, bytes: Bytes) -> Self {
        self.time.likely = self.time.likely.saturating_sub(time);
        self.bytes.likely = self.bytes.likely.saturating_sub(bytes);
        self
    }
}
