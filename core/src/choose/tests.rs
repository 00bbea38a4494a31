//! Whole forecasts and choices: by hand, at the edges, and the laws that must hold.

use super::*;
use crate::pattern::{Profile, WwsCurve};
use crate::strategy::{Strategy, SwitchRule};
use crate::switch::RoundEnd;
use crate::units::{Bytes, BytesPerSec, Nanos, Pages};
use proptest::collection::vec;
use proptest::prelude::{Strategy as _, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
use std::string::ToString;
use std::vec::Vec;

fn strategy(text: &str) -> Strategy {
    text.parse().expect(text)
}

fn profile(used: u64, points: &[(u64, u64)]) -> Profile {
    let points: Vec<_> = points
        .iter()
        .map(|&(ms, pages)| (Nanos::from_millis(ms), Pages(pages)))
        .collect();
    let curve = WwsCurve::new(&points).expect("a curve");
    let span = points.last().map_or(Nanos::ZERO, |point| point.0);
    Profile {
        class: crate::pattern::AccessClass::Loop,
        ..Profile::new(Pages(used), Pages(used), curve, span, 1)
    }
}

/// No round trips, no hand-over: what is left is the model.
const BARE: Limits = Limits {
    handover: Nanos::ZERO,
    min_round: Nanos::ZERO,
    ..Limits::DEFAULT
};

const fn link(pages_per_sec: u64) -> Link {
    Link {
        round_trip: Nanos::ZERO,
        fault_overhead: Nanos::ZERO,
        ..Link::new(BytesPerSec(pages_per_sec * 4096))
    }
}

fn likely(text: &str, profile: &Profile, link: &Link, limits: &Limits) -> Forecast {
    forecast(&strategy(text), profile, link, limits, Uncertainty::NONE).expect(text)
}

const SEC: u64 = 1_000_000_000;

/// 10 000 pages at 1000 a second; 250 a second are dirtied, until all 10 000 are: rounds of 10 000, 2500, 625 pages, after which 156
/// fit 300 ms.
#[test]
fn pre_copy_by_hand() {
    let guest = profile(10_000, &[(40_000, 10_000)]);
    let forecast = likely("precopy", &guest, &link(1000), &BARE);
    assert_eq!((forecast.end, forecast.rounds.likely), (End::StopCopy, 3));
    assert_eq!(forecast.bytes.likely, Pages(10_000 + 2500 + 625 + 156).bytes());
    assert_eq!(
        (forecast.time.likely.0, forecast.downtime.likely.0),
        (13_281 * SEC / 1000, 156 * SEC / 1000)
    );
    let handover = Limits {
        handover: Nanos::from_millis(200),
        ..BARE
    };
    let forecast = likely("precopy", &guest, &link(1000), &handover);
    assert_eq!(
        (forecast.rounds.likely, forecast.downtime.likely.0),
        (4, 239 * SEC / 1000),
        "39 pages after 156"
    );
}

/// The same guest: post-copy after the first round pushes the 2500 pages, and a minimum round of 1 s dirties 250 more often.
#[test]
fn hybrid_and_post_copy_by_hand() {
    let guest = profile(10_000, &[(40_000, 10_000)]);
    let hybrid = likely("hybrid:1", &guest, &link(1000), &BARE);
    assert_eq!((hybrid.end, hybrid.rounds.likely), (End::PostCopy, 1));
    assert_eq!(hybrid.bytes.likely, Pages(12_500).bytes());
    assert_eq!(
        (hybrid.time.likely.0, hybrid.post_copy_time.likely.0),
        (12_500 * SEC / 1000, 2500 * SEC / 1000)
    );
    assert_eq!(hybrid.faults.likely, Pages(0), "it goes round in a circle of 40 s");
    let postcopy = likely("postcopy", &guest, &link(1000), &BARE);
    assert_eq!((postcopy.rounds.likely, postcopy.time.likely.0), (0, 10 * SEC));
    assert!(
        postcopy.faults.likely > Pages(1000) && postcopy.faults.likely < Pages(1500),
        "{postcopy:?}"
    );
    let slow_rounds = Limits {
        min_round: Nanos::from_secs(20),
        ..BARE
    };
    let hybrid = likely("hybrid:1", &guest, &link(1000), &slow_rounds);
    assert_eq!(
        (hybrid.time.likely.0, hybrid.bytes.likely),
        (25 * SEC, Pages(15_000).bytes())
    );
}

/// Twice as fast as the link, on 5000 pages: they are dirty in every round.
#[test]
fn a_plateau_by_hand() {
    let guest = profile(10_000, &[(2500, 5000), (5000, 5000), (10_000, 5000)]);
    let forced = likely("precopy", &guest, &link(1000), &BARE);
    assert_eq!((forced.end, forced.rounds.likely), (End::ForcedStopCopy, 30));
    assert_eq!(
        (forced.time.likely.0, forced.downtime.likely.0),
        (10 * SEC + 30 * 5 * SEC, 5 * SEC)
    );
    let never = likely("switch=qemu", &guest, &link(1000), &BARE);
    assert_eq!(
        (never.end, never.time.likely, never.ends_surely),
        (End::Never, Nanos(u64::MAX), false)
    );
    let xen = likely("switch=xen", &guest, &link(1000), &BARE);
    assert_eq!((xen.end, xen.rounds.likely), (End::ForcedStopCopy, 5));
    let heuristic = likely("heuristic-hybrid", &guest, &link(1000), &BARE);
    assert_eq!((heuristic.end, heuristic.rounds.likely), (End::PostCopy, 2));
}

/// 5000 pages a second over storage, 1000 over the network. The static copy takes 2 s, in rounds of 100 ms that dirty 25.
#[test]
fn a_parallel_first_copy_by_hand() {
    let guest = profile(10_000, &[(40_000, 10_000)]);
    let with_storage = Link {
        storage_bandwidth: Some(BytesPerSec(5000 * 4096)),
        ..link(1000)
    };
    let limits = Limits {
        min_round: Nanos::from_millis(100),
        ..BARE
    };
    let forecast = likely("par-migrate", &guest, &with_storage, &limits);
    assert_eq!((forecast.end, forecast.rounds.likely), (End::StopCopy, 20));
    assert_eq!(forecast.bytes.likely, Pages(10_000 + 19 * 25 + 25).bytes());
    assert_eq!(
        (forecast.time.likely.0, forecast.downtime.likely.0),
        (2025 * SEC / 1000, 25 * SEC / 1000)
    );
    let slow = Link {
        storage_bandwidth: Some(BytesPerSec(10 * 4096)),
        ..link(1000)
    };
    let forecast = likely("par-migrate", &guest, &slow, &limits);
    assert_eq!(
        forecast.time.likely.0,
        1_000_025 * SEC / 1000,
        "equal rounds are taken together"
    );
    assert_eq!(forecast.bytes.likely, Pages(10_000 + 9999 * 25 + 25).bytes());
}

/// Bits cleared as pages are sent: half of what is written in the full copy is written before its page is sent.
#[test]
fn clearing_late_halves_a_round() {
    let guest = profile(10_000, &[(40_000, 10_000)]);
    let late = likely("hybrid:1,clear=late", &guest, &link(1000), &BARE);
    assert_eq!(
        late.bytes.likely,
        Pages(10_000 + 1249).bytes(),
        "1250 less what is rounded down"
    );
}

#[test]
fn throttling_brings_a_plateau_down_and_is_counted() {
    let guest = profile(10_000, &[(2500, 5000), (5000, 5000), (10_000, 5000)]);
    let auto = likely("precopy,slow=auto-converge", &guest, &link(1000), &BARE);
    assert_eq!(auto.end, End::StopCopy, "{auto:?}");
    assert!(auto.stall.likely > Nanos::from_secs(5), "{auto:?}");
    let limited = likely("precopy,slow=dirty-limit", &guest, &link(1000), &BARE);
    assert_eq!(limited.end, End::StopCopy, "{limited:?}");
    assert!(limited.rounds.likely < auto.rounds.likely);
}

#[test]
fn what_cannot_be_forecast() {
    let guest = profile(10, &[(1, 1)]);
    let error =
        |text, link| forecast(&strategy(text), &guest, &link, &BARE, Uncertainty::NONE).expect_err("impossible");
    assert_eq!(error("precopy", link(0)), ForecastError::NoBandwidth);
    assert_eq!(error("par-migrate", link(1)), ForecastError::NoStorage);
    let no_storage = Link {
        storage_bandwidth: Some(BytesPerSec(0)),
        ..link(1)
    };
    assert_eq!(error("par-migrate", no_storage), ForecastError::NoStorage);
    assert!(ForecastError::NoStorage.to_string().contains("first=serial"));
}

#[test]
fn an_idle_guest_a_page_and_the_largest_guest() {
    let idle = Profile::new(Pages(1), Pages(1), WwsCurve::FLAT, Nanos::ZERO, 1);
    for candidate in &CANDIDATES[..9] {
        let forecast = forecast(candidate, &idle, &link(1), &BARE, Uncertainty::DEFAULT).expect("a link");
        assert_eq!(
            (forecast.bytes.low, forecast.bytes.high),
            (Bytes(4096), Bytes(4096)),
            "{candidate}"
        );
        assert!(forecast.ends_surely && forecast.faults.high == Pages(0));
    }
    let all = 1 << 32;
    let day = 86_400_000;
    let largest = profile(all, &[(day, all)]);
    for candidate in &CANDIDATES {
        let link = Link {
            storage_bandwidth: Some(BytesPerSec(1 << 27)),
            ..link(all * 1000 / day)
        };
        let forecast = forecast(candidate, &largest, &link, &Limits::DEFAULT, Uncertainty::DEFAULT).expect("a link");
        assert!(
            forecast.time.low <= forecast.time.likely && forecast.time.likely <= forecast.time.high,
            "{candidate}"
        );
        assert!(forecast.bytes.low >= Bytes(1 << 44), "{candidate}: {forecast:?}");
    }
    let nothing = Profile::new(Pages(0), Pages(0), WwsCurve::FLAT, Nanos::ZERO, 1);
    assert_eq!(likely("precopy", &nothing, &link(1), &BARE).time.likely, Nanos(0));
}

fn chosen(guest: &Profile, link: &Link, goal: &str) -> Choice {
    let goal = goal.parse().expect("a goal");
    choose(&CANDIDATES, guest, link, &BARE, &goal, Uncertainty::DEFAULT).expect("a link")
}

#[test]
fn optimal_weighs_the_guests_time_as_the_goal_does() {
    for (goal, rule) in [
        ("downtime<1s", "optimal:10"),
        ("weighted:time=2,stall=256", "optimal"),
        ("weighted:stall=1", "optimal:1000"),
    ] {
        let of_goal = candidates(&goal.parse().expect("a goal"));
        let rule = SwitchRule::parse(rule).expect("a rule");
        let expected = CANDIDATES.map(|candidate| match candidate.switch {
            SwitchRule::OPTIMAL => Strategy::with_switch(rule),
            _ => candidate,
        });
        assert_eq!(of_goal, expected, "{goal}");
        assert!(of_goal.contains(&Strategy::with_switch(rule)));
    }
}

#[test]
fn each_goal_gets_what_it_asks_for() {
    // On a plateau of 5000 pages that are dirtied within a second.
    let guest = profile(10_000, &[(1000, 5000), (5000, 5000), (10_000, 5000)]);
    let choice = |goal| chosen(&guest, &link(1000), goal);
    let by_bytes = choice("weighted:bytes=1");
    assert_eq!(by_bytes.best.strategy, strategy("postcopy"));
    assert_eq!(by_bytes.precopy.end, End::ForcedStopCopy);
    let by_stall = choice("weighted:stall=1");
    assert_eq!(by_stall.best.strategy.switch, SwitchRule::Never, "{by_stall}");
    assert_eq!(by_stall.best.forecast.stall.likely, Nanos(0));
    let bounded = choice("downtime<1s,weighted:stall=1");
    assert_eq!(bounded.best.keeps, Keeps::Surely);
    assert!(bounded.best.strategy.switch.can_post_copy(), "{bounded}");
    let impossible = choice("time<1s");
    assert_eq!(
        (impossible.best.keeps, impossible.best.strategy),
        (Keeps::Not, strategy("postcopy"))
    );
    assert!(
        impossible
            .to_string()
            .contains("time will not stay below 1.00 s but be 10.0 s"),
        "{impossible}"
    );
    let faults = choice("faults<0,bytes<1B");
    assert_eq!(faults.best.keeps, Keeps::Not);
}

#[test]
fn a_choice_says_why() {
    let guest = profile(10_000, &[(1000, 5000), (5000, 5000), (10_000, 5000)]);
    let text = chosen(&guest, &link(1000), "weighted:time=1").to_string();
    assert!(
        text.starts_with("postcopy: 10.0 s (9.09 s to 11.1 s), 0 ns of downtime, 39.0 MiB, "),
        "{text}"
    );
    assert!(
        text.contains("precopy would not converge (λ of the load 5.00)"),
        "{text}"
    );
    assert!(text.ends_with("; 33 % faster than hybrid:1"), "{text}");
    let calm = profile(10_000, &[(40_000, 100)]);
    let text = chosen(&calm, &link(1000), "downtime<300ms,weighted:faults=1").to_string();
    assert!(text.starts_with("precopy: 10.0 s"), "{text}");
    assert!(text.contains("downtime stays below 300 ms in the worst case"), "{text}");
    assert!(!text.contains("converge"), "{text}");
}

/// The bound that both miss most, by as much, decides nothing.
#[test]
fn of_two_that_miss_the_same_bound_the_one_nearer_to_the_others_is_better() {
    let guest = profile(25_000, &[(1000, 2500)]);
    let forecast = likely("precopy", &guest, &link(1000), &BARE);
    let goal: Goal = "downtime<1ns,time<1ns,weighted:bytes=1".parse().expect("a goal");
    let with_time = |nanos: u64, bytes: u64| {
        let (mut forecast, at) = (forecast, |value| Interval {
            low: value,
            likely: value,
            high: value,
        });
        (forecast.downtime, forecast.time) = (at(Nanos(1_000_000)), at(Nanos(nanos)));
        forecast.bytes = Interval {
            low: Bytes(bytes),
            likely: Bytes(bytes),
            high: Bytes(bytes),
        };
        Candidate::new(strategy("precopy"), forecast, &goal)
    };
    let (near, far) = (with_time(1_000, 1 << 40), with_time(500_000, 1));
    assert_eq!(near.excess_permille, far.excess_permille);
    assert!(near.rank() < far.rank(), "{near:?}, {far:?}");
}

#[test]
fn storage_is_used_where_it_helps() {
    let guest = profile(10_000, &[(4000, 1000)]);
    let with_storage = Link {
        storage_bandwidth: Some(BytesPerSec(10_000 * 4096)),
        ..link(1000)
    };
    let choice = chosen(&guest, &with_storage, "weighted:time=1");
    assert_eq!(
        (choice.best.strategy.first, choice.left_out),
        (crate::strategy::First::Parallel, 0)
    );
    assert_eq!(chosen(&guest, &link(1000), "weighted:time=1").left_out, 2);
    let none = choose(&[], &guest, &link(1000), &BARE, &Goal::BALANCED, Uncertainty::NONE);
    assert_eq!(none, Err(ForecastError::NoStorage));
}

#[test]
fn pessimism_decides_between_bounds() {
    // 290 of the 300 ms: pre-copy likely keeps 295 ms of downtime, post-copy surely.
    let guest = profile(10_000, &[(1000, 290), (9000, 290)]);
    let goal: Goal = "downtime<295ms,weighted:stall=1".parse().expect("a goal");
    let limits = Limits { max_rounds: 1, ..BARE };
    let choice = choose(
        &CANDIDATES[..2],
        &guest,
        &link(1000),
        &limits,
        &goal,
        Uncertainty::DEFAULT,
    )
    .expect("a link");
    assert_eq!(
        (choice.best.keeps, choice.best.strategy),
        (Keeps::Surely, strategy("postcopy"))
    );
    assert_eq!(choice.next.map(|next| next.keeps), Some(Keeps::Likely));
    let certain = choose(&CANDIDATES[..2], &guest, &link(1000), &limits, &goal, Uncertainty::NONE).expect("a link");
    assert_eq!(certain.best.strategy, strategy("precopy"));
}

fn end(round: u32, sent: u64, dirty: u64, elapsed_ms: u64) -> RoundEnd {
    RoundEnd {
        round,
        sent: Pages(sent),
        dirty: Pages(dirty),
        previous_dirty: Pages(sent),
        duration: Nanos::from_millis(sent),
        elapsed: Nanos::from_millis(elapsed_ms),
    }
}

#[test]
fn what_runs_as_foreseen_is_kept() {
    let guest = profile(10_000, &[(1000, 400), (10_000, 1000)]);
    let goal: Goal = "weighted:time=1,faults=100".parse().expect("a goal");
    let mut reviser = Reviser::new(strategy("precopy"), &guest, link(1000), BARE, &goal).expect("a link");
    for (round, sent, dirty, elapsed) in [(1, 10_000, 1000, 10_000), (2, 1000, 400, 11_000)] {
        let revision = reviser.on_round(&end(round, sent, dirty, elapsed), Nanos::ZERO);
        assert!(!revision.changed, "{revision}");
        assert_eq!(
            (revision.bandwidth, revision.dirtying_permille),
            (BytesPerSec(1000 * 4096), 1000)
        );
    }
}

/// Foreseen to converge, but the guest writes ten times as much: not after one such round, but after two.
#[test]
fn a_guest_that_writes_more_is_switched_after_two_rounds() {
    let guest = profile(10_000, &[(40_000, 1000)]);
    let goal: Goal = "downtime<300ms".parse().expect("a goal");
    let mut reviser = Reviser::new(strategy("precopy"), &guest, link(1000), BARE, &goal).expect("a link");
    let first = reviser.on_round(&end(1, 10_000, 9000, 10_000), Nanos::ZERO);
    assert!(!first.changed && first.dirtying_permille == 20_000, "{first:?}");
    let second = reviser.on_round(&end(2, 9000, 9000, 19_000), Nanos::ZERO);
    assert!(second.changed, "{second}");
    assert!(
        second.strategy.switch.can_post_copy() || second.strategy.slow != crate::strategy::Slow::None,
        "{second}"
    );
    assert_eq!(*reviser.strategy(), second.strategy);
    assert!(second.best_micro <= second.keep_micro);
}

fn curve() -> impl prop::strategy::Strategy<Value = WwsCurve> {
    vec((1..1u64 << 33, 0..1u64 << 14), 1..8).prop_map(|steps| {
        let mut at = (0, 0);
        let points: Vec<_> = steps
            .iter()
            .map(|&(time, pages)| {
                at = (at.0 + time, at.1 + pages);
                (Nanos(at.0), Pages(at.1))
            })
            .collect();
        WwsCurve::new(&points).expect("ascending")
    })
}

/// Strategies whose costs are monotone in bandwidth and dirtying.
fn fixed() -> impl prop::strategy::Strategy<Value = Strategy> {
    prop_oneof![
        (0..6u32).prop_map(|rounds| Strategy::with_switch(SwitchRule::Rounds(rounds))),
        (0..1u32).prop_map(|_| Strategy::with_switch(SwitchRule::Never)),
    ]
}

proptest! {
    #[test]
    fn more_bandwidth_never_takes_longer(
        curve in curve(), used in 1..1u64 << 18, bandwidth in 4096..1u64 << 32, more in 0..1u64 << 32, strategy in fixed(),
    ) {
        let guest = Profile { class: crate::pattern::AccessClass::Loop, ..Profile::new(Pages(1 << 18), Pages(used), curve, Nanos(1), 1) };
        let at = |bandwidth| {
            let link = Link { bandwidth: BytesPerSec(bandwidth), ..link(1) };
            forecast(&strategy, &guest, &link, &BARE, Uncertainty::NONE).expect("a link")
        };
        let (slower, faster) = (at(bandwidth), at(bandwidth + more));
        prop_assert!(faster.time.likely <= slower.time.likely, "{:?} {:?}", faster, slower);
        prop_assert!(faster.bytes.likely <= slower.bytes.likely);
        prop_assert!(faster.rounds.likely <= slower.rounds.likely);
    }

    #[test]
    fn more_dirtying_never_sends_less(
        curve in curve(), used in 1..1u64 << 18, bandwidth in 4096..1u64 << 32, more in 0..4u64, strategy in fixed(),
    ) {
        let guest = |times: u64| {
            let points: Vec<_> = curve.points().iter().map(|&(window, pages)| (window, Pages(pages.0 * (times + 1)))).collect();
            let curve = WwsCurve::new(&points).expect("ascending");
            Profile { class: crate::pattern::AccessClass::Loop, ..Profile::new(Pages(1 << 18), Pages(used), curve, Nanos(1), 1) }
        };
        let link = Link { bandwidth: BytesPerSec(bandwidth), ..link(1) };
        let of = |times| forecast(&strategy, &guest(times), &link, &BARE, Uncertainty::NONE).expect("a link");
        let (calm, busy) = (of(0), of(more));
        prop_assert!(calm.bytes.likely <= busy.bytes.likely && calm.time.likely <= busy.time.likely);
    }

    #[test]
    fn every_forecast_keeps_its_bounds(
        curve in curve(), used in 0..1u64 << 18, bandwidth in 1..1u64 << 34, index in 0..CANDIDATES.len(), wide in any::<bool>(),
    ) {
        let guest = Profile::new(Pages(1 << 18), Pages(used), curve, Nanos(1), 2);
        let link = Link { storage_bandwidth: Some(BytesPerSec(bandwidth)), ..Link::new(BytesPerSec(bandwidth)) };
        let uncertainty = if wide { Uncertainty { bandwidth_percent: 99, dirtying_percent: 100 } } else { Uncertainty::DEFAULT };
        let forecast = forecast(&CANDIDATES[index], &guest, &link, &Limits::DEFAULT, uncertainty).expect("a link");
        for what in Metric::ALL {
            let interval = super::choice::metric(&forecast, what);
            prop_assert!(interval.low <= interval.likely && interval.likely <= interval.high, "{:?} {:?}", what, forecast);
        }
        prop_assert!(forecast.bytes.low >= Pages(used).bytes());
        prop_assert!(forecast.downtime.likely <= forecast.time.likely && forecast.post_copy_time.likely <= forecast.time.likely);
        prop_assert!(forecast.faults.high.bytes() <= forecast.bytes.high);
        let limit = CANDIDATES[index].first == crate::strategy::First::Serial;
        prop_assert!(!limit || forecast.rounds.high <= Limits::DEFAULT.max_rounds);
    }

    /// The choice against sorting all candidates.
    #[test]
    fn the_best_is_the_first_of_all_sorted(curve in curve(), used in 1..1u64 << 18, bandwidth in 4096..1u64 << 32, weights in [0..9u32, 0..9, 0..9, 0..9, 1..9], bound in 1..1u64 << 36) {
        let guest = Profile::new(Pages(1 << 18), Pages(used), curve, Nanos(1), 1);
        let link = Link::new(BytesPerSec(bandwidth));
        let [time, downtime, bytes, faults, stall] = weights;
        let goal: Goal = std::format!("time<{bound}ns,weighted:time={time},downtime={downtime},bytes={bytes},faults={faults},stall={stall}").parse().unwrap();
        let choice = choose(&CANDIDATES, &guest, &link, &Limits::DEFAULT, &goal, Uncertainty::DEFAULT).expect("a link");
        let mut all: Vec<Candidate> = CANDIDATES.iter().filter_map(|strategy| {
            let forecast = forecast(strategy, &guest, &link, &Limits::DEFAULT, Uncertainty::DEFAULT).ok()?;
            Some(Candidate::new(*strategy, forecast, &goal))
        }).collect();
        all.sort_by_key(Candidate::rank);
        prop_assert_eq!(choice.best, all[0]);
        prop_assert_eq!(choice.next, Some(all[1]));
        prop_assert!(!choice.to_string().is_empty());
    }
}
