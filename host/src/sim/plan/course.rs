//! The course of migrations: a mark for each round, or each second.

use serde::Deserialize;

use super::PointResult;
use super::figure::{Estimator, Statistic};
use crate::report::chart::Mark;
use crate::sim::SimResult;

/// Rounds, or seconds, that are shown of a migration at most. Of more rounds every second or third one is, of more seconds the mean of two or
/// three.
const SHOWN_MAX: usize = 200;

/// A number that a round gives.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RoundValue {
    SentPages,
    DirtyPages,
}

/// A number that a second gives.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SecondValue {
    StepsPerSecond,
}

/// One number of repetitions as a mark; `None` without any.
pub(super) fn mark(x: f64, statistic: Statistic, numbers: &[f64], estimate: &Estimator<'_>) -> Option<Mark> {
    let (y, interval) = estimate(statistic, numbers)?;
    Some(Mark {
        x,
        y,
        interval: Some(interval),
    })
}

/// A mark for each round that at least half of the migrations had, in the median of those that had it.
pub(super) fn rounds(value: RoundValue, results: &[&SimResult], estimate: &Estimator<'_>) -> Vec<Mark> {
    let longest = results
        .iter()
        .map(|result| result.report.rounds.len())
        .max()
        .unwrap_or(0);
    let of_round = |round: usize| -> Vec<f64> {
        let reports = results.iter().filter_map(|result| result.report.rounds.get(round));
        let numbers = reports.map(|report| match value {
            RoundValue::SentPages => report.sent_pages as f64,
            RoundValue::DirtyPages => report.dirty_pages as f64,
        });
        numbers.collect()
    };
    let common = (0..longest)
        .take_while(|&round| 2 * of_round(round).len() >= results.len())
        .count();
    let shown = (0..common).step_by(common.div_ceil(SHOWN_MAX).max(1));
    shown
        .filter_map(|round| mark((round + 1) as f64, Statistic::Median, &of_round(round), estimate))
        .collect()
}

/// A mark for the beginning of each second that at least half of the migrations had, and one for the end of the last.
pub(super) fn seconds<'a>(places: impl Iterator<Item = &'a PointResult>, estimate: &Estimator<'_>) -> Vec<Mark> {
    // From the steps that were done when it began.
    let lines: Vec<Vec<u64>> = places
        .flat_map(|place| {
            let millis = place.point.setup.warm_up.0 / 1_000_000;
            place.results.iter().map(move |result| {
                let before = u128::from(result.report.guest.steps_before) * u128::from(millis) / 1000;
                let before = u64::try_from(before).unwrap_or(u64::MAX);
                std::iter::once(before).chain(result.timeline.iter().copied()).collect()
            })
        })
        .collect();
    let longest = lines.iter().map(|line| line.len() - 1).max().unwrap_or(0);
    let has = |second: usize| lines.iter().filter(|line| line.len() > second).count();
    let common = (1..=longest)
        .take_while(|&second| 2 * has(second) >= lines.len())
        .count();
    let step = common.div_ceil(SHOWN_MAX).max(1);
    let mut marks: Vec<Mark> = (0..common / step)
        .filter_map(|index| {
            let (from, to) = (index * step, (index + 1) * step);
            let both = lines.iter().filter_map(|line| Some((*line.get(from)?, *line.get(to)?)));
            let speeds: Vec<f64> = both
                .map(|(from, to)| to.saturating_sub(from) as f64 / step as f64)
                .collect();
            mark(from as f64, Statistic::Median, &speeds, estimate)
        })
        .collect();
    if let Some(&last) = marks.last() {
        marks.push(Mark {
            x: last.x + step as f64,
            ..last
        });
    }
    marks
}
