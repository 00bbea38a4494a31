//! How others choose: what the choice is compared with.

use core::fmt;

use crate::pattern::Profile;
use crate::strategy::{Strategy, SwitchRule};
use crate::switch::RoundEnd;
use crate::units::{Bytes, BytesPerSec, Pages};

/// The rule found by Shah et al. 2015, "A performance analysis of precopy, postcopy and hybrid live VM migration algorithms in
/// scientific cloud computing environment", as the proposal "Workload-aware live migration" (2023) reports it: of small guests
/// with a high dirty rate pre-copy is fastest, of large ones post-copy, at any dirty rate. O(1).
///
/// A reconstruction: where "small" ends was not to be found, so the caller says; small guests with a low dirty rate are not
/// mentioned, and take pre-copy, as nothing speaks against it. The dirty rate has thus no effect.
pub fn shah_2015(profile: &Profile, small: Bytes) -> Strategy {
    Strategy::with_switch(if profile.used.bytes() <= small {
        SwitchRule::Never
    } else {
        SwitchRule::Rounds(0)
    })
}

/// A step of AdaMig's ladder.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Step {
    /// Plain pre-copy.
    PreCopy,
    /// Pre-copy of compressed pages.
    Compress,
    /// The same of a guest that is slowed down as well.
    Throttle,
    /// Post-copy, from which no way leads back.
    PostCopy,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PreCopy => "precopy",
            Self::Compress => "precopy with compression",
            Self::Throttle => "precopy with compression and throttling",
            Self::PostCopy => "postcopy",
        })
    }
}

/// The priority list of AdaMig (Li et al., "Adaptive Live Migration of Virtual Machines under Limited Network Bandwidth",
/// VEE 2021): pre-copy; while pages are dirtied faster than they are sent, first compression, then throttling as well; where
/// that does not help, post-copy.
///
/// A reconstruction from the paper's abstract and what the proposal "Workload-aware live migration" (2023) says of it: each step is
/// given up after `patience` rounds in a row that leave at least as much as they sent. A round that leaves less starts
/// the count anew, but does not undo the step. Whoever drives it compresses and throttles.
///
/// ```
/// use dunlin_core::choose::{AdaMig, Step};
/// use dunlin_core::units::Pages;
///
/// let mut ladder = AdaMig::new(2);
/// let full_copy = (Pages(1000), Pages(100));
/// assert_eq!(ladder.after(full_copy.0, full_copy.1), Step::PreCopy);
/// assert_eq!(ladder.after(Pages(100), Pages(100)), Step::PreCopy);
/// assert_eq!(ladder.after(Pages(100), Pages(120)), Step::Compress);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct AdaMig {
    patience: u32,
    step: Step,
    /// Rounds in a row that did not help.
    in_vain: u32,
}

impl AdaMig {
    /// At the first step. A patience of 0 is read as 1.
    pub const fn new(patience: u32) -> Self {
        Self {
            patience: if patience == 0 { 1 } else { patience },
            step: Step::PreCopy,
            in_vain: 0,
        }
    }

    /// The step for the next round. O(1).
    pub const fn on_round(&mut self, end: &RoundEnd) -> Step {
        self.after(end.sent, end.dirty)
    }

    /// The same from what a round sent and left.
    pub const fn after(&mut self, sent: Pages, dirty: Pages) -> Step {
        if dirty.0 == 0 || dirty.0 < sent.0 {
            self.in_vain = 0;
            return self.step;
        }
        self.in_vain += 1;
        if self.in_vain >= self.patience {
            self.in_vain = 0;
            self.step = match self.step {
                Step::PreCopy => Step::Compress,
                Step::Compress => Step::Throttle,
                Step::Throttle | Step::PostCopy => Step::PostCopy,
            };
        }
        self.step
    }
}

/// Memory over which Shah's rule is asked where nobody says what small is: what the link sends in ten seconds. Ours.
pub const fn small_for(link: BytesPerSec) -> Bytes {
    Bytes(link.0.saturating_mul(10))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::WwsCurve;
    use crate::units::Nanos;
    use proptest::prelude::*;

    #[test]
    fn small_guests_by_pre_copy_large_ones_by_post_copy() {
        let profile = Profile::new(Pages(1000), Pages(100), WwsCurve::FLAT, Nanos(1), 1);
        let switch = |bytes| shah_2015(&profile, Bytes(bytes)).switch;
        assert_eq!(switch(409_600), SwitchRule::Never, "used pages count, not all");
        assert_eq!(switch(409_599), SwitchRule::Rounds(0));
        assert_eq!(small_for(BytesPerSec(7)), Bytes(70));
        assert_eq!(small_for(BytesPerSec(u64::MAX)), Bytes(u64::MAX));
    }

    #[test]
    fn the_ladder_by_hand() {
        let mut ladder = AdaMig::new(3);
        let rounds = [
            (100, 100),
            (100, 120),
            (120, 60),
            (60, 60),
            (60, 60),
            (60, 60),
            (60, 61),
            (0, 5),
            (5, 5),
            (0, 0),
            (9, 9),
            (9, 9),
            (9, 9),
        ];
        let steps = rounds.map(|(sent, dirty)| ladder.after(Pages(sent), Pages(dirty)));
        use Step::{Compress, PostCopy, PreCopy, Throttle};
        let expected = [
            PreCopy, PreCopy, PreCopy, PreCopy, PreCopy, Compress, Compress, Compress, Throttle, Throttle, Throttle,
            Throttle, PostCopy,
        ];
        assert_eq!(steps, expected);
        assert_eq!(AdaMig::new(0), AdaMig::new(1));
    }

    proptest! {
        /// Against the whole history: a step for every `patience` rounds in vain within a run of such rounds.
        #[test]
        fn the_ladder_counts_like_its_history(patience in 1..5u32, rounds in prop::collection::vec((0..4u64, 0..4u64), 0..40)) {
            let mut ladder = AdaMig::new(patience);
            for (count, &(sent, dirty)) in (1..).zip(&rounds) {
                let step = ladder.after(Pages(sent), Pages(dirty));
                let runs = rounds[..count].split(|(sent, dirty)| *dirty == 0 || dirty < sent);
                let taken: usize = runs.map(|run| run.len() / patience as usize).sum();
                let expected = [Step::PreCopy, Step::Compress, Step::Throttle, Step::PostCopy][taken.min(3)];
                prop_assert_eq!(step, expected);
            }
        }
    }
}
