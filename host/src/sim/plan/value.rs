//! Numbers that a simulated migration gives.

use dunlin_core::choose::{Goal, Metric};
use serde::Deserialize;

use super::{Point, Statistic};
use crate::report::RoundReport;
use crate::sim::SimResult;

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
    /// Bytes on the network in post-copy; 0 without.
    PostcopyBytes,
    /// Pages that the guest waited for.
    Faults,
    /// The same over the pages dirty at the hand-over.
    FaultsByMissing,
    /// What 99 of 100 waits for a page took at most, in microseconds; none without faults.
    FaultP99,
    /// How long vCPUs waited for pages, together, in seconds.
    Stall,
    /// Pages sent, with data, before and after the hand-over.
    Pages,
    /// Rounds of pre-copy.
    Rounds,
    /// Pages dirty when the first copy was over: what the second round sends. Beside a static copy, when that was merged.
    DirtyAfterCopy,
    /// Pages that the second round sent; none if there was no such round. The others likewise.
    #[serde(rename = "round_2")]
    Round2,
    /// Of the third.
    #[serde(rename = "round_3")]
    Round3,
    /// Of the fourth.
    #[serde(rename = "round_4")]
    Round4,
    /// Of the fifth.
    #[serde(rename = "round_5")]
    Round5,
    /// Pages sent over the network beside a static copy, until it was merged.
    PagesBesideCopy,
    /// Pages dirty when the guest was paused.
    FinalDirty,
    /// Bytes sent while the guest was paused.
    StopCopy,
    /// 1 if it went to post-copy, otherwise 0.
    Switched,
    /// 1 if the guest went on at the target and all of it is there, otherwise 0.
    Survived,
    /// 1 if it was over within the plan's `limits.within` and its downtime within the limit, otherwise 0.
    Success,
    /// What the guest did not do of what it did before, in seconds of its work, from the beginning to the end.
    Lost,
    /// The weighted sum of the plan's goal, in points; without a goal, a second counts 1, of downtime and stall 10.
    Cost,
}

impl PlanValue {
    /// Whether it is 0 or 1, so that its mean says how often.
    pub(super) const fn is_share(self) -> bool {
        matches!(self, Self::Switched | Self::Survived | Self::Success)
    }

    pub(super) const fn statistic(self) -> Statistic {
        match self.is_share() {
            true => Statistic::Mean,
            false => Statistic::Median,
        }
    }

    /// What it is, its unit, and by what [`of`](Self::of) is to be multiplied for that unit.
    pub(super) const fn shown(self) -> (&'static str, &'static str, f64) {
        match self {
            Self::Time => ("total time", "s", 1.0),
            Self::TimeWithoutObserving => ("total time without observing", "s", 1.0),
            Self::Downtime => ("downtime", "ms", 1.0),
            Self::Network => ("data on the network", "MB", 1e-6),
            Self::Storage => ("data in storage", "MB", 1e-6),
            Self::Bytes => ("data on all channels", "MB", 1e-6),
            Self::Postcopy => ("post-copy", "s", 1.0),
            Self::PostcopyBytes => ("data in post-copy", "MB", 1e-6),
            Self::Faults => ("page faults", "pages", 1.0),
            Self::FaultsByMissing => ("page faults by missing pages", "", 1.0),
            Self::FaultP99 => ("99th percentile of a page fault", "µs", 1.0),
            Self::Stall => ("waiting for pages", "s", 1.0),
            Self::Pages => ("pages sent", "pages", 1.0),
            Self::Rounds => ("rounds of pre-copy", "", 1.0),
            Self::DirtyAfterCopy => ("pages dirty after the copy", "pages", 1.0),
            Self::Round2 => ("pages of the second round", "pages", 1.0),
            Self::Round3 => ("pages of the third round", "pages", 1.0),
            Self::Round4 => ("pages of the fourth round", "pages", 1.0),
            Self::Round5 => ("pages of the fifth round", "pages", 1.0),
            Self::PagesBesideCopy => ("pages sent beside the copy", "pages", 1.0),
            Self::FinalDirty => ("pages dirty at the end", "pages", 1.0),
            Self::StopCopy => ("data sent in stop-and-copy", "MB", 1e-6),
            Self::Switched => ("share that goes to post-copy", "", 1.0),
            Self::Survived => ("share that survives", "", 1.0),
            Self::Success => ("share moved in time", "", 1.0),
            Self::Lost => ("work lost", "s", 1.0),
            Self::Cost => ("cost", "points", 1.0),
        }
    }

    /// The number of one migration at that point; `None` if it has none.
    pub fn of(self, result: &SimResult, point: &Point) -> Option<f64> {
        let report = &result.report;
        let postcopy = report.postcopy.as_ref();
        let flag = |is: bool| f64::from(u8::from(is));
        let round = |number: usize| report.rounds.get(number - 1).map(|round| round.sent_pages as f64);
        let without_observing = {
            let sampling = report.sampling.as_ref();
            sampling.map_or(report.total_time_us, |sampling| sampling.total_time_without_us)
        };
        Some(match self {
            Self::Time => report.total_time_us as f64 / 1e6,
            Self::TimeWithoutObserving => without_observing as f64 / 1e6,
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
            Self::PostcopyBytes => postcopy.map_or(0.0, |part| part.bytes as f64),
            Self::Faults => postcopy.map_or(0.0, |part| part.faults as f64),
            Self::FaultsByMissing => {
                let part = postcopy?;
                part.faults as f64 / (part.faults + part.pushed + part.stored) as f64
            }
            Self::FaultP99 => postcopy?.p99_us? as f64,
            Self::Stall => result.stall.0 as f64 / 1e9,
            Self::Rounds => report.rounds.len() as f64,
            Self::DirtyAfterCopy => {
                let merged = report.static_done_after.unwrap_or(1) as usize;
                report.rounds.get(merged - 1)?.dirty_pages as f64
            }
            Self::Round2 => round(2)?,
            Self::Round3 => round(3)?,
            Self::Round4 => round(4)?,
            Self::Round5 => round(5)?,
            Self::PagesBesideCopy => {
                let merged = report.static_done_after? as usize;
                let beside = report.rounds.iter().take(merged);
                beside.map(|round| round.sent_pages).sum::<u64>() as f64
            }
            Self::FinalDirty => report.rounds.last()?.dirty_pages as f64,
            Self::StopCopy => match postcopy {
                None => report.bytes.migration.saturating_sub(in_rounds(&report.rounds)) as f64,
                Some(_) => 0.0,
            },
            Self::Switched => flag(postcopy.is_some()),
            Self::Survived => flag(report.outcome == crate::report::Outcome::Completed),
            Self::Success => {
                let limit = point.within.map_or(u64::MAX, |time| time.as_micros());
                let in_time = report.total_time_us <= limit;
                flag(report.is_success() && in_time && report.downtime_us <= point.setup.downtime.as_micros())
            }
            Self::Lost => {
                let lost = report.guest.slowdown_milli? as f64 / 1000.0;
                (lost * report.total_time_us as f64 / 1e6).max(0.0)
            }
            Self::Cost => {
                let value = |metric| match metric {
                    Metric::Time => without_observing as f64 * 1e3,
                    Metric::Downtime => report.downtime_us as f64 * 1e3,
                    Metric::Bytes => report.bytes.total() as f64,
                    Metric::Faults => postcopy.map_or(0.0, |part| part.faults as f64),
                    Metric::Stall => result.stall.0 as f64,
                };
                let goal = point.goal.clone().unwrap_or(Goal::BALANCED);
                let points = Metric::ALL.into_iter().map(|metric| {
                    f64::from(goal.weight_milli(metric)) / 1000.0 * value(metric) / metric.point() as f64
                });
                points.sum()
            }
        })
    }
}

fn in_rounds(rounds: &[RoundReport]) -> u64 {
    rounds.iter().map(|round| round.bytes).sum()
}
