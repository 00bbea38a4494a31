//! A grid of loads, every candidate forecast and played on each of them.

use dunlin_core::choose::{
    Candidate, End, Forecast, Goal, Limits, Link, Metric, Uncertainty, candidates, choose, forecast, shah_2015,
    small_for,
};
use dunlin_core::strategy::{Alpha, First, Slow, Strategy, SwitchRule};
use dunlin_core::switch::Decision;
use dunlin_core::units::{Bytes, BytesPerSec, Nanos, Pages};

use super::what_if::{Load, Order, Ran, migrate};

/// A load with the link it is to be migrated over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    pub(crate) load: Load,
    pub(crate) link: Link,
}

/// Every combination of orders, working sets, loads (writes per page that the link sends: 0.2 to 2) and bandwidths, with storage
/// as fast as the link and without, for guests of this many pages.
pub(crate) fn cells(total: u64) -> Vec<Cell> {
    let mut cells = Vec::new();
    for order in [Order::Uniform, Order::Cyclic, Order::HotCold] {
        for share in [16, 4, 1] {
            for tenths in [2, 4, 8, 12, 20] {
                for (pages_per_sec, storage) in [(2048, false), (2048, true), (8192, false), (8192, true)] {
                    let bandwidth = BytesPerSec(pages_per_sec * 4096);
                    cells.push(Cell {
                        load: Load {
                            total,
                            working_set: total / share,
                            writes_per_sec: pages_per_sec * tenths / 10,
                            order,
                            seed: cells.len() as u64,
                        },
                        link: Link {
                            storage_bandwidth: storage.then_some(bandwidth),
                            ..Link::new(bandwidth)
                        },
                    });
                }
            }
        }
    }
    cells
}

/// A forecast beside what it foretold.
pub(crate) struct Pair {
    pub(crate) strategy: Strategy,
    pub(crate) forecast: Forecast,
    pub(crate) ran: Ran,
    /// What it cost by the goal, in points, on average.
    pub(crate) cost: f64,
}

/// The candidates that need no throttled guest, which the player has not.
fn unslowed(goal: &Goal) -> Vec<Strategy> {
    let all = candidates(goal).into_iter();
    all.filter(|strategy| strategy.slow == Slow::None).collect()
}

/// Every candidate on one cell, and what was chosen, by Shah's rule, too.
pub(crate) struct Played {
    pub(crate) pairs: Vec<Pair>,
    pub(crate) chosen: Strategy,
    pub(crate) by_shah: Strategy,
}

impl Played {
    /// What this strategy cost relative to the cheapest.
    pub(crate) fn regret(&self, strategy: &Strategy) -> f64 {
        let best = self.pairs.iter().map(|pair| pair.cost).fold(f64::INFINITY, f64::min);
        let pair = self.pairs.iter().find(|pair| pair.strategy == *strategy);
        pair.map_or(f64::INFINITY, |pair| pair.cost / best)
    }
}

/// Profiles the load as long as a full copy takes, forecasts, and plays this many times, each with other random numbers.
pub(crate) fn play(cell: &Cell, goal: &Goal, runs: u64) -> Played {
    let Cell { load, link } = cell;
    let profile = load.profile(link.bandwidth.time_to_send(Pages(load.total).bytes()));
    let (limits, uncertainty) = (Limits::DEFAULT, Uncertainty::DEFAULT);
    let mut candidates = unslowed(goal);
    candidates.retain(|strategy| strategy.first == First::Serial || link.storage_bandwidth.is_some());
    let pairs = candidates.iter().map(|strategy| {
        let forecast = forecast(strategy, &profile, link, &limits, uncertainty).expect("a link with storage");
        let run = |number| {
            let load = Load {
                seed: load.seed * 1000 + number,
                ..*load
            };
            migrate(load, strategy, link, &limits).expect("every candidate ends")
        };
        let costs = (0..runs).map(|number| cost(&run(number), goal));
        Pair {
            strategy: *strategy,
            cost: costs.sum::<f64>() / runs as f64,
            forecast,
            ran: run(0),
        }
    });
    let pairs = pairs.collect();
    let choice = choose(&candidates, &profile, link, &limits, goal, uncertainty).expect("a link");
    let Candidate { strategy: chosen, .. } = choice.best;
    Played {
        pairs,
        chosen,
        by_shah: shah_2015(&profile, small_for(link.bandwidth)),
    }
}

/// The weighted sum of what a migration really cost, in points.
fn cost(ran: &Ran, goal: &Goal) -> f64 {
    let value = |metric| match metric {
        Metric::Time => ran.time.0,
        Metric::Downtime => ran.downtime.0,
        Metric::Bytes => Pages(ran.sent).bytes().0,
        Metric::Faults => ran.faults,
        Metric::Stall => ran.stall.0,
    };
    let points = Metric::ALL
        .into_iter()
        .map(|metric| f64::from(goal.weight_milli(metric)) / 1000.0 * value(metric) as f64 / metric.point() as f64);
    points.sum()
}

/// What `sdf:auto` cost relative to the best fixed α from 0 to 1 in tenths, in hindsight; stalls by faults that take `fault_overhead`
/// cost as much as time on the link, as its α is derived.
pub(crate) fn alpha_regret(cell: &Cell, fault_overhead: Nanos, runs: u64) -> f64 {
    let goal: Goal = "weighted:time=1,stall=1".parse().expect("a goal");
    let link = Link {
        fault_overhead,
        ..cell.link
    };
    let cost_of = |switch| {
        let costs = (0..runs).map(|number| {
            let load = Load {
                seed: cell.load.seed * 1000 + number,
                ..cell.load
            };
            let ran = migrate(load, &Strategy::with_switch(switch), &link, &Limits::DEFAULT);
            cost(&ran.expect("it ends at the round limit"), &goal)
        });
        costs.sum::<f64>()
    };
    let fixed = (0..=10).filter_map(|tenths| Alpha::from_milli(tenths * 100));
    let best = fixed
        .map(|alpha| cost_of(SwitchRule::Sdf(alpha)))
        .fold(f64::INFINITY, f64::min);
    cost_of(SwitchRule::SdfAuto) / best
}

/// Median and largest deviation from 1.
pub(crate) fn deviation(mut ratios: Vec<f64>) -> (f64, f64) {
    for ratio in &mut ratios {
        *ratio = (*ratio - 1.0).abs();
    }
    ratios.sort_by(f64::total_cmp);
    (ratios[ratios.len() / 2], ratios[ratios.len() - 1])
}

impl Pair {
    /// Forecast by played.
    pub(crate) fn time_ratio(&self) -> f64 {
        self.forecast.time.likely.0 as f64 / self.ran.time.0 as f64
    }

    /// The same of bytes.
    pub(crate) fn bytes_ratio(&self) -> f64 {
        self.forecast.bytes.likely.0 as f64 / self.ran_bytes().0 as f64
    }

    /// True if time and bytes lie within their intervals.
    pub(crate) fn is_covered(&self) -> bool {
        self.forecast.time.contains(self.ran.time) && self.forecast.bytes.contains(self.ran_bytes())
    }

    fn ran_bytes(&self) -> Bytes {
        Pages(self.ran.sent).bytes()
    }

    /// True if it ended the way it was foretold.
    pub(crate) fn ended_alike(&self) -> bool {
        match self.forecast.end {
            End::PostCopy => self.ran.end == Decision::PostCopy,
            End::StopCopy | End::ForcedStopCopy => self.ran.end == Decision::StopCopy,
            End::Never => false,
        }
    }
}
