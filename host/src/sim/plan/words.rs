//! What a plan simulates, in words.

use super::figure::distinct;
use super::{FillPart, Plan};
use crate::report::{count, duration};
use crate::sim::SimSetup;
use dunlin_core::units::Nanos;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A part of what was simulated.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Words {
    /// Which part: `guest`, `link`, `limits`, a key of the sweep.
    pub what: String,
    /// How it was.
    pub text: String,
}

impl Plan {
    /// Guest, link, limits, sweep and arms, as they were simulated. What is swept says so in place of its value.
    pub fn words(&self) -> Vec<Words> {
        let points = self.points();
        let Some(first) = points.first() else { return Vec::new() };
        let is_swept = |key: &str| first.axes.iter().any(|(name, _)| *name == key);
        let or_swept = |key: &str, text: String| if is_swept(key) { "as below".to_owned() } else { text };
        let setup: &SimSetup = &first.setup;
        let (guest, link) = (&self.guest, &self.link);
        let time = |nanos: Nanos| duration(Duration::from_nanos(nanos.0));
        let fill = match guest.fill {
            Some(FillPart::Zero) => "zero pages",
            Some(FillPart::Random) | None => "random content",
        };
        let storage = match (&link.storage_bandwidth, is_swept("storage_bandwidth")) {
            (_, true) => "as below".to_owned(),
            (Some(rate), false) => rate.text.clone(),
            (None, false) => "as fast".to_owned(),
        };
        let mut words = vec![
            Words {
                what: "guest".into(),
                text: format!(
                    "memory {}, {fill}; vCPUs {}; workload {}; runs {} before it is moved",
                    or_swept("memory", guest.memory.text.clone()),
                    or_swept("vcpus", setup.vcpus.to_string()),
                    or_swept("workload", guest.workload.text.clone()),
                    or_swept("warm_up", time(setup.warm_up)),
                ),
            },
            Words {
                what: "link".into(),
                text: format!(
                    "network {}, {} each way{}{}; storage {storage}",
                    or_swept("bandwidth", link.bandwidth.text.clone()),
                    or_swept("latency", time(setup.latency)),
                    link.jitter
                        .as_ref()
                        .map_or_else(String::new, |jitter| format!(", jitter up to {}", jitter.text)),
                    match link.loss_ppm {
                        None | Some(0) => String::new(),
                        Some(lost) => format!(", {lost} of a million chunks lost"),
                    },
                ),
            },
            Words {
                what: "limits".into(),
                text: format!(
                    "downtime {}, at most {} rounds of at least {}",
                    or_swept("downtime", time(setup.downtime)),
                    or_swept("max_rounds", count(u64::from(setup.max_rounds))),
                    time(setup.min_round),
                ),
            },
            Words {
                what: "machine".into(),
                text: format!(
                    "{} a step, {} a page fault, {} the hand-over, beside the way there and back",
                    time(setup.step_cost),
                    time(setup.fault_service),
                    time(setup.handover)
                ),
            },
        ];
        for (key, _) in &first.axes {
            let values = points
                .iter()
                .flat_map(|point| &point.axes)
                .filter(|(name, _)| name == key);
            words.push(Words {
                what: key.replace('_', " "),
                text: distinct(values.map(|(_, value)| value.as_str())).join("; "),
            });
        }
        let arms = self.arm.iter().map(|arm| match &arm.strategy.text {
            strategy if *strategy == arm.name => strategy.clone(),
            strategy => format!("{}: {strategy}", arm.name),
        });
        words.push(Words {
            what: "strategies".into(),
            text: arms.collect::<Vec<_>>().join("; "),
        });
        words
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn everything_that_was_chosen_is_told() {
        let text = r#"
title = "One round"
[guest]
workload = "uniform,rate=2000"
memory = "16MiB"
fill = "zero"
[link]
bandwidth = "40MB/s"
jitter = "1ms"
[limits]
downtime = "5ms"
max_rounds = 7
[sweep]
memory = ["8MiB", "16MiB"]
[[arm]]
name = "once"
strategy = "hybrid:1"
"#;
        let plan = Plan::parse(text, Path::new("x.toml")).expect("a plan");
        let words = plan.words();
        let all: Vec<(&str, &str)> = words
            .iter()
            .map(|words| (words.what.as_str(), words.text.as_str()))
            .collect();
        assert_eq!(
            all,
            [
                (
                    "guest",
                    "memory as below, zero pages; vCPUs 1; workload uniform,rate=2000; runs 1.00 s before it is moved"
                ),
                (
                    "link",
                    "network 40MB/s, 50 µs each way, jitter up to 1ms; storage as fast"
                ),
                ("limits", "downtime 5.00 ms, at most 7 rounds of at least 100 ms"),
                (
                    "machine",
                    "500 ns a step, 100 µs a page fault, 2.00 ms the hand-over, beside the way there and back"
                ),
                ("memory", "8MiB; 16MiB"),
                ("strategies", "once: hybrid:1"),
            ]
        );
    }
}
