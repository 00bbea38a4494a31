//! Every strategy over every link, from several points of the recording on.

use std::sync::Arc;
use std::time::Duration;

use dunlin_core::choose::{Choice, Keeps, Name, Uncertainty, choose, forecast};
use dunlin_core::migrate::check_strategy;
use dunlin_core::pattern::Profile;
use dunlin_core::strategy::Strategy;
use dunlin_core::units::{BytesPerSec, Nanos, Pages};
use dunlin_core::workload::Fill;
use rayon::prelude::*;

use super::{PredictError, Question, costs, verdict};
use crate::report::{
    Keeping, LinkPrediction, PredictionReport, PredictionSchema, Recommendation, StrategyPrediction, duration, rate,
};
use crate::sim::{Recording, SimError, SimResult, SimSetup, Work, simulate};

/// Predicts, on all processors; `done` is called after each simulated migration, of which there are strategies · links · starts. `trace` is the
/// file's name.
///
/// # Errors
/// [`PredictError`].
pub fn predict(
    trace: &str,
    profile: &Profile,
    recording: &Arc<Recording>,
    question: &Question,
    done: &(dyn Fn() + Sync),
) -> Result<PredictionReport, PredictError> {
    if question.bandwidths.is_empty() || question.strategies.is_empty() {
        return Err(PredictError::Nothing);
    }
    if recording.writes() == 0 || recording.length() == Nanos::ZERO {
        return Err(PredictError::Empty);
    }
    let starts = starts(recording.length(), question.starts);
    let cells: Vec<(BytesPerSec, Strategy)> = question
        .bandwidths
        .iter()
        .flat_map(|&bandwidth| question.strategies.iter().map(move |&strategy| (bandwidth, strategy)))
        .collect();
    let migrations: Vec<(BytesPerSec, Strategy, Nanos)> = cells
        .iter()
        .flat_map(|&(bandwidth, strategy)| starts.iter().map(move |&start| (bandwidth, strategy, start)))
        .collect();
    let results: Vec<Option<SimResult>> = migrations
        .par_iter()
        .map(|&(bandwidth, strategy, start)| {
            let result = one(recording, profile.used, question, bandwidth, strategy, start);
            done();
            result
        })
        .collect::<Result<_, _>>()?;
    let strategies: Vec<StrategyPrediction> = cells
        .iter()
        .zip(results.chunks(starts.len()))
        .map(|(&(bandwidth, strategy), results)| of_strategy(profile, question, bandwidth, strategy, results))
        .collect::<Result<_, _>>()?;
    let links: Vec<LinkPrediction> = question
        .bandwidths
        .iter()
        .zip(strategies.chunks(question.strategies.len()))
        .map(|(&bandwidth, strategies)| of_link(profile, question, bandwidth, strategies))
        .collect::<Result<_, _>>()?;
    Ok(PredictionReport {
        schema: PredictionSchema,
        trace: trace.into(),
        source: recording.head().source.name().into(),
        goal: question.goal.to_string(),
        recorded_us: recording.length().as_micros(),
        starts_us: starts.iter().map(|start| start.as_micros()).collect(),
        notes: notes(profile, recording, &links),
        links,
    })
}

/// Evenly spread over the recording, from its beginning on.
fn starts(length: Nanos, count: u32) -> Vec<Nanos> {
    let count = u64::from(count.max(1)).min(length.0.max(1));
    let place = |index: u64| (u128::from(length.0) * u128::from(index) / u128::from(count)) as u64;
    (0..count).map(|index| Nanos(place(index))).collect()
}

/// One simulated migration; `None` if it never ends.
fn one(
    recording: &Arc<Recording>,
    used: Pages,
    question: &Question,
    bandwidth: BytesPerSec,
    strategy: Strategy,
    start: Nanos,
) -> Result<Option<SimResult>, PredictError> {
    let memory = recording.pages().bytes();
    let limits = &question.limits;
    let basis = SimSetup::of(Work::Recorded(Arc::clone(recording)), memory, strategy, bandwidth);
    let setup = SimSetup {
        fill: if used < recording.pages() {
            Fill::Zero
        } else {
            Fill::Random
        },
        used: Some(used),
        // As `dunlin migrate --bandwidth` keeps to a rate.
        limiter: true,
        storage_bandwidth: question.storage.unwrap_or(bandwidth),
        latency: question.latency,
        fault_service: question.fault_service,
        handover: limits.handover,
        warm_up: start,
        downtime: limits.downtime,
        max_rounds: limits.max_rounds,
        min_round: limits.min_round,
        ..basis
    };
    match simulate(&setup) {
        Ok(result) => Ok(Some(result)),
        Err(SimError::Endless { .. }) => Ok(None),
        Err(source) => Err(PredictError::Simulation {
            strategy: Name(&strategy).to_string(),
            bandwidth: rate(bandwidth.0),
            source,
        }),
    }
}

fn of_strategy(
    profile: &Profile,
    question: &Question,
    bandwidth: BytesPerSec,
    strategy: Strategy,
    results: &[Option<SimResult>],
) -> Result<StrategyPrediction, PredictError> {
    let link = question.link(bandwidth);
    let foreseen = forecast(&strategy, profile, &link, &question.limits, Uncertainty::DEFAULT);
    let foreseen = foreseen.map_err(|source| PredictError::Forecast {
        strategy: Name(&strategy).to_string(),
        source,
    })?;
    Ok(StrategyPrediction {
        strategy: Name(&strategy).to_string(),
        composition: strategy.to_string(),
        live: check_strategy(&strategy).is_ok(),
        simulated: costs::simulated(results, &question.goal),
        forecast: costs::forecast(&foreseen, &question.goal),
    })
}

fn of_link(
    profile: &Profile,
    question: &Question,
    bandwidth: BytesPerSec,
    strategies: &[StrategyPrediction],
) -> Result<LinkPrediction, PredictError> {
    let live: Vec<Strategy> = question
        .strategies
        .iter()
        .copied()
        .filter(|strategy| check_strategy(strategy).is_ok())
        .collect();
    // Where none of them is carried out live, one of the others is for comparison as well.
    let among = if live.is_empty() { &question.strategies } else { &live };
    let link = question.link(bandwidth);
    let choice = choose(
        among,
        profile,
        &link,
        &question.limits,
        &question.goal,
        Uncertainty::DEFAULT,
    );
    let choice = choice.map_err(|source| PredictError::Forecast {
        strategy: Name(&question.strategies[0]).to_string(),
        source,
    })?;
    Ok(LinkPrediction {
        bandwidth_bytes_per_s: bandwidth.0,
        load_milli: choice.load_milli,
        recommendation: recommendation(&choice, strategies, question),
        strategies: strategies.to_vec(),
    })
}

fn recommendation(choice: &Choice, strategies: &[StrategyPrediction], question: &Question) -> Recommendation {
    let strategy = Name(&choice.best.strategy).to_string();
    let recommended = strategies.iter().find(|other| other.strategy == strategy);
    let best = verdict::simulated_best(strategies, &question.goal);
    let objection = recommended.zip(best);
    Recommendation {
        why: choice.to_string(),
        margin_milli: choice.margin_permille(),
        keeps: match choice.best.keeps {
            Keeps::Surely => Keeping::Surely,
            Keeps::Likely => Keeping::Likely,
            Keeps::Not => Keeping::Not,
            Keeps::NeverEnds => Keeping::NeverEnds,
        },
        simulated_best: best.map_or_else(|| strategy.clone(), |best| best.strategy.clone()),
        objection: objection.and_then(|(recommended, best)| verdict::objection(recommended, best, &question.goal)),
        strategy,
    }
}

fn notes(profile: &Profile, recording: &Recording, links: &[LinkPrediction]) -> Vec<String> {
    let mut notes = Vec::new();
    let length = recording.length();
    let longest = links
        .iter()
        .flat_map(|link| &link.strategies)
        .filter_map(|strategy| Some(strategy.simulated.time_us?.likely))
        .max();
    if longest.is_some_and(|longest| longest > length.as_micros()) {
        notes.push(format!(
            "the longest of these migrations take longer than the {} that were recorded, which are repeated then: record for longer to be surer",
            duration(Duration::from_nanos(length.0))
        ));
    }
    if !recording.is_whole() {
        notes.push(format!(
            "only the first {} of the trace are simulated: it has more writes than are kept in memory",
            duration(Duration::from_nanos(length.0))
        ));
    }
    notes.push("reads are not in a trace: in post-copy only pages that the guest writes are waited for; what it only reads comes on top".into());
    if profile.used == profile.total {
        notes.push("all pages count as used: what is zero needs less".into());
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_spread_over_the_recording() {
        assert_eq!(starts(Nanos(100), 4), [0, 25, 50, 75].map(Nanos));
        assert_eq!(starts(Nanos(2), 8), [0, 1].map(Nanos));
        assert_eq!(starts(Nanos(0), 0), [Nanos(0)]);
        assert_eq!(starts(Nanos(u64::MAX), 2).len(), 2);
    }
}
