//! By hand, and against counters that a made-up hypervisor keeps.

use proptest::prelude::*;
use std::string::ToString as _;

use super::{Backoff, Counters, Heading, Limits, Order, Outlook, Passes, Refusal, Steering};
use crate::strategy::SwitchRule;
use crate::switch::{RoundEnd, SwitchSetting};
use crate::units::{BytesPerSec, Nanos, Pages};

const TOTAL: Pages = Pages(10_000);

fn counters(millis: u64, syncs: u32, remaining: u64, sent: u64, zero: u64) -> Counters {
    Counters {
        at: Nanos::from_millis(millis),
        syncs,
        remaining: Pages(remaining),
        sent: Pages(sent),
        zero: Pages(zero),
    }
}

#[test]
fn a_round_lasts_from_one_reading_of_the_log_to_the_next() {
    let mut passes = Passes::new(TOTAL);
    assert_eq!(passes.on_counters(&counters(0, 0, 0, 0, 0)), None);
    assert_eq!(passes.on_counters(&counters(5, 1, 9_900, 80, 20)), None);
    assert_eq!(passes.on_counters(&counters(500, 1, 5_000, 3_000, 2_000)), None);
    let first = passes.on_counters(&counters(1000, 2, 4_000, 7_000, 3_000)).unwrap();
    assert_eq!(
        (first.end.round, first.end.sent, first.end.dirty, first.zero),
        (1, Pages(7_000), Pages(4_000), Pages(3_000)),
        "what was sent before the first counters came counts, too"
    );
    assert_eq!(first.end.previous_dirty, Pages(7_000), "without what was zero");
    assert_eq!(first.end.duration, Nanos::from_secs(1));
    let second = passes.on_counters(&counters(1400, 3, 2_000, 10_500, 3_500)).unwrap();
    assert_eq!(second.end.previous_dirty, Pages(3_500));
    assert_eq!(
        (second.end.sent, second.end.elapsed),
        (Pages(3_500), Nanos::from_millis(1400))
    );
    // Somebody who comes later knows no more than from then on.
    let mut late = Passes::new(TOTAL);
    assert_eq!(late.on_counters(&counters(1200, 2, 3_000, 8_000, 3_000)), None);
    let third = late.on_counters(&counters(1400, 3, 2_000, 10_500, 3_500)).unwrap();
    assert_eq!((third.end.round, third.end.sent), (2, Pages(2_500)));
}

#[test]
fn what_a_round_cannot_have_sent_is_the_next_one_s() {
    let mut passes = Passes::new(TOTAL);
    assert_eq!(passes.on_counters(&counters(0, 1, TOTAL.0, 0, 0)), None);
    let first = passes.on_counters(&counters(1000, 2, 3_000, 9_500, 1_500)).unwrap();
    assert_eq!(
        (first.end.sent, first.zero, first.end.dirty),
        (Pages(8_500), Pages(1_500), Pages(4_000))
    );
    let second = passes.on_counters(&counters(1400, 3, 500, 12_500, 1_500)).unwrap();
    assert_eq!(
        (second.end.sent, second.end.previous_dirty, second.end.dirty),
        (Pages(4_000), Pages(4_000), Pages(500))
    );
}

fn steering(rule: SwitchRule, limits: Limits) -> Steering {
    let mut steering = Steering::new(rule, SwitchSetting::new(TOTAL), limits);
    assert!(steering.on_counters(&counters(0, 1, TOTAL.0, 0, 0)).is_none());
    steering
}

#[test]
fn a_switch_that_would_take_too_long_waits() {
    let limits = Limits {
        drain: Some(Nanos::from_secs(5)),
        ..Limits::default()
    };
    let mut steering = steering(SwitchRule::Rounds(1), limits);
    // 1 000 pages a second: 6 000 take 6 s.
    let turn = steering.on_counters(&counters(10_000, 2, 6_000, 10_000, 0)).unwrap();
    let too_long = Refusal::TooLong {
        drain: Nanos::from_secs(6),
        limit: Nanos::from_secs(5),
    };
    assert_eq!((turn.order, turn.refusal), (Order::Continue, Some(too_long)));
    assert!(too_long.to_string().contains("6.0 s"), "{too_long}");
    let turn = steering.on_counters(&counters(16_000, 3, 5_000, 16_000, 0)).unwrap();
    assert_eq!((turn.order, turn.refusal), (Order::PostCopy, None));
    // The network has become ten times slower; what it was does not count.
    let turn = steering.on_counters(&counters(66_000, 4, 4_000, 21_000, 0)).unwrap();
    assert_eq!((turn.order, turn.drain), (Order::Continue, Some(Nanos::from_secs(40))));
}

#[test]
fn post_copy_is_no_faster_than_it_may_be_and_only_where_there_is_any() {
    let limits = Limits {
        drain: Some(Nanos::from_secs(60)),
        bandwidth: Some(BytesPerSec(409_600)),
        can_post_copy: true,
    };
    let turn = |limits| {
        let mut steering = steering(SwitchRule::Rounds(1), limits);
        steering.on_counters(&counters(10_000, 2, 6_000, 10_000, 0)).unwrap()
    };
    assert_eq!(turn(limits).drain, Some(Nanos::from_secs(60)));
    assert_eq!(turn(limits).order, Order::PostCopy);
    let impossible = Limits {
        can_post_copy: false,
        ..limits
    };
    assert_eq!(turn(impossible).refusal, Some(Refusal::Impossible));
    assert_eq!(turn(impossible).order, Order::Continue);
}

#[test]
fn a_pause_is_allowed_where_the_rest_fits_and_ordered_where_the_rule_says_so() {
    let mut fits = steering(SwitchRule::Never, Limits::default());
    let turn = fits.on_counters(&counters(10_000, 2, 300, 10_000, 0)).unwrap();
    assert_eq!(turn.order, Order::LetStop);
    let mut xen = steering(SwitchRule::Xen, Limits::default());
    for syncs in 2..=5 {
        let turn = xen.on_counters(&counters(
            10_000 * u64::from(syncs),
            syncs,
            9_000,
            10_000 * u64::from(syncs),
            0,
        ));
        assert_eq!(turn.unwrap().order, Order::Continue);
    }
    let turn = xen.on_counters(&counters(60_000, 6, 9_000, 60_000, 0)).unwrap();
    assert_eq!(turn.order, Order::Stop);
}

#[test]
fn an_outlook_follows_from_the_last_round() {
    let end = |round, sent, dirty, millis| RoundEnd {
        round,
        sent: Pages(sent),
        dirty: Pages(dirty),
        previous_dirty: Pages(sent),
        duration: Nanos::from_millis(millis),
        elapsed: Nanos::from_millis(millis),
    };
    let downtime = Nanos::from_millis(300);
    assert_eq!(
        Outlook::after(&end(1, 10_000, 5_000, 10_000), downtime),
        Outlook::Unknown
    );
    assert_eq!(Outlook::after(&end(2, 0, 5_000, 10_000), downtime), Outlook::Unknown);
    // Halves of 4 s, 2 s, 1 s, 0.5 s, 0.25 s.
    assert_eq!(
        Outlook::after(&end(2, 8_000, 4_000, 8_000), downtime),
        Outlook::Ends {
            rounds: 4,
            within: Nanos::from_millis(4000 + 2000 + 1000 + 500 + 250)
        }
    );
    let never = Outlook::after(&end(2, 1_000, 1_000, 1_000), downtime);
    let rate = BytesPerSec(4_096_000);
    assert_eq!(
        never,
        Outlook::Never {
            dirtied: rate,
            sent: rate,
            pause: Nanos::from_secs(1)
        }
    );
}

#[test]
fn a_plateau_is_heading_nowhere() {
    let mut heading = Heading::new(Nanos::from_millis(300));
    let mut previous = 10_000;
    let mut after = |dirty| {
        let end = RoundEnd {
            round: 2,
            sent: Pages(previous),
            dirty: Pages(dirty),
            previous_dirty: Pages(previous),
            duration: Nanos::from_millis(previous),
            elapsed: Nanos::from_millis(previous),
        };
        previous = dirty;
        heading.on_round(&end)
    };
    // Every other λ is below 1, and promises an end.
    for dirty in [9_000, 8_000, 8_100] {
        after(dirty);
    }
    assert!(matches!(after(7_000), Outlook::Ends { .. }), "four rounds in all");
    let expected = Outlook::Never {
        dirtied: BytesPerSec(4_096_000 * 6_800 / 7_000),
        sent: BytesPerSec(4_096_000),
        pause: Nanos::from_millis(6_800),
    };
    assert_eq!(after(6_800), expected);
    assert!(matches!(after(3_000), Outlook::Ends { .. }), "less than half");
    assert!(matches!(after(200), Outlook::Ends { rounds: 0, .. }));
}

#[test]
fn waits_double_up_to_half_a_minute() {
    let mut backoff = Backoff::new();
    let waits = [(); 7].map(|()| backoff.next().0 / 1_000_000_000);
    assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    assert_eq!(backoff.attempts(), 7);
}

proptest! {
    /// Whatever is looked at in between, and however late: nothing that was sent is lost from the rounds, and none is counted twice.
    #[test]
    fn rounds_have_all_that_was_sent(
        steps in prop::collection::vec((0_u64..500, 0_u64..3, 0_u64..2000, 0_u64..100), 1..200),
    ) {
        let total = Pages(1 << 40);
        let (mut passes, mut now) = (Passes::new(total), counters(0, 1, total.0, 0, 0));
        let (mut sent, mut zero, mut time, mut last) = (0, 0, 0, 0);
        prop_assert!(passes.on_counters(&now).is_none());
        let mut at_last_end = now;
        for (millis, syncs, pages, zeros) in steps {
            now = Counters {
                at: now.at.saturating_add(Nanos::from_millis(millis)),
                syncs: now.syncs + syncs as u32,
                sent: Pages(now.sent.0 + pages),
                zero: Pages(now.zero.0 + zeros),
                ..now
            };
            if let Some(pass) = passes.on_counters(&now) {
                prop_assert!(pass.end.round > last);
                last = pass.end.round;
                sent += pass.end.sent.0;
                zero += pass.zero.0;
                time += pass.end.duration.0;
                at_last_end = now;
            }
        }
        prop_assert_eq!((sent, zero, time), (at_last_end.sent.0, at_last_end.zero.0, at_last_end.at.0));
    }

    /// No counters, however absurd, make it panic; and it never switches against its limits.
    #[test]
    fn limits_hold(
        all in prop::collection::vec((any::<u64>(), any::<u32>(), any::<u64>(), any::<u64>(), any::<u64>()), 0..20),
        limit in any::<u64>(),
    ) {
        let limits = Limits { drain: Some(Nanos(limit)), ..Limits::default() };
        let mut steering = Steering::new(SwitchRule::Rounds(1), SwitchSetting::new(TOTAL), limits);
        for (at, syncs, remaining, sent, zero) in all {
            let counters = Counters {
                at: Nanos(at), syncs, remaining: Pages(remaining), sent: Pages(sent), zero: Pages(zero),
            };
            if let Some(turn) = steering.on_counters(&counters) {
                let _ = Outlook::after(&turn.pass.end, Nanos(limit));
                if turn.order == Order::PostCopy {
                    prop_assert!(turn.drain.is_some_and(|drain| drain.0 <= limit));
                }
            }
        }
    }
}
