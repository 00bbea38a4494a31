#![expect(clippy::float_arithmetic, reason = "distributions are measured with exact ones")]

use std::collections::{BTreeMap, BTreeSet};
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::specs;
use crate::units::Pages;
use crate::workload::{Generator, GeneratorState, Kind, Milli, PlanError, Spec, Step, Zipf};

fn generator(spec: &str, pages: u64, vcpus: u32, vcpu: u32) -> Generator {
    let spec = spec.parse::<Spec>().expect("a workload");
    Generator::new(&spec, Pages(pages), vcpus, vcpu, 42).expect("fits")
}

fn steps(spec: &str, pages: u64, count: usize) -> Vec<Step> {
    generator(spec, pages, 1, 0).take(count).collect()
}

const fn write(page: u64) -> Step {
    Step {
        page,
        kind: Kind::Write,
    }
}

/// How often each page is touched.
fn histogram(pages: u64, steps: impl IntoIterator<Item = Step>) -> Vec<u64> {
    let mut counts = vec![0; pages as usize];
    for step in steps {
        counts[step.page as usize] += 1;
    }
    counts
}

/// Checks counts against probabilities by Pearson's statistic: its mean is the number of cells less one, its standard
/// deviation the root of twice that; five of those are allowed, and the seed is fixed.
fn assert_distributed(counts: &[u64], probability: impl Fn(usize) -> f64) {
    let total = counts.iter().sum::<u64>() as f64;
    let terms = counts.iter().enumerate().map(|(cell, &count)| {
        let expected = probability(cell) * total;
        assert!(expected > 10.0, "too few draws to say anything");
        (count as f64 - expected).powi(2) / expected
    });
    let (statistic, cells) = (terms.sum::<f64>(), counts.len() as f64 - 1.0);
    let allowed = 5.0 * (2.0 * cells).sqrt();
    assert!(
        (statistic - cells).abs() < allowed,
        "statistic {statistic} over {cells} degrees of freedom"
    );
}

#[test]
fn idle_touches_nothing_but_goes_on() {
    let mut generator = generator("idle", 10, 1, 0);
    assert!(generator.by_ref().take(1000).all(|step| step.kind == Kind::Nothing));
    assert_eq!(generator.steps(), 1000);
}

#[test]
fn seq_goes_round() {
    let expected: Vec<Step> = (0..3).cycle().take(10).map(write).collect();
    assert_eq!(steps("seq", 3, 10), expected);
    let second: Vec<Step> = generator("seq", 7, 3, 1).take(5).collect();
    assert_eq!(second, [3, 4, 3, 4, 3].map(write), "vCPU 1 of 3 has pages 3 and 4 of 7");
}

#[test]
fn uniform_is_uniform_in_one_and_in_two_dimensions() {
    let pages = 500;
    let drawn = steps("uniform", pages, 1_000_000);
    assert!(drawn.iter().all(|step| step.kind == Kind::Write));
    assert_distributed(&histogram(pages, drawn.iter().copied()), |_| 1.0 / pages as f64);
    // Pairs of neighbouring draws, in 40 x 40 cells.
    let mut cells = vec![0; 1600];
    for pair in drawn.chunks_exact(2) {
        cells[(pair[0].page * 40 / pages * 40 + pair[1].page * 40 / pages) as usize] += 1;
    }
    let width = |cell: usize| (0..pages).filter(|page| page * 40 / pages == cell as u64).count() as f64 / pages as f64;
    let widths: Vec<f64> = (0..40).map(width).collect();
    assert_distributed(&cells, |cell| widths[cell / 40] * widths[cell % 40]);
}

#[test]
fn zipf_scatters_its_ranks_over_all_pages() {
    let pages = 1000;
    let mut counts = histogram(pages, steps("zipf:0.9", pages, 2_000_000));
    let hottest: Vec<usize> = {
        let mut order: Vec<usize> = (0..1000).collect();
        order.sort_by_key(|&page| std::cmp::Reverse(counts[page]));
        order[..10].to_vec()
    };
    let gaps = hottest
        .iter()
        .flat_map(|a| hottest.iter().map(move |b| a.abs_diff(*b)))
        .filter(|gap| *gap > 0);
    assert!(
        gaps.min().expect("ten pages") > 20,
        "the hottest pages are no neighbours: {hottest:?}"
    );
    counts.sort_unstable_by(|a, b| b.cmp(a));
    // Sorting favours the ends a little; the middle of the curve shows the law.
    let weight: f64 = (1..=pages).map(|k| (k as f64).powf(-0.9)).sum();
    for rank in [1usize, 2, 5, 10, 50, 200] {
        let expected = (rank as f64).powf(-0.9) / weight * 2_000_000.0;
        let error = counts[rank - 1] as f64 / expected - 1.0;
        assert!(error.abs() < 0.06, "rank {rank}: {} for {expected}", counts[rank - 1]);
    }
}

#[test]
fn hotset_gives_nine_of_ten_writes_to_the_hot_pages() {
    let pages = 400;
    let counts = histogram(pages, steps("hotset:0.1", pages, 2_000_000));
    assert_distributed(&counts, |page| if page < 40 { 0.9 / 40.0 } else { 0.1 / 360.0 });
    // With one page there is nothing cold.
    assert!(steps("hotset:0.999", 1, 1000).iter().all(|step| step.page == 0));
}

#[test]
fn lmbench_reads_two_of_five_and_writes_every_page_in_the_end() {
    for pages in [1, 2, 4, 5, 10, 11, 15, 50] {
        let drawn = steps("lmbench", pages, 50 * pages as usize);
        let in_order = drawn
            .iter()
            .map(|step| step.page)
            .eq((0..pages).cycle().take(drawn.len()));
        assert!(in_order, "{pages} pages");
        let reads = drawn.iter().filter(|step| step.kind == Kind::Read).count();
        let share = reads as f64 / drawn.len() as f64;
        assert!((share - 0.4).abs() < 0.021, "{pages} pages: {share} reads");
        for kind in [Kind::Read, Kind::Write] {
            let seen: BTreeSet<u64> = drawn
                .iter()
                .filter(|step| step.kind == kind)
                .map(|step| step.page)
                .collect();
            assert_eq!(seen.len() as u64, pages, "{kind:?} of {pages} pages");
        }
    }
}

#[test]
fn memcached_preheats_then_sets_what_is_popular() {
    let pages = 512;
    let drawn = steps("memcached", pages, 1_000_000);
    let (preheat, load) = drawn.split_at(pages as usize);
    assert_eq!(preheat, (0..pages).map(write).collect::<Vec<_>>());
    let gets = load.iter().filter(|step| step.kind == Kind::Read).count() as f64;
    assert!((gets / load.len() as f64 - 0.1).abs() < 0.002, "{gets} gets");
    // Four items per page, item i of rank r with i = r * stride: each page's probability is that of its items.
    let items = 4 * pages;
    let popularity = Zipf::new(Milli(990), items).probabilities();
    let stride = {
        let is_coprime = |stride: &u64| (2..=*stride).all(|d| !(stride.is_multiple_of(d) && items.is_multiple_of(d)));
        (items * 618 / 1000..).find(is_coprime).expect("some number is")
    };
    let mut probability = vec![0.0; pages as usize];
    for (rank, p) in popularity.into_iter().enumerate() {
        probability[(rank as u64 * stride % items / 4) as usize] += p;
    }
    assert_distributed(&histogram(pages, load.iter().copied()), |page| probability[page]);
}

#[test]
fn kernel_writes_short_lived_regions_in_order() {
    let pages = 4096;
    let drawn = steps("kernel", pages, 400_000);
    let reads: Vec<Step> = drawn.iter().copied().filter(|step| step.kind == Kind::Read).collect();
    assert!((reads.len() as f64 / drawn.len() as f64 - 0.25).abs() < 0.005);
    assert_distributed(&histogram(64, reads.iter().map(|step| write(step.page / 64))), |_| {
        1.0 / 64.0
    });
    let mut regions: Vec<(u64, u64)> = Vec::new();
    for page in drawn
        .iter()
        .filter(|step| step.kind == Kind::Write)
        .map(|step| step.page)
    {
        match regions.last_mut() {
            Some((first, count)) if page == *first + *count => *count += 1,
            _ => regions.push((page, 1)),
        }
    }
    regions.pop();
    // Two regions may follow each other without a gap and then look like one.
    let longest = regions.iter().filter(|(_, count)| *count > 271).count();
    assert!(longest < regions.len() / 50, "{longest} of {}", regions.len());
    assert!(regions.iter().all(|(_, count)| *count >= 16));
    let mean = regions.iter().map(|(_, count)| *count).sum::<u64>() as f64 / regions.len() as f64;
    assert!((mean - 143.5).abs() < 8.0, "mean size {mean}");
    let near = regions
        .iter()
        .filter(|(first, count)| first + count <= pages / 4)
        .count() as f64;
    let share = near / regions.len() as f64;
    assert!(
        (0.75..0.87).contains(&share),
        "{share} of the processes in the first quarter"
    );
    // A small guest has small processes.
    assert!(steps("kernel", 3, 1000).iter().all(|step| step.page < 3));
}

#[test]
fn shared_pages_are_everybodys_and_the_rest_is_divided() {
    let all: Vec<BTreeSet<u64>> = (0..3)
        .map(|vcpu| {
            generator("shared:0.25", 100, 3, vcpu)
                .take(20_000)
                .map(|step| step.page)
                .collect()
        })
        .collect();
    let own = |vcpu: u64| 25 + 25 * vcpu..50 + 25 * vcpu;
    for (vcpu, seen) in (0..).zip(&all) {
        assert!(
            seen.iter().copied().eq((0..25).chain(own(vcpu))),
            "vCPU {vcpu}: {seen:?}"
        );
    }
    let counts = histogram(100, generator("shared:0.25", 100, 3, 0).take(500_000));
    assert_distributed(&counts[..50], |_| 1.0 / 50.0);
    assert!(generator("shared:1", 10, 4, 3).take(1000).all(|step| step.page < 10));
}

#[test]
fn seeds_and_vcpus_make_different_sequences() {
    let spec: Spec = "uniform".parse().expect("a workload");
    let pages = |seed, vcpu| -> Vec<u64> {
        let generator = Generator::new(&spec, Pages(4000), 2, vcpu, seed).expect("fits");
        generator.take(50).map(|step| step.page % 2000).collect()
    };
    let sequences: BTreeSet<Vec<u64>> = [(1, 0), (1, 1), (2, 0), (2, 1), (u64::MAX, 0)]
        .map(|(s, v)| pages(s, v))
        .into();
    assert_eq!(sequences.len(), 5);
    assert_eq!(pages(1, 0), pages(1, 0));
}

#[test]
fn phases_follow_each_other_and_start_their_patterns_anew() {
    let drawn = steps("phases:(seq)*3+(memcached,ws=8KiB)*2+(idle)*1", 10, 12);
    let pages: Vec<_> = drawn
        .iter()
        .map(|step| (step.kind == Kind::Write).then_some(step.page))
        .collect();
    let round = [Some(0), Some(1), Some(2), Some(0), Some(1), None];
    assert_eq!(pages, [round, round].concat());
}

#[test]
fn batches_take_about_a_millisecond_and_end_with_their_phase() {
    for (spec, vcpus, batch) in [
        ("uniform", 1, 64),
        ("uniform,rate=12000", 1, 12),
        ("uniform,rate=12000", 4, 3),
        ("uniform,rate=1999", 1, 1),
        ("uniform,rate=1", 1, 1),
        ("uniform,rate=1000k", 1, 1000),
        ("uniform,rate=4000M", 1, 1024),
        ("idle", 1, 64),
        ("phases:(seq)*5+(seq)*9", 1, 5),
    ] {
        assert_eq!(generator(spec, 100, vcpus, 0).batch(), batch, "{spec}");
    }
    let mut generator = generator("phases:(seq,rate=2000)*3+(uniform)*100", 100, 1, 0);
    let batches: Vec<u64> = (0..6)
        .map(|_| {
            let batch = generator.batch();
            generator.nth(batch as usize - 1);
            batch
        })
        .collect();
    assert_eq!(batches, [2, 1, 64, 36, 2, 1]);
    assert_eq!((generator.phase_index(), generator.steps()), (1, 106));
}

#[test]
fn what_does_not_fit_is_named() {
    let spec: Spec = "uniform".parse().expect("a workload");
    let new = |pages, vcpus, vcpu| Generator::new(&spec, Pages(pages), vcpus, vcpu, 1).map(|_| ());
    assert_eq!(new(10, 5, 0), Err(PlanError::Vcpus { asked: 5 }));
    assert_eq!(new(10, 2, 2), Err(PlanError::NoSuchVcpu { vcpu: 2, vcpus: 2 }));
    assert_eq!(
        new(1, 2, 0),
        Err(PlanError::WorkingSetTooSmall {
            ws: Pages(1),
            least: Pages(2)
        })
    );
}

proptest! {
    #[test]
    fn vcpus_keep_to_their_parts(spec in specs(4), pages in 400u64..500, vcpus in 1u32..=4) {
        let mut owner = BTreeMap::new();
        for vcpu in 0..vcpus {
            let generator = Generator::new(&spec, Pages(pages), vcpus, vcpu, 5).expect("fits");
            for step in generator.take(2000).filter(|step| step.kind != Kind::Nothing) {
                prop_assert!(step.page < pages);
                let first = *owner.entry(step.page).or_insert(vcpu);
                prop_assert!(first == vcpu || spec.shares_pages(), "page {} of vCPUs {first} and {vcpu}", step.page);
            }
        }
    }

    #[test]
    fn steps_at_once_are_those_of_the_iterator(spec in specs(2), turns in prop::collection::vec((1u64..900, 1u64..900), 1..20)) {
        let mut single = Generator::new(&spec, Pages(400), 2, 1, 9).expect("fits");
        let mut many = single.clone();
        for (steps, fails_at) in turns {
            let mut touched = vec![];
            let before = many.steps();
            // What goes on for ever has no number of steps left that would count down.
            if many.phase().left != u64::MAX {
                prop_assert_eq!(many.left_in_phase(), many.phase().left);
            }
            let result = many.run_steps(steps, |step| {
                touched.push(step);
                if touched.len() as u64 == fails_at { Err(step) } else { Ok(()) }
            });
            prop_assert_eq!(result.err(), (touched.len() as u64 == fails_at).then(|| touched[touched.len() - 1]));
            let done = usize::try_from(many.steps() - before).expect("a few");
            let expected = single.by_ref().take(done).filter(|step| step.kind != Kind::Nothing);
            prop_assert!(expected.eq(touched));
            prop_assert_eq!((many.state(), many.phase_index()), (single.state(), single.phase_index()));
        }
    }

    #[test]
    fn resuming_goes_on_as_if_nothing_had_happened(spec in specs(1), at in 0usize..3000) {
        let mut whole = Generator::new(&spec, Pages(400), 1, 0, 9).expect("fits");
        if at > 0 {
            whole.nth(at - 1);
        }
        let state = whole.state();
        let mut resumed = Generator::new(&spec, Pages(400), 1, 0, 9).expect("fits");
        prop_assert!(resumed.resume(state));
        prop_assert_eq!((resumed.steps(), resumed.phase_index()), (at as u64, whole.phase_index()));
        prop_assert!(resumed.take(500).eq(whole.take(500)));
    }

    #[test]
    fn no_state_makes_it_panic(
        spec in specs(1),
        (step, random) in any::<(u64, u64)>(),
        cursor in prop_oneof![0u64..500, any::<u64>()],
        counter in prop_oneof![0u64..500, any::<u64>()],
    ) {
        let state = std::format!("{{\"step\":{step},\"random\":{random},\"cursor\":{cursor},\"counter\":{counter}}}");
        let state: GeneratorState = serde_json::from_str(&state).expect("any numbers");
        let mut generator = Generator::new(&spec, Pages(400), 1, 0, 9).expect("fits");
        let before = generator.state();
        if generator.resume(state) {
            prop_assert!(generator.take(2000).all(|step| step.page < 400));
        } else {
            prop_assert_eq!(generator.state(), before);
        }
    }
}
