use crate::format;
use dunlin_core::choose::{AdaMig, CANDIDATES, Goal, Limits, Link, Reviser, Uncertainty, choose, shah_2015};
use dunlin_core::pattern::{Profile, WwsCurve};
use dunlin_core::switch::RoundEnd;
use dunlin_core::units::{Bytes, BytesPerSec, Nanos, Pages};
use std::hint::black_box;

pub(crate) fn drive(_scratch: &mut [u64]) {
    let points = [(Nanos::from_secs(1), Pages(9000)), (Nanos::from_secs(8), Pages(20_000))];
    let curve = WwsCurve::new(&points).expect("a curve");
    let profile = Profile::new(Pages(1 << 18), Pages(1 << 18), curve, Nanos::from_secs(8), 2);
    let link = Link {
        storage_bandwidth: Some(BytesPerSec(64_000_000)),
        ..Link::new(BytesPerSec(32_000_000))
    };
    for text in ["downtime<300ms,bytes<1GiB", "weighted:time=1,faults=0.5", "speed<3"] {
        let goal = match Goal::parse(text) {
            Ok(goal) => goal,
            Err(error) => {
                format(error);
                continue;
            }
        };
        format(&goal);
        let choice = choose(
            &CANDIDATES,
            &profile,
            &link,
            &Limits::DEFAULT,
            &goal,
            Uncertainty::DEFAULT,
        );
        let choice = choice.expect("a link");
        format(&choice);
        let mut reviser = Reviser::new(choice.best.strategy, &profile, link, Limits::DEFAULT, &goal).expect("a link");
        let mut ladder = AdaMig::new(2);
        for round in 1..6 {
            let end = RoundEnd {
                round,
                sent: Pages(40_000),
                dirty: Pages(40_000),
                previous_dirty: Pages(40_000),
                duration: Nanos::from_secs(5),
                elapsed: Nanos::from_secs(5 * u64::from(round)),
            };
            format(reviser.on_round(&end, Nanos::ZERO));
            format(ladder.on_round(&end));
        }
    }
    black_box(shah_2015(&profile, Bytes(1 << 30)));
}
