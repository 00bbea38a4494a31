//! A round log as anybody may have written it: reading never panics, every rule can be told of what was read, and what was read
//! is the same when it is written again.

use crate::replay::{HEADER, LogError, RoundLog, Trial, example_rules};
use dunlin_core::switch::{RoundEnd, SwitchSetting};
use dunlin_core::units::Pages;

/// Enough for what a fuzzer makes up, and as much as the command takes.
const TOTAL: Pages = Pages(1 << 38);

/// The check.
pub(crate) fn check(input: &[u8]) {
    check_log(input);
    // Few would find the header.
    check_log(&[HEADER.as_bytes(), b"\n", input].concat());
}

fn check_log(text: &[u8]) {
    let Ok(log) = RoundLog::open(text, TOTAL) else { return };
    let setting = SwitchSetting {
        static_done_after: log.static_done_after(),
        ..SwitchSetting::new(TOTAL)
    };
    let Ok(ends) = log.collect::<Result<Vec<_>, _>>() else {
        return;
    };
    for rule in example_rules() {
        let mut trial = Trial::new(rule, setting);
        for end in &ends {
            trial.on_round(end);
        }
    }
    assert_eq!(rewritten(&ends).expect("numbers as they were read"), ends);
}

fn rewritten(ends: &[RoundEnd]) -> Result<Vec<RoundEnd>, LogError> {
    let mut text = format!("{HEADER}\n");
    for end in ends {
        let duration_us = end.duration.as_micros();
        text += &format!("{},{duration_us},{},{}\n", end.round, end.sent, end.dirty);
    }
    RoundLog::open(text.as_bytes(), TOTAL)?.collect()
}
