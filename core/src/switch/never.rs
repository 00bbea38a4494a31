//! Pure pre-copy.

use super::{Decision, Reason, RoundEnd, Verdict};

/// `never`: no decision of its own. Pre-copy ends when the rest fits the downtime, or at the round limit, by
/// stop-and-copy (Clark et al. 2005; Li & Cao 2023, "pre-copy").
#[derive(Clone, Copy, Debug)]
pub struct Never;

impl Never {
    /// Always [`Decision::Continue`].
    pub fn on_round(&mut self, _end: &RoundEnd) -> Verdict {
        Verdict {
            decision: Decision::Continue,
            score_milli: 0,
            reason: Reason::DoesNotFit,
        }
    }
}
