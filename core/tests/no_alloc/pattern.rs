use crate::{Numbers, format};
use dunlin_core::pageset::{PageSet, words_needed};
use dunlin_core::pattern::{
    Counters, HeatSlot, Profiler, ProfilerTables, Samples, Trail, WorkloadClass, distinct_in_all_windows,
};
use dunlin_core::units::{Bytes, BytesPerSec, Gfn, Nanos, Pages};
use std::hint::black_box;

const PAGES: Pages = Pages(10_000);
const TABLE: usize = PAGES.0 as usize;

pub(crate) fn drive(scratch: &mut [u64]) {
    let (intervals, rest) = scratch.split_at_mut(TABLE);
    let (sharing, rest) = rest.split_at_mut(TABLE);
    writes(intervals, sharing);
    windows(intervals, &mut rest[..words_needed(PAGES)]);
}

fn writes(intervals: &mut [u64], sharing: &mut [u64]) {
    let (mut trails, mut heat) = ([Trail::default(); 2], [HeatSlot::default(); 256]);
    let tables = ProfilerTables {
        intervals,
        sharing,
        trails: &mut trails,
        heat: &mut heat,
    };
    let mut profiler = Profiler::new(tables, Nanos::ZERO);
    let mut numbers = Numbers(1);
    for time in 0..100_000 {
        let (vcpu, gfn) = ((numbers.next() % 3) as u32, Gfn(numbers.next() % (PAGES.0 + 10)));
        if let Err(error) = profiler.on_write(vcpu, gfn, Nanos(time * 1000)) {
            format(error);
        }
    }
    let profile = profiler.profile(PAGES, PAGES, 2, Nanos::from_secs(1));
    format(profile.class);
    let counters = Counters {
        cpu: Some(Nanos::from_secs(1)),
        network: Some(Bytes(1 << 20)),
    };
    format(WorkloadClass::of(&profile, &counters, BytesPerSec(1 << 30)));
    let histogram = profiler.intervals().histogram();
    black_box((
        histogram.quantile(500),
        histogram.min_sum(Nanos(12_345)),
        histogram.buckets().count(),
    ));
    black_box((profiler.order().in_order(), profiler.order().hottest_tenth_milli()));
    black_box((profiler.sharing().shared_pages(), profiler.sharing().crossing_writes()));
    black_box(distinct_in_all_windows([Nanos(1), Nanos(9)], Pages(1), Nanos(5)));
}

fn windows(table: &mut [u64], storage: &mut [u64]) {
    let mut numbers = Numbers(2);
    let mut samples = Samples::new(table);
    for _ in 0..160 {
        let mut dirty = PageSet::new(storage, PAGES).expect("storage fits");
        for _ in 0..50 {
            dirty.insert(Gfn(numbers.next() % PAGES.0)).expect("in the set");
        }
        samples.on_window(&dirty).expect("in the table");
    }
    assert!(samples.curve(Nanos::from_secs(8)).saturation() > Pages(1000));
}
