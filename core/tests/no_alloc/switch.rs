use crate::{Numbers, format};
use dunlin_core::strategy::{Alpha, SwitchRule};
use dunlin_core::switch::{RoundEnd, SwitchSetting, Switcher};
use dunlin_core::units::{Nanos, Pages};
use std::hint::black_box;

pub(crate) fn drive(_scratch: &mut [u64]) {
    let alpha = Alpha::from_milli(300).expect("at most 1");
    for rule in [
        SwitchRule::Never,
        SwitchRule::Rounds(9),
        SwitchRule::Lambda,
        SwitchRule::Sdf(alpha),
        SwitchRule::SdfAuto,
        SwitchRule::Dyn,
        SwitchRule::Heuristic,
        SwitchRule::OPTIMAL,
        SwitchRule::Xen,
        SwitchRule::Qemu,
        SwitchRule::KubevirtStall(Nanos::from_secs(20)),
        SwitchRule::KubevirtStall(Nanos::from_secs(2000)),
        SwitchRule::Nova10,
        SwitchRule::Ovirt,
    ] {
        let mut switcher = Switcher::new(rule, SwitchSetting::new(Pages(100_000)));
        let mut numbers = Numbers(1);
        let mut previous_dirty = Pages(100_000);
        for round in 1..=400 {
            let end = RoundEnd {
                round,
                sent: previous_dirty,
                dirty: Pages(numbers.next() % 100_000),
                previous_dirty,
                duration: Nanos(numbers.next() % 10_000_000_000),
                elapsed: Nanos::from_secs(10 * u64::from(round)),
            };
            let verdict = switcher.on_round(&end);
            format(verdict.decision);
            format(verdict.reason);
            black_box((verdict.score_milli, end.lambda_milli(), end.sdf_milli()));
            previous_dirty = end.dirty;
        }
    }
}
