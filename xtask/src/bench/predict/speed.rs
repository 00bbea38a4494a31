//! What learning a write and choosing what to send cost.

use std::collections::HashMap;
use std::hint::black_box;

use dunlin_core::order::filter::{HoldBack, hold_back, scratch_needed};
use dunlin_core::pageset::{PageSet, words_needed};
use dunlin_core::predict::{Hazard, Markov, Predictor, Successors, Write};
use dunlin_core::units::{Gfn, Nanos, Pages};

use super::super::figure::{Figure, Target};
use super::super::sampling::{Arm, interleave, seconds};

/// The working set: what each side keeps of it is too large for the second-level cache.
const PAGES: Pages = Pages(1 << 20);
/// Writes in a sample.
const WRITES: usize = 1 << 21;
/// A write every microsecond, windows of 50 ms.
const WRITE_NS: u64 = 1000;
const WINDOW_WRITES: usize = 50_000;
/// Single writes handed over at a time.
const EVENTS: usize = 256;
const REPETITIONS: usize = 7;

/// A guest of 8 GiB, of whose pages every other is dirty on average.
const GUEST: Pages = Pages(2 << 20);

pub(super) fn run() -> anyhow::Result<Vec<Figure>> {
    let mut figures = learning()?;
    figures.extend(choosing()?);
    Ok(figures)
}

/// A fixed stream of random numbers (xorshift64; its upper bits).
fn numbers() -> impl Iterator<Item = u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 16
    })
}

/// A clock that the arms' writes and windows go by.
struct Clock(u64);

impl Clock {
    fn write(&mut self) -> Nanos {
        self.0 += WRITE_NS;
        Nanos(self.0)
    }
}

/// Sets the bits of windows of writes and hands each to the predictor.
fn by_windows(pages: &[u64], clock: &mut Clock, written: &mut [u64], predictor: &mut impl Predictor) {
    for window in pages.chunks(WINDOW_WRITES) {
        for page in window {
            written[(page / 64) as usize] |= 1 << (page % 64);
        }
        clock.0 += WRITE_NS * window.len() as u64;
        predictor
            .on_window(written, Nanos(clock.0))
            .expect("room for every page");
        written.fill(0);
    }
}

/// Writes one after the other, handed over as many at a time as a ring of events delivers.
fn by_writes(pages: &[u64], clock: &mut Clock, predictor: &mut impl Predictor) {
    let mut writes = Vec::with_capacity(EVENTS);
    for events in pages.chunks(EVENTS) {
        writes.clear();
        writes.extend(events.iter().map(|&page| Write {
            gfn: Gfn(page),
            vcpu: 0,
            at: clock.write(),
        }));
        predictor.on_writes(&writes).expect("room for every page");
    }
}

fn learning() -> anyhow::Result<Vec<Figure>> {
    let pages: Vec<u64> = numbers().map(|number| number % PAGES.0).take(WRITES).collect();
    let bitmap = || vec![0_u64; (PAGES.0 / 64) as usize];
    let (mut by_write_words, mut by_window_words) = (
        storage(Hazard::words_needed(PAGES)),
        storage(Hazard::words_needed(PAGES)),
    );
    let mut markov_words = storage(Markov::words_needed(PAGES, PAGES));
    let mut successor_words = storage(Successors::words_needed(PAGES));
    let mut hazard = (Hazard::new(&mut by_write_words, PAGES)?, Clock(0));
    let mut hazard_windows = (Hazard::new(&mut by_window_words, PAGES)?, Clock(0), bitmap());
    let mut markov = (Markov::new(&mut markov_words, PAGES, PAGES)?, Clock(0), bitmap());
    let mut successors = (Successors::new(&mut successor_words, PAGES)?, Clock(0));
    let mut counts: HashMap<u64, u32> = (0..PAGES.0).map(|page| (page, 0)).collect();
    let pages = &pages[..];
    let results = interleave(
        REPETITIONS,
        vec![
            Arm::new("map", || {
                Ok(seconds(|| {
                    for &page in pages {
                        *counts.entry(page).or_insert(0) += 1;
                    }
                }))
            }),
            Arm::new("hazard", || {
                Ok(seconds(|| by_writes(pages, &mut hazard.1, &mut hazard.0)))
            }),
            Arm::new("hazard windows", || {
                let (predictor, clock, written) = &mut hazard_windows;
                Ok(seconds(|| by_windows(pages, clock, written, predictor)))
            }),
            Arm::new("markov", || {
                let (predictor, clock, written) = &mut markov;
                Ok(seconds(|| by_windows(pages, clock, written, predictor)))
            }),
            Arm::new("markov-order", || {
                Ok(seconds(|| by_writes(pages, &mut successors.1, &mut successors.0)))
            }),
        ],
    )?;
    let map = results.of("map").median();
    let ns = |seconds: f64| seconds * 1e9 / WRITES as f64;
    let mut figures = vec![
        Figure::plain("a write event, 1 M pages: HashMap<u64, u32> += 1", ns(map), "ns")
            .beside(format!("median of {}", results.of("map").len())),
    ];
    let arms = [
        ("hazard", "hazard, by single writes", Some(4.0)),
        ("hazard windows", "hazard, by windows of 50 ms", None),
        ("markov", "markov, by windows of 50 ms", Some(2.0)),
        ("markov-order", "markov-order, by single writes", Some(2.0)),
    ];
    for (arm, what, target) in arms {
        let took = results.of(arm).median();
        let figure = Figure::plain(format!("{what}, times faster"), map / took, "ratio")
            .beside(format!("the HashMap; {:.1} ns a write", ns(took)));
        figures.push(match target {
            Some(target) => figure.target(Target::AtLeast(target)),
            None => figure,
        });
    }
    Ok(figures)
}

fn storage(words: usize) -> Vec<u64> {
    vec![0; words]
}

/// Choosing half of a million dirty pages, all of which have a history.
fn choosing() -> anyhow::Result<Vec<Figure>> {
    let mut dirty_words = storage(words_needed(GUEST));
    let mut dirty = PageSet::new(&mut dirty_words, GUEST)?;
    for (gfn, number) in (0..GUEST.0).zip(numbers()) {
        if number % 2 == 0 {
            dirty.insert(Gfn(gfn))?;
        }
    }
    let (mut hazard_words, mut markov_words) = (
        storage(Hazard::words_needed(GUEST)),
        storage(Markov::words_needed(GUEST, GUEST)),
    );
    let mut hazard = Hazard::new(&mut hazard_words, GUEST)?;
    let mut markov = Markov::new(&mut markov_words, GUEST, GUEST)?;
    let mut clock = [Clock(0), Clock(0)];
    let pages: Vec<u64> = numbers().map(|number| number % GUEST.0).take(4 * WRITES).collect();
    let mut written = vec![0; (GUEST.0 / 64) as usize];
    by_windows(&pages, &mut clock[0], &mut written, &mut hazard);
    by_windows(&pages, &mut clock[1], &mut written, &mut markov);
    let now = Nanos(clock[0].0);

    let mut held_words = [storage(words_needed(GUEST)), storage(words_needed(GUEST))];
    let [of_hazard, of_markov] = &mut held_words;
    let mut of_hazard = (PageSet::new(of_hazard, GUEST)?, vec![0; scratch_needed(GUEST)]);
    let mut of_markov = (PageSet::new(of_markov, GUEST)?, vec![0; scratch_needed(GUEST)]);
    let mut numbers = Vec::with_capacity(GUEST.0 as usize);
    let dirty = &dirty;
    let results = interleave(
        REPETITIONS,
        vec![
            Arm::new("numbers", || {
                Ok(seconds(|| {
                    numbers.clear();
                    for run in dirty.runs() {
                        numbers.extend(run.first.0..run.end().0);
                    }
                    black_box(&numbers);
                }))
            }),
            Arm::new("hazard", || choose(&mut hazard, dirty, now, &mut of_hazard)),
            Arm::new("markov", || choose(&mut markov, dirty, now, &mut of_markov)),
        ],
    )?;
    let copy = results.of("numbers").median();
    let beside = |took: f64| format!("copying the numbers; {:.2} ms", took * 1e3);
    let (hazard, markov) = (results.of("hazard").median(), results.of("markov").median());
    Ok(vec![
        Figure::plain(
            "page numbers of 1 M dirty pages of a set into a Vec<u64>",
            copy * 1e3,
            "ms",
        )
        .beside(format!("median of {}", results.of("numbers").len())),
        Figure::plain(
            "choosing half of 1 M dirty pages by hazard, times the cost",
            hazard / copy,
            "ratio",
        )
        .target(Target::AtMost(4.0))
        .beside(beside(hazard)),
        Figure::plain(
            "choosing half of 1 M dirty pages by markov, times the cost",
            markov / copy,
            "ratio",
        )
        .beside(beside(markov)),
    ])
}

/// Aims at a round of two seconds and chooses.
fn choose(
    predictor: &mut impl Predictor,
    dirty: &PageSet<'_>,
    now: Nanos,
    (held, scratch): &mut (PageSet<'_>, Vec<u32>),
) -> anyhow::Result<f64> {
    let mut done = Ok(Pages::ZERO);
    let took = seconds(|| {
        predictor.aim(now, Nanos::from_secs(2));
        done = hold_back(dirty, predictor, HoldBack::Half, scratch, held);
    });
    anyhow::ensure!(done? == Pages(dirty.len().0 / 2), "half is held back");
    Ok(took)
}
