//! Parts of a plan, so that several machines share the work.

use std::path::Path;
use std::str::FromStr;

use rayon::prelude::*;

use super::{Plan, PlanError, PointResult};
use crate::sim::{SimResult, SimSetup, simulate};

/// Every so-many-th migration of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shard {
    /// From 1 to `of`.
    pub index: u32,
    /// At least 1.
    pub of: u32,
}

/// What is no shard.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no part of a whole: write I/N with I from 1 to N, 2/8 for example")]
pub struct ShardError(String);

impl Shard {
    /// All of it.
    pub const WHOLE: Self = Self { index: 1, of: 1 };

    /// Whether this part has the migration of that number, counted from 0.
    pub const fn has(self, number: usize) -> bool {
        number % self.of as usize == self.index as usize - 1
    }
}

impl FromStr for Shard {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Self, ShardError> {
        let parts = text
            .split_once('/')
            .and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        match parts {
            Some((index, of)) if (1..=of).contains(&index) => Ok(Self { index, of }),
            _ => Err(ShardError(text.to_owned())),
        }
    }
}

impl Plan {
    /// Every point once for each seed.
    pub fn migrations(&self) -> usize {
        self.points().len() * self.repetitions as usize
    }

    /// Simulates a part of the plan, on all processors: results by the number of the migration, the seeds of the first point before those of
    /// the second. `done` gets the pages of each guest that was moved.
    ///
    /// # Errors
    /// [`PlanError::Point`]: the first that cannot be simulated.
    pub fn run_shard(
        &self,
        shard: Shard,
        path: &Path,
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<Vec<(usize, SimResult)>, PlanError> {
        let points = self.points();
        let seeds = self.repetitions as usize;
        let numbers: Vec<usize> = (0..self.migrations()).filter(|&number| shard.has(number)).collect();
        let each = numbers.into_par_iter().map(|number| {
            let point = &points[number / seeds];
            let seed = (number % seeds) as u64 + 1;
            let setup = SimSetup {
                seed,
                ..point.setup.clone()
            };
            let result = simulate(&setup).map_err(|source| PlanError::Point {
                path: path.into(),
                point: point.to_string(),
                source,
            })?;
            done(setup.pages().0);
            Ok((number, result))
        });
        each.collect()
    }

    /// The pages of all guests that a part of the plan moves: what it costs, about.
    pub fn pages(&self, shard: Shard) -> u64 {
        let seeds = self.repetitions as usize;
        let points = self.points();
        let numbers = (0..self.migrations()).filter(|&number| shard.has(number));
        numbers.map(|number| points[number / seeds].setup.pages().0).sum()
    }

    /// The results of all migrations, in the order of their numbers, by point.
    pub fn gather(&self, results: Vec<SimResult>) -> Vec<PointResult> {
        let mut results = results.into_iter();
        let seeds = self.repetitions as usize;
        let points = self.points().into_iter();
        points
            .map(|point| PointResult {
                point,
                results: results.by_ref().take(seeds).collect(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: &str = r#"
title = "Three guests"
repetitions = 3
[guest]
workload = "uniform,rate=2000"
memory = "4MiB"
[link]
bandwidth = "40MB/s"
[limits]
downtime = "5ms"
[sweep]
memory = ["4MiB", "8MiB", "16MiB"]
[[arm]]
name = "1-hybrid"
strategy = "hybrid:1"
"#;

    #[test]
    fn the_parts_are_the_whole() {
        let path = Path::new("x.toml");
        let plan = Plan::parse(PLAN, path).expect("a plan");
        let whole = plan.run(path, &|| ()).expect("all can be simulated");
        let mut parts = Vec::new();
        for index in [3, 1, 4, 2] {
            let pages = std::sync::atomic::AtomicU64::new(0);
            let count = |of_one| {
                pages.fetch_add(of_one, std::sync::atomic::Ordering::Relaxed);
            };
            let shard = Shard { index, of: 4 };
            parts.extend(plan.run_shard(shard, path, &count).expect("all can be simulated"));
            assert_eq!(pages.into_inner(), plan.pages(shard));
        }
        parts.sort_by_key(|(number, _)| *number);
        let numbers: Vec<usize> = parts.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (0..plan.migrations()).collect::<Vec<_>>());
        let text = serde_json::to_string(&parts).expect("a document");
        let parts: Vec<(usize, SimResult)> = serde_json::from_str(&text).expect("the same document");
        let gathered = plan.gather(parts.into_iter().map(|(_, result)| result).collect());
        for (one, other) in whole.iter().zip(&gathered) {
            assert_eq!(
                (one.point.to_string(), &one.results),
                (other.point.to_string(), &other.results)
            );
        }
        assert_eq!(plan.pages(Shard::WHOLE), 3 * (1 + 2 + 4) * 1024);
    }

    #[test]
    fn a_part_has_a_whole() {
        assert_eq!("2/8".parse(), Ok(Shard { index: 2, of: 8 }));
        for text in ["0/8", "9/8", "8", "a/b", "1/0", "-1/2", ""] {
            let error = text.parse::<Shard>().expect_err(text).to_string();
            assert!(error.contains(text) && error.contains("2/8"), "{error}");
        }
    }
}
