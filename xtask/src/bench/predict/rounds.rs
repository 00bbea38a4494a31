//! Filtered pre-copy in virtual time: what a predictor is worth on a trace.

use std::time::Instant;

use dunlin_core::order::filter::{HoldBack, hold_back, scratch_needed};
use dunlin_core::pageset::{PageSet, words_needed};
use dunlin_core::predict::{Predictor, Score};
use dunlin_core::units::{Gfn, Nanos};

use super::trace::{GUEST, Write};

/// A sampling window, as in the 2017 paper.
const WINDOW: Nanos = Nanos::from_millis(50);
/// How long is learned before the first round, as in the 2017 paper.
pub(super) const LEARNING: Nanos = Nanos::from_secs(8);
const ROUNDS: u32 = 10;
/// A round lasts at least this long.
const LEAST_ROUND: Nanos = Nanos::from_millis(100);

/// What came of it.
#[derive(Clone, Copy, Default)]
pub(super) struct Outcome {
    /// Pages held back, how many of them were written within the round, and dirty pages and how many of these were.
    pub(super) held: u64,
    pub(super) held_written: u64,
    pub(super) dirty: u64,
    pub(super) dirty_written: u64,
    /// Pages sent, those of them dirty again as the round ended, and all synchronised pages that were made dirty again.
    pub(super) sent: u64,
    pub(super) sent_written: u64,
    pub(super) invalid: u64,
    /// Writes told, virtual time that passed, and real time spent learning and choosing.
    pub(super) writes: u64,
    pub(super) virtual_time: Nanos,
    pub(super) learning_s: f64,
    pub(super) choosing_s: f64,
}

/// How many pages per second the windows of the learning time show as written.
pub(super) fn dirty_rate(writes: &[Write]) -> f64 {
    let mut seen = vec![u64::MAX; GUEST.0 as usize];
    let mut distinct = 0;
    for write in writes.iter().take_while(|write| write.at < LEARNING) {
        let window = write.at.0 / WINDOW.0;
        distinct += u64::from(std::mem::replace(&mut seen[write.gfn.0 as usize], window) != window);
    }
    distinct as f64 * 1e9 / LEARNING.0 as f64
}

/// The trace as it is fed to a predictor, window by window.
struct Feed<'t> {
    writes: &'t [Write],
    /// Of these, told so far.
    told: usize,
    window_end: Nanos,
    written: Vec<u64>,
    /// What the predictor learns from.
    by_write: bool,
}

impl Feed<'_> {
    /// Goes on until `until`; puts every page written into `dirty`.
    fn advance(
        &mut self,
        until: Nanos,
        dirty: &mut PageSet<'_>,
        predictor: &mut impl Predictor,
        outcome: &mut Outcome,
    ) {
        loop {
            let stop = until.min(self.window_end);
            let rest = &self.writes[self.told..];
            let now = &rest[..rest.partition_point(|write| write.at < stop)];
            self.told += now.len();
            outcome.writes += now.len() as u64;
            for write in now {
                dirty.insert(write.gfn).expect("the trace keeps to the guest");
                self.written[(write.gfn.0 / 64) as usize] |= 1 << (write.gfn.0 % 64);
            }
            let started = Instant::now();
            if self.by_write {
                for write in now {
                    predictor
                        .on_write(write.gfn, write.vcpu, write.at)
                        .expect("room for every page");
                }
            }
            if stop == self.window_end {
                if !self.by_write {
                    predictor.on_window(&self.written, stop).expect("room for every page");
                }
                self.window_end = Nanos(self.window_end.0 + WINDOW.0);
            }
            outcome.learning_s += started.elapsed().as_secs_f64();
            if stop.0 + WINDOW.0 == self.window_end.0 {
                self.written.fill(0);
            }
            if stop == until {
                return;
            }
        }
    }
}

/// Learns, then makes rounds at `bandwidth` pages per second. `by_write`: the predictor learns from single
/// writes, not from windows.
pub(super) fn run<P: Predictor>(writes: &[Write], bandwidth: f64, predictor: &mut P, by_write: bool) -> Outcome {
    let mut outcome = Outcome::default();
    let mut feed = Feed {
        writes,
        told: 0,
        window_end: WINDOW,
        written: vec![0; GUEST.0.div_ceil(64) as usize],
        by_write,
    };
    let mut storages: [Vec<u64>; 3] = std::array::from_fn(|_| vec![0; words_needed(GUEST)]);
    let mut sets = storages
        .each_mut()
        .map(|words| PageSet::new(words, GUEST).expect("sized for the guest"));
    let [dirty, held, fresh] = &mut sets;
    let mut scratch = vec![0; scratch_needed(GUEST)];
    feed.advance(LEARNING, fresh, predictor, &mut outcome);
    dirty.fill();
    let mut now = LEARNING;
    for _ in 0..ROUNDS {
        let sent = dirty.len().0 - dirty.len().0 / 2;
        let lasts = Nanos((sent as f64 / bandwidth * 1e9) as u64).max(LEAST_ROUND);
        let started = Instant::now();
        predictor.aim(now, lasts);
        hold_back(dirty, predictor, HoldBack::Half, &mut scratch, held).expect("sized for the guest");
        outcome.choosing_s += started.elapsed().as_secs_f64();
        fresh.clear();
        now = Nanos(now.0 + lasts.0);
        feed.advance(now, fresh, predictor, &mut outcome);
        let both = |a: &PageSet<'_>, b: &PageSet<'_>| -> u64 {
            a.words()
                .iter()
                .zip(b.words())
                .map(|(a, b)| u64::from((a & b).count_ones()))
                .sum()
        };
        outcome.held += held.len().0;
        outcome.held_written += both(held, fresh);
        outcome.dirty += dirty.len().0;
        outcome.dirty_written += both(dirty, fresh);
        outcome.sent += sent;
        outcome.sent_written += both(dirty, fresh) - both(held, fresh);
        // T(n) = S(n) - (V(n-1) - V(n)): every page that had been synchronised and was written.
        let before = dirty.len();
        dirty.clear();
        dirty.union(held).expect("alike");
        dirty.union(fresh).expect("alike");
        outcome.invalid += sent + dirty.len().0 - before.0;
    }
    outcome.virtual_time = now;
    outcome
}

/// Knows when each page is written next. With `far` it looks beyond the round's end, otherwise it does not.
pub(super) struct Clairvoyant<'t> {
    writes: &'t [Write],
    next: Vec<u64>,
    now: Nanos,
    end: Nanos,
    far: bool,
}

impl<'t> Clairvoyant<'t> {
    pub(super) fn new(writes: &'t [Write], far: bool) -> Self {
        Self {
            writes,
            next: vec![u64::MAX; GUEST.0 as usize],
            now: Nanos::ZERO,
            end: Nanos::ZERO,
            far,
        }
    }
}

impl Predictor for Clairvoyant<'_> {
    fn aim(&mut self, now: Nanos, horizon: Nanos) {
        (self.now, self.end) = (now, Nanos(now.0 + horizon.0));
        self.next.fill(u64::MAX);
        let after = &self.writes[self.writes.partition_point(|write| write.at < now)..];
        for write in after.iter().rev() {
            self.next[write.gfn.0 as usize] = write.at.0;
        }
    }

    fn score(&self, gfn: Gfn) -> Score {
        let next = self.next[gfn.0 as usize];
        if next == u64::MAX {
            return Score::NONE;
        }
        if self.far {
            return Score(u32::MAX - ((next - self.now.0) >> 12).min(u32::MAX as u64 - 1) as u32);
        }
        if next < self.end.0 { Score::CERTAIN } else { Score::NONE }
    }
}
