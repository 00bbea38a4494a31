//! Each machine alone, with a host that keeps its word and a peer that says anything at any time: no panic, no wrong decision,
//! and always a way out.

mod chaos;
mod said;
mod source;
mod target;

use dunlin_core::message::{Region, Regions};
use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, Pages};
use proptest::prelude::*;

/// Two neighbouring regions and one behind a hole.
const SHAPE: [(u64, u64); 3] = [(0, 70), (70, 26), (128, 20)];
const END: u64 = 148;

fn regions() -> Regions {
    let region = |&(first, pages): &(u64, u64)| Region {
        first: Gfn(first),
        pages: Pages(pages),
    };
    SHAPE.iter().map(region).collect()
}

fn is_in_one_region(run: Run) -> bool {
    let inside = |&(first, pages): &(u64, u64)| {
        run.first.0 >= first
            && run
                .first
                .0
                .checked_add(run.count.0)
                .is_some_and(|end| end <= first + pages)
    };
    run.count.0 > 0 && SHAPE.iter().any(inside)
}

/// Time that passes before something happens: mostly little, sometimes more than any patience, sometimes all there is.
fn pauses() -> impl Strategy<Value = u64> {
    prop_oneof![
        600 => Just(0u64),
        600 => 0..2_000_000u64,
        2 => 0..4_000_000_000u64,
        1 => Just(40_000_000_000),
        1 => Just(u64::MAX),
    ]
}

fn runs() -> impl Strategy<Value = Run> {
    let edges = prop_oneof![20 => 0..160u64, 1 => any::<u64>(), 1 => Just(u64::MAX)];
    let counts = prop_oneof![20 => 0..80u64, 1 => any::<u64>(), 1 => Just(u64::MAX)];
    (edges, counts).prop_map(|(first, count)| Run::new(Gfn(first), Pages(count)))
}
