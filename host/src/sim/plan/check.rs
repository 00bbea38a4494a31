//! What is asked of the results of a plan.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Point, PointResult};
use crate::sim::SimResult;

/// A question about the results of one place in the sweep.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanCheck {
    /// In words.
    pub name: String,
    /// Of what.
    pub value: PlanValue,
    /// Of which arm.
    pub arm: String,
    /// Over the same of this arm, seed by seed.
    #[serde(default)]
    pub by: Option<String>,
    /// Where in the sweep: values of some of its keys; over the others all points count.
    #[serde(default)]
    pub at: BTreeMap<String, String>,
    /// The largest that is good.
    #[serde(default)]
    pub at_most: Option<f64>,
    /// The smallest that is good.
    #[serde(default)]
    pub at_least: Option<f64>,
    /// What the paper has.
    #[serde(default)]
    pub paper: Option<f64>,
    /// Why it differs, if it does.
    #[serde(default)]
    pub why: Option<String>,
}

/// A number that a migration gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanValue {
    /// Total time in seconds.
    Time,
    /// The same without observing the guest before.
    TimeWithoutObserving,
    /// Downtime in milliseconds.
    Downtime,
    /// Bytes on the network.
    Network,
    /// Bytes in the storage directory.
    Storage,
    /// Bytes on all channels.
    Bytes,
    /// Seconds of post-copy; 0 without.
    Postcopy,
    /// Pages that the guest waited for.
    Faults,
    /// Pages sent, with data, before and after the hand-over.
    Pages,
    /// Rounds of pre-copy.
    Rounds,
    /// Bytes sent while the guest was paused.
    StopCopy,
    /// 1 if it went to post-copy, otherwise 0.
    Switched,
}

impl PlanValue {
    /// The number of one migration.
    pub fn of(self, result: &SimResult) -> f64 {
        let report = &result.report;
        let postcopy = report.postcopy.as_ref();
        match self {
            Self::Time => report.total_time_us as f64 / 1e6,
            Self::TimeWithoutObserving => {
                let sampling = report.sampling.as_ref();
                sampling.map_or(report.total_time_us, |sampling| sampling.total_time_without_us) as f64 / 1e6
            }
            Self::Pages => {
                let sent: u64 = report.rounds.iter().map(|round| round.sent_pages).sum();
                let after = postcopy.map_or(0, |part| part.faults + part.pushed);
                (sent + after) as f64
            }
            Self::Downtime => report.downtime_us as f64 / 1e3,
            Self::Network => (report.bytes.total() - report.bytes.storage) as f64,
            Self::Storage => report.bytes.storage as f64,
            Self::Bytes => report.bytes.total() as f64,
            Self::Postcopy => postcopy.map_or(0.0, |part| part.duration_us as f64 / 1e6),
            Self::Faults => postcopy.map_or(0.0, |part| part.faults as f64),
            Self::Rounds => report.rounds.len() as f64,
            Self::StopCopy => {
                let in_rounds: u64 = report.rounds.iter().map(|round| round.bytes).sum();
                match postcopy {
                    None => report.bytes.migration.saturating_sub(in_rounds) as f64,
                    Some(_) => 0.0,
                }
            }
            Self::Switched => f64::from(u8::from(postcopy.is_some())),
        }
    }
}

impl PlanCheck {
    /// Whether it asks about this point: its arm, at its place in the sweep.
    pub(super) fn is_at(&self, point: &Point) -> bool {
        point.arm == self.arm && self.is_place_of(point)
    }

    fn is_place_of(&self, point: &Point) -> bool {
        self.at
            .iter()
            .all(|(name, value)| point.axes.iter().any(|(axis, at)| axis == name && at == value))
    }

    /// The numbers it asks about, one for each point and seed; with those of the other arm, if it asks for a ratio.
    pub fn numbers(&self, results: &[PointResult]) -> Vec<(f64, Option<f64>)> {
        let of = |arm: &str| {
            let places = results
                .iter()
                .filter(|result| result.point.arm == arm && self.is_place_of(&result.point));
            let results = places.flat_map(|place| &place.results);
            results.map(|result| self.value.of(result)).collect::<Vec<f64>>()
        };
        let base = self.by.as_deref().map(of);
        let numbers = of(&self.arm).into_iter().enumerate();
        numbers
            .map(|(seed, number)| (number, base.as_ref().and_then(|base| base.get(seed).copied())))
            .collect()
    }
}
