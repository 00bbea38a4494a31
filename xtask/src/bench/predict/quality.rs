//! What forecasts are worth on every workload.

use anyhow::Context as _;
use dunlin_core::predict::{Frequency, Hazard, Markov, Never, Ppm, Successors};
use dunlin_core::units::{Nanos, PAGE_SIZE};
use serde_json::json;

use super::super::figure::{Figure, Table, Target};
use super::rounds::{Clairvoyant, Outcome, dirty_rate, run as make_rounds};
use super::trace::{GUEST, LOADS, Write, record};

/// Pages that are written per second, by pages that can be sent per second.
const OFFERED: [f64; 3] = [0.4, 0.8, 1.2];
/// Long enough for all rounds at the lowest bandwidth, and for the clairvoyant to see beyond them.
const TRACE: Nanos = Nanos::from_secs(60);

/// All that are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Which {
    Never,
    Frequency,
    Markov,
    MarkovOrder,
    Ppm,
    Hazard,
    Clairvoyant,
    AllKnowing,
}

const ALL: [Which; 8] = [
    Which::Never,
    Which::Frequency,
    Which::Markov,
    Which::MarkovOrder,
    Which::Ppm,
    Which::Hazard,
    Which::Clairvoyant,
    Which::AllKnowing,
];

impl Which {
    const fn name(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Frequency => "frequency",
            Self::Markov => "markov",
            Self::MarkovOrder => "markov-order",
            Self::Ppm => "ppm",
            Self::Hazard => "hazard",
            Self::Clairvoyant => "clairvoyant",
            Self::AllKnowing => "all-knowing",
        }
    }

    /// Words of state for the guest.
    const fn words(self) -> usize {
        match self {
            Self::Never | Self::Clairvoyant | Self::AllKnowing => 0,
            Self::Frequency => Frequency::words_needed(GUEST),
            Self::Markov => Markov::words_needed(GUEST, GUEST),
            Self::MarkovOrder => Successors::words_needed(GUEST),
            Self::Ppm => Ppm::words_needed(GUEST),
            Self::Hazard => Hazard::words_needed(GUEST),
        }
    }

    /// Filtered pre-copy with this predictor; the settings are the same for all workloads.
    fn try_on(self, writes: &[Write], bandwidth: f64) -> anyhow::Result<Outcome> {
        let mut words = vec![0; self.words()];
        let words = &mut words[..];
        Ok(match self {
            Self::Never => make_rounds(writes, bandwidth, &mut Never, false),
            Self::Frequency => {
                let span = Nanos::from_secs(1);
                make_rounds(writes, bandwidth, &mut Frequency::new(words, GUEST, span)?, false)
            }
            Self::Markov => make_rounds(writes, bandwidth, &mut Markov::new(words, GUEST, GUEST)?, false),
            Self::MarkovOrder => make_rounds(writes, bandwidth, &mut Successors::new(words, GUEST)?, true),
            Self::Ppm => {
                let span = Nanos::from_millis(500);
                make_rounds(writes, bandwidth, &mut Ppm::new(words, GUEST, span)?, false)
            }
            Self::Hazard => make_rounds(writes, bandwidth, &mut Hazard::new(words, GUEST)?, false),
            Self::Clairvoyant => make_rounds(writes, bandwidth, &mut Clairvoyant::new(writes, false), false),
            Self::AllKnowing => make_rounds(writes, bandwidth, &mut Clairvoyant::new(writes, true), false),
        })
    }
}

/// The outcomes of all predictors on one workload at one bandwidth.
struct Trial {
    load: &'static str,
    offered: f64,
    outcomes: [Outcome; ALL.len()],
}

impl Trial {
    fn of(&self, which: Which) -> &Outcome {
        &self.outcomes[which as usize]
    }
}

pub(super) fn run() -> anyhow::Result<(Vec<Figure>, Table)> {
    let mut trials = Vec::new();
    for &(load, spec) in LOADS {
        let writes = record(spec, TRACE).context(load)?;
        let rate = dirty_rate(&writes);
        for offered in OFFERED {
            let mut outcomes = [Outcome::default(); ALL.len()];
            for which in ALL {
                outcomes[which as usize] = which.try_on(&writes, rate / offered)?;
            }
            trials.push(Trial {
                load,
                offered,
                outcomes,
            });
        }
    }
    Ok((figures(&trials), table(&trials)))
}

fn invalid_ratio(outcome: &Outcome) -> f64 {
    outcome.invalid as f64 / outcome.sent as f64
}

fn precision(outcome: &Outcome) -> f64 {
    outcome.held_written as f64 / outcome.held as f64
}

fn base_rate(outcome: &Outcome) -> f64 {
    outcome.dirty_written as f64 / outcome.dirty as f64
}

/// Nanoseconds of learning and choosing per write.
fn ns_per_write(trials: &[Trial], which: Which) -> f64 {
    let seconds: f64 = trials
        .iter()
        .map(|trial| trial.of(which).learning_s + trial.of(which).choosing_s)
        .sum();
    let writes: u64 = trials.iter().map(|trial| trial.of(which).writes).sum();
    seconds * 1e9 / writes as f64
}

fn bytes_per_page(which: Which) -> f64 {
    (which.words() * 8) as f64 / GUEST.0 as f64
}

fn total(trials: &[Trial], count: impl Fn(&Trial) -> u64) -> f64 {
    trials.iter().map(count).sum::<u64>() as f64
}

fn figures(trials: &[Trial]) -> Vec<Figure> {
    let invalid = |which: Which| total(trials, |trial| trial.of(which).invalid);
    let ours = [Which::MarkovOrder, Which::Ppm, Which::Hazard];
    let best = ours
        .into_iter()
        .min_by(|a, b| invalid(*a).total_cmp(&invalid(*b)))
        .unwrap_or(Which::Hazard);
    let within = |which: Which| total(trials, |trial| trial.of(which).sent_written);
    let worst = |against: Which| {
        let ratio = |trial: &Trial| invalid_ratio(trial.of(best)) / invalid_ratio(trial.of(against));
        let worst = trials.iter().max_by(|a, b| ratio(a).total_cmp(&ratio(b)));
        worst.map_or((0.0, String::new()), |trial| {
            (ratio(trial), format!("{} at load {}", trial.load, trial.offered))
        })
    };
    let (worst_markov, worst_clairvoyant) = (worst(Which::Markov), worst(Which::Clairvoyant));
    let periodic = |which: Which| {
        let periodic = trials.iter().filter(|trial| matches!(trial.load, "seq" | "lmbench"));
        periodic.map(|trial| trial.of(which).invalid).sum::<u64>() as f64
    };
    let seconds = total(trials, |trial| trial.of(best).virtual_time.0) / 1e9;
    let busy: f64 = trials
        .iter()
        .map(|trial| trial.of(best).learning_s + trial.of(best).choosing_s)
        .sum();
    let guest_gib = (GUEST.0 * PAGE_SIZE) as f64 / f64::from(1 << 30);
    let name = best.name();
    vec![
        Figure::plain(
            format!("invalid transfers, all traces: {name}, share of markov's"),
            invalid(best) / invalid(Which::Markov),
            "ratio",
        )
        .target(Target::AtMost(0.8))
        .beside(format!("{} pages by markov", invalid(Which::Markov))),
        Figure::plain(
            format!("invalid transfers, all traces: {name}, times the clairvoyant's"),
            invalid(best) / invalid(Which::Clairvoyant),
            "ratio",
        )
        .target(Target::AtMost(1.15))
        .beside(format!("{} pages by the clairvoyant", invalid(Which::Clairvoyant))),
        Figure::plain(
            format!("the same, worst trace against markov: {}", worst_markov.1),
            worst_markov.0,
            "ratio",
        )
        .beside("invalid-transfer ratios"),
        Figure::plain(
            format!("the same, worst trace against the clairvoyant: {}", worst_clairvoyant.1),
            worst_clairvoyant.0,
            "ratio",
        )
        .beside("invalid-transfer ratios"),
        Figure::plain(
            format!("the same, seq and lmbench alone: {name}, share of markov's"),
            periodic(best) / periodic(Which::Markov),
            "ratio",
        )
        .beside(format!(
            "{:.3} times the clairvoyant's",
            periodic(best) / periodic(Which::Clairvoyant)
        )),
        Figure::plain(
            format!("pages sent and written within their own round: {name}, share of markov's"),
            within(best) / within(Which::Markov),
            "ratio",
        )
        .beside(format!("{} pages by markov", within(Which::Markov))),
        Figure::plain(
            format!("{name}: share of one core per GiB of guest"),
            busy / seconds / guest_gib * 100.0,
            "%",
        )
        .target(Target::AtMost(1.0))
        .beside(format!("learning and choosing, {seconds:.0} s of virtual time")),
    ]
}

fn table(trials: &[Trial]) -> Table {
    let mut header = vec!["workload".to_string(), "load".into(), "base rate".into()];
    header.extend(ALL.map(|which| which.name().to_string()));
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut data = Vec::new();
    for trial in trials {
        let markov = trial.of(Which::Markov);
        let mut row = vec![
            trial.load.to_string(),
            trial.offered.to_string(),
            format!("{:.2}", base_rate(markov)),
        ];
        for which in ALL {
            let outcome = trial.of(which);
            row.push(format!("{:.2} / {:.3}", precision(outcome), invalid_ratio(outcome)));
            data.push(json!({
                "workload": trial.load,
                "load": trial.offered,
                "predictor": which.name(),
                "base_rate": base_rate(outcome),
                "precision_at_half": precision(outcome),
                "invalid_transfer_ratio": invalid_ratio(outcome),
                "pages_sent": outcome.sent,
                "invalid_transfers": outcome.invalid,
                "written_within_own_round": outcome.sent_written,
                "cpu_ns_per_write": (outcome.learning_s + outcome.choosing_s) * 1e9 / outcome.writes as f64,
                "bytes_per_page": bytes_per_page(which),
            }));
        }
        rows.push(row);
    }
    let summary = |what: &str, of: &dyn Fn(Which) -> String| {
        let mut row = vec![what.to_string(), String::new(), String::new()];
        row.extend(ALL.map(of));
        row
    };
    rows.push(summary("all: invalid", &|which| {
        let (invalid, sent) = (
            total(trials, |trial| trial.of(which).invalid),
            total(trials, |trial| trial.of(which).sent),
        );
        format!("{:.3}", invalid / sent)
    }));
    rows.push(summary("CPU ns per write", &|which| match which {
        Which::Never | Which::Clairvoyant | Which::AllKnowing => String::new(),
        _ => format!("{:.0}", ns_per_write(trials, which)),
    }));
    rows.push(summary("bytes per page", &|which| match which {
        Which::Never | Which::Clairvoyant | Which::AllKnowing => String::new(),
        _ => format!("{:.1}", bytes_per_page(which)),
    }));
    Table {
        name: "predict",
        about: "Predictors: precision at half (of the pages held back, those that were written before the round's end; beside \
                the base rate, that of all dirty pages, here markov's) / invalid-transfer ratio (synchronised pages made dirty \
                again, by pages sent; 2017 paper, eq. 3). A guest of 256 MiB writes half of it; 8 s of learning in windows of \
                50 ms, then 10 rounds that each hold back half. Load: pages written per second, as windows of 50 ms count them, \
                by pages sent per second. The clairvoyant knows which pages are written before the round's end; the all-knowing \
                one also which are written first after that. CPU is learning and choosing; a guest of 256 MiB has to carry \
                all tables of fixed size."
            .into(),
        header,
        rows,
        data: data.into(),
    }
}
