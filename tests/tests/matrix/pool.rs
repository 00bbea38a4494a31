//! Many runs beside each other: each waits most of the time.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

/// Runs at a time.
const BESIDE_EACH_OTHER: usize = 12;
/// The variable that chooses a single run.
const SEED: &str = "DUNLIN_SEED";

/// What a run came to, for the count at the end.
pub(crate) type Ending = &'static str;

/// Runs all seeds, or the one that the environment chooses, and fails with the command that repeats each that failed. Returns
/// how often each ending came about.
///
/// # Panics
/// If a run failed.
pub(crate) fn run_all(
    test: &str,
    seeds: &[u64],
    run: impl Fn(u64) -> anyhow::Result<Ending> + Sync,
) -> BTreeMap<Ending, usize> {
    let chosen: Option<u64> = std::env::var(SEED)
        .ok()
        .map(|seed| seed.parse().expect("DUNLIN_SEED is a number"));
    let seeds = chosen.as_ref().map_or(seeds, std::slice::from_ref);
    let (next, began) = (AtomicUsize::new(0), Instant::now());
    let (endings, failures) = (Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..BESIDE_EACH_OTHER.min(seeds.len()) {
            scope.spawn(|| {
                while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let ended = catch_unwind(AssertUnwindSafe(|| run(seed)))
                        .unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked; see above")));
                    match ended {
                        Ok(ending) => *endings.lock().expect("no panic").entry(ending).or_insert(0) += 1,
                        Err(error) => {
                            let failure = format!(
                                "seed {seed}: {error:?}\n  again: {SEED}={seed} cargo test -p dunlin-tests --test matrix {test} -- --nocapture"
                            );
                            eprintln!("{failure}");
                            failures.lock().expect("no panic").push(failure);
                        }
                    }
                }
            });
        }
    });
    let endings = endings.into_inner().expect("no panic");
    let failures = failures.into_inner().expect("no panic");
    let seconds = began.elapsed().as_secs();
    println!("{test}: {} runs in {seconds} s: {endings:?}", seeds.len());
    let failed = failures.len();
    assert!(
        failures.is_empty(),
        "{failed} of {} runs failed:\n{}",
        seeds.len(),
        failures.join("\n")
    );
    endings
}
