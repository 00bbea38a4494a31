//! What a guest that made itself small has spared, by where it came from.
//!
//! It is the most that it can be: how much of it would have been zero, and so cheap, without the agent's help, nobody has looked at.

use std::time::Duration;

use dunlin_core::steer::Turn;
use dunlin_core::units::{Bytes, BytesPerSec, Pages};
use serde_json::{Value, json};

use super::SofteningReport;

/// A shorter round says nothing of the network.
const ROUND_MIN: Duration = Duration::from_millis(20);

/// Why memory had not to be moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// What the guest can read again, and forgot for this.
    PageCache,
    /// It had been free before.
    FreeMemory,
}

/// What one origin has spared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Saving {
    /// Where it came from.
    pub origin: Origin,
    /// How many bytes, at most.
    pub bytes: Bytes,
    /// How long these would have taken; `None` if it is not known how fast the network is.
    pub time: Option<Duration>,
}

impl Saving {
    /// As it stands in reports.
    pub(super) fn to_json(self) -> Value {
        json!({
            "origin": match self.origin {
                Origin::PageCache => "page-cache",
                Origin::FreeMemory => "free-memory",
            },
            "bytes_at_most": self.bytes.0,
            "time_at_most_us": self.time.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
        })
    }
}

/// Of a guest with `total` pages as QEMU counts them, which was moved in these rounds, at most at `limit`.
pub(super) fn savings(
    report: &SofteningReport,
    total: Pages,
    rounds: &[Turn],
    limit: Option<BytesPerSec>,
) -> Vec<Saving> {
    let spared = match (report.by_hints, report.memory) {
        (true, _) => not_sent(total, rounds),
        (false, Some([original, least])) => original.saturating_sub(least),
        (false, None) => Bytes::ZERO,
    };
    let rate = limit.or_else(|| fastest(rounds));
    let time = |bytes: Bytes| {
        rate.filter(|rate| rate.0 > 0)
            .map(|rate| Duration::from_nanos(rate.time_to_send(bytes).0))
    };
    let cache = spared.min(report.forgotten);
    [
        (Origin::PageCache, cache),
        (Origin::FreeMemory, spared.saturating_sub(cache)),
    ]
    .into_iter()
    .filter(|(_, bytes)| bytes.0 > 0)
    .map(|(origin, bytes)| Saving {
        origin,
        bytes,
        time: time(bytes),
    })
    .collect()
}

/// Without hints the first round sends every page, if only as a zero.
fn not_sent(total: Pages, rounds: &[Turn]) -> Bytes {
    let first = rounds.first().filter(|turn| turn.pass.end.round == 1);
    first.map_or(Bytes::ZERO, |turn| {
        let sent = turn.pass.end.sent.saturating_add(turn.pass.zero);
        total.saturating_sub(sent).bytes()
    })
}

/// Rounds of many zeros take time and send nothing, so the fastest round tells most of the network.
fn fastest(rounds: &[Turn]) -> Option<BytesPerSec> {
    let rate = |turn: &Turn| {
        let end = &turn.pass.end;
        let ns = u128::from(end.duration.0);
        let is_long = ns >= ROUND_MIN.as_nanos();
        let per_second = is_long.then(|| u128::from(end.sent.bytes().0) * 1_000_000_000 / ns)?;
        u64::try_from(per_second).ok().map(BytesPerSec)
    };
    rounds.iter().filter_map(rate).max()
}

#[cfg(test)]
mod tests {
    use dunlin_core::steer::{Order, Pass};
    use dunlin_core::switch::{Decision, Reason, RoundEnd, Verdict};
    use dunlin_core::units::Nanos;

    use super::*;

    fn turn(round: u32, sent: u64, zero: u64, ms: u64) -> Turn {
        let end = RoundEnd {
            round,
            sent: Pages(sent),
            dirty: Pages::ZERO,
            previous_dirty: Pages::ZERO,
            duration: Nanos::from_millis(ms),
            elapsed: Nanos::ZERO,
        };
        Turn {
            pass: Pass { end, zero: Pages(zero) },
            verdict: Verdict {
                decision: Decision::Continue,
                reason: Reason::FirstRound,
                score_milli: 0,
            },
            order: Order::Continue,
            refusal: None,
            drain: None,
        }
    }

    fn origins(savings: &[Saving]) -> Vec<(Origin, u64, Option<u128>)> {
        let parts = |saving: &Saving| (saving.origin, saving.bytes.0, saving.time.map(|time| time.as_millis()));
        savings.iter().map(parts).collect()
    }

    #[test]
    fn what_was_lent_is_first_what_was_forgotten() {
        let report = SofteningReport {
            memory: Some([Bytes(1_000_000), Bytes(400_000)]),
            forgotten: Bytes(200_000),
            ..SofteningReport::default()
        };
        let rounds = [turn(1, 100, 0, 1), turn(2, 1000, 0, 4096), turn(3, 100, 0, 40)];
        let at_limit = savings(&report, Pages(244), &rounds, Some(BytesPerSec(1_000_000)));
        let both = [
            (Origin::PageCache, 200_000, Some(200)),
            (Origin::FreeMemory, 400_000, Some(400)),
        ];
        assert_eq!(origins(&at_limit), both);
        // The first round is too short, the last is the fastest: 10.24 MB/s.
        let as_seen = savings(&report, Pages(244), &rounds, None);
        assert_eq!(origins(&as_seen)[1], (Origin::FreeMemory, 400_000, Some(39)));
        let unknown = savings(&report, Pages(244), &[], None);
        assert_eq!(origins(&unknown)[0], (Origin::PageCache, 200_000, None));
    }

    #[test]
    fn by_hints_it_is_what_the_first_round_left_out() {
        let report = SofteningReport {
            by_hints: true,
            forgotten: Bytes(1 << 40),
            ..SofteningReport::default()
        };
        let spared = savings(&report, Pages(1000), &[turn(1, 300, 100, 1000)], None);
        assert_eq!(origins(&spared), [(Origin::PageCache, 600 << 12, Some(2000))]);
        assert_eq!(savings(&report, Pages(1000), &[turn(2, 300, 100, 1000)], None), []);
        let nothing = SofteningReport::default();
        assert_eq!(savings(&nothing, Pages(1000), &[turn(1, 300, 100, 1000)], None), []);
    }
}
