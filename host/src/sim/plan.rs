//! Plans: sweeps of simulated migrations, written down in TOML.
//!
//! ```toml
//! title = "One round against two"
//! source = "where the numbers to compare with come from"
//! repetitions = 10                 # seeds 1 to 10
//!
//! [guest]
//! workload = "uniform,rate=4000"
//! memory = "8GiB"                  # whole pages
//! vcpus = 1
//! fill = "random"                  # or "zero"
//!
//! [link]
//! bandwidth = "50MB/s"
//! storage_bandwidth = "50MB/s"     # without it that of the network
//! latency = "50us"
//!
//! varies = { least = 0.3, every = "2s" }     # a rate that changes, if it does
//! cut = { after = "5s", lasts = "10s" }       # in post-copy; without `lasts` for good
//!
//! [limits]
//! downtime = "300ms"
//! max_rounds = 30
//! within = "60s"                   # what counts as success
//!
//! [sweep]                          # every combination of these takes the place of the same key above
//! memory = ["8GiB", "16GiB"]
//! workload = ["uniform,rate=4000", "seq,rate=4000"]
//!
//! [[case]]                         # and this is a sweep over several keys at once: `case` is its name there
//! name = "kernel, 2 GiB"
//! workload = "kernel,rate=9000"
//! memory = "2GiB"
//!
//! [[arm]]
//! name = "1-hybrid"
//! strategy = "hybrid:1"
//!
//! [[arm]]
//! name = "2-hybrid"
//! strategy = "hybrid:2"            # or "auto", for the plan's `goal`; `slow=auto-converge` is known here, too
//!
//! [[check]]                        # what `cargo xtask experiment` asks of the results
//! name = "two rounds lack less"
//! value = "postcopy"               # time, time_without_observing, downtime, network, storage, bytes, pages, …
//! arm = "2-hybrid"
//! by = "1-hybrid"                  # the ratio of both; without it the value itself. Of a list: the best of these arms
//! at = { memory = "8GiB", workload = "seq,rate=4000" }
//! fold = "worst"                   # of all places one number: worst, mean, spread, rank, linearity, share (with `within`)
//! at_most = 0.5                    # or at_least, or both
//! paper = 0.4                      # what was published
//! why = "…"                        # why it differs
//!
//! [[figure]]
//! title = "Total time"
//! x = "memory"                     # a key of the sweep; "arm": bars; "round": the rounds of pre-copy; "seconds" since it began
//! y = "time"                       # as `value` above; over rounds sent_pages or dirty_pages; over seconds steps_per_second
//! arms = ["2-hybrid"]              # without it all
//! at = { bandwidth = "50MB/s" }    # as in a check; what else differs is a line of its own
//! pooled = ["workload"]            # but for these keys, whose points count as repetitions
//! kind = "lines"                   # or "bars"
//! log = false                      # y by factors
//!                                  # what was published, in the unit that stands at y: by line and x, or, over arms, by arm,
//!                                  # followed by the place if there are several: "2-hybrid @ 8GiB"
//! paper = { "2-hybrid @ 8GiB" = 605.9 }
//! ```
//!
//! `calibration`, beside `title`, says in words how guest and link were fitted to what was published.
//!
//! Every key but `title`, `guest.workload`, `guest.memory`, `link.bandwidth` and one arm may be left out. A key that does not exist, a
//! value without a unit and a guest that its workload does not fit are named with their line.

mod axis;
mod case;
mod check;
mod course;
mod figure;
mod fold;
mod parts;
mod shard;
mod value;
mod words;

use std::path::{Path, PathBuf};

use dunlin_core::choose::Goal;
use dunlin_core::migrate::Advisor;
use dunlin_core::strategy::{Strategy, SwitchRule};
use dunlin_core::units::Nanos;
use dunlin_core::workload::Fill;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::{CutAt, SimError, SimResult, SimSetup, Varies};

use case::Case;
use parts::{CostsPart, FillPart, GuestPart, LimitsPart, LinkPart, Rate, Size, Time, Way, WayPart, Workload};

pub use check::{By, Numbers, PlanCheck};
pub use figure::{Estimator, PlanFigure, Statistic};
pub use fold::Fold;
pub use shard::{Shard, ShardError};
pub use value::PlanValue;
pub use words::Words;

/// A plan as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What it shows.
    pub title: String,
    /// Where the numbers to compare with come from.
    #[serde(default)]
    pub source: Option<String>,
    /// How guest and link were fitted to what was published, in words.
    #[serde(default)]
    pub calibration: Option<String>,
    /// Seeds 1 to that many.
    #[serde(default = "one")]
    pub repetitions: u32,
    guest: GuestPart,
    link: LinkPart,
    #[serde(default)]
    limits: LimitsPart,
    #[serde(default)]
    costs: CostsPart,
    /// What `auto` is to be good at, and what `cost` counts.
    #[serde(default, deserialize_with = "goal")]
    goal: Option<Goal>,
    #[serde(default)]
    sweep: Sweep,
    #[serde(default)]
    case: Vec<Case>,
    arm: Vec<Arm>,
    /// What is asked of the results.
    #[serde(default)]
    pub check: Vec<PlanCheck>,
    /// What is drawn of the results.
    #[serde(default)]
    pub figure: Vec<PlanFigure>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Sweep {
    workload: Vec<Workload>,
    memory: Vec<Size>,
    bandwidth: Vec<Rate>,
    storage_bandwidth: Vec<Rate>,
    latency: Vec<Time>,
    vcpus: Vec<u32>,
    downtime: Vec<Time>,
    warm_up: Vec<Time>,
}

/// One way to move the guest.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// As it is called in tables.
    pub name: String,
    strategy: WayPart,
    /// Post-copy without a push, page after page.
    #[serde(default)]
    pull: bool,
    /// How long the guest is observed by what looks ahead; another time than the plan's.
    profile: Option<Time>,
}

const fn one() -> u32 {
    1
}

fn goal<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Goal>, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

/// Why there is no plan, or no result of it.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The file.
    #[error("cannot read the plan {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Not what a plan looks like.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Line, column, and what there could be instead.
        message: String,
    },
    /// A point that cannot be simulated.
    #[error("{}: {point}", path.display())]
    Point {
        /// Which file.
        path: PathBuf,
        /// Which point.
        point: String,
        /// Why.
        source: SimError,
    },
}

/// One combination of a plan's values, and one arm.
#[derive(Clone, Debug)]
pub struct Point {
    /// The swept keys with their values, as written.
    pub axes: Vec<(&'static str, String)>,
    /// The arm's name.
    pub arm: String,
    /// Which of the plan's arms.
    pub arm_index: usize,
    setup: SimSetup,
    goal: Option<Goal>,
    within: Option<Nanos>,
}

/// What became of a point: a result for each seed, from 1.
#[derive(Clone, Debug)]
pub struct PointResult {
    /// Which.
    pub point: Point,
    /// By seed.
    pub results: Vec<SimResult>,
}

impl Plan {
    /// Reads a plan.
    ///
    /// # Errors
    /// [`PlanError::Read`], [`PlanError::Syntax`] with line and column.
    pub fn read(path: &Path) -> Result<Self, PlanError> {
        let text = std::fs::read_to_string(path).map_err(|source| PlanError::Read {
            path: path.into(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Reads a plan from text; `path` is for messages.
    ///
    /// # Errors
    /// [`PlanError::Syntax`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, PlanError> {
        let syntax = |message: String| PlanError::Syntax {
            path: path.into(),
            message,
        };
        let plan: Self = toml::from_str(text).map_err(|error| syntax(error.to_string()))?;
        if plan.repetitions == 0 {
            return Err(syntax("repetitions = 0 simulates nothing: write 1 or more".into()));
        }
        if plan.arm.is_empty() {
            return Err(syntax(
                "there is no [[arm]]: write one or more, each with name and strategy".into(),
            ));
        }
        for check in &plan.check {
            plan.fits(check)
                .map_err(|why| syntax(format!("[[check]] {:?}: {why}", check.name)))?;
        }
        for figure in &plan.figure {
            figure
                .fits(&plan)
                .map_err(|why| syntax(format!("[[figure]] {:?}: {why}", figure.title)))?;
        }
        Ok(plan)
    }

    /// Whether a check asks about something there is.
    fn fits(&self, check: &PlanCheck) -> Result<(), String> {
        if let Some(why) = check.contradiction() {
            return Err(why.into());
        }
        let arms: Vec<&str> = self.arms().collect();
        let others = check.by.as_ref().map_or(&[][..], By::arms);
        for arm in std::iter::once(&check.arm).chain(others) {
            if !arms.contains(&arm.as_str()) {
                return Err(format!("there is no arm {arm:?}; there are {}", arms.join(", ")));
            }
        }
        let points = self.points();
        match points.iter().filter(|point| check.is_at(point)).count() {
            0 => {
                let axes = points.first().map_or(&[][..], |point| &point.axes);
                let keys: Vec<&str> = axes.iter().map(|(name, _)| *name).collect();
                Err(format!(
                    "`at` names no point of the sweep: write values, as they are written there, of {}",
                    keys.join(", ")
                ))
            }
            _ => Ok(()),
        }
    }

    /// The names of the arms.
    pub fn arms(&self) -> impl Iterator<Item = &str> {
        self.arm.iter().map(|arm| arm.name.as_str())
    }

    /// Every combination with every arm; the last key of the sweep changes first, then the arm.
    pub fn points(&self) -> Vec<Point> {
        let arms = self.arm.iter().enumerate();
        let mut points: Vec<Point> = arms
            .map(|(index, arm)| Point {
                axes: Vec::new(),
                arm: arm.name.clone(),
                arm_index: index,
                setup: self.setup(arm),
                goal: self.goal.clone(),
                within: self.limits.within.as_ref().map(|time| time.value),
            })
            .collect();
        let sweep = &self.sweep;
        vary(&mut points, "warm_up", &sweep.warm_up, |setup, time| {
            setup.warm_up = time.value;
        });
        vary(&mut points, "downtime", &sweep.downtime, |setup, time| {
            setup.downtime = time.value
        });
        vary(&mut points, "vcpus", &sweep.vcpus, |setup, vcpus| setup.vcpus = *vcpus);
        vary(&mut points, "latency", &sweep.latency, |setup, time| {
            setup.latency = time.value
        });
        vary(
            &mut points,
            "storage_bandwidth",
            &sweep.storage_bandwidth,
            |setup, rate| {
                setup.storage_bandwidth = rate.value;
            },
        );
        let storage_follows = self.link.storage_bandwidth.is_none() && sweep.storage_bandwidth.is_empty();
        vary(&mut points, "bandwidth", &sweep.bandwidth, |setup, rate| {
            setup.bandwidth = rate.value;
            if storage_follows {
                setup.storage_bandwidth = rate.value;
            }
        });
        vary(&mut points, "memory", &sweep.memory, |setup, size| {
            setup.memory = size.value
        });
        vary(&mut points, "workload", &sweep.workload, |setup, workload| {
            setup.workload = workload.value.clone();
        });
        vary(&mut points, "case", &self.case, |setup, case| {
            case.apply(setup, storage_follows);
        });
        for point in &mut points {
            if self.observes_by_rule(point) {
                let Point { setup, .. } = point;
                setup.learning = Advisor::observation(setup.memory, setup.bandwidth);
            }
        }
        points
    }

    /// Whether it is not said how long `auto` observes the guest: then as long as `dunlin migrate` does, which the swept keys have a say in.
    fn observes_by_rule(&self, point: &Point) -> bool {
        let arm = &self.arm[point.arm_index];
        let given = arm.profile.as_ref().or(self.limits.profile.as_ref());
        matches!(arm.strategy.value, Way::Auto) && given.is_none()
    }

    fn setup(&self, arm: &Arm) -> SimSetup {
        let mut setup = SimSetup::of(
            self.guest.workload.value.clone(),
            self.guest.memory.value,
            match arm.strategy.value {
                Way::Given(strategy) => strategy,
                Way::Auto => Strategy::with_switch(SwitchRule::Never),
            },
            self.link.bandwidth.value,
        );
        if let Way::Auto = arm.strategy.value {
            setup.goal = Some(self.goal.clone().unwrap_or(Goal::BALANCED));
        }
        setup.pull = arm.pull;
        setup.varies = self.link.varies.as_ref().map(Varies::from);
        setup.cut = self.link.cut.as_ref().map(CutAt::from);
        let set = |to: &mut Nanos, time: &Option<Time>| {
            if let Some(time) = time {
                *to = time.value;
            }
        };
        let (guest, link, limits, costs) = (&self.guest, &self.link, &self.limits, &self.costs);
        set(&mut setup.warm_up, &guest.warm_up);
        set(&mut setup.latency, &link.latency);
        set(&mut setup.jitter, &link.jitter);
        set(&mut setup.downtime, &limits.downtime);
        set(&mut setup.min_round, &limits.min_round);
        set(&mut setup.learning, &limits.profile);
        set(&mut setup.learning, &arm.profile);
        set(&mut setup.step_cost, &costs.step);
        set(&mut setup.fault_service, &costs.fault_service);
        set(&mut setup.handover, &costs.handover);
        setup.vcpus = guest.vcpus.unwrap_or(setup.vcpus);
        setup.max_rounds = limits.max_rounds.unwrap_or(setup.max_rounds).max(1);
        setup.loss_ppm = link.loss_ppm.unwrap_or(0);
        if let Some(FillPart::Zero) = guest.fill {
            setup.fill = Fill::Zero;
        }
        if let Some(rate) = &link.storage_bandwidth {
            setup.storage_bandwidth = rate.value;
        }
        if let Some(rate) = &link.merge_bandwidth {
            setup.merge_bandwidth = rate.value;
        }
        setup
    }

    /// Simulates every point, on all processors; `done` is called after each migration. Results are in the order of
    /// [`points`](Self::points), whoever was done first.
    ///
    /// # Errors
    /// [`PlanError::Point`]: the first that cannot be simulated.
    pub fn run(&self, path: &Path, done: &(dyn Fn() + Sync)) -> Result<Vec<PointResult>, PlanError> {
        let results = self.run_shard(Shard::WHOLE, path, &|_| done())?;
        Ok(self.gather(results.into_iter().map(|(_, result)| result).collect()))
    }
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "arm {:?}", self.arm)?;
        for (name, value) in &self.axes {
            write!(f, ", {name} = {value:?}")?;
        }
        Ok(())
    }
}

/// Every point once with each value, if there are some.
fn vary<T: std::fmt::Display>(
    points: &mut Vec<Point>,
    name: &'static str,
    values: &[T],
    set: impl Fn(&mut SimSetup, &T),
) {
    if values.is_empty() {
        return;
    }
    let each = values.iter().flat_map(|value| {
        points.iter().map(|point| {
            let mut point = point.clone();
            point.axes.insert(0, (name, value.to_string()));
            set(&mut point.setup, value);
            point
        })
    });
    *points = each.collect();
}

#[cfg(test)]
mod tests;
