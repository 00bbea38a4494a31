//! One run of the matrix, named by a number.

use std::fmt;

use dunlin_core::strategy::{First, Strategy};
use dunlin_tests::capability::full;
use dunlin_tests::pairs::cover_or_product;
use dunlin_tests::relay::{Deed, Place, Random};
use dunlin_tests::scene::{GuestOptions, Kind};

/// With a storage directory at hand, those without `cut` write what is missing in post-copy there, too.
pub(crate) const STRATEGIES: [&str; 9] = [
    "precopy",
    "postcopy",
    "postcopy,cut=reconnect",
    "hybrid:2,push=bubble:1",
    "as-hybrid,cut=reconnect",
    "postcopy,push=bubble:3,cut=pbdata",
    "par-migrate,hold=hot,split=speed",
    "pa-hybrid",
    "hybrid:1,first=parallel,cut=reconnect",
];
pub(crate) const WORKLOADS: [&str; 7] = [
    "seq,rate=750",
    "uniform,rate=750",
    "zipf:1,rate=750",
    "hotset:0.1,rate=750",
    "memcached,rate=750",
    "phases:(seq,rate=500)*250+(uniform,rate=1000)*250",
    // With an agent whose hints are listened to.
    "uniform,rate=750,life=3",
];

/// Steps of the whole guest: two seconds at the rates above.
const STEPS: u64 = 1500;

/// What is done to whom, where and when; everything else follows from the seed.
pub(crate) struct Case {
    pub(crate) seed: u64,
    pub(crate) deed: Deed,
    pub(crate) place: Place,
    pub(crate) strategy: &'static str,
    workload: &'static str,
}

impl Case {
    const SIZES: [usize; 4] = [Deed::ALL.len(), Place::ALL.len(), STRATEGIES.len(), WORKLOADS.len()];

    /// The seeds of the matrix: of a cover, or of all of it.
    pub(crate) fn seeds() -> Vec<u64> {
        let mut rows = cover_or_product(&Self::SIZES);
        let comes_to = |place: usize, strategy: usize| {
            let place = Place::ALL[place];
            place.of(parsed(STRATEGIES[strategy])) == place
        };
        if full() {
            // What stands for a place that does not exist is there anyway.
            rows.retain(|row| comes_to(row[1], row[2]));
        }
        for row in &mut rows {
            let next = |step: usize| (row[2] + step) % STRATEGIES.len();
            let fitting = (0..STRATEGIES.len())
                .map(next)
                .find(|&strategy| comes_to(row[1], strategy));
            row[2] = fitting.expect("some strategy comes to every place");
        }
        let number = |row: &Vec<usize>| {
            row.iter()
                .zip(Self::SIZES)
                .fold(0, |number, (value, size)| number * size + value)
        };
        rows.iter().map(|row| number(row) as u64).collect()
    }

    /// The run of this seed. Seeds beyond the matrix repeat it with other moments.
    pub(crate) fn of(seed: u64) -> Self {
        let mut rest = seed;
        let mut digits = Self::SIZES.map(|_| 0);
        for (digit, size) in digits.iter_mut().zip(Self::SIZES).rev() {
            *digit = (rest % size as u64) as usize;
            rest /= size as u64;
        }
        let strategy = STRATEGIES[digits[2]];
        Self {
            seed,
            deed: Deed::ALL[digits[0]],
            place: Place::ALL[digits[1]].of(parsed(strategy)),
            strategy,
            workload: WORKLOADS[digits[3]],
        }
    }

    pub(crate) fn random(&self) -> Random {
        Random::new(self.seed)
    }

    /// The guest, without what names files.
    pub(crate) fn guest(&self) -> GuestOptions {
        guest(self.workload, self.seed)
    }

    /// Limits of both channels, for a first copy of less than a second, and how long silence is endured: a gentle deed
    /// must not be taken for a loss, the others are to be noticed soon.
    pub(crate) fn limits(&self) -> Vec<&'static str> {
        let timeout = if self.deed.is_gentle() { "30s" } else { "1s" };
        let mut limits = vec!["--verify", "--bandwidth", "6MB/s", "--network-timeout", timeout];
        if !self.strategy.starts_with("precopy") && !self.strategy.starts_with("par-migrate") {
            limits.extend(["--downtime", "1ms"]);
        }
        if parsed(self.strategy).first == First::Parallel {
            limits.extend(["--storage-bandwidth", "6MB/s"]);
        }
        limits
    }
}

fn parsed(strategy: &str) -> Strategy {
    Strategy::parse(strategy).expect("a strategy")
}

/// A small guest that halts after two seconds.
pub(crate) fn guest(workload: &str, seed: u64) -> GuestOptions {
    let vcpus = 1 + (seed % 2) as u32;
    GuestOptions::new(Kind::Kvm, workload)
        .memory("4MiB")
        .vcpus(vcpus)
        .steps(STEPS / u64::from(vcpus))
        .with(["--fill", "random"])
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} at {:?}, {}, {}",
            self.deed, self.place, self.strategy, self.workload
        )
    }
}

#[test]
fn seeds_name_every_row() {
    let seeds = Case::seeds();
    let pair = |seed: &u64| {
        let case = Case::of(*seed);
        format!("{:?} at {:?}", case.deed, case.place)
    };
    let pairs: std::collections::BTreeSet<_> = seeds.iter().map(pair).collect();
    assert_eq!(
        pairs.len(),
        Deed::ALL.len() * Place::ALL.len(),
        "every deed at every place"
    );
    let all = Case::SIZES.iter().product::<usize>() as u64;
    assert!(seeds.iter().all(|seed| *seed < all));
    let (first, again) = (Case::of(7), Case::of(7 + all));
    assert_eq!(first.to_string(), again.to_string());
    assert_ne!(first.random().next(), again.random().next());
}
