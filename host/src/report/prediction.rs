//! What migrations of a recorded guest would cost, as a document.

use serde::{Deserialize, Serialize};

use super::PredictionSchema;

/// Every strategy over every link, and the best of them by a goal. Times are in microseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PredictionReport {
    /// Which document this is.
    pub schema: PredictionSchema,
    /// The file.
    pub trace: String,
    /// What saw the writes.
    pub source: String,
    /// What strategies are judged by.
    pub goal: String,
    /// How long was recorded.
    pub recorded_us: u64,
    /// Where in the recording the simulated migrations begin.
    pub starts_us: Vec<u64>,
    /// One for each bandwidth, in the order asked.
    pub links: Vec<LinkPrediction>,
    /// What a reader has to know beside the numbers.
    pub notes: Vec<String>,
}

/// What would happen over one link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkPrediction {
    /// Its bandwidth.
    pub bandwidth_bytes_per_s: u64,
    /// Pages dirtied within the downtime, relative to what the link sends in it, in thousandths: above 1000 the rounds of plain pre-copy
    /// never become short enough.
    pub load_milli: u64,
    /// The strategy to take.
    pub recommendation: Recommendation,
    /// All strategies.
    pub strategies: Vec<StrategyPrediction>,
}

/// The best strategy, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recommendation {
    /// In short.
    pub strategy: String,
    /// One sentence: what it costs, what the goal says to that, and by how much it is better than the next.
    pub why: String,
    /// By how much it is better than the next by the goal's weights, in thousandths of what the next costs; `null` without a next.
    pub margin_milli: Option<u64>,
    /// How well it keeps the goal.
    pub keeps: Keeping,
    /// The best by the simulated migrations.
    pub simulated_best: String,
    /// What simulation says against the recommendation; `null` if nothing.
    pub objection: Option<String>,
}

/// How well a strategy keeps a goal's bounds, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keeping {
    /// In every case.
    Surely,
    /// In the likely case.
    Likely,
    /// Not even then.
    Not,
    /// It likely never ends.
    NeverEnds,
}

/// One strategy over one link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StrategyPrediction {
    /// In short.
    pub strategy: String,
    /// In full.
    pub composition: String,
    /// Whether a live migration carries it out here; the others are for comparison.
    pub live: bool,
    /// By migrations simulated with the recorded writes.
    pub simulated: Costs,
    /// By the closed forms, from the working-set curve alone.
    pub forecast: Costs,
}

/// What a migration costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Costs {
    /// From the first page to the last; `null` if it never ends.
    pub time_us: Option<Likely>,
    /// How long the guest is paused.
    pub downtime_us: Likely,
    /// Bytes sent; of a forecast without headers. `null` if it never ends.
    pub bytes: Option<Likely>,
    /// Rounds of pre-copy.
    pub rounds: Likely,
    /// Pages that the guest has to wait for.
    pub faults: Likely,
    /// How long the guest waits for pages, or is slowed down.
    pub stall_us: Likely,
    /// How it ends, the likeliest first.
    pub ends: Vec<EndCount>,
    /// How well it keeps the goal.
    pub keeps: Keeping,
}

/// A number with what it lies between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Likely {
    /// The least.
    pub low: u64,
    /// The likely one: of simulated migrations the median.
    pub likely: u64,
    /// The most.
    pub high: u64,
}

/// How often a migration ended so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndCount {
    /// How.
    pub by: EndName,
    /// In so many simulated migrations; 1 for a forecast.
    pub times: u32,
}

/// How a migration ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndName {
    /// The rest fits the downtime: pre-copy converges.
    Stop,
    /// The rest is sent while the guest is paused for longer than wanted: pre-copy does not converge.
    ForcedStop,
    /// The rest is sent while the guest runs at the target.
    PostCopy,
    /// Not at all.
    Never,
}

impl EndName {
    /// As people say it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::ForcedStop => "forced stop",
            Self::PostCopy => "post-copy",
            Self::Never => "never",
        }
    }
}
