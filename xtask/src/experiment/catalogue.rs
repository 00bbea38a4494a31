//! The experiments: what is moved over which links, by which strategies, and what is asked of the results.
//!
//! Workloads, rates and working sets follow from what the papers publish about the workloads and about plain pre-copy or
//! hybrid copy, never from what came out here. "The 2023 paper" is Li & Cao 2023 (par-migrate, PA-hybrid), "the 2017 paper"
//! "A novel hybrid-copy algorithm for live migration".

use std::time::Duration;

use dunlin_core::units::{Bytes, BytesPerSec, PAGE_SIZE};

use super::check::{Quantity, Question};
use super::load::Link;
use super::setup::{Original, Setup};
use super::values;
use crate::bench::figure::Target;

/// Arms that are compared under one setup.
pub(super) struct Experiment {
    pub(super) id: &'static str,
    /// The claims it says something about, and the papers' figures and tables that these are from.
    pub(super) claims: &'static [&'static str],
    pub(super) title: &'static str,
    /// Where workload, rate and sizes come from.
    pub(super) chosen: String,
    pub(super) setup: Setup,
    pub(super) arms: Vec<Arm>,
    pub(super) questions: Vec<Question>,
}

/// One way to migrate.
#[derive(Clone, Debug)]
pub(super) struct Arm {
    pub(super) name: &'static str,
    pub(super) strategy: String,
    /// How long it is expected to take, in times of one copy over the network.
    pub(super) copies: f64,
    /// Whether it takes part in the short form.
    pub(super) quick: bool,
    /// What happens to the network in post-copy; `None` if nothing does.
    pub(super) cut: Option<NetworkCut>,
}

/// How a network is cut in post-copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NetworkCut {
    /// When it comes back; `None` if it stays away.
    pub(super) back_after: Option<Duration>,
}

/// Starting processes, filling memory with noise, comparing it in the end.
const SECONDS_AROUND: f64 = 1.0;
/// What `migrate` does unless told otherwise, and the 2017 paper.
const SECONDS_OF_OBSERVING: f64 = 8.0;
/// Post-copy that is cut: noticing it, connecting anew, and going on to the last step.
const SECONDS_OF_A_CUT: f64 = 6.0;

impl Arm {
    fn new(name: &'static str, strategy: &str, copies: f64) -> Self {
        Self {
            name,
            strategy: strategy.into(),
            copies,
            quick: false,
            cut: None,
        }
    }

    /// Of a preset, which is its name, too.
    fn preset(name: &'static str, copies: f64) -> Self {
        Self::new(name, name, copies)
    }

    fn quick(mut self) -> Self {
        self.quick = true;
        self
    }
}

impl Experiment {
    /// Whether it is meant by this id of an experiment or a claim.
    pub(super) fn is_called(&self, name: &str) -> bool {
        let is = |other: &str| other.eq_ignore_ascii_case(name);
        is(self.id) || self.claims.iter().any(|claim| is(claim))
    }

    /// What is left of it in the short form; `None` if nothing is.
    pub(super) fn quick(mut self) -> Option<Self> {
        self.arms.retain(|arm| arm.quick);
        let arms: Vec<&str> = self.arms.iter().map(|arm| arm.name).collect();
        self.questions
            .retain(|question| question.arms().iter().all(|arm| arms.contains(arm)));
        (!self.questions.is_empty()).then_some(self)
    }

    /// How long one run is expected to take.
    pub(super) fn seconds(&self, arm: &Arm, repetition: usize) -> f64 {
        let cut = if arm.cut.is_some() { SECONDS_OF_A_CUT } else { 0.0 };
        let observing = if arm.strategy.starts_with("markov-sdf") {
            SECONDS_OF_OBSERVING
        } else {
            0.0
        };
        SECONDS_AROUND
            + cut
            + observing
            + self.setup.seconds_before(repetition)
            + arm.copies * self.setup.link().copy_seconds()
    }
}

/// All experiments, in the order of their claims.
pub(super) fn all() -> anyhow::Result<Vec<Experiment>> {
    Ok(vec![
        parallel("memcached")?,
        parallel("kernel")?,
        parallel("lmbench")?,
        comprehensive_converging()?,
        comprehensive_diverging()?,
        postcopy_duration()?,
        network_cuts()?,
        hold_back("hold-zipf", "zipf:0.99")?,
        hold_back("hold-hotset", "hotset:0.1")?,
        filtered_writes()?,
        filtered_reads()?,
        bubbling()?,
    ])
}

const MIB: u64 = 1 << 20;

const fn link(memory_mib: u64, bandwidth_mb: u64) -> Link {
    Link {
        memory: Bytes(memory_mib * MIB),
        bandwidth: BytesPerSec(bandwidth_mb * 1_000_000),
    }
}

/// For every setup whose storage is at most twice as fast as the network.
const FAST: Link = link(256, 40);
/// For storage 25 times as fast as the network.
const SLOW: Link = link(128, 8);

/// The virtual machines of the 2023 paper, 6, 2 and 6 GiB, and its network.
const MEMCACHED: Original = original(6442.0, 32.0);
const KERNEL: Original = original(2147.0, 32.0);
const LMBENCH: Original = original(6442.0, 32.0);
/// Its largest one has 32 GiB, of which 1-hybrid sent some once and some twice, 30 720 MB in all, and 2-hybrid 3072 MB more:
/// 22 421 MB that were not zero, and a load of 0.37, fit both.
const COMPREHENSIVE: Original = original(22_421.0, 50.0);

const fn original(megabytes: f64, megabytes_per_second: f64) -> Original {
    Original {
        megabytes,
        megabytes_per_second,
    }
}

fn ratio(name: impl Into<String>, value: &'static str, arm: &'static str, base: &'static str) -> Question {
    Question::new(name, Quantity::Ratio(value, arm, base))
}

fn median(name: impl Into<String>, value: &'static str, arm: &'static str) -> Question {
    Question::new(name, Quantity::Median(value, arm))
}

/// Dunlin's default, and what the 2023 paper allows.
pub(super) const MAX_ROUNDS: u32 = 30;

/// R1 to R3.
fn parallel(shape: &'static str) -> anyhow::Result<Experiment> {
    // What pre-copy had left after its last round, by the paper's table 3.
    let (id, original, left_mb) = match shape {
        "memcached" => ("R1-memcached", MEMCACHED, 349.4),
        "kernel" => ("R1-kernel", KERNEL, 38.7),
        _ => ("R1-lmbench", LMBENCH, 126.8),
    };
    let pages = (left_mb / original.megabytes * FAST.pages() as f64) as u64;
    let (workload, area, targets) = match shape {
        "memcached" => (
            "memcached,ws=170MiB".into(),
            "4 of 6 GiB were its cache, so are 170 of 256 MiB",
            [0.63, 0.80, 0.48],
        ),
        "kernel" => (
            "kernel".into(),
            "all memory, most of it in the first quarter",
            [0.71, 0.92, 0.14],
        ),
        _ => (
            format!("lmbench,ws={}KiB", pages * PAGE_SIZE / 1024),
            "what a round leaves, because a stream over the published 4 GiB would at this rate leave all of them",
            [0.61, 0.81, 0.05],
        ),
    };
    let share = pages as f64 / FAST.pages() as f64;
    let rate = FAST.rate_to_settle_at(&workload, pages)?;
    let setup = Setup::new(FAST, 1, &workload, rate, original)?;
    let [time, bytes, stop] = targets;
    let (par, pre) = ("par-migrate", "precopy");
    let mut questions = vec![
        ratio(format!("R1 time, {shape}"), values::TIME, par, pre).at_most(time),
        ratio(format!("R2 bytes of all channels, {shape}"), values::TOTAL, par, pre).at_most(bytes),
        ratio(
            format!("R3 bytes of stop-and-copy, {shape}"),
            values::STOP_COPY,
            par,
            pre,
        )
        .at_most(stop),
    ];
    if shape != "memcached" {
        let by_limit = |arm: &str| format!("R3 downtime by its limit, {arm}, {shape}");
        questions.push(median(by_limit(par), values::DOWNTIME_BY_LIMIT, par).at_most(1.0));
        questions.push(median(by_limit(pre), values::DOWNTIME_BY_LIMIT, pre).target(Target::AtLeast(4.0)));
    }
    let copies = FAST.precopy_copies(&workload, rate, MAX_ROUNDS)?;
    let arms = vec![Arm::preset(pre, copies), Arm::preset(par, 1.2)];
    let quick = shape == "kernel";
    Ok(Experiment {
        id,
        claims: &["R1", "R2", "R3", "F5", "F7", "T3"],
        title: "par-migrate beside pre-copy, both channels of the same speed",
        chosen: format!(
            "The 2023 paper's pre-copy of {shape} ended after 30 rounds with {left_mb} MB of {:.0} to send (its table 3) \
             because it wrote faster than the link: at our rate the guest writes as many pages as the link carries when a round \
             leaves that share, {:.1} %, of memory. Working set: {area}.",
            original.megabytes,
            100.0 * share
        ),
        setup,
        arms: arms
            .into_iter()
            .map(|arm| if quick { arm.quick() } else { arm })
            .collect(),
        questions,
    })
}

const PA: &str = "pa-hybrid";
const ONE: &str = "hybrid:1";
const TWO: &str = "hybrid:2";
const DYN: &str = "dyn-hybrid";

/// R9.
fn comprehensive_converging() -> anyhow::Result<Experiment> {
    let rate = FAST.rate_for_share("seq", 0.37)?;
    let questions = [(ONE, 0.77), (TWO, 0.68), (DYN, 0.67)];
    Ok(Experiment {
        id: "R9",
        claims: &["R9", "T5"],
        title: "PA-hybrid beside the hybrids that copy first, storage as fast as the network",
        chosen: "The totals of the 2023 paper's comprehensive test (its table 5) fit a guest that writes page after page at 0.37 \
                 of the link's rate, and storage as fast as the network."
            .into(),
        setup: Setup::new(FAST, 1, "seq", rate, COMPREHENSIVE)?,
        arms: vec![
            Arm::preset(PA, 1.1).quick(),
            Arm::preset(ONE, 1.37).quick(),
            Arm::preset(TWO, 1.51).quick(),
            Arm::preset(DYN, 1.56).quick(),
        ],
        questions: questions
            .map(|(base, bound)| ratio(format!("R9 time, {PA} by {base}"), values::TIME, PA, base).at_most(bound))
            .into(),
    })
}

/// The cyclic writer whose every round leaves more than it sent, until it is through with its memory.
fn diverging(link: Link, rho: u64) -> anyhow::Result<Setup> {
    let rate = (1.2 * link.pages_per_second()).round() as u64;
    Setup::new(link, rho, "seq", rate, COMPREHENSIVE)
}

fn postcopy_question(base: &'static str, bound: f64, at: &str) -> Question {
    let name = format!("R11 post-copy duration, {PA} by {base}, {at}");
    ratio(name, values::POSTCOPY, PA, base).at_most(bound)
}

/// R10, and R11 at ρ = 25.
fn comprehensive_diverging() -> anyhow::Result<Experiment> {
    let bytes = |base: &'static str, bound| {
        ratio(
            format!("R10 bytes of all channels, {PA} by {base}"),
            values::TOTAL,
            PA,
            base,
        )
        .at_most(bound)
    };
    let questions = vec![
        bytes(ONE, 0.733),
        bytes(TWO, 0.667),
        bytes(DYN, 0.655),
        ratio(
            format!("R10 bytes on the network, {PA} by {ONE}"),
            values::NETWORK,
            PA,
            ONE,
        )
        .at_most(0.05),
        postcopy_question(ONE, 0.21, "ρ = 25"),
        postcopy_question(DYN, 1.0, "ρ = 25"),
    ];
    Ok(Experiment {
        id: "R10",
        claims: &["R10", "R11"],
        title: "PA-hybrid beside the hybrids that copy first, storage 25 times as fast as the network",
        chosen: "The same page-after-page writer at 1.2 of the link's rate: the bytes of the 2023 paper's table 5 fit only a load \
                 of 1.2 or more and storage 25 times as fast as the network (nominally 10 Gbit/s beside 50 MB/s)."
            .into(),
        setup: diverging(SLOW, 25)?,
        arms: vec![
            Arm::preset(PA, 0.2).quick(),
            Arm::preset(ONE, 2.0).quick(),
            Arm::preset(TWO, 3.0),
            Arm::preset(DYN, 2.0),
        ],
        questions,
    })
}

/// R11 at ρ = 2.
fn postcopy_duration() -> anyhow::Result<Experiment> {
    Ok(Experiment {
        id: "R11",
        claims: &["R11", "F12"],
        title: "Time in post-copy, storage twice as fast as the network",
        chosen: "The writer of R10 at the same load.".into(),
        setup: diverging(FAST, 2)?,
        arms: vec![Arm::preset(PA, 1.0).quick(), Arm::preset(ONE, 2.0).quick()],
        questions: vec![postcopy_question(ONE, 0.21, "ρ = 2")],
    })
}

/// R12.
fn network_cuts() -> anyhow::Result<Experiment> {
    let stays_away = NetworkCut { back_after: None };
    let comes_back = NetworkCut {
        back_after: Some(NETWORK_PAUSE),
    };
    let arm = |name, cut: &str, network| Arm {
        cut: Some(network),
        ..Arm::new(name, &format!("hybrid:1,cut={cut}"), 2.0).quick()
    };
    let survived = |arm: &'static str| {
        let name = format!("R12 share of guests that survived, {arm}");
        Question::new(name, Quantity::Share(values::SURVIVED, arm))
    };
    Ok(Experiment {
        id: "R12",
        claims: &["R12", "F11"],
        title: "The network is cut at a random time of post-copy",
        chosen: format!(
            "The writer of R10 in an eighth of R11's memory: of interest is who survives. The cut falls into the first four \
             fifths of post-copy, at the same time for all arms of a repetition, and for cut=reconnect the network is back after \
             {} s. To survive is to go on at the target and to end with the same memory as the same guest that was never moved.",
            NETWORK_PAUSE.as_secs()
        ),
        setup: diverging(link(32, 20), 10)?,
        arms: vec![
            arm("cut=fail", "fail", stays_away),
            arm("cut=reconnect", "reconnect", comes_back),
            arm("cut=pbdata", "pbdata", stays_away),
            arm("cut=both", "both", stays_away),
        ],
        questions: vec![
            survived("cut=pbdata").target(Target::AtLeast(1.0)),
            survived("cut=both").target(Target::AtLeast(1.0)),
            survived("cut=reconnect").target(Target::AtLeast(1.0)),
            survived("cut=fail").at_most(0.0),
        ],
    })
}

/// Longer than the silence after which the network counts as cut.
const NETWORK_PAUSE: Duration = Duration::from_secs(2);

/// Hold-back of hot pages while the static copy runs.
fn hold_back(id: &'static str, workload: &str) -> anyhow::Result<Experiment> {
    let (hold, plain) = ("par-migrate,hold=hot", "par-migrate");
    let rate = FAST.rate_for_share(workload, 0.2)?;
    let mut setup = Setup::new(FAST, 1, workload, rate, COMPREHENSIVE)?;
    setup.limit_downtime(Duration::from_millis(300));
    setup.min_round_us = 100_000;
    let quick = id == "hold-zipf";
    let arms = vec![Arm::preset(hold, 1.1), Arm::preset(plain, 1.1)];
    Ok(Experiment {
        id,
        claims: &["hold"],
        title: "Hot pages held back beside the static copy, both channels of the same speed",
        chosen: "One of the two skewed workloads, at a load of 0.2: at 0.4 the hot tenth of `hotset` alone is written faster than it \
                 is sent, and no pre-copy ends. par-migrate sends a hot page in every round, and only the last time counts. No \
                 paper holds pages back; the limits are Dunlin's own."
            .into(),
        setup,
        arms: arms.into_iter().map(|arm| if quick { arm.quick() } else { arm }).collect(),
        questions: vec![
            ratio(format!("hold: bytes on the migration channel, {workload}"), values::MIGRATION, hold, plain).at_most(0.5),
            ratio(format!("hold: pages dirty at the end, {workload}"), values::FINAL_DIRTY, hold, plain),
            ratio(format!("hold: time, {workload}"), values::TIME, hold, plain),
            ratio(format!("hold: downtime, {workload}"), values::DOWNTIME, hold, plain),
        ],
    })
}

/// The 2017 paper's machine, with the rate that its times and pages imply.
const FILTERED: Original = original(1074.0, 54.0);
/// Pages that were sent in vain in its write-intensive test, of all of the machine's.
const INVALID: (f64, f64) = (35_420.0, 262_144.0);
const A_03: &str = "markov-sdf:0.3";
const A_07: &str = "markov-sdf:0.7";
const A_10: &str = "markov-sdf:1";

/// A guest that writes `share` of its pages while all of them are copied. Sampling every 50 ms is not scaled, so neither is the
/// shortest round; the paper names no downtime but Xen's threshold of 50 pages.
fn filtered_setup(workload: &str, share: f64) -> anyhow::Result<Setup> {
    let link = link(128, 40);
    let rate = link.rate_for_share(workload, share)?;
    let mut setup = Setup::new(link, 1, workload, rate, FILTERED)?;
    setup.min_round_us = 100_000;
    setup.limit_downtime(HAND_OVER + Duration::from_secs_f64(50.0 / link.pages_per_second()));
    Ok(setup)
}

/// What Dunlin takes a hand-over to cost until it has measured one.
const HAND_OVER: Duration = Duration::from_millis(2);

/// R13 and R15.
fn filtered_writes() -> anyhow::Result<Experiment> {
    Ok(Experiment {
        id: "R13",
        claims: &["R13", "R15", "003-F3", "003-F4", "003-F5"],
        title: "Half of the dirty pages held back, a write-intensive guest",
        chosen: "The 2017 paper's first workload wrote 35 420 of 262 144 pages while all were copied once: so does a guest that \
                 writes by Zipf's law, which stands for the many servers of that benchmark. hybrid:1 is its original hybrid \
                 copy. Observing takes 8 s here as there, but that is the time of 2.4 copies instead of 0.4; so time is told with \
                 and without it."
            .into(),
        setup: filtered_setup("zipf:0.99", INVALID.0 / INVALID.1)?,
        arms: vec![
            Arm::preset(ONE, 1.2).quick(),
            Arm::preset(A_03, 1.5),
            Arm::preset(A_07, 1.3).quick(),
            Arm::preset(A_10, 1.2),
        ],
        questions: vec![
            ratio("R13 faults, α = 0.7 by hybrid:1", values::FAULTS, A_07, ONE).at_most(0.90),
            ratio("R13 time without observing, α = 0.7 by hybrid:1", values::TIME_WITHOUT_OBSERVING, A_07, ONE).at_most(1.01),
            ratio("R13 time with observing, α = 0.7 by hybrid:1", values::TIME, A_07, ONE),
            ratio("R13 pages, α = 0.7 by hybrid:1", values::PAGES, A_07, ONE).target(Target::Within(0.98, 1.02)),
            ratio("R15 pages, α = 1 by hybrid:1, writes", values::PAGES, A_10, ONE).at_most(0.999),
            ratio("R15 rounds, α = 0.7 by 0.3, writes", values::ROUNDS, A_07, A_03).at_most(1.0),
            ratio("R15 rounds, α = 1 by 0.7, writes", values::ROUNDS, A_10, A_07).at_most(1.0),
        ],
    })
}

/// R14 and R15.
fn filtered_reads() -> anyhow::Result<Experiment> {
    Ok(Experiment {
        id: "R14",
        claims: &["R14", "R15", "003-F3", "003-F4", "003-F5"],
        title: "Half of the dirty pages held back, a read-intensive guest",
        chosen: "Of its second workload, a compilation, the 2017 paper says only that it reads more and writes less than the first: \
                 the kernel-like guest writes half of that share."
            .into(),
        setup: filtered_setup("kernel", INVALID.0 / INVALID.1 / 2.0)?,
        arms: vec![Arm::preset(ONE, 1.1), Arm::preset(A_03, 1.3), Arm::preset(A_10, 1.1)],
        questions: vec![
            ratio("R14 faults, α = 0.3 by hybrid:1", values::FAULTS, A_03, ONE).at_most(0.25),
            ratio("R14 time without observing, α = 0.3 by hybrid:1", values::TIME_WITHOUT_OBSERVING, A_03, ONE).at_most(1.095),
            ratio("R14 time with observing, α = 0.3 by hybrid:1", values::TIME, A_03, ONE),
            ratio("R15 pages, α = 1 by hybrid:1, reads", values::PAGES, A_10, ONE).at_most(0.999),
            ratio("R15 rounds, α = 1 by 0.3, reads", values::ROUNDS, A_10, A_03).at_most(1.0),
        ],
    })
}

/// R16.
fn bubbling() -> anyhow::Result<Experiment> {
    let link = link(128, 40);
    let rate = link.rate_for_share("seq", 0.8)?;
    let mut setup = Setup::new(link, 1, "seq", rate, COMPREHENSIVE)?;
    // How many pages it has to ask for depends on where the guest stands when it is moved.
    setup.stride = link.pages() / 13;
    let arm = |name, push: &str| Arm::new(name, &format!("postcopy,push={push}"), 1.05);
    let share = |arm: &'static str| {
        median(
            format!("R16 faults by working set, {arm}"),
            values::FAULTS_BY_WORKING_SET,
            arm,
        )
    };
    Ok(Experiment {
        id: "R16",
        claims: &["R16"],
        title: "Faults of post-copy that pushes around the pages asked for last",
        chosen: "A guest that goes through its memory page by page, at 0.8 of the link's rate; each repetition moves it from \
                 another place. Its working set is what it touches in the time of one copy."
            .into(),
        setup,
        arms: vec![
            arm("push=sequential", "sequential").quick(),
            arm("push=bubble", "bubble").quick(),
        ],
        questions: vec![
            share("push=bubble").at_most(0.21),
            share("push=sequential"),
            ratio("R16 faults, push=bubble by push=sequential", values::FAULTS, "push=bubble", "push=sequential"),
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experiments() -> Vec<Experiment> {
        all().expect("every workload can be had")
    }

    #[test]
    fn every_question_asks_about_arms_there_are() {
        for experiment in experiments() {
            let arms: Vec<&str> = experiment.arms.iter().map(|arm| arm.name).collect();
            for question in &experiment.questions {
                assert!(
                    question.arms().iter().all(|arm| arms.contains(arm)),
                    "{} asks about {:?}",
                    experiment.id,
                    question
                );
                let claim = question.name.split([' ', ':']).next().unwrap_or_default();
                assert!(
                    experiment.claims.contains(&claim),
                    "{}: {}",
                    experiment.id,
                    question.name
                );
            }
        }
    }

    #[test]
    fn ids_are_unique_and_experiments_are_found_by_claims() {
        let all = experiments();
        let mut ids: Vec<_> = all.iter().map(|experiment| experiment.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all.len());
        let called = |name: &str| all.iter().filter(|experiment| experiment.is_called(name)).count();
        assert_eq!((called("R2"), called("r9"), called("R11"), called("R99")), (3, 1, 2, 0));
        let counts = ["T5", "t5", "F5", "F12", "F11", "003-F5"].map(called);
        assert_eq!(counts, [1, 1, 3, 1, 1, 2]);
        assert!(all.iter().any(|one| one.id == "R9" && one.is_called("T5")));
        // Their guests change what they do as they are moved, or are no guests of ours.
        assert_eq!(["T4", "F9", "F13"].map(called), [0; 3]);
    }

    #[test]
    fn every_strategy_is_one() {
        for experiment in experiments() {
            for arm in &experiment.arms {
                let strategy: Result<dunlin_core::strategy::Strategy, _> = arm.strategy.parse();
                assert!(strategy.is_ok(), "{}: {}", experiment.id, arm.strategy);
            }
        }
    }

    /// The load that was wanted: what the generator writes at the rate, not the rate itself.
    #[test]
    fn loads_are_as_published() {
        let lambda = |id: &str| {
            let found = experiments().into_iter().find(|experiment| experiment.id == id);
            found.expect("there is one").setup.lambda
        };
        for (id, load) in [("R9", 0.37), ("R10", 1.2), ("R11", 1.2), ("R16", 0.8)] {
            assert!((lambda(id) - load).abs() < 0.001, "{id}: {}", lambda(id));
        }
    }

    #[test]
    fn the_short_form_has_only_questions_it_can_answer() {
        let r10 = comprehensive_diverging().expect("possible").quick().expect("not empty");
        assert_eq!(r10.arms.len(), 2);
        let names: Vec<&str> = r10.questions.iter().map(|question| question.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "R10 bytes of all channels, pa-hybrid by hybrid:1",
                "R10 bytes on the network, pa-hybrid by hybrid:1",
                "R11 post-copy duration, pa-hybrid by hybrid:1, ρ = 25"
            ]
        );
        let lmbench = parallel("lmbench").expect("possible");
        assert!(lmbench.quick().is_none());
    }
}
