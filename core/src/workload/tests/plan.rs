use std::collections::HashSet;
use std::vec::Vec;

use proptest::prelude::*;

use super::{boot, specs};
use crate::units::{Bytes, Gfn, PAGE_SIZE, Pages};
use crate::workload::layout::{HOLE, MAX_MEMORY, WORKLOAD};
use crate::workload::plan::part;
use crate::workload::{Plan, PlanError, Spec};

const GIB: u64 = 1 << 30;

fn plan(spec: &str, memory: u64, vcpus: u32) -> Result<Plan, PlanError> {
    Plan::new(&spec.parse::<Spec>().expect("a workload"), Bytes(memory), vcpus)
}

#[test]
fn everything_has_its_place_in_a_small_guest() {
    let plan = plan("uniform", 64 << 20, 1).expect("fits");
    // 15 872 pages lie behind the fixed places; a ledger of 8 pages has 16 384 entries.
    assert_eq!(plan.ws(), Pages(15_864));
    assert_eq!(plan.ledger(0), (WORKLOAD, 0..15_864));
    assert_eq!(plan.gfn(0), Gfn(0x200 + 8));
    assert_eq!(plan.gfn(15_863), Gfn(16_383));
    assert_eq!(plan.end_gfn(), Gfn(16_384));
    assert_eq!(plan.ws_frames()[0], Gfn(0x208)..Gfn(16_384));
    assert!(plan.ws_frames()[1].is_empty());
}

#[test]
fn vcpus_have_ledgers_of_their_own() {
    let plan = plan("uniform,ws=404KiB", 64 << 20, 4).expect("fits");
    assert_eq!(
        [0, 1, 2, 3].map(|vcpu| plan.part(vcpu)),
        [0..26, 26..51, 51..76, 76..101]
    );
    assert_eq!(plan.ledger(0), (WORKLOAD, 0..26));
    assert_eq!(plan.ledger(1), (WORKLOAD + 64, 26..51));
    assert_eq!(plan.ledger(3), (WORKLOAD + 192, 76..101));
}

#[test]
fn sharing_vcpus_have_entries_for_all_pages() {
    let plan = plan("phases:(seq)*9+(shared:0.5)*9,ws=400KiB", 64 << 20, 2).expect("fits");
    assert_eq!(plan.ledger(0), (WORKLOAD, 0..100));
    assert_eq!(plan.ledger(1), (WORKLOAD + 256, 0..100));
    assert_eq!(plan.gfn(0), Gfn(0x201));
}

#[test]
fn the_hole_is_stepped_over() {
    let memory = 5 * GIB;
    let plan = plan("uniform", memory, 2).expect("fits");
    assert_eq!(plan.end_gfn(), Gfn(memory / PAGE_SIZE + 64));
    let last_before = HOLE.start.0 - 1 - plan.gfn(0).0;
    assert_eq!(plan.gfn(last_before), Gfn(0xfedff));
    assert_eq!(plan.gfn(last_before + 1), Gfn(0xfee40));
    assert_eq!(plan.gfn(plan.ws().0 - 1), Gfn(plan.end_gfn().0 - 1));
    let [below, above] = plan.ws_frames();
    assert_eq!((below.end, above.start), (HOLE.start, HOLE.end));
    assert_eq!(below.end.0 - below.start.0 + above.end.0 - above.start.0, plan.ws().0);
    assert_eq!(plan.fill_frames(), plan.ws_frames());
}

#[test]
fn a_guest_that_ends_at_the_hole_has_nothing_behind_it() {
    let edge = plan("uniform", HOLE.start.0 * PAGE_SIZE, 1).expect("fits");
    assert_eq!(edge.end_gfn(), HOLE.start);
    assert!(edge.fill_frames()[1].is_empty());
    let one_more = plan("uniform", (HOLE.start.0 + 1) * PAGE_SIZE, 1).expect("fits");
    assert_eq!(one_more.end_gfn(), Gfn(HOLE.end.0 + 1));
    assert_eq!(one_more.fill_frames()[1], HOLE.end..Gfn(HOLE.end.0 + 1));
}

#[test]
fn what_does_not_fit_is_named() {
    let least = 2 * (1 << 20) + 2 * 4096;
    assert_eq!(plan("seq", least, 1).expect("just fits").ws(), Pages(1));
    assert_eq!(
        plan("seq", least - 4096, 1),
        Err(PlanError::MemoryTooSmall {
            memory: Bytes(least - 4096),
            needed: Bytes(least)
        })
    );
    assert_eq!(
        plan("seq", 0, 1),
        Err(PlanError::MemoryTooSmall {
            memory: Bytes(0),
            needed: Bytes(least)
        })
    );
    assert_eq!(plan("seq", 64 << 20, 0), Err(PlanError::Vcpus { asked: 0 }));
    assert_eq!(plan("seq", 64 << 20, 5), Err(PlanError::Vcpus { asked: 5 }));
    assert_eq!(
        plan("seq", 0x123_4567, 1),
        Err(PlanError::Unaligned {
            memory: Bytes(0x123_4567)
        })
    );
    assert!(plan("seq", MAX_MEMORY, 4).is_ok());
    for memory in [MAX_MEMORY + 4096, u64::MAX, !4095] {
        assert_eq!(
            plan("seq", memory, 1),
            Err(PlanError::MemoryTooLarge { memory: Bytes(memory) })
        );
    }
    assert_eq!(
        plan("seq,ws=64MiB", 64 << 20, 1),
        Err(PlanError::WorkingSetTooLarge {
            ws: Pages(16_384),
            most: Pages(15_864)
        })
    );
    assert_eq!(
        plan("seq,ws=8KiB", 64 << 20, 3),
        Err(PlanError::WorkingSetTooSmall {
            ws: Pages(2),
            least: Pages(3)
        })
    );
    assert_eq!(
        plan("phases:(seq,ws=8KiB)*1+(seq)*1", 64 << 20, 3),
        Err(PlanError::WorkingSetTooSmall {
            ws: Pages(2),
            least: Pages(3)
        })
    );
    assert_eq!(
        plan("phases:(seq)*1+(seq,ws=2MiB)*1,ws=1MiB", 64 << 20, 1),
        Err(PlanError::PhaseTooLarge {
            phase: Pages(512),
            ws: Pages(256)
        })
    );
}

#[test]
fn errors_say_what_to_do() {
    use std::string::ToString as _;

    let text = |result: Result<Plan, PlanError>| result.expect_err("does not fit").to_string();
    assert!(text(plan("seq", 1 << 20, 1)).contains("at least 2056 KiB"));
    assert!(text(plan("seq", 64 << 20, 9)).contains("ask for 1 to 4"));
    assert!(text(plan("seq,ws=1GiB", 64 << 20, 1)).contains("at most 63456 KiB"));
}

proptest! {
    #[test]
    fn nothing_overlaps_and_nothing_is_left_over(
        spec in specs(4),
        pages in 520u64..2000,
        far in prop_oneof![Just(0), Just(HOLE.start.0)],
        vcpus in 1u32..=4,
    ) {
        let memory = Bytes((pages + far) * PAGE_SIZE);
        let Ok(plan) = Plan::new(&spec, memory, vcpus) else { return Ok(()) };
        let mut end = WORKLOAD;
        for vcpu in 0..vcpus {
            let (start, entries) = plan.ledger(vcpu);
            prop_assert_eq!(start % 64, 0);
            prop_assert!(start >= end);
            end = start + 2 * (entries.end - entries.start);
            let part = plan.part(vcpu);
            prop_assert!(entries.start <= part.start && part.end <= entries.end);
        }
        prop_assert!(end <= plan.gfn(0).0 * PAGE_SIZE);
        prop_assert!(plan.gfn(plan.ws().0 - 1) < plan.end_gfn());
        let parts: Vec<u64> = (0..vcpus).flat_map(|vcpu| plan.part(vcpu)).collect();
        prop_assert_eq!(parts, (0..plan.ws().0).collect::<Vec<_>>());
        if spec.ws().is_none() {
            let more = spec.with_ws(Some(Pages(plan.ws().0 + 1)));
            let refused = PlanError::WorkingSetTooLarge { ws: Pages(plan.ws().0 + 1), most: plan.ws() };
            prop_assert_eq!(Plan::new(&more, memory, vcpus), Err(refused));
        }
    }

    #[test]
    fn frames_are_the_pages_in_order(pages in 1u64..300, beyond in 0u64..200) {
        let spec: Spec = "seq".parse().expect("a workload");
        let memory = Bytes((HOLE.start.0 + beyond) * PAGE_SIZE);
        let plan = Plan::new(&spec.with_ws(Some(Pages(pages))), memory, 1).expect("fits");
        let listed: Vec<u64> = plan.fill_frames().into_iter().flat_map(|frames| frames.start.0..frames.end.0).collect();
        prop_assert_eq!(listed.len() as u64, plan.memory().0 - plan.gfn(0).0);
        prop_assert!(listed.iter().all(|gfn| !HOLE.contains(&Gfn(*gfn))));
        let of_pages: Vec<u64> = (0..pages).map(|page| plan.gfn(page).0).collect();
        prop_assert_eq!(&listed[..of_pages.len()], &of_pages[..]);
    }

    #[test]
    fn a_part_never_shrinks_when_there_are_more_pages(pages in 0u64..5000, vcpus in 1u32..=4) {
        for vcpu in 0..vcpus {
            let (less, more) = (part(pages, vcpus, vcpu), part(pages + 1, vcpus, vcpu));
            prop_assert!(less.end - less.start <= more.end - more.start);
        }
    }
}

#[test]
fn fill_is_different_everywhere() {
    let boot = boot("idle", 1);
    let words: HashSet<u64> = (0..10_000)
        .map(|word| crate::workload::Fill::Random.word(boot.seed, word * 8))
        .collect();
    assert_eq!(words.len(), 10_000);
    let ones: u32 = words.iter().map(|word| word.count_ones()).sum();
    assert!((318_000..322_000).contains(&ones), "{ones} of 640 000 bits are set");
    assert_ne!(
        crate::workload::Fill::Random.word(1, 0),
        crate::workload::Fill::Random.word(2, 0)
    );
    assert_eq!(crate::workload::Fill::Zero.word(1, 8), 0);
}
