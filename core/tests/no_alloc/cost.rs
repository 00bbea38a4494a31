use crate::Numbers;
use dunlin_core::cost::{
    AverageRate, History, LinearDirtying, Overhead, RoundCost, rounds, xen_downtime_bounds, xen_forecast,
    xen_time_bounds,
};
use dunlin_core::pattern::WwsCurve;
use dunlin_core::units::{Bytes, BytesPerSec, Nanos, Pages};
use std::hint::black_box;

pub(crate) fn drive(scratch: &mut [u64]) {
    let mut numbers = Numbers(1);
    for _ in 0..1000 {
        let round = RoundCost {
            sent: Pages(numbers.next() % 100_000),
            dirty: Pages(numbers.next() % 100_000),
            duration: Nanos(numbers.next() % 10_000_000_000),
            fault_stall: Nanos(numbers.next() % 1_000_000),
        };
        black_box((round.fault_share(), round.alpha_milli()));
    }
    let linear = LinearDirtying {
        memory: Bytes(1 << 30),
        dirtying: BytesPerSec(10 << 20),
        link: BytesPerSec(100 << 20),
    };
    black_box((
        linear.bytes(30),
        linear.time(30),
        linear.downtime(Nanos(1)),
        linear.rounds_until(Bytes(9), 99),
    ));

    let (memory, link, overhead) = (Pages(100_000), linear.link, Overhead::default());
    scratch.iter_mut().for_each(|word| *word = numbers.next());
    let history = History::new(Nanos::from_millis(50), 1563, &scratch[..1563 * 20]).expect("20 sets");
    let curve = WwsCurve::new(&[(Nanos::from_secs(1), Pages(1000))]).expect("a curve");
    black_box(xen_forecast(&AverageRate(9000), memory, link, overhead));
    black_box(xen_forecast(&history, memory, link, overhead));
    black_box(rounds(&curve, memory, link).take(30).last());
    black_box((
        xen_time_bounds(memory, link, overhead),
        xen_downtime_bounds(memory, link, overhead),
    ));
}
