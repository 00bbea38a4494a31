use crate::Numbers;
use dunlin_core::order::push::{AnyPush, Bubble, Direction, Forecast, Recorded, Scored, Sequential};
use dunlin_core::pageset::{PageSet, words_needed};
use dunlin_core::strategy::Pivots;
use dunlin_core::units::{Gfn, Pages};
use std::hint::black_box;

const PAGES: Pages = Pages(20_000);

pub(crate) fn drive(scratch: &mut [u64]) {
    let mut missing = PageSet::new(&mut scratch[..words_needed(PAGES)], PAGES).expect("storage fits");
    let (mut ranking, mut recording) = ([Scored::default(); 1000], [Gfn::ZERO; 1000]);
    let mut numbers = Numbers(1);
    recording.fill_with(|| Gfn(numbers.next() % PAGES.0));
    missing.fill();
    let score = |gfn: Gfn| (gfn.0 % 17) as u32;
    let orders = [
        AnyPush::Sequential(Sequential::new()),
        AnyPush::Bubble(Bubble::new(Direction::Forward, Pivots::One)),
        AnyPush::Bubble(Bubble::new(Direction::Dual, Pivots::Seven)),
        AnyPush::Forecast(Forecast::new(&missing, score, &mut ranking)),
        AnyPush::Recorded(Recorded::new(&recording)),
    ];
    for mut push in orders {
        missing.fill();
        while let Some(run) = push.next_run(&missing, Pages(1 + numbers.next() % 64)) {
            missing.remove_run(run);
            if numbers.next().is_multiple_of(4) {
                let fault = Gfn(numbers.next() % PAGES.0);
                missing.remove(fault);
                push.on_fault(fault);
            }
        }
        assert!(missing.is_empty());
        black_box(&push);
    }
}
