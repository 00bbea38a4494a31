//! What the measurements say of every kind of workload there is.

use super::*;
use crate::workload::{Generator, Kind, Spec};

/// A profiler fed with `steps` steps of each vCPU, in turn, a microsecond apart.
fn profiled<T>(spec: &str, pages: u64, vcpus: u32, steps: u64, look: impl FnOnce(&Profiler<'_>) -> T) -> T {
    let spec: Spec = spec.parse().expect("a workload");
    let (mut intervals, mut sharing) = (vec![0; pages as usize], vec![0; pages as usize]);
    let (mut trails, mut heat) = ([Trail::default(); 4], vec![HeatSlot::default(); 4096]);
    let tables = ProfilerTables {
        intervals: &mut intervals,
        sharing: &mut sharing,
        trails: &mut trails,
        heat: &mut heat,
    };
    let mut profiler = Profiler::new(tables, Nanos::ZERO);
    let mut generators: Vec<_> = (0..vcpus)
        .map(|vcpu| Generator::new(&spec, Pages(pages), vcpus, vcpu, 1).expect("a workload that fits"))
        .collect();
    for step in 0..steps {
        for (vcpu, generator) in (0..).zip(&mut generators) {
            let next = generator.next().expect("generators do not end");
            if next.kind == Kind::Write {
                let at = Nanos::from_micros(step);
                profiler.on_write(vcpu, Gfn(next.page), at).expect("in all tables");
            }
        }
    }
    look(&profiler)
}

fn class(spec: &str, pages: u64, steps: u64) -> AccessClass {
    profiled(spec, pages, 2, steps, |profiler| profiler.order().class())
}

#[test]
fn every_generator_has_the_class_it_is_made_for() {
    const PAGES: u64 = 8192;
    // Per vCPU, which has half of the pages: less than once round, and ten times.
    let (short, long) = (2048, 40_960);
    let expected = [
        ("idle", AccessClass::Unknown, AccessClass::Unknown),
        ("seq", AccessClass::Stride, AccessClass::Loop),
        ("lmbench", AccessClass::Stride, AccessClass::Loop),
        ("uniform", AccessClass::Random, AccessClass::Random),
        ("zipf:0.3", AccessClass::Random, AccessClass::Random),
        ("zipf:0.8", AccessClass::HotCold, AccessClass::HotCold),
        ("zipf:0.99", AccessClass::HotCold, AccessClass::HotCold),
        ("zipf:3", AccessClass::HotCold, AccessClass::HotCold),
        ("hotset:0.01", AccessClass::HotCold, AccessClass::HotCold),
        // Half a write per page does not tell hot from cold yet.
        ("hotset:0.1", AccessClass::Random, AccessClass::HotCold),
        // The hottest tenth is no hotter than the nine tenths of writes that half of the pages get.
        ("hotset:0.5", AccessClass::Random, AccessClass::Random),
        // Slabs are preheated in order; requests come after.
        ("memcached", AccessClass::Stride, AccessClass::HotCold),
        // Processes write their memory from start to end, soon where others did before them.
        ("kernel", AccessClass::Stride, AccessClass::Loop),
        ("shared:0.5", AccessClass::Random, AccessClass::Random),
    ];
    for (spec, at_first, later) in expected {
        assert_eq!(class(spec, PAGES, short), at_first, "{spec} at first");
        assert_eq!(class(spec, PAGES, long), later, "{spec} later");
    }
}

#[test]
fn classes_hold_where_the_sample_is_a_small_part_of_the_pages() {
    for (spec, expected) in [
        ("uniform", AccessClass::Random),
        ("zipf:0.99", AccessClass::HotCold),
        ("hotset:0.1", AccessClass::HotCold),
        ("seq", AccessClass::Loop),
    ] {
        assert_eq!(class(spec, 1 << 17, 600_000), expected, "{spec}");
    }
}

#[test]
fn the_share_of_the_hottest_tenth_is_that_of_the_law() {
    let share = |spec: &str, pages: u64| {
        profiled(spec, pages, 1, 1_000_000, |profiler| {
            profiler.order().hottest_tenth_milli()
        })
        .expect("writes")
    };
    // 90 % of the writes, and a little of what chance adds.
    assert!(
        (890..=920).contains(&share("hotset:0.1", 2000)),
        "{}",
        share("hotset:0.1", 2000)
    );
    assert!(
        (100..=125).contains(&share("uniform", 2000)),
        "{}",
        share("uniform", 2000)
    );
    // Σ k^-1 to 200 by Σ k^-1 to 2000: 5.878 / 8.178.
    assert!(
        (700..=740).contains(&share("zipf:1", 2000)),
        "{}",
        share("zipf:1", 2000)
    );
    // Of 50 000 pages every 16th or so is sampled: chance has a say in how many hot ones.
    assert!(
        (780..=920).contains(&share("hotset:0.1", 50_000)),
        "{}",
        share("hotset:0.1", 50_000)
    );
}

#[test]
fn shared_pages_are_found() {
    // Of 1000 pages 400 are shared by 4 vCPUs, 150 are each one's own.
    let (pages, crossing, writers) = profiled("shared:0.4", 1000, 4, 40_000, |profiler| {
        let sharing = profiler.sharing();
        let milli = |share: Option<crate::units::Ratio>| share.expect("writes").milli();
        (
            milli(sharing.shared_pages()),
            milli(sharing.crossing_writes()),
            [1, 2, 3, 4].map(|vcpus| sharing.pages_written_by(vcpus).0),
        )
    });
    assert_eq!((pages, writers), (400, [600, 0, 0, 400]));
    // 400 of 550 writes go to shared pages, three of four of them after another vCPU: 545.
    assert!((535..=555).contains(&crossing), "{crossing}");
    for spec in ["seq", "uniform", "kernel", "memcached"] {
        let shares = profiled(spec, 1000, 4, 10_000, |profiler| {
            (profiler.sharing().shared_pages(), profiler.sharing().crossing_writes())
        });
        assert_eq!(
            shares,
            (Some(crate::units::Ratio::ZERO), Some(crate::units::Ratio::ZERO)),
            "{spec}"
        );
    }
}

#[test]
fn curves_have_the_shape_of_their_law() {
    let curve = |spec: &str| {
        let end = Nanos::from_micros(100_000);
        profiled(spec, 2000, 1, 100_000, |profiler| {
            profiler.profile(Pages(4000), Pages(2000), 1, end).curve
        })
    };
    // A page per microsecond until all have been written.
    let seq = curve("seq");
    let asked = [1 << 10, 1 << 15, 1 << 20, 1 << 21, 1 << 26].map(|window| seq.pages_in(Nanos(window)).0);
    assert_eq!(asked, [1, 32, 1048, 2000, 2000]);
    // 2000·(1 − (1 − 1/2000)^n) after n writes.
    let uniform = curve("uniform");
    for (window, pages) in [(1 << 18, 245), (1 << 20, 816), (1 << 22, 1754), (1 << 25, 2000)] {
        let seen = uniform.pages_in(Nanos(window)).0;
        assert!(seen.abs_diff(pages) <= 12, "{window} ns: {seen}");
    }
    assert_eq!(curve("idle"), WwsCurve::new(curve("idle").points()).expect("a curve"));
    assert_eq!(curve("idle").saturation(), Pages::ZERO);
}
