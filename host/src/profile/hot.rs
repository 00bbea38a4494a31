//! How unevenly events fall on pages.

use dunlin_core::units::PAGE_SIZE;

use crate::report::{HotPage, HotReport};

/// So many of the hottest pages are named.
const NAMED: usize = 20;

/// From the events of each page. O(pages), and 4 bytes for each page with an event.
pub(super) fn report(counts: &[u32]) -> HotReport {
    let mut events: Vec<u32> = counts.iter().copied().filter(|&count| count > 0).collect();
    events.sort_unstable_by(|one, other| other.cmp(one));
    let all: u64 = events.iter().map(|&count| u64::from(count)).sum();
    let of_hottest = |pages: usize| -> u64 { events[..pages].iter().map(|&count| u64::from(count)).sum() };
    let share = |parts: usize| (all > 0).then(|| milli(of_hottest(events.len().div_ceil(parts)), all));
    let half = || {
        let mut sum = 0;
        let before = events.iter().take_while(|&&count| {
            let is_less = 2 * sum < all;
            sum += u64::from(count);
            is_less
        });
        before.count() as u64
    };
    HotReport {
        pages: hottest(counts, events.get(NAMED - 1).copied().unwrap_or(1)),
        hottest_hundredth_milli: share(100),
        hottest_tenth_milli: share(10),
        pages_with_half: (all > 0).then(half),
    }
}

/// Those with the most events; none has fewer than `least`.
fn hottest(counts: &[u32], least: u32) -> Vec<HotPage> {
    let at_least = (0u64..).zip(counts).filter(|(_, count)| **count >= least);
    let mut pages: Vec<(u64, u32)> = Vec::new();
    for (gfn, &count) in at_least {
        // Many may have just as many: the lowest are named.
        if count > least || pages.iter().filter(|page| page.1 == least).count() < NAMED {
            pages.push((gfn, count));
        }
    }
    pages.sort_unstable_by_key(|&(gfn, count)| (std::cmp::Reverse(count), gfn));
    pages.truncate(NAMED);
    let named = pages.into_iter().map(|(gfn, count)| HotPage {
        gfn,
        address: gfn * PAGE_SIZE,
        events: count.into(),
    });
    named.collect()
}

fn milli(part: u64, whole: u64) -> u64 {
    // At most 1000.
    (u128::from(part) * 1000 / u128::from(whole)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_hottest_are_those_of_a_sorted_list(counts in vec(0..9u32, 0..300)) {
            let report = report(&counts);
            let mut sorted: Vec<(u64, u32)> = (0..).zip(counts.iter().copied()).filter(|page| page.1 > 0).collect();
            sorted.sort_by_key(|&(gfn, count)| (std::cmp::Reverse(count), gfn));
            let named: Vec<_> = report.pages.iter().map(|page| (page.gfn, page.events as u32)).collect();
            prop_assert_eq!(&named[..], &sorted[..sorted.len().min(NAMED)]);
            let all: u32 = sorted.iter().map(|page| page.1).sum();
            let sum = |pages: usize| sorted[..pages].iter().map(|page| page.1).sum::<u32>();
            let tenth = (sum(sorted.len().div_ceil(10)) * 1000).checked_div(all);
            prop_assert_eq!(report.hottest_tenth_milli, tenth.map(u64::from));
            prop_assert_eq!(report.pages_with_half.is_none(), all == 0);
            if let Some(half) = report.pages_with_half {
                prop_assert!(2 * sum(half as usize) >= all && 2 * sum(half as usize - 1) < all);
            }
        }
    }
}
