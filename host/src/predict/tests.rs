//! Predictions from what generators wrote, beside migrations of guests that the same generators drive.

use std::sync::Arc;

use dunlin_core::choose::Goal;
use dunlin_core::strategy::Strategy;
use dunlin_core::tracefile::{Item, Source};
use dunlin_core::units::{Bytes, BytesPerSec, Nanos, PAGE_SIZE, Pages};

use super::*;
use crate::profile::tests::{analysed, as_windows, head, writes};
use crate::report::{EndName, Keeping, Likely, PredictionReport};
use crate::sim::{Recording, SimSetup, simulate};

const PAGES: u64 = 8192;
const RATE: u64 = 4_000;
const SECONDS: u64 = 8;
/// 4096 pages a second: λ is about 1 for a guest that writes other pages all the time.
const LINK: BytesPerSec = BytesPerSec(16 << 20);

fn recorded(source: Source, items: &[Item]) -> (dunlin_core::pattern::Profile, Arc<Recording>) {
    let head = head(source, PAGES, 1);
    let profile = analysed(&head, items, |analysis| analysis.profile());
    let recording = Recording::collect(&head, items.iter().copied().map(Ok)).expect("a recording");
    (profile, Arc::new(recording))
}

fn asked(goal: &str, strategies: &[&str]) -> Question {
    let goal: Goal = goal.parse().expect("a goal");
    Question {
        strategies: strategies
            .iter()
            .map(|text| Strategy::parse(text).expect("a strategy"))
            .collect(),
        starts: 3,
        ..Question::new(goal, vec![LINK], None)
    }
}

fn predicted(items: &[Item], source: Source, question: &Question) -> PredictionReport {
    let (profile, recording) = recorded(source, items);
    predict("generated.dtrace", &profile, &recording, question, &|| {}).expect("a prediction")
}

fn generated(spec: &str) -> Vec<Item> {
    writes(spec, PAGES, 1, RATE * SECONDS, Nanos(1_000_000_000 / RATE))
}

fn near(value: Likely, truth: u64, percent: u64, slack: u64) -> bool {
    value.likely.abs_diff(truth) * 100 <= truth * percent + slack * 100
}

#[test]
fn recorded_writes_cost_what_the_generator_costs() {
    for spec in ["seq", "uniform", "zipf:0.99", "hotset:0.1"] {
        let question = asked("time<1h", &["precopy", "postcopy", "hybrid:1"]);
        let items = generated(spec);
        let report = predicted(&items, Source::Generator, &question);
        // The same as a bitmap shows it that is harvested every 20 ms.
        let windows = predicted(&as_windows(&items, Nanos::from_millis(20)), Source::Bitmap, &question);
        for (index, strategy) in question.strategies.iter().enumerate() {
            let paced = format!("{spec},rate={RATE}").parse().expect("a workload");
            let memory = Bytes(PAGES * PAGE_SIZE);
            let setup = SimSetup {
                limiter: true,
                ..SimSetup::new(paced, memory, *strategy, LINK)
            };
            let truth = simulate(&setup).expect("it ends").report;
            for costs in [&report, &windows].map(|report| &report.links[0].strategies[index].simulated) {
                let (time, bytes) = (costs.time_us.expect("it ends"), costs.bytes.expect("it ends"));
                assert!(
                    near(time, truth.total_time_us, 10, 0),
                    "{spec} by {strategy}: {time:?} {}",
                    truth.total_time_us
                );
                assert!(
                    near(bytes, truth.bytes.total(), 10, 0),
                    "{spec} by {strategy}: {bytes:?} {}",
                    truth.bytes.total()
                );
                let downtime = costs.downtime_us;
                assert!(
                    near(downtime, truth.downtime_us, 20, 5_000),
                    "{spec} by {strategy}: {downtime:?} {}",
                    truth.downtime_us
                );
            }
        }
    }
}

#[test]
fn the_best_is_recommended_with_its_reason() {
    let items = generated("uniform");
    // Half as fast as the guest writes.
    let question = Question {
        bandwidths: vec![BytesPerSec(LINK.0 / 2)],
        ..asked("downtime<100ms", &["precopy", "postcopy", "hybrid:1"])
    };
    let report = predicted(&items, Source::Generator, &question);
    let link = &report.links[0];
    let precopy = &link.strategies[0].simulated;
    assert!(
        precopy.ends.iter().all(|end| end.by == EndName::ForcedStop),
        "{:?}",
        precopy.ends
    );
    assert_eq!(precopy.keeps, Keeping::Not);
    assert_ne!(link.recommendation.strategy, "precopy");
    assert_eq!(link.recommendation.keeps, Keeping::Surely);
    assert!(
        link.recommendation.why.contains("precopy would not converge"),
        "{}",
        link.recommendation.why
    );
    assert_eq!(report.starts_us, [0, 2_666_666, 5_333_333]);
    assert!(
        link.recommendation.why.starts_with(&link.recommendation.strategy),
        "{}",
        link.recommendation.why
    );
}

#[test]
fn pages_that_are_zero_are_not_sent() {
    let items = writes("uniform", 1024, 1, 4_000, Nanos::from_millis(1));
    let question = asked("time<1h", &["postcopy"]);
    let with_used = |used| {
        let mut head = head(Source::Generator, PAGES, 1);
        head.used = Pages(used);
        let profile = analysed(&head, &items, |analysis| analysis.profile());
        let recording = Recording::collect(&head, items.iter().copied().map(Ok)).expect("a recording");
        let report = predict("", &profile, &Arc::new(recording), &question, &|| {}).expect("a prediction");
        report.links[0].strategies[0].simulated.bytes.expect("it ends").likely / PAGE_SIZE
    };
    let sent = [1024, 4096, PAGES].map(with_used);
    for (pages, expected) in sent.into_iter().zip([1024, 4096, PAGES]) {
        // Headers and faults come on top.
        assert!((expected..expected + expected / 20 + 20).contains(&pages), "{sent:?}");
    }
}

#[test]
fn nothing_to_predict_is_said() {
    let question = asked("time<1h", &["precopy"]);
    let end = [Item::End {
        at: Nanos::from_secs(1),
        overhead: Nanos::ZERO,
    }];
    let (profile, recording) = recorded(Source::Generator, &end);
    let error = predict("", &profile, &recording, &question, &|| {})
        .unwrap_err()
        .to_string();
    assert!(error.contains("nothing was recorded"), "{error}");
    let (profile, recording) = recorded(Source::Generator, &generated("seq"));
    let none = Question {
        bandwidths: vec![],
        ..question
    };
    assert!(matches!(
        predict("", &profile, &recording, &none, &|| {}),
        Err(PredictError::Nothing)
    ));
}
