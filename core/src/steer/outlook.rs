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
        let rate = |pages: Pages| {
            let per_sec = u128::from(pages.bytes().0) * NANOS_PER_SEC / nanos;
            BytesPerSec(u64::try_from(per_sec).unwrap_or(u64::MAX))
        };
        Self::Never {
            dirtied: rate(end.dirty),
            sent: rate(end.sent),
            pause: saturating(pause),
        }
    }
}

fn saturating(nanos: u128) -> Nanos {
    Nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
