//! `cargo xtask experiment`: the papers' claims, simulated at full scale, and, with `live`, measured with guests that are moved by the
//! `dunlin` command.
//!
//! Of the live ones, the arms of an experiment take turns, so that a slow minute of the machine hits all alike; every migration is verified,
//! and set beside its simulated twin.
//! Results are kept as they come: what was interrupted goes on where it stopped, as long as program and setup are the same.

mod beside;
mod calibration;
mod catalogue;
mod check;
mod cut;
mod document;
mod live_section;
pub(crate) mod load;
mod measure;
mod page;
mod progress;
mod record;
mod report;
mod setup;
mod shards;
mod simulated;
mod statistics;
mod table;
mod twin;
mod values;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use dunlin::sim::plan::Shard;
use dunlin_tests::Capability;
use dunlin_tests::process;
use dunlin_tests::scene::Kind;
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};

use beside::Twins;
use calibration::Calibration;
use catalogue::Experiment;
pub(crate) use check::Check;
use measure::Stage;
use progress::{Progress, minutes};
use record::{Record, Run, Runs};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A figure or table of the papers, such as T5, or all of them, simulated; merge: what was simulated in parts; or live: with real guests
    name: String,
    /// With live, only these experiments, or those that say something about these claims, figures or tables: R9,T5,003-F5
    #[arg(long, value_delimiter = ',')]
    id: Vec<String>,
    /// With live the main arms only; once each
    #[arg(long)]
    quick: bool,
    /// How often every arm runs [default: 5, with --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: Option<u32>,
    /// A JSON object for each experiment, one a line, instead of tables
    #[arg(long)]
    json: bool,
    /// The tables in Markdown, as README shows them
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    /// Where results are kept as they come [default: experiments/ in the target directory, with --quick
    /// experiments/quick/]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Measure anew what is kept there already
    #[arg(long)]
    fresh: bool,
    /// Simulate every N-th migration from the I-th on and keep it, for `experiment merge`
    #[arg(long, value_name = "I/N", conflicts_with_all = ["json", "markdown", "fresh"])]
    shard: Option<Shard>,
}

const LIVE: &str = "live";
const MERGE: &str = "merge";
const REPETITIONS: u32 = 5;
/// A run may take so many times what it is expected to take…
const LIMIT_FACTOR: f64 = 3.0;
/// …and so much longer, because machines are loaded.
const LIMIT_SECONDS: f64 = 60.0;
/// How far the load may be from what was wanted, as a share of it.
const LOAD_TOLERANCE: f64 = 0.05;
/// How often a run that failed is tried in all.
const ATTEMPTS: u32 = 2;

/// An experiment and all that came of it.
struct Measured {
    experiment: Experiment,
    runs: Runs,
    /// What could not be measured, and why.
    failures: Vec<String>,
    /// Runs that failed once and were measured then: why.
    repeated: Vec<String>,
    /// Its runs in virtual time, if they were asked for.
    twins: Twins,
}

/// Measures and prints. Fails when a run did, twice.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if options.name != LIVE {
        return simulate(options);
    }
    ensure!(options.shard.is_none(), "--shard belongs to simulated experiments");
    let experiments = chosen(&options.id, options.quick)?;
    let repetitions = options
        .repetitions
        .unwrap_or(if options.quick { 1 } else { REPETITIONS });
    let folder = match &options.out {
        Some(folder) => folder.clone(),
        // The short form has other arms, and would take the place of the long one.
        None if options.quick => process::target_folder()?.join("experiments/quick"),
        None => process::target_folder()?.join("experiments"),
    };
    let measured = measure(experiments, repetitions as usize, &folder, options.fresh, true)?;
    if options.json {
        for measured in &measured {
            println!("{}", measured.to_json());
        }
    } else if options.markdown {
        print!("{}", table::markdown(&measured));
    } else {
        print!("{}", table::terminal(&measured));
    }
    for measured in &measured {
        if let Some(warning) = measured.warning() {
            eprintln!("{warning}");
        }
        for failure in &measured.failures {
            eprintln!("could not be measured: {failure}");
        }
    }
    let complete = measured.iter().all(|measured| measured.failures.is_empty());
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn simulate(options: &Options) -> anyhow::Result<ExitCode> {
    ensure!(
        options.id.is_empty() && !options.markdown && !options.fresh,
        "--id, --markdown and --fresh belong to `experiment live`"
    );
    let out = match &options.out {
        Some(folder) => folder.clone(),
        None => process::target_folder()?
            .join("experiments")
            .join(live_section::SIMULATED),
    };
    let seeds = options.repetitions.or(options.quick.then_some(1));
    if options.name == MERGE {
        ensure!(
            seeds.is_none() && options.shard.is_none(),
            "--repetitions, --quick and --shard belong to the parts: merge joins them as they are"
        );
        return simulated::merge(options.json, &out);
    }
    let known = simulated::ids()?;
    let ids = match options.name.as_str() {
        "all" => known,
        name => {
            ensure!(
                known.iter().any(|id| id == name),
                "there is no experiment {name}; there are {}, all, merge, and live",
                known.join(", ")
            );
            vec![name.to_owned()]
        }
    };
    simulated::run(&simulated::Order {
        ids: &ids,
        seeds,
        as_json: options.json,
        out: &out,
        shard: options.shard,
    })
}

/// The checks of the short form, for the benchmarks.
pub(crate) fn quick_checks() -> anyhow::Result<Vec<Check>> {
    let folder = tempfile::tempdir()?;
    let measured = measure(chosen(&[], true)?, 1, folder.path(), true, false)?;
    let failures: Vec<&str> = measured
        .iter()
        .flat_map(|measured| measured.failures.iter().map(String::as_str))
        .collect();
    ensure!(failures.is_empty(), "could not be measured: {}", failures.join("\n"));
    Ok(measured.iter().flat_map(Measured::checks).collect())
}

fn chosen(ids: &[String], quick: bool) -> anyhow::Result<Vec<Experiment>> {
    let all = catalogue::all()?;
    for id in ids {
        ensure!(
            all.iter().any(|experiment| experiment.is_called(id)),
            "there is no experiment, claim or figure {id} of live guests; there are: {}",
            names(&all).join(", ")
        );
    }
    let asked = |experiment: &Experiment| ids.is_empty() || ids.iter().any(|id| experiment.is_called(id));
    let chosen = all.into_iter().filter(asked);
    Ok(if quick {
        chosen.filter_map(Experiment::quick).collect()
    } else {
        chosen.collect()
    })
}

fn names(experiments: &[Experiment]) -> Vec<&str> {
    let each = |experiment: &Experiment| experiment.claims.iter().copied();
    let mut names: Vec<&str> = experiments
        .iter()
        .flat_map(|experiment| std::iter::once(experiment.id).chain(each(experiment)))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Measures `experiments` one after the other; what `folder` has of them already is not measured again unless `fresh`. If they
/// are to have `twins`, these are simulated, too.
fn measure(
    experiments: Vec<Experiment>,
    repetitions: usize,
    folder: &Path,
    fresh: bool,
    twins: bool,
) -> anyhow::Result<Vec<Measured>> {
    let stage = Stage {
        program: process::build(true)?,
        kind: kind(),
        storage: storage(),
        stop: Arc::new(AtomicBool::new(false)),
    };
    for signal in [SIGINT, SIGTERM] {
        // The second ends it at once, whatever is measured then.
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stage.stop))
            .context("cannot catch signals")?;
        signal_hook::flag::register(signal, Arc::clone(&stage.stop)).context("cannot catch signals")?;
    }
    let program = std::fs::read(&stage.program).context("the program cannot be read")?;
    let program = blake3::hash(&program).to_hex().to_string();
    let mut work = Vec::new();
    for experiment in experiments {
        let conditions = json!({
            "program": program,
            "guests": stage.kind.name(),
            "setup": experiment.setup,
            "arms": experiment.arms.iter().map(|arm| (arm.name, arm.strategy.as_str())).collect::<Vec<_>>(),
        });
        let record = Record::new(folder, experiment.id, conditions)?;
        let runs = if fresh { Runs::default() } else { record.load() };
        if !runs.0.is_empty() {
            eprintln!(
                "{}: {} runs that this program has measured before are counted; --fresh measures anew",
                experiment.id,
                runs.0.len()
            );
        }
        work.push((Measured::new(experiment, runs), record));
    }
    if twins {
        let calibration = Calibration::get(&stage, &program, folder, fresh)?;
        eprintln!("calibration: {}", calibration.text());
        for (measured, _) in &mut work {
            let repetitions = repetitions.max(measured.runs.repetitions());
            measured.twins = Twins::simulate(&measured.experiment, repetitions, &calibration)?;
        }
    }
    let seconds: f64 = work
        .iter()
        .map(|(measured, _)| measured.seconds_left(repetitions))
        .sum();
    eprintln!(
        "experiments: {}, repetitions: {repetitions}, {} guests: about {}; results are kept in {}",
        work.len(),
        stage.kind.name(),
        minutes(seconds),
        folder.display()
    );
    let mut progress = Progress::new(seconds);
    for (measured, record) in &mut work {
        measured.run_all(&stage, repetitions, record, &mut progress)?;
    }
    Ok(work.into_iter().map(|(measured, _)| measured).collect())
}

fn kind() -> Kind {
    let probes = [Capability::Kvm.probe(), Capability::Uffd.probe()];
    match probes.into_iter().find_map(Result::err) {
        None => Kind::Kvm,
        Some(why) => {
            eprintln!("There is no KVM here ({why}): guests are threads of a process instead.");
            Kind::Thread
        }
    }
}

/// A folder in memory, where there is one.
fn storage() -> PathBuf {
    const SHARED_MEMORY: &str = "/dev/shm";
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    match rustix::fs::statfs(SHARED_MEMORY) {
        Ok(found) if found.f_type as u64 == TMPFS_MAGIC => SHARED_MEMORY.into(),
        _ => {
            eprintln!(
                "{SHARED_MEMORY} is no tmpfs: static copies go to the folder for temporary files, perhaps a disk."
            );
            std::env::temp_dir()
        }
    }
}

impl Measured {
    fn new(experiment: Experiment, runs: Runs) -> Self {
        Self {
            experiment,
            runs,
            failures: vec![],
            repeated: vec![],
            twins: Twins::default(),
        }
    }

    /// What is left to measure, arm by arm within each repetition; another arm begins each time.
    fn left(&self, repetitions: usize) -> Vec<(usize, usize)> {
        let arms = self.experiment.arms.len();
        let all =
            (0..repetitions).flat_map(|repetition| (0..arms).map(move |turn| (repetition, (repetition + turn) % arms)));
        all.filter(|&(repetition, arm)| !self.runs.has(self.experiment.arms[arm].name, repetition))
            .collect()
    }

    fn seconds_left(&self, repetitions: usize) -> f64 {
        let left = self.left(repetitions).into_iter();
        left.map(|(repetition, arm)| self.experiment.seconds(&self.experiment.arms[arm], repetition))
            .sum()
    }

    fn run_all(
        &mut self,
        stage: &Stage,
        repetitions: usize,
        record: &Record,
        progress: &mut Progress,
    ) -> anyhow::Result<()> {
        for (repetition, index) in self.left(repetitions) {
            let arm = &self.experiment.arms[index];
            let expected = self.experiment.seconds(arm, repetition);
            let limit = Duration::from_secs_f64(LIMIT_FACTOR * expected + LIMIT_SECONDS);
            let what = format!(
                "{}: {}, {} of {repetitions}",
                self.experiment.id,
                arm.name,
                repetition + 1
            );
            progress.begin(&what);
            for attempt in 1..=ATTEMPTS {
                let measured = stage.run(&self.experiment.setup, arm, repetition, limit);
                ensure!(!stage.is_stopped(), "interrupted; what was measured is kept");
                match measured {
                    Ok(values) => {
                        self.runs.0.push(Run {
                            arm: arm.name.into(),
                            repetition,
                            values,
                        });
                        break;
                    }
                    Err(error) => {
                        let failure = format!("{what}: attempt {attempt} failed: {error:#}");
                        progress.message(&failure);
                        let kept = if attempt == ATTEMPTS {
                            &mut self.failures
                        } else {
                            &mut self.repeated
                        };
                        kept.push(failure);
                    }
                }
            }
            record.save(self.to_json(), &self.runs)?;
            progress.end(expected);
        }
        // What was kept already may be asked new questions.
        record.save(self.to_json(), &self.runs)
    }

    /// The answers, one for each question.
    fn checks(&self) -> Vec<Check> {
        let questions = self.experiment.questions.iter();
        questions.map(|question| question.answer(&self.runs)).collect()
    }

    /// The load of the guests as fast as they were: the setup's is that of the rate they were to keep.
    fn measured_lambda(&self) -> Option<f64> {
        let arms = self.experiment.arms.iter();
        let steps = arms.flat_map(|arm| self.runs.values(arm.name, values::STEPS)).collect();
        self.experiment.setup.load_at(statistics::median(steps)?).ok()
    }

    /// What makes the results doubtful.
    fn warning(&self) -> Option<String> {
        let (wanted, found) = (self.experiment.setup.lambda, self.measured_lambda()?);
        ((found / wanted - 1.0).abs() > LOAD_TOLERANCE).then(|| {
            format!(
                "{}: the guests offered a load of {found:.2} instead of {wanted:.2}, so the machine had not enough time for \
                 them: measure again when it does nothing else",
                self.experiment.id
            )
        })
    }

    fn to_json(&self) -> Value {
        let arm = |arm: &catalogue::Arm| {
            let mut names: Vec<&String> = self.runs.0.iter().flat_map(|run| run.values.keys()).collect();
            names.sort_unstable();
            names.dedup();
            let medians = names.into_iter().filter_map(|name| {
                let median = statistics::median(self.runs.values(arm.name, name))?;
                Some((name.clone(), json!(median)))
            });
            let medians: serde_json::Map<String, Value> = medians.collect();
            let beside = beside::to_json(self, arm);
            json!({ "name": arm.name, "strategy": arm.strategy, "values": medians, "beside": beside })
        };
        let questions = self.experiment.questions.iter();
        let answers = questions.map(|question| {
            let mut answer = question.answer(&self.runs).to_json();
            answer["simulated"] = self.twins.answer(question).into();
            answer
        });
        let checks = answers.chain(beside::checks([self]).into_iter().map(|check| check.to_json()));
        json!({
            "schema": "dunlin.experiment.v1",
            "id": self.experiment.id,
            "title": self.experiment.title,
            "chosen": self.experiment.chosen,
            "setup": self.experiment.setup,
            "lambda_measured": self.measured_lambda(),
            "arms": self.experiment.arms.iter().map(arm).collect::<Vec<_>>(),
            "checks": checks.collect::<Vec<_>>(),
            "calibration": self.twins.calibration,
            "runs": self.runs.0,
            "failures": self.failures,
            "repeated": self.repeated,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::record::tests::run;
    use super::*;

    fn measured(id: &str) -> Measured {
        let mut found = chosen(&[id.to_owned()], false).expect("there is one");
        Measured::new(found.remove(0), Runs::default())
    }

    #[test]
    fn arms_take_turns_and_what_is_there_is_left_out() {
        let mut r16 = measured("R16");
        assert_eq!(r16.left(2), [(0, 0), (0, 1), (1, 1), (1, 0)]);
        r16.runs.0.push(run("push=sequential", 1, &[]));
        assert_eq!(r16.left(2), [(0, 0), (0, 1), (1, 1)]);
    }

    /// On a machine that does nothing else.
    #[test]
    fn the_whole_set_takes_less_than_45_minutes_and_the_short_form_less_than_5() {
        let minutes = |ids: &[String], quick, repetitions| {
            let experiments = chosen(ids, quick).expect("all").into_iter();
            let seconds =
                experiments.map(|experiment| Measured::new(experiment, Runs::default()).seconds_left(repetitions));
            seconds.sum::<f64>() / 60.0
        };
        let (whole, short) = (minutes(&[], false, REPETITIONS as usize), minutes(&[], true, 1));
        assert!((10.0..45.0).contains(&whole), "{whole} minutes");
        assert!((1.0..5.0).contains(&short), "{short} minutes");
    }

    #[test]
    fn an_unknown_id_is_refused_with_those_there_are() {
        let error = chosen(&["R9".into(), "R99".into()], false)
            .err()
            .expect("no such claim");
        let text = error.to_string();
        assert!(
            text.contains("R99") && text.contains("R1-kernel") && text.contains("R16"),
            "{text}"
        );
    }

    #[test]
    fn guests_that_were_too_slow_make_the_results_doubtful() {
        let mut r9 = measured("R9");
        assert_eq!(r9.warning(), None, "nothing is known");
        r9.runs.0.push(run("hybrid:1", 0, &[(values::STEPS, 3500.0)]));
        assert_eq!(r9.warning(), None);
        r9.runs.0[0].values.insert(values::STEPS.into(), 2000.0);
        let warning = r9.warning().expect("far too slow");
        assert!(warning.contains("0.20 instead of 0.37"), "{warning}");
    }

    #[test]
    fn the_document_has_medians_checks_and_every_run() {
        let mut r10 = measured("R10");
        for (repetition, (pa, one)) in [(200.0, 2000.0), (300.0, 2100.0), (100.0, 1900.0)]
            .into_iter()
            .enumerate()
        {
            let steps = (values::STEPS, 2344.0);
            r10.runs
                .0
                .push(run("pa-hybrid", repetition, &[(values::POSTCOPY, pa), steps]));
            r10.runs
                .0
                .push(run("hybrid:1", repetition, &[(values::POSTCOPY, one), steps]));
        }
        let json = r10.to_json();
        assert_eq!(
            (&json["schema"], &json["id"]),
            (&json!("dunlin.experiment.v1"), &json!("R10"))
        );
        assert_eq!(json["arms"][0]["values"]["postcopy_ms"], 200.0);
        assert_eq!(json["arms"][2]["values"], json!({}), "hybrid:2 did not run");
        assert_eq!(json["checks"][4]["value"], 0.1);
        assert_eq!(
            (&json["checks"][4]["met"], &json["checks"][1]["met"]),
            (&json!(true), &json!(false))
        );
        assert_eq!(json["checks"][1]["value"], Value::Null);
        assert_eq!(json["runs"].as_array().map(Vec::len), Some(6));
        let lambda = json["lambda_measured"].as_f64().expect("measured");
        assert!((lambda - 1.2).abs() < 0.001, "{lambda}");
    }
}
