use crate::{Numbers, format};
use dunlin_core::control::{
    AdaptiveRate, AutoConverge, AutoConvergeSetting, DirtyLimit, DowntimeRamp, RateRule, RateSetting, VcpuLimit,
};
use dunlin_core::units::{Bytes, BytesPerSec, Nanos, Pages};
use std::hint::black_box;

pub(crate) fn drive(_scratch: &mut [u64]) {
    let mut limits = [VcpuLimit::default(); 4];
    let mut limit = DirtyLimit::new(&mut limits, BytesPerSec(1 << 20), Pages(65_536));
    let mut converge = AutoConverge::new(AutoConvergeSetting {
        tailslow: true,
        ..AutoConvergeSetting::default()
    });
    let mut rates = [RateRule::Clark, RateRule::Xen].map(|rule| {
        AdaptiveRate::new(RateSetting {
            rule,
            ..RateSetting::default()
        })
    });
    let ramp = DowntimeRamp::nova(Nanos::from_millis(500), Bytes(8 << 30));
    let mut numbers = Numbers(1);
    for period in 0..1000 {
        let dirtied = Bytes(numbers.next() >> 32);
        format(converge.on_period(dirtied, Bytes(numbers.next() >> 32)));
        match limit.on_period(period % 5, BytesPerSec(dirtied.0)) {
            Ok(throttle) => format(throttle),
            Err(error) => format(error),
        }
        for rate in &mut rates {
            black_box(rate.on_round(dirtied, Nanos::from_secs(1), Bytes(numbers.next() >> 40)));
        }
        black_box(ramp.at(Nanos::from_secs(u64::from(period))));
    }
}
