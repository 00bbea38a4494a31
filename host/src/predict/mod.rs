//! What each strategy would cost a recorded guest over each link, and which one to take.
//!
//! Two engines answer. Migrations are *simulated* with the recorded writes ([`crate::sim`]), from several points of the recording
//! on, which is what intervals come from; and they are *forecast* from the working-set curve alone ([`dunlin_core::choose`]), with intervals from
//! what may be wrong with bandwidth and curve. Numbers are best taken from the former; the recommendation is the latter's, as it is what
//! `dunlin migrate --strategy auto` goes by. Where the two disagree, that is said.
#![forbid(unsafe_code)]

mod costs;
mod sweep;
#[cfg(test)]
mod tests;
mod verdict;

use dunlin_core::choose::{CANDIDATES, ForecastError, Goal, Limits, Link, candidates};
use dunlin_core::strategy::{First, Strategy};
use dunlin_core::units::{BytesPerSec, Nanos};

use crate::sim::SimError;

pub use sweep::predict;

/// Migrations simulated for each strategy and link.
pub const STARTS: u32 = 8;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// What strategies are judged by.
    pub goal: Goal,
    /// The links.
    pub bandwidths: Vec<BytesPerSec>,
    /// The rate of shared storage; strategies that copy over it are left out without any.
    pub storage: Option<BytesPerSec>,
    /// What migrations are run with.
    pub limits: Limits,
    /// One way over the network.
    pub latency: Nanos,
    /// What a demanded page takes beside the way there and back.
    pub fault_service: Nanos,
    /// Migrations to simulate for each strategy and link, from as many points of the recording on; at least one.
    pub starts: u32,
    /// The strategies.
    pub strategies: Vec<Strategy>,
}

impl Question {
    /// About the candidates for a goal over some links, run as `dunlin migrate` does by default.
    pub fn new(goal: Goal, bandwidths: Vec<BytesPerSec>, storage: Option<BytesPerSec>) -> Self {
        let usable = |strategy: &Strategy| strategy.first == First::Serial || storage.is_some();
        let mut strategies: Vec<Strategy> = Vec::with_capacity(CANDIDATES.len());
        strategies.extend(candidates(&goal).into_iter().filter(usable));
        Self {
            goal,
            bandwidths,
            storage,
            limits: Limits::DEFAULT,
            latency: Nanos(50_000),
            fault_service: Nanos(100_000),
            starts: STARTS,
            strategies,
        }
    }

    /// The way to the target as forecasts take it.
    fn link(&self, bandwidth: BytesPerSec) -> Link {
        Link {
            round_trip: Nanos(self.latency.0.saturating_mul(2)),
            fault_overhead: self.fault_service,
            storage_bandwidth: self.storage,
            ..Link::new(bandwidth)
        }
    }
}

/// Why there is no prediction.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    /// Nothing was asked.
    #[error("there is nothing to predict: name at least one strategy and one bandwidth")]
    Nothing,
    /// The recording has no writes, or no length.
    #[error(
        "nothing was recorded that a migration could be predicted from: record for some seconds while the guest works"
    )]
    Empty,
    /// A strategy cannot be forecast.
    #[error("{strategy}: {source}")]
    Forecast {
        /// Which.
        strategy: String,
        /// Why.
        source: ForecastError,
    },
    /// A migration cannot be simulated.
    #[error("{strategy} over {bandwidth}: {source}")]
    Simulation {
        /// By which strategy.
        strategy: String,
        /// Over which link.
        bandwidth: String,
        /// Why.
        source: SimError,
    },
}
