//! Where a pre-copy is heading if nobody does anything.

use crate::switch::RoundEnd;
use crate::units::{BytesPerSec, Nanos, Pages};

/// Rounds that are looked ahead. Whatever takes longer is as good as never.
const ROUNDS_AHEAD: u32 = 100;
const NANOS_PER_SEC: u128 = 1_000_000_000;

/// What becomes of a pre-copy that goes on as in its last round.
///
/// Each round leaves λ = V/S of what it had to send, as the last one did, and takes V/S of its time, until the rest fits the downtime.
/// A guest that writes the same pages again does better than that: it is a bound where λ is small, and near 1 a hint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outlook {
    /// Nothing has been sent, or only round 1 has ended, of which λ says nothing.
    Unknown,
    /// The rest fits the downtime.
    Ends {
        /// After so many further rounds; 0 for now.
        rounds: u32,
        /// After so much time, the guest's pause included.
        within: Nanos,
    },
    /// As much is dirtied as is sent.
    Never {
        /// How fast the guest dirties memory.
        dirtied: BytesPerSec,
        /// How fast it is sent.
        sent: BytesPerSec,
        /// The pause if it were stopped now.
        pause: Nanos,
    },
}

impl Outlook {
    /// After this round, for a pause of at most `downtime`. O(rounds ahead), at most 100 steps.
    pub fn after(end: &RoundEnd, downtime: Nanos) -> Self {
        let (sent, nanos) = (u128::from(end.sent.0), u128::from(end.duration.0));
        if sent == 0 || nanos == 0 {
            return Self::Unknown;
        }
        let time = |pages: u128| pages.saturating_mul(nanos) / sent;
        let mut rest = u128::from(end.dirty.0);
        let pause = time(rest);
        if pause <= u128::from(downtime.0) {
            return Self::Ends {
                rounds: 0,
                within: saturating(pause),
            };
        }
        if end.round <= 1 {
            return Self::Unknown;
        }
        let dirty = u128::from(end.dirty.0);
        let mut within = 0_u128;
        for rounds in 0..ROUNDS_AHEAD {
            if time(rest) <= u128::from(downtime.0) {
                return Self::Ends {
                    rounds,
                    within: saturating(within + time(rest)),
                };
            }
            if dirty >= sent {
                break;
            }
            within += time(rest);
            rest = rest * dirty / sent;
        }
        Self::never(end)
    }

    /// After a round in which something was sent.
    fn never(end: &RoundEnd) -> Self {
        let (sent, nanos) = (u128::from(end.sent.0), u128::from(end.duration.0));
        let rate = |pages: Pages| {
            let per_sec = u128::from(pages.bytes().0) * NANOS_PER_SEC / nanos;
            BytesPerSec(u64::try_from(per_sec).unwrap_or(u64::MAX))
        };
        Self::Never {
            dirtied: rate(end.dirty),
            sent: rate(end.sent),
            pause: saturating(u128::from(end.dirty.0).saturating_mul(nanos) / sent),
        }
    }
}

/// Where a pre-copy has been heading in the rounds so far.
///
/// As [`Outlook::after`] the last of them, but for a plateau: λ of single rounds is at times below 1 there, too, and means nothing. If none of
/// the last [`PLATEAU_ROUNDS`](Self::PLATEAU_ROUNDS) has left less than three quarters of what the one before them left, nothing more is expected
/// of others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heading {
    downtime: Nanos,
    /// V of the last rounds, the newest first.
    left: [Option<Pages>; Self::PLATEAU_ROUNDS + 1],
}

impl Heading {
    /// Rounds without progress after which there is a plateau.
    pub const PLATEAU_ROUNDS: usize = 4;

    /// Before round 1, for a pause of at most `downtime`.
    pub const fn new(downtime: Nanos) -> Self {
        Self {
            downtime,
            left: [None; Self::PLATEAU_ROUNDS + 1],
        }
    }

    /// After a round. O(1), as [`Outlook::after`].
    pub fn on_round(&mut self, end: &RoundEnd) -> Outlook {
        self.left.rotate_right(1);
        self.left[0] = Some(end.dirty);
        match Outlook::after(end, self.downtime) {
            Outlook::Ends { rounds, .. } if rounds > 0 && self.is_on_plateau() => Outlook::never(end),
            outlook => outlook,
        }
    }

    fn is_on_plateau(&self) -> bool {
        let [recent @ .., before] = &self.left;
        let Some(before) = before else {
            return false;
        };
        let is_less = |left: &Pages| u128::from(left.0) * 4 < u128::from(before.0) * 3;
        !recent.iter().flatten().any(is_less)
    }
}

fn saturating(nanos: u128) -> Nanos {
    Nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
