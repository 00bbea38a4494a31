//! Predictors against naive models, and at the edges.
#![expect(
    clippy::float_arithmetic,
    reason = "the matrix and the models are computed in floating point"
)]

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

const WINDOW_MS: u64 = 50;

fn tell(predictor: &mut impl Predictor, windows: &[Vec<u64>]) {
    for (number, window) in windows.iter().enumerate() {
        let end = Nanos::from_millis(WINDOW_MS * (number as u64 + 1));
        predictor.on_window(window, end).expect("room for every page");
    }
}

fn written(word: &[u64], page: usize) -> bool {
    word.get(page / 64).is_some_and(|word| word >> (page % 64) & 1 == 1)
}

/// The scores of the paper's model, by its matrix: transition counts over the last 160 windows, each row by its sum.
fn scores_by_matrix(windows: &[Vec<u64>], pages: usize) -> Vec<f64> {
    let recent = &windows[windows.len().saturating_sub(160)..];
    let mut counts = vec![vec![0.0; pages]; pages];
    for pair in recent.windows(2) {
        for from in (0..pages).filter(|&page| written(&pair[0], page)) {
            for (to, count) in counts[from].iter_mut().enumerate() {
                *count += f64::from(u8::from(written(&pair[1], to)));
            }
        }
    }
    let mut scores = vec![0.0; pages];
    let Some(last) = recent.last() else { return scores };
    for row in (0..pages).filter(|&page| written(last, page)).map(|page| &counts[page]) {
        let sum: f64 = row.iter().sum();
        if sum > 0.0 {
            scores
                .iter_mut()
                .zip(row)
                .for_each(|(score, count)| *score += count / sum);
        }
    }
    scores
}

fn windows(pages: usize, most: usize) -> impl Strategy<Value = Vec<Vec<u64>>> {
    let words = pages.div_ceil(64);
    let mask = u64::MAX >> (words * 64 - pages);
    let window = prop::collection::vec(
        prop_oneof![Just(0), any::<u64>(), (0..64u32).prop_map(|bit| 1 << bit)],
        words,
    );
    prop::collection::vec(window, 0..most).prop_map(move |mut windows| {
        for window in &mut windows {
            if let Some(last) = window.last_mut() {
                *last &= mask;
            }
        }
        windows
    })
}

/// The words of scores that `score_word` gives are those that `score` gives.
fn words_agree(predictor: &impl Predictor, pages: u64) -> Result<(), TestCaseError> {
    for index in 0..pages.div_ceil(64) as usize + 1 {
        for mask in [u64::MAX, 0x8000_0000_0000_0001, 0, 0xf0f0] {
            let mut scores = [7; 64];
            predictor.score_word(index, mask, &mut scores[..mask.count_ones() as usize]);
            let set = (0..64).filter(|bit| mask >> bit & 1 == 1);
            for (score, bit) in scores.iter().zip(set) {
                prop_assert_eq!(*score, predictor.score(Gfn(index as u64 * 64 + bit)).0);
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn markov_equals_the_matrix(windows in windows(70, 30), long in any::<bool>()) {
        // The ring holds 160 windows: a long sequence goes beyond it.
        let windows: Vec<_> = windows.iter().cycle().take(if long { 20 * windows.len() } else { windows.len() }).cloned().collect();
        let pages = Pages(70);
        let mut storage = vec![1; Markov::words_needed(pages, pages)];
        let mut markov = Markov::new(&mut storage, pages, pages).expect("storage fits");
        tell(&mut markov, &windows);
        markov.aim(Nanos::ZERO, Nanos::from_secs(1));
        for (page, exact) in scores_by_matrix(&windows, 70).into_iter().enumerate() {
            let score = f64::from(markov.score(Gfn(page as u64)).0) / f64::from(1 << 24);
            prop_assert!((score - exact).abs() < 160.0 / f64::from(1 << 24), "page {page}: {score} is not {exact}");
        }
        words_agree(&markov, 70)?;
    }

    #[test]
    fn frequency_counts_syncs(windows in windows(100, 60), per_sync in 1..6usize) {
        let pages = Pages(100);
        let mut storage = vec![1; Frequency::words_needed(pages)];
        let span = Nanos::from_millis(WINDOW_MS * per_sync as u64);
        let mut frequency = Frequency::new(&mut storage, pages, span).expect("storage fits");
        tell(&mut frequency, &windows);
        frequency.aim(Nanos::ZERO, Nanos::ZERO);
        // All but the sync under way, which has at least one window.
        let done = windows.len().saturating_sub(1) / per_sync;
        let syncs: Vec<_> = windows.chunks(per_sync).take(done).collect();
        for page in 0..100 {
            let last = &syncs[syncs.len().saturating_sub(3)..];
            let count = last.iter().filter(|sync| sync.iter().any(|window| written(window, page))).count();
            let expected = [0, 1 << 22, 1 << 24, 1 << 24][count];
            prop_assert_eq!(frequency.score(Gfn(page as u64)), Score(expected), "page {}", page);
        }
        words_agree(&frequency, 100)?;
    }

    #[test]
    fn ppm_equals_counting_by_hand(windows in windows(100, 40), horizon in 1..9u64) {
        let pages = Pages(100);
        let mut storage = vec![1; Ppm::words_needed(pages)];
        let mut ppm = Ppm::new(&mut storage, pages, Nanos::from_millis(WINDOW_MS)).expect("storage fits");
        tell(&mut ppm, &windows);
        ppm.aim(Nanos::ZERO, Nanos::from_millis(WINDOW_MS * horizon));
        // What followed (older, newer), in 256ths, faded by an eighth per span, rounded up, so that what was seen once is never
        // forgotten; pages count once they were written.
        let done = windows.len().saturating_sub(1);
        let mut counts = BTreeMap::<(bool, bool), [u64; 2]>::new();
        let (mut histories, mut seen) = (vec![(false, false); 100], [false; 100]);
        for window in &windows[..done] {
            counts.values_mut().flatten().for_each(|count| *count -= *count / 8);
            for page in 0..100 {
                let now = written(window, page);
                if seen[page] {
                    counts.entry(histories[page]).or_default()[usize::from(now)] += 256;
                }
                seen[page] |= now;
                histories[page] = (histories[page].1, now);
            }
        }
        let sum = |keep: &dyn Fn((bool, bool)) -> bool| {
            let kept = counts.iter().filter(|(context, _)| keep(**context));
            let sums = kept.fold([0; 2], |sum, (_, count)| [sum[0] + count[0], sum[1] + count[1]]);
            sums.map(|sum| sum as f64 / 256.0)
        };
        let blend = |shorter: f64, [without, with]: [f64; 2]| {
            let different = f64::from(u8::from(without > 0.0)) + f64::from(u8::from(with > 0.0));
            if different == 0.0 { shorter } else { (with + different * shorter) / (without + with + different) }
        };
        let probability = |context: (bool, bool)| {
            let order_0 = blend(0.5, sum(&|_| true));
            let order_1 = blend(order_0, sum(&|(_, newer)| newer == context.1));
            blend(order_1, sum(&|other| other == context))
        };
        for page in 0..100 {
            let mut context = histories[page];
            let mut none = 1.0;
            for _ in 0..horizon {
                none *= 1.0 - probability(context);
                context = (context.1, false);
            }
            let expected = if seen[page] { 1.0 - none } else { 0.0 };
            let score = f64::from(ppm.score(Gfn(page as u64)).0) / f64::from(1 << 24);
            prop_assert!((score - expected).abs() < 0.002, "page {page}: {score} is not {expected}");
        }
        words_agree(&ppm, 100)?;
    }

    #[test]
    fn hazard_never_falls_with_the_horizon_and_words_agree(windows in windows(150, 100), shorter in 1..4000u64, more in 0..4000u64) {
        let pages = Pages(150);
        let mut storage = vec![1; Hazard::words_needed(pages)];
        let mut hazard = Hazard::new(&mut storage, pages).expect("storage fits");
        tell(&mut hazard, &windows);
        let now = Nanos::from_millis(WINDOW_MS * windows.len() as u64 + 10);
        hazard.aim(now, Nanos::from_millis(shorter));
        let before: Vec<_> = (0..150).map(|page| hazard.score(Gfn(page))).collect();
        words_agree(&hazard, 150)?;
        hazard.aim(now, Nanos::from_millis(shorter + more));
        for (page, before) in before.into_iter().enumerate() {
            prop_assert!(hazard.score(Gfn(page as u64)) >= before, "page {}", page);
            let seen = windows.iter().any(|window| written(window, page));
            prop_assert!(seen || before == Score::NONE, "page {} was never written", page);
        }
    }

    #[test]
    fn successors_count_like_a_map(writes in prop::collection::vec((0..6u64, 0..2u16), 2..200)) {
        // No page has more successors than are kept besides itself and one: with 6 pages some are replaced, so only
        // sequences over 4 compare exactly.
        let pages = Pages(4);
        let mut storage = vec![1; Successors::words_needed(pages)];
        let mut successors = Successors::new(&mut storage, pages).expect("storage fits");
        let mut counts = BTreeMap::<u64, BTreeMap<u64, f64>>::new();
        let mut last = [None; 2];
        for (at, &(page, vcpu)) in writes.iter().enumerate() {
            let page = page % 4;
            successors.on_write(Gfn(page), vcpu, Nanos(at as u64 * 1000)).expect("in range");
            if let Some(from) = last[usize::from(vcpu)].replace(page) {
                let row = counts.entry(from).or_default();
                row.values_mut().for_each(|count| *count *= 15.0 / 16.0);
                *row.entry(page).or_default() += 1.0;
            }
        }
        // One write ahead: each vCPU's last page leads to its successors.
        let span = (writes.len() as u64 - 1) * 1000;
        successors.aim(Nanos(span), Nanos(span.div_ceil(writes.len() as u64)));
        for page in 0..4 {
            let reach = last.iter().flatten().filter_map(|from| {
                let row = counts.get(from)?;
                Some(row.get(&page).copied().unwrap_or(0.0) / row.values().sum::<f64>())
            });
            let expected = reach.fold(0.0, f64::max);
            let score = f64::from(successors.score(Gfn(page)).0) / f64::from(1 << 24);
            prop_assert!((score - expected).abs() < 0.01, "page {page}: {score} is not {expected}");
        }
    }
}

proptest! {
    #[test]
    fn many_writes_at_once_are_the_same_as_one_by_one(writes in prop::collection::vec((0..70u64, 0..3u16, 0..200u64), 0..300)) {
        let pages = Pages(64);
        let mut at = 0;
        let writes: Vec<_> = writes.into_iter().map(|(page, vcpu, ms)| {
            at += ms;
            Write { gfn: Gfn(page), vcpu, at: Nanos::from_millis(at) }
        }).collect();
        let mut storages = [[(); 2].map(|()| vec![0; Hazard::words_needed(pages)]), [(); 2].map(|()| vec![0; Successors::words_needed(pages)])];
        let [[a, b], [c, d]] = &mut storages;
        let hazard = |words| AnyPredictor::Hazard(Hazard::new(words, pages).expect("storage fits"));
        let successors = |words| AnyPredictor::Successors(Successors::new(words, pages).expect("storage fits"));
        for [mut once, mut single] in [[hazard(a), hazard(b)], [successors(c), successors(d)]] {
            let outside = writes.iter().filter(|write| write.gfn.0 >= 64).count() as u64;
            let expected = if outside == 0 { Ok(()) } else { Err(PredictError::NoRoom { pages: Pages(outside) }) };
            prop_assert_eq!(once.on_writes(&writes), expected);
            for write in &writes {
                let room = single.on_write(write.gfn, write.vcpu, write.at);
                prop_assert_eq!(room.is_ok(), write.gfn.0 < 64);
            }
            prop_assert_eq!(once.overlooked(), single.overlooked());
            for predictor in [&mut once, &mut single] {
                predictor.aim(Nanos::from_millis(at), Nanos::from_millis(500));
            }
            for page in 0..64 {
                prop_assert_eq!(once.score(Gfn(page)), single.score(Gfn(page)));
            }
        }
    }
}

#[test]
fn a_cycle_in_true_order_is_walked_as_far_as_the_horizon() {
    let pages = Pages(10);
    let mut storage = vec![0; Successors::words_needed(pages)];
    let mut successors = Successors::new(&mut storage, pages).expect("storage fits");
    for step in 0..=100 {
        successors
            .on_write(Gfn(step % 10), 0, Nanos(step * 1000))
            .expect("in range");
    }
    // 101 writes in 100 us: three in 3 us, after page 0.
    successors.aim(Nanos(100_000), Nanos(3000));
    let scores: Vec<_> = (0..10).map(|page| successors.score(Gfn(page))).collect();
    assert_eq!(scores[1..4], [Score::CERTAIN; 3]);
    assert_eq!(scores[4..], [Score::NONE; 6]);
    // Marks of earlier aims do not come back when the aims' numbers do.
    for _ in 0..300 {
        successors.aim(Nanos(100_000), Nanos(1000));
        assert_eq!(successors.score(Gfn(2)), Score::NONE);
        assert_eq!(successors.score(Gfn(1)), Score::CERTAIN);
    }
    let outside = successors.on_write(Gfn(10), 0, Nanos(200_000));
    assert_eq!(outside, Err(PredictError::NoRoom { pages: Pages(1) }));
    assert_eq!(successors.overlooked(), Pages(1));
}

/// A memoryless page of mean interval µ is written within H with 1 − e^(−H/µ), whatever its age; here asked with a quarter
/// and half of the weight on 2H and 4H.
#[test]
fn hazard_knows_a_memoryless_writer() {
    let pages = Pages(2048);
    let mut storage = vec![0; Hazard::words_needed(pages)];
    let mut hazard = Hazard::new(&mut storage, pages).expect("storage fits");
    let mut state = 1_u64;
    let mut window = vec![0; 32];
    for number in 1..=1200 {
        window.fill(0);
        for page in 0..2048 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            // Once in twenty windows: a mean interval of one second.
            if (state >> 33).is_multiple_of(20) {
                window[page / 64] |= 1 << (page % 64);
            }
        }
        hazard
            .on_window(&window, Nanos::from_millis(50 * number))
            .expect("room for every page");
    }
    let horizon = 0.5;
    hazard.aim(Nanos::from_secs(60), Nanos::from_millis(500));
    let within = |t: f64| 1.0 - 0.95_f64.powf(t * 20.0);
    let expected = 0.5 * within(horizon) + 0.25 * within(2.0 * horizon) + 0.25 * within(4.0 * horizon);
    let mean = (0..2048).map(|page| f64::from(hazard.score(Gfn(page)).0)).sum::<f64>() / 2048.0 / f64::from(1 << 24);
    assert!((mean - expected).abs() < 0.03, "{mean} is not {expected}");
}

/// Pages written every two seconds one after the other: those due within the round score highest, then those due soonest.
#[test]
fn hazard_knows_a_periodic_writer() {
    let pages = Pages(640);
    let mut storage = vec![0; Hazard::words_needed(pages)];
    let mut hazard = Hazard::new(&mut storage, pages).expect("storage fits");
    let mut window = vec![0_u64; 10];
    for number in 0..400 {
        window.fill(0);
        for page in number % 40 * 16..(number % 40 + 1) * 16 {
            window[page / 64] |= 1 << (page % 64);
        }
        hazard
            .on_window(&window, Nanos::from_millis(50 * (number as u64 + 1)))
            .expect("room for every page");
    }
    // Ten of the forty groups are due within half a second, and the next ten within a second.
    hazard.aim(Nanos::from_secs(20), Nanos::from_millis(500));
    let score = |group: u64| hazard.score(Gfn(group * 16)).0;
    assert!((0..9).all(|group| score(group) > score(10)), "due within the round");
    assert!(
        (11..19).all(|group| score(group) > score(25)),
        "due in the round after it"
    );
    assert!(score(5) > Score::EVEN.0 && score(30) < Score::EVEN.0);
}

/// A page goes cold: its score falls with its age and ends at nothing.
#[test]
fn hazard_lets_silent_pages_go_cold() {
    let pages = Pages(128);
    let mut storage = vec![0; Hazard::words_needed(pages)];
    let mut hazard = Hazard::new(&mut storage, pages).expect("storage fits");
    for number in 1..=2000_u64 {
        // All pages every 200 ms; those of the first word fall silent one after the other, the last of them after 20 s.
        let due = if number % 4 == 0 { u64::MAX } else { 0 };
        let silent = (number + 4 * 63).saturating_sub(400).div_ceil(4).min(64);
        let window = [due & u64::MAX.checked_shr(silent as u32).unwrap_or(0), due];
        hazard
            .on_window(&window, Nanos::from_millis(50 * number))
            .expect("room for every page");
        if number == 420 {
            // The last to fall silent, five means ago: none of the others was ever written after so long.
            hazard.aim(Nanos::from_secs(21), Nanos::from_secs(1));
            assert!(
                hazard.score(Gfn(0)) < Score(Score::EVEN.0 / 2),
                "{:?}",
                hazard.score(Gfn(0))
            );
        }
    }
    hazard.aim(Nanos::from_secs(100), Nanos::from_secs(1));
    assert_eq!(hazard.score(Gfn(0)), Score::NONE, "idle for 400 of its means");
    assert!(
        hazard.score(Gfn(64)) > Score(15_000_000),
        "still written five times a second"
    );
}

#[test]
fn storage_is_asked_for_by_name() {
    let pages = Pages(1000);
    let too_small = |needed: usize| PredictError::StorageTooSmall {
        needed,
        given: needed - 1,
    };
    let words = Hazard::words_needed(pages);
    assert_eq!(
        Hazard::new(&mut vec![0; words - 1], pages).expect_err("short"),
        too_small(words)
    );
    let words = Markov::words_needed(pages, pages);
    assert_eq!(
        Markov::new(&mut vec![0; words - 1], pages, pages).expect_err("short"),
        too_small(words)
    );
    let words = Successors::words_needed(pages);
    assert_eq!(
        Successors::new(&mut vec![0; words - 1], pages).expect_err("short"),
        too_small(words)
    );
    let words = Ppm::words_needed(pages);
    assert_eq!(
        Ppm::new(&mut vec![0; words - 1], pages, Nanos(1)).expect_err("short"),
        too_small(words)
    );
    let words = Frequency::words_needed(pages);
    assert_eq!(
        Frequency::new(&mut vec![0; words - 1], pages, Nanos(1)).expect_err("short"),
        too_small(words)
    );
    for words in [
        Hazard::words_needed,
        Successors::words_needed,
        Ppm::words_needed,
        Frequency::words_needed,
    ] {
        assert_eq!(words(Pages(u64::MAX)), usize::MAX);
    }
    assert_eq!(Markov::words_needed(Pages(u64::MAX), Pages(1)), usize::MAX);
}

/// The documented memory for the largest guest, 16 TiB, and that its arithmetic does not overflow.
#[test]
fn the_largest_guest_has_a_size() {
    let pages = Pages(1 << 32);
    assert_eq!(Hazard::words_needed(pages) as u64 >> 32, 1);
    assert_eq!(Successors::words_needed(pages) as u64 >> 32, 4);
    assert_eq!(Ppm::words_needed(pages) as u64 >> 26, 4);
    assert_eq!(Frequency::words_needed(pages) as u64 >> 26, 4);
    // 20 bytes per page of the working set, half a byte per page of the guest.
    let words = Markov::words_needed(pages, pages) as u64;
    assert_eq!(words >> 25, 160 * 2 + 1);
}

/// Every predictor, with guests of no page, one and a few, through silence, days, and times that go back.
#[test]
fn nothing_overflows_at_the_edges() {
    for pages in [0, 1, 63, 64, 65, 200].map(Pages) {
        let mut storages: [Vec<u64>; 5] = [
            vec![0; Frequency::words_needed(pages)],
            vec![0; Markov::words_needed(pages, pages)],
            vec![0; Successors::words_needed(pages)],
            vec![0; Ppm::words_needed(pages)],
            vec![0; Hazard::words_needed(pages)],
        ];
        let [a, b, c, d, e] = &mut storages;
        let all = [
            AnyPredictor::Never(Never),
            AnyPredictor::Frequency(Frequency::new(a, pages, Nanos(0)).expect("storage fits")),
            AnyPredictor::Markov(Markov::new(b, pages, pages).expect("storage fits")),
            AnyPredictor::Successors(Successors::new(c, pages).expect("storage fits")),
            AnyPredictor::Ppm(Ppm::new(d, pages, Nanos(0)).expect("storage fits")),
            AnyPredictor::Hazard(Hazard::new(e, pages).expect("storage fits")),
        ];
        let day = Nanos::from_secs(24 * 3600);
        let times = [1, 2, 50_000_000, day.0, 2 * day.0, 10, 365 * day.0, u64::MAX].map(Nanos);
        for mut predictor in all {
            predictor.aim(Nanos(5), day);
            for (number, &at) in times.iter().enumerate() {
                let full = predictor.on_window(&[u64::MAX; 4], at);
                let outside = 256 - pages.0;
                match &predictor {
                    AnyPredictor::Never(_) | AnyPredictor::Successors(_) => assert_eq!(full, Ok(())),
                    _ => {
                        assert_eq!(full, Err(PredictError::NoRoom { pages: Pages(outside) }));
                        assert_eq!(predictor.overlooked(), Pages(outside * (number as u64 + 1)));
                    }
                }
                assert_eq!(predictor.on_window(&[], at), Ok(()));
                for horizon in [Nanos::ZERO, Nanos(1), day, Nanos(u64::MAX)] {
                    predictor.aim(at, horizon);
                    predictor.aim(Nanos(u64::MAX), horizon);
                    assert_eq!(predictor.score(Gfn(pages.0)), Score::NONE);
                    assert_eq!(predictor.score(Gfn(u64::MAX)), Score::NONE);
                    predictor.score(Gfn(0));
                }
            }
            for at in times {
                let room = predictor.on_write(Gfn(0), 70, at);
                let needs_room = matches!(&predictor, AnyPredictor::Successors(_) | AnyPredictor::Hazard(_));
                assert_eq!(room.is_ok(), pages.0 > 0 || !needs_room);
            }
            predictor.aim(Nanos(u64::MAX), Nanos(u64::MAX));
        }
    }
}
