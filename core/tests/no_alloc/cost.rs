use crate::Numbers;
use dunlin_core::cost::RoundCost;
use dunlin_core::units::{Nanos, Pages};
use std::hint::black_box;

pub(crate) fn drive(_scratch: &mut [u64]) {
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
}
