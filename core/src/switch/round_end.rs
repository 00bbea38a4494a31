//! What a rule is told of a round.

use crate::units::{Nanos, Pages, Ratio};

/// What happened in a round, as it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct RoundEnd {
    /// i, from 1.
    pub round: u32,
    /// S(i): pages sent in the round.
    pub sent: Pages,
    /// V(i): pages dirty as the round ends.
    pub dirty: Pages,
    /// V(i−1): pages dirty as the round before ended; all pages of the guest for round 1. Without those that went as a few bytes in
    /// round i because they were zero: they were no part of what it had to send (Li & Cao 2023 count M so).
    pub previous_dirty: Pages,
    /// T(i): time spent sending, without idling up to the minimum round.
    pub duration: Nanos,
    /// Since the migration began, idling included: what rules that look at the clock go by.
    pub elapsed: Nanos,
}

impl RoundEnd {
    /// The convergence factor λ(i) = V(i) / S(i) of Li & Cao 2023, "Adaptive hybrid migration process", eq. 1 to 3: dirty
    /// rate by bandwidth. Eq. 1 prints R(1) and means R(i).
    ///
    /// λ(1) is 1 by definition, a neutral seed: what round 1 says, measured against the whole guest, is no sign of
    /// convergence. If nothing was sent, λ is 0 if nothing is dirty either, otherwise 1, which is neutral again.
    pub fn lambda(&self) -> Ratio {
        if self.round <= 1 {
            return Ratio::ONE;
        }
        let of_nothing = if self.dirty == Pages::ZERO {
            Ratio::ZERO
        } else {
            Ratio::ONE
        };
        Ratio::new(self.dirty.0, self.sent.0).unwrap_or(of_nothing)
    }

    /// λ(i) in thousandths, rounded toward zero.
    pub fn lambda_milli(&self) -> i64 {
        self.lambda().milli()
    }

    /// SDF(i) = (V(i−1) − V(i)) / S(i) in thousandths, rounded toward zero: the progress per page sent, negative if more is
    /// dirty than before. Nothing sent counts as no progress, 0. Stops at the ends of its range.
    ///
    /// From "A novel hybrid-copy algorithm for live migration" (2017), eq. 7, whose printed direction is inverted; its
    /// text is right. If everything dirty was sent, SDF(i) = 1 − λ(i) for i > 1.
    pub fn sdf_milli(&self) -> i64 {
        if self.sent == Pages::ZERO {
            return 0;
        }
        let progress = i128::from(self.previous_dirty.0) - i128::from(self.dirty.0);
        let milli = progress * 1000 / i128::from(self.sent.0);
        i64::try_from(milli).unwrap_or(if milli < 0 { i64::MIN } else { i64::MAX })
    }
}
