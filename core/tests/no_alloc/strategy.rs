use crate::format;
use dunlin_core::migrate::check_strategy;
use dunlin_core::strategy::{Strategy, SwitchRule};

const GOOD: &[&str] = &[
    "precopy",
    "postcopy",
    "hybrid:3",
    "as-hybrid,cut=fail",
    "pa-hybrid",
    "markov-sdf:0.5,clear=late",
    "switch=kubevirt-stall:1500ms,push=bubble:7,slow=dirty-limit",
    "first=serial,filter=none,switch=libvirt,push=sequential,cut=reconnect,slow=none,clear=round,hold=none,split=none",
];

const BAD: &[&str] = &[
    "",
    "pre-copy",
    "precopy,postcopy",
    "pull=sequential",
    "switch=sdf:1.5",
    "switch=kubevirt-stall:40",
    "switch=rounds:x",
    "cut=fail,cut=fail",
    "a name far too long to be repeated as a whole in a message about it",
];

pub(crate) fn drive(_scratch: &mut [u64]) {
    for text in GOOD {
        let strategy = Strategy::parse(text).expect("a strategy");
        format(strategy);
        if let Err(unsupported) = check_strategy(&strategy) {
            format(unsupported);
        }
    }
    for text in BAD {
        format(Strategy::parse(text).expect_err("no strategy"));
    }
    format(SwitchRule::parse("lambda").expect("a rule"));
}
