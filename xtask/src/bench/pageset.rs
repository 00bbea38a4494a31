//! Finding dirty runs in the page set of a 64 GiB guest, and what that set costs.

use std::hint::black_box;

use dunlin_core::pageset::{PageSet, words_needed};
use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};

use super::Setting;
use super::figure::{Figure, Target};
use super::sampling::{Arm, interleave, seconds};

/// 64 GiB of 4 KiB pages.
const PAGES: Pages = Pages(1 << 24);
const REPETITIONS: usize = 9;
/// Looking at a clean set takes nanoseconds, so a sample is the mean of many looks.
const LOOKS: u32 = 1000;

pub(super) fn run(_: &Setting) -> anyhow::Result<Vec<Figure>> {
    let mut storage = vec![0; words_needed(PAGES)];
    let mut set = PageSet::new(&mut storage, PAGES)?;
    insert_tenth(&mut set)?;
    let digests = (digest_by_bits(set.words()), digest_by_set(&set));
    anyhow::ensure!(
        digests.0 == digests.1,
        "the set finds other runs than testing bit by bit"
    );
    let by_set = || Ok(seconds(|| _ = black_box(digest_by_set(black_box(&set)))));
    let by_bits = || Ok(seconds(|| _ = black_box(digest_by_bits(black_box(set.words())))));
    let dirty = interleave(REPETITIONS, vec![Arm::new("set", by_set), Arm::new("bits", by_bits)])?;
    let (by_set, by_bits) = (dirty.of("set"), dirty.of("bits"));

    let mut clean_storage = vec![0; words_needed(PAGES)];
    let clean_set = PageSet::new(&mut clean_storage, PAGES)?;
    let look = || {
        let took = seconds(|| {
            for _ in 0..LOOKS {
                black_box(black_box(&clean_set).next_run(Gfn(0), PAGES));
            }
        });
        Ok(took / f64::from(LOOKS))
    };
    let scan = || {
        Ok(seconds(|| {
            _ = black_box(black_box(clean_set.words()).iter().any(|&word| word != 0))
        }))
    };
    let clean = interleave(REPETITIONS, vec![Arm::new("look", look), Arm::new("scan", scan)])?;
    let (clean_look, clean_scan) = (clean.of("look"), clean.of("scan"));

    let state_bytes = words_needed(PAGES) as f64 * 8.0;
    Ok(vec![
        Figure::plain(
            "dirty runs of 64 GiB, 10 % random: page set",
            by_set.median() * 1e3,
            "ms",
        )
        .beside(format!("median of {}", by_set.len())),
        Figure::plain(
            "dirty runs of 64 GiB, 10 % random: bit by bit",
            by_bits.median() * 1e3,
            "ms",
        )
        .beside(format!("median of {}", by_bits.len())),
        Figure::plain(
            "finding dirty runs, times faster",
            by_bits.median() / by_set.median(),
            "ratio",
        )
        .target(Target::AtLeast(4.0))
        .beside("bit by bit over the same words"),
        Figure::plain(
            "clean 64 GiB, share of a scan",
            clean_look.median() / clean_scan.median(),
            "ratio",
        )
        .target(Target::AtMost(0.05))
        .beside(format!(
            "a linear scan of its words, {:.1} us",
            clean_scan.median() * 1e6
        )),
        Figure::plain(
            "one page set, share of guest memory",
            state_bytes / (PAGES.0 * PAGE_SIZE) as f64,
            "ratio",
        )
        .target(Target::AtMost(0.001))
        .beside("64 GiB of guest memory"),
    ])
}

/// Every page with probability 1/10, from a fixed seed.
fn insert_tenth(set: &mut PageSet<'_>) -> anyhow::Result<()> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for gfn in 0..PAGES.0 {
        // xorshift64, whose upper bits are good enough to draw a tenth.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if (state >> 32).is_multiple_of(10) {
            set.insert(Gfn(gfn))?;
        }
    }
    Ok(())
}

/// Uses every run, so that both ways of finding them end with the same work.
fn digest(sum: u64, first: u64, count: u64) -> u64 {
    sum.wrapping_add(first.wrapping_mul(count)).rotate_left(1)
}

fn digest_by_set(set: &PageSet<'_>) -> u64 {
    set.runs().fold(0, |sum, run| digest(sum, run.first.0, run.count.0))
}

/// The runs of set bits, each bit tested by itself.
fn digest_by_bits(words: &[u64]) -> u64 {
    let mut sum = 0;
    let mut first = None;
    for gfn in 0..PAGES.0 {
        let dirty = words[(gfn / 64) as usize] >> (gfn % 64) & 1 == 1;
        match first {
            None if dirty => first = Some(gfn),
            Some(begin) if !dirty => {
                sum = digest(sum, begin, gfn - begin);
                first = None;
            }
            _ => {}
        }
    }
    first.map_or(sum, |begin| digest(sum, begin, PAGES.0 - begin))
}
