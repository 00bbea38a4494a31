//! Controllers by hand, against the production code's arithmetic written down naively, and in closed loops.

#![expect(clippy::float_arithmetic, reason = "QEMU computes in floating point")]

use super::*;
use crate::units::{Bytes, BytesPerSec, Nanos, Pages};
use proptest::collection::vec;
use proptest::prelude::*;
use std::vec::Vec;

const MB: u64 = 1 << 20;

fn tailslow() -> AutoConvergeSetting {
    AutoConvergeSetting {
        tailslow: true,
        ..AutoConvergeSetting::default()
    }
}

#[test]
fn congestion_is_told_every_second_time_above_the_threshold() {
    let mut congestion = Congestion::new(50);
    let told = [51, 50, 51, 51, 0, 49, 52].map(|dirtied| congestion.on_period(Bytes(dirtied), Bytes(100)));
    assert_eq!(told, [false, false, true, false, false, false, true]);
    let mut idle = Congestion::new(50);
    assert_eq!([0, 0, 0].map(|_| idle.on_period(Bytes(0), Bytes(0))), [false; 3]);
    assert_eq!([1, 1].map(|one| idle.on_period(Bytes(one), Bytes(0))), [false, true]);
    let mut most = Congestion::new(u8::MAX);
    assert!(!most.on_period(Bytes(u64::MAX), Bytes(u64::MAX)));
}

#[test]
fn auto_converge_by_hand() {
    let steps = |setting, dirtied, sent| {
        let mut control = AutoConverge::new(setting);
        let all: Vec<u8> = (0..40)
            .map(|_| control.on_period(Bytes(dirtied), Bytes(sent)).percent())
            .collect();
        all.into_iter().skip(1).step_by(2).collect::<Vec<_>>()
    };
    let plain = steps(AutoConvergeSetting::default(), 100, 100);
    assert_eq!(plain[..11], [20, 30, 40, 50, 60, 70, 80, 90, 99, 99, 99]);
    // 80 % run and dirty 55 where 50 are allowed: ⌊80·50/55⌋ = 72 % would do, 8 points. Then 72 %: 65, 7. And so on.
    assert_eq!(steps(tailslow(), 55, 100)[..4], [20, 28, 35, 41]);
    // 51: ⌊80·50/51⌋ = 78.
    assert_eq!(steps(tailslow(), 51, 100)[..3], [20, 22, 24]);
    // Far above the threshold the increment is the limit.
    assert_eq!(steps(tailslow(), 1000, 100)[..3], [20, 30, 40]);
    assert_eq!(steps(tailslow(), 1, 0)[..3], [20, 30, 40]);
    let low = AutoConvergeSetting {
        max: 25,
        ..AutoConvergeSetting::default()
    };
    assert_eq!(steps(low, u64::MAX, 0)[..3], [20, 25, 25]);
    assert_eq!((Throttle::new(200), Throttle::new(99)), (Throttle::MAX, Throttle::MAX));
}

#[test]
fn a_guest_that_slows_down_with_its_vcpus_converges() {
    for (full_rate, setting, expected) in [
        (90, AutoConvergeSetting::default(), 50), // 90·(100 − 50)/100 = 45; 40 % leave 54
        (90, tailslow(), 45),                     // 49.5: no further than needed
        (4000, AutoConvergeSetting::default(), 99),
        (4000, tailslow(), 99),
        (50, tailslow(), 0),
    ] {
        let mut control = AutoConverge::new(setting);
        for _ in 0..60 {
            let dirtied = full_rate * u64::from(100 - control.throttle().percent()) * 1000;
            control.on_period(Bytes(dirtied), Bytes(100 * 100_000));
        }
        assert_eq!(
            control.throttle().percent(),
            expected,
            "{full_rate}, tailslow {}",
            setting.tailslow
        );
    }
}

#[test]
fn dirty_limit_by_hand() {
    // A ring of 65 536 pages, 256 MiB, fills in a second at 256 MiB/s.
    let mut limits = [VcpuLimit::default(); 2];
    let mut limit = DirtyLimit::new(&mut limits, BytesPerSec(100 * MB), Pages(65_536));
    let mut sleep = |rate, millis| {
        let throttle = limit.on_period(0, BytesPerSec(rate * MB)).expect("vCPU 0");
        assert_eq!(limit.sleep(0), Ok(Nanos::from_millis(millis)), "at {rate} MB/s");
        throttle.percent()
    };
    // Apart by 156 of 256, more than half: 1 s · 156 / 100. 1560 of 2560 ms are slept.
    assert_eq!(sleep(256, 1560), 60);
    assert_eq!(sleep(125, 1560), 60, "within 25");
    assert_eq!(sleep(126, 1660), 62, "26 of 126: a tenth more");
    assert_eq!(sleep(74, 1560), 60, "26 below: a tenth less");
    assert_eq!(sleep(40, 60), 5, "60 of 100 below: 1 s · 60 / 40 less");
    assert_eq!(sleep(40, 0), 0);
    assert_eq!(sleep(0, 0), 0);
    assert_eq!(limit.sleep(1), Ok(Nanos::ZERO), "the other vCPU was never limited");
    let nobody = NoSuchVcpu { vcpu: 2, vcpus: 2 };
    assert_eq!(limit.on_period(2, BytesPerSec(1)), Err(nobody));
}

#[test]
fn dirty_limit_at_the_ends_of_its_range() {
    let mut limits = [VcpuLimit::default()];
    let mut nothing = DirtyLimit::new(&mut limits, BytesPerSec(0), Pages(65_536));
    assert_eq!(nothing.on_period(0, BytesPerSec(0)), Ok(Throttle::NONE));
    assert_eq!(
        nothing.on_period(0, BytesPerSec(25 * MB)),
        Ok(Throttle::NONE),
        "within 25 of nothing"
    );
    assert_eq!(nothing.on_period(0, BytesPerSec(256 * MB)), Ok(Throttle::MAX));
    assert_eq!(nothing.sleep(0), Ok(Nanos::from_secs(99)));
    for ring in [0, 1, u64::MAX] {
        let mut limits = [VcpuLimit::default()];
        let mut limit = DirtyLimit::new(&mut limits, BytesPerSec(MB), Pages(ring));
        for rate in [u64::MAX, 0, 1, 1 << 40, 27 * MB] {
            assert!(limit.on_period(0, BytesPerSec(rate)).is_ok());
        }
    }
}

#[test]
fn a_writer_is_held_to_its_quota_and_a_reader_left_alone() {
    for (full, quota) in [(2000, 100), (400, 300), (3000, 1), (500, 450), (100, 400)] {
        let (ring, mut limits) = (Pages(4096), [VcpuLimit::default(); 2]);
        let mut limit = DirtyLimit::new(&mut limits, BytesPerSec(quota * MB), ring);
        let mut rate = full * MB;
        for _ in 0..40 {
            limit.on_period(0, BytesPerSec(rate)).expect("vCPU 0");
            limit.on_period(1, BytesPerSec(0)).expect("vCPU 1");
            // It fills the ring at its full speed, then sleeps.
            let fill = u128::from(ring.bytes().0) * 1_000_000_000 / u128::from(full * MB);
            let sleep = u128::from(limit.sleep(0).expect("vCPU 0").0);
            rate = (u128::from(ring.bytes().0) * 1_000_000_000 / (fill + sleep)) as u64;
        }
        // The longest sleep leaves a hundredth of full speed.
        let reached = full.min(quota).max(full / 100) * MB;
        assert!(rate.abs_diff(reached) <= 26 * MB, "{full} to {quota}: {}", rate / MB);
        assert_eq!(limit.throttle(1), Ok(Throttle::NONE));
    }
}

#[test]
fn clarks_rate_by_hand() {
    let mbit = |mbit: u64| BytesPerSec(mbit * 125_000);
    let round = |dirtied_mbit: u64, remaining| {
        let mut rate = AdaptiveRate::new(RateSetting::default());
        assert_eq!(rate.rate(), mbit(100));
        // Dirtied in two seconds.
        rate.on_round(Bytes(2 * dirtied_mbit * 125_000), Nanos::from_secs(2), Bytes(remaining))
    };
    assert_eq!(round(0, 1 << 30), RateStep::Round(mbit(100)));
    assert_eq!(round(50, 1 << 30), RateStep::Round(mbit(100)));
    assert_eq!(round(180, 1 << 30), RateStep::Round(mbit(230)));
    assert_eq!(round(450, 1 << 30), RateStep::Round(mbit(500)));
    assert_eq!(round(451, 1 << 30), RateStep::StopCopy(mbit(500)));
    assert_eq!(round(180, 256 << 10), RateStep::Round(mbit(230)));
    assert_eq!(round(180, (256 << 10) - 1), RateStep::StopCopy(mbit(500)));
    let mut rate = AdaptiveRate::new(RateSetting::default());
    let one_byte_more = Bytes(450 * 125_000 + 1);
    let step = rate.on_round(one_byte_more, Nanos::from_secs(1), Bytes(1 << 30));
    assert_eq!(step, RateStep::StopCopy(mbit(500)), "compared before it is rounded");
    assert!(rate.is_max());
    let infinite = AdaptiveRate::new(RateSetting::default()).on_round(Bytes(1), Nanos::ZERO, Bytes(1 << 30));
    assert_eq!(infinite, RateStep::StopCopy(mbit(500)));
    let idle = AdaptiveRate::new(RateSetting::default()).on_round(Bytes(0), Nanos::ZERO, Bytes(1 << 30));
    assert_eq!(idle, RateStep::Round(mbit(100)));
}

#[test]
fn xens_rate_only_rises() {
    let setting = RateSetting {
        rule: RateRule::Xen,
        ..RateSetting::default()
    };
    let mut rate = AdaptiveRate::new(setting);
    let mut after =
        |dirtied_mbit: u64| match rate.on_round(Bytes(dirtied_mbit * 125_000), Nanos::from_secs(1), Bytes(0)) {
            RateStep::Round(BytesPerSec(rate)) => rate / 125_000,
            RateStep::StopCopy(_) => 0,
        };
    assert_eq!(
        [90, 100, 101, 120, 30, 460, 10].map(&mut after),
        [100, 100, 151, 151, 151, 500, 500]
    );
    assert!(rate.is_max());
}

#[test]
fn novas_steps_and_kubevirts_line() {
    // Nova's documentation of the function: 400 ms at most and 3 GB, there with 30 s per GB: 40 ms, then 36 more every step.
    let ramp = DowntimeRamp::nova(Nanos::from_millis(400), Bytes(3 << 30));
    let at = |seconds| ramp.at(Nanos::from_secs(seconds)).as_micros() / 1000;
    assert_eq!(
        [0, 224, 225, 450, 2024, 2249, 2250, 9999].map(at),
        [40, 40, 76, 112, 328, 364, 400, 400]
    );
    let small = DowntimeRamp::nova(Nanos::from_millis(500), Bytes(1 << 20));
    assert_eq!(
        small.at(Nanos::from_secs(150)),
        Nanos::from_millis(95),
        "memory counts as 2 GiB at least"
    );
    let line = DowntimeRamp::kubevirt(Nanos::from_secs(90));
    let at = |seconds| line.at(Nanos::from_secs(seconds)).as_micros() / 1000;
    assert_eq!([0, 1, 45, 90, 1000].map(at), [150, 160, 600, 1050, 1050]);
    let none = DowntimeRamp::linear(Nanos(9), Nanos(5), Nanos::ZERO);
    assert_eq!(none.at(Nanos::ZERO), Nanos(9), "it never falls");
    let longest = DowntimeRamp::nova(Nanos(u64::MAX), Bytes(u64::MAX));
    assert!(longest.at(Nanos(u64::MAX - 1)) <= Nanos(u64::MAX));
}

/// QEMU's `mig_throttle_guest_down`, in its own arithmetic.
fn qemu_throttle(now: u64, dirty: u64, sent: u64, tailslow: bool) -> u64 {
    let threshold = sent * 50 / 100;
    if now == 0 {
        return 20;
    }
    let running = 100 - now;
    let ideal = (running as f64 * (threshold as f64 / dirty as f64)) as u64;
    let step = if tailslow { (running - ideal).min(10) } else { 10 };
    (now + step).min(99)
}

proptest! {
    #[test]
    fn auto_converge_does_as_qemu(periods in vec((0..1u64 << 44, 0..1u64 << 44), 0..60), tailslow: bool) {
        let mut control = AutoConverge::new(AutoConvergeSetting { tailslow, ..AutoConvergeSetting::default() });
        let mut high = 0;
        for (dirtied, sent) in periods {
            let before = control.throttle().percent();
            let after = control.on_period(Bytes(dirtied), Bytes(sent)).percent();
            let mut expected = u64::from(before);
            if dirtied > sent * 50 / 100 {
                high += 1;
                if high >= 2 {
                    high = 0;
                    expected = qemu_throttle(expected, dirtied, sent, tailslow);
                }
            }
            let difference = u64::from(after).abs_diff(expected);
            prop_assert!(difference <= u64::from(tailslow), "{before} to {after}, QEMU {expected}");
        }
    }

    #[test]
    fn dirty_limit_follows_its_formula(
        quota in 0..3000u64,
        ring in prop_oneof![Just(1024u64), Just(65_536)],
        rates in vec(prop_oneof![Just(0), 0..100u64, 0..4000u64], 1..40),
    ) {
        let mut limits = [VcpuLimit::default()];
        let mut limit = DirtyLimit::new(&mut limits, BytesPerSec(quota * MB), Pages(ring));
        let (mut sleep, mut fastest) = (0.0, 0.0_f64);
        for rate in rates {
            limit.on_period(0, BytesPerSec(rate * MB)).expect("vCPU 0");
            let (rate, quota) = (rate as f64, quota as f64);
            fastest = fastest.max(rate);
            let fill = ring as f64 / 256.0 * 1e9 / fastest;
            let apart = (rate - quota).abs();
            if apart > 25.0 {
                let linear = apart / rate.max(quota) > 0.5;
                sleep += match (rate == 0.0, rate > quota, linear) {
                    (true, ..) => -sleep,
                    (_, true, true) => fill * apart / quota,
                    (_, false, true) => -fill * apart / rate,
                    (_, true, false) => fill / 10.0,
                    (_, false, false) => -fill / 10.0,
                };
                sleep = sleep.min(99.0 * fill).max(0.0);
            }
            let ours = limit.sleep(0).expect("vCPU 0").0 as f64;
            prop_assert!((ours - sleep).abs() <= 200.0 + sleep * 1e-9, "{ours} instead of {sleep}");
        }
    }

    #[test]
    fn clarks_rate_follows_its_formula(rounds in vec((0..1u64 << 36, 0..100_000_000_000u64, 0..1u64 << 20), 1..20)) {
        let mut rate = AdaptiveRate::new(RateSetting::default());
        for (dirtied, nanos, remaining) in rounds {
            let asked = dirtied as f64 * 8e3 / nanos.max(1) as f64 + 50.0;
            match rate.on_round(Bytes(dirtied), Nanos(nanos), Bytes(remaining)) {
                RateStep::StopCopy(rate) => {
                    prop_assert_eq!(rate, BytesPerSec(62_500_000));
                    prop_assert!(remaining < 256 << 10 || asked > 500.0 - 1e-6);
                }
                RateStep::Round(BytesPerSec(rate)) => {
                    prop_assert!(remaining >= 256 << 10 && asked < 500.0 + 1e-6);
                    let expected = asked.max(100.0) * 125_000.0;
                    prop_assert!((rate as f64 - expected).abs() <= 1.0 + expected * 1e-9);
                }
            }
        }
    }

    #[test]
    fn a_ramp_never_falls_and_stays_between_its_ends(
        from: u32, rise: u32, length: u64, times in vec(any::<u64>(), 2),
        memory: u64,
    ) {
        let (from, to) = (Nanos(u64::from(from)), Nanos(u64::from(from) + u64::from(rise)));
        for ramp in [DowntimeRamp::linear(from, to, Nanos(length)), DowntimeRamp::nova(to, Bytes(memory))] {
            let [early, late] = [times[0].min(times[1]), times[0].max(times[1])].map(|time| ramp.at(Nanos(time)));
            prop_assert!(early <= late && late <= to);
            prop_assert!(early >= from.min(Nanos(to.0 / 10)));
        }
    }
}
