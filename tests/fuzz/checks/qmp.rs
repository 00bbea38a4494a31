//! What a QEMU, or whoever serves its socket, may say: reading never panics, and rounds made of any counters, also such that go back, are rounds.

use std::io::BufReader;

use dunlin_core::steer::{Limits, Passes, Steering};
use dunlin_core::strategy::SwitchRule;
use dunlin_core::switch::SwitchSetting;
use dunlin_core::units::{Nanos, Pages};

use crate::qemu::{Info, Line, Unread, read_line};

/// Enough for what a fuzzer makes up.
const TOTAL: Pages = Pages(1 << 20);

/// The check.
pub(crate) fn check(input: &[u8]) {
    // Few would find the names.
    let words = String::from_utf8_lossy(input);
    let mut numbers = words.split(',').filter_map(|word| word.trim().parse::<u64>().ok());
    let mut answers: Vec<Info> = Vec::new();
    while let (Some(syncs), Some(remaining), Some(sent)) = (numbers.next(), numbers.next(), numbers.next()) {
        let ram =
            serde_json::json!({ "dirty-sync-count": syncs, "remaining": remaining, "normal": sent, "page-size": 4096 });
        answers.push(Info::of(&serde_json::json!({ "status": "active", "ram": ram })));
    }
    // By small and by large pieces: nothing depends on how it comes.
    for capacity in [1, 4096] {
        let mut reader = BufReader::with_capacity(capacity, input);
        loop {
            match read_line(&mut reader) {
                Ok(Line::Event { name, .. }) => drop(name),
                Ok(Line::Answer { id, message }) => {
                    drop(id);
                    answers.push(Info::of(&message["return"]));
                }
                Ok(Line::Other(message)) => answers.push(Info::of(&message)),
                Err(Unread::Text(text)) => assert!(text.chars().count() <= 100, "what is shown of it has an end"),
                Err(Unread::Io(_)) => break,
            }
        }
    }
    follow(&answers);
}

fn follow(answers: &[Info]) {
    let mut passes = Passes::new(TOTAL);
    let mut steering = Steering::new(SwitchRule::Lambda, SwitchSetting::new(TOTAL), Limits::default());
    let mut round = 0;
    for (at, answer) in answers.iter().enumerate() {
        let counters = answer.counters(Nanos::from_secs(at as u64));
        if let Some(pass) = passes.on_counters(&counters) {
            assert!(pass.end.round > round, "a round that goes back");
            round = pass.end.round;
        }
        if let Some(turn) = steering.on_counters(&counters) {
            drop(format!("{turn:?}"));
        }
    }
}
