//! Repetitions, taken in turn so that a slow minute of the machine hits all arms alike, and their medians.

use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// Something measured repeatedly.
pub(crate) struct Arm<'a> {
    name: &'static str,
    measure: Box<dyn FnMut() -> anyhow::Result<f64> + 'a>,
}

impl<'a> Arm<'a> {
    pub(crate) fn new(name: &'static str, measure: impl FnMut() -> anyhow::Result<f64> + 'a) -> Self {
        Self {
            name,
            measure: Box::new(measure),
        }
    }
}

/// The results of one arm, at least one.
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// In any order.
    ///
    /// # Panics
    /// Without a single result.
    pub(crate) fn new(mut results: Vec<f64>) -> Self {
        assert!(!results.is_empty(), "a measurement has results");
        results.sort_by(f64::total_cmp);
        Self(results)
    }

    pub(crate) fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        if self.0.len() % 2 == 1 {
            self.0[middle]
        } else {
            (self.0[middle - 1] + self.0[middle]) / 2.0
        }
    }

    /// The least result that at least `percent` of 100 results do not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0[rank - 1]
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Least and greatest, for the reader to judge the spread.
    pub(crate) fn range(&self) -> (f64, f64) {
        (self.0[0], self.0[self.0.len() - 1])
    }
}

/// The results of all arms by their names.
pub(crate) struct Results(Vec<(&'static str, Samples)>);

impl Results {
    /// Those of the arm `name`, if it took part.
    pub(crate) fn find(&self, name: &str) -> Option<&Samples> {
        self.0
            .iter()
            .find(|(other, _)| *other == name)
            .map(|(_, samples)| samples)
    }

    /// Those of the arm `name`.
    ///
    /// # Panics
    /// When it took no part.
    pub(crate) fn of(&self, name: &str) -> &Samples {
        self.find(name)
            .unwrap_or_else(|| panic!("there is no arm called {name}"))
    }
}

/// Runs every arm once to warm up, then all of them `repetitions` times in turn.
pub(crate) fn interleave(repetitions: usize, mut arms: Vec<Arm<'_>>) -> anyhow::Result<Results> {
    let mut results: Vec<Vec<f64>> = arms.iter().map(|_| vec![]).collect();
    for repetition in 0..=repetitions {
        for (arm, results) in arms.iter_mut().zip(&mut results) {
            let result = (arm.measure)().map_err(|error| error.context(format!("measuring {}", arm.name)))?;
            if repetition > 0 {
                results.push(result);
            }
        }
    }
    let samples = results.into_iter().map(Samples::new);
    Ok(Results(arms.iter().map(|arm| arm.name).zip(samples).collect()))
}

/// Seconds that `work` takes.
pub(crate) fn seconds(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64()
}

/// Seconds of the processor that `work` takes of this thread, whatever else the machine does.
pub(crate) fn cpu_seconds(work: impl FnOnce()) -> f64 {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let started = now();
    work();
    now() - started
}

/// Bytes per second.
pub(crate) fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64()
}

/// Runs `work` on a thread that may only use one CPU, as may the threads and processes it starts: a loopback round trip
/// costs several times as much between CPUs as on one, so whatever is compared must be placed alike.
pub(crate) fn pinned<R: Send>(work: impl FnOnce() -> R + Send) -> anyhow::Result<R> {
    let allowed = sched_getaffinity(None)?;
    let first = (0..CpuSet::MAX_CPU).find(|&cpu| allowed.is_set(cpu)).unwrap_or(0);
    let mut one = CpuSet::new();
    one.set(first);
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            sched_setaffinity(None, &one)?;
            Ok(work())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ranges() {
        let samples = Samples::new((1..=100).rev().map(f64::from).collect());
        assert_eq!(
            (samples.median(), samples.percentile(99), samples.percentile(50)),
            (50.5, 99.0, 50.0)
        );
        assert_eq!(samples.range(), (1.0, 100.0));
        assert_eq!(Samples::new(vec![3.0]).median(), 3.0);
    }

    #[test]
    fn arms_take_turns_after_a_warm_up() {
        let order = std::cell::RefCell::new(String::new());
        let arm = |name: &'static str| {
            let order = &order;
            Arm::new(name, move || {
                order.borrow_mut().push_str(name);
                Ok(order.borrow().len() as f64)
            })
        };
        let results = interleave(2, vec![arm("a"), arm("b")]).expect("nothing fails");
        assert_eq!(order.borrow().as_str(), "ababab");
        assert_eq!(
            (results.of("a").range(), results.of("b").range()),
            ((3.0, 5.0), (4.0, 6.0))
        );
        assert!(results.find("c").is_none());
    }

    #[test]
    fn a_pinned_thread_has_one_cpu() {
        let cpus = pinned(|| sched_getaffinity(None).expect("readable").count()).expect("pins");
        assert_eq!(cpus, 1);
    }
}
