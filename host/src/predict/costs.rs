//! From both engines to one form.

use dunlin_core::choose::{End, Forecast, Goal, Interval, Metric};

use super::verdict::keeping;
use crate::report::{Costs, EndCount, EndName, Likely, Outcome};
use crate::sim::SimResult;

/// What one simulated migration cost. Times in microseconds.
#[derive(Clone, Copy, Debug)]
struct Single {
    time_us: u64,
    downtime_us: u64,
    bytes: u64,
    rounds: u64,
    faults: u64,
    stall_us: u64,
    end: EndName,
}

impl Single {
    fn of(result: &SimResult) -> Self {
        let report = &result.report;
        let postcopy = report.postcopy.as_ref();
        let end = match report.outcome {
            Outcome::Completed if postcopy.is_some() => EndName::PostCopy,
            Outcome::Completed if report.goal_met => EndName::Stop,
            Outcome::Completed => EndName::ForcedStop,
            Outcome::Cancelled | Outcome::Failed => EndName::Never,
        };
        Self {
            time_us: report.total_time_us,
            downtime_us: report.downtime_us,
            bytes: report.bytes.total(),
            rounds: report.rounds.len() as u64,
            faults: postcopy.map_or(0, |part| part.faults),
            stall_us: result.stall.as_micros(),
            end,
        }
    }
}

/// Of migrations simulated from several points on; `None` stands for one that never ends. The likely value is the median, the lower
/// of two.
pub(super) fn simulated(results: &[Option<SimResult>], goal: &Goal) -> Costs {
    let singles: Vec<Single> = results.iter().flatten().map(Single::of).collect();
    let endless = results.len() - singles.len();
    let likely = |of: fn(&Single) -> u64| {
        let mut values: Vec<u64> = singles.iter().map(of).collect();
        values.sort_unstable();
        Some(Likely {
            low: *values.first()?,
            likely: values[(values.len() - 1) / 2],
            high: *values.last()?,
        })
    };
    let ends = [EndName::Stop, EndName::ForcedStop, EndName::PostCopy, EndName::Never].map(|by| EndCount {
        by,
        times: match by {
            EndName::Never => endless + singles.iter().filter(|single| single.end == by).count(),
            _ => singles.iter().filter(|single| single.end == by).count(),
        } as u32,
    });
    let mut ends: Vec<EndCount> = ends.into_iter().filter(|end| end.times > 0).collect();
    ends.sort_by_key(|end| std::cmp::Reverse(end.times));
    // Of half that never end nobody can say how long they take.
    let mostly_ends = 2 * endless < results.len();
    let mut costs = Costs {
        time_us: likely(|single| single.time_us).filter(|_| mostly_ends),
        downtime_us: likely(|single| single.downtime_us).unwrap_or_default(),
        bytes: likely(|single| single.bytes).filter(|_| mostly_ends),
        rounds: likely(|single| single.rounds).unwrap_or_default(),
        faults: likely(|single| single.faults).unwrap_or_default(),
        stall_us: likely(|single| single.stall_us).unwrap_or_default(),
        ends,
        keeps: super::verdict::NOT_JUDGED,
    };
    costs.keeps = keeping(&costs, goal);
    costs
}

/// Of a forecast.
pub(super) fn forecast(forecast: &Forecast, goal: &Goal) -> Costs {
    let micros = |interval: Interval<dunlin_core::units::Nanos>| Likely {
        low: interval.low.as_micros(),
        likely: interval.likely.as_micros(),
        high: interval.high.as_micros(),
    };
    let ends = forecast.end != End::Never;
    let mut costs = Costs {
        time_us: ends.then(|| micros(forecast.time)),
        downtime_us: micros(forecast.downtime),
        bytes: ends.then_some(Likely {
            low: forecast.bytes.low.0,
            likely: forecast.bytes.likely.0,
            high: forecast.bytes.high.0,
        }),
        rounds: Likely {
            low: forecast.rounds.low.into(),
            likely: forecast.rounds.likely.into(),
            high: forecast.rounds.high.into(),
        },
        faults: Likely {
            low: forecast.faults.low.0,
            likely: forecast.faults.likely.0,
            high: forecast.faults.high.0,
        },
        stall_us: micros(forecast.stall),
        ends: vec![EndCount {
            by: match forecast.end {
                End::StopCopy => EndName::Stop,
                End::ForcedStopCopy => EndName::ForcedStop,
                End::PostCopy => EndName::PostCopy,
                End::Never => EndName::Never,
            },
            times: 1,
        }],
        keeps: super::verdict::NOT_JUDGED,
    };
    costs.keeps = keeping(&costs, goal);
    if !forecast.ends_surely && costs.keeps == crate::report::Keeping::Surely {
        costs.keeps = crate::report::Keeping::Likely;
    }
    costs
}

/// A metric in the base unit of goals; `None` if it never ends.
pub(super) fn metric(costs: &Costs, metric: Metric) -> Option<Likely> {
    let nanos = |micros: Likely| Likely {
        low: micros.low.saturating_mul(1_000),
        likely: micros.likely.saturating_mul(1_000),
        high: micros.high.saturating_mul(1_000),
    };
    match metric {
        Metric::Time => costs.time_us.map(nanos),
        Metric::Downtime => Some(nanos(costs.downtime_us)),
        Metric::Bytes => costs.bytes,
        Metric::Faults => Some(costs.faults),
        Metric::Stall => Some(nanos(costs.stall_us)),
    }
}
