//! What a plan simulates, in words.

use super::case::Case;
use super::figure::distinct;
use super::{FillPart, Plan};
use crate::report::{count, duration};
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
        let (Some(first), Some(arm)) = (points.first(), self.arm.first()) else {
            return Vec::new();
        };
        let is_swept = |key: &str| first.axes.iter().any(|(name, _)| *name == key);
        let or_swept = |key: &str, text: String| if is_swept(key) { "as below".to_owned() } else { text };
        // Not a point's: what a case changes stands with the case.
        let setup = self.setup(arm);
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
                    "network {}, {} each way{}; storage {storage}",
                    or_swept("bandwidth", link.bandwidth.text.clone()),
                    or_swept("latency", time(setup.latency)),
                    self.disturbances(),
                ),
            },
            Words {
                what: "limits".into(),
                text: format!(
                    "downtime {}, at most {} rounds of at least {}{}",
                    or_swept("downtime", time(setup.downtime)),
                    or_swept("max_rounds", count(u64::from(setup.max_rounds))),
                    time(setup.min_round),
                    match &self.limits.within {
                        Some(within) => format!("; a success within {within}"),
                        None => String::new(),
                    },
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
            let text = match *key {
                "case" => self.case.iter().map(Case::words).collect::<Vec<_>>().join("; "),
                _ => distinct(values.map(|(_, value)| value.as_str())).join("; "),
            };
            words.push(Words {
                what: key.replace('_', " "),
                text,
            });
        }
        let arms = self.arm.iter().map(|arm| {
            let pull = if arm.pull { ", nothing pushed" } else { "" };
            let profile = arm.profile.as_ref();
            let profile = profile.map_or_else(String::new, |time| format!(", observed for {time}"));
            match &arm.strategy.text {
                strategy if *strategy == arm.name => format!("{strategy}{pull}{profile}"),
                strategy => format!("{}: {strategy}{pull}{profile}", arm.name),
            }
        });
        words.push(Words {
            what: "strategies".into(),
            text: arms.collect::<Vec<_>>().join("; "),
        });
        words
    }

    /// What happens to the link, each after a comma.
    fn disturbances(&self) -> String {
        let link = &self.link;
        let parts = [
            link.jitter.as_ref().map(|jitter| format!("jitter up to {jitter}")),
            link.loss_ppm
                .filter(|lost| *lost > 0)
                .map(|lost| format!("{lost} of a million chunks lost")),
            link.varies.as_ref().map(|varies| {
                format!(
                    "from {} % of that rate to all of it, changing every {}",
                    100.0 * varies.least,
                    varies.every
                )
            }),
            link.cut.as_ref().map(|cut| match &cut.lasts {
                Some(lasts) => format!("cut {} into post-copy for {lasts}", cut.after),
                None => format!("cut {} into post-copy for good", cut.after),
            }),
        ];
        parts.into_iter().flatten().map(|part| format!(", {part}")).collect()
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
varies = { least = 0.3, every = "2s" }
cut = { after = "1s" }
[limits]
downtime = "5ms"
max_rounds = 7
within = "60s"
[sweep]
memory = ["8MiB", "16MiB"]
[[case]]
name = "slow"
bandwidth = "20MB/s"
latency = "5ms"
[[arm]]
name = "once"
strategy = "hybrid:1"
pull = true
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
                    "network 40MB/s, 50 µs each way, jitter up to 1ms, from 30 % of that rate to all of it, changing every 2s, cut 1s into post-copy for good; storage as fast"
                ),
                (
                    "limits",
                    "downtime 5.00 ms, at most 7 rounds of at least 100 ms; a success within 60s"
                ),
                (
                    "machine",
                    "500 ns a step, 100 µs a page fault, 2.00 ms the hand-over, beside the way there and back"
                ),
                ("case", "slow (network 20MB/s, latency 5ms)"),
                ("memory", "8MiB; 16MiB"),
                ("strategies", "once: hybrid:1, nothing pushed"),
            ]
        );
    }
}
